"""Train a classifier with clipped gradients: STRATEGY RANKS STEPS FOLDER CHECKPOINT.

CHECKPOINT is a path or '-'. Writes the losses that rank 0 logged and the whole parameters at the
end (``run.pt``), the last state (``last.ckpt``), and the draws of each rank.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from quiet_trainer import quiet_trainer
from recorder import Recorder, _full_tensors
from torch.utils.data import TensorDataset

from lit_adaptive.data import AdaptiveDataModule
from lit_adaptive.modules import Classifier

GLOBAL_BATCH = 16


class Logged(Callback):
    """Keeps ``train/loss`` of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def classification(batch_size: int) -> tuple[Any, Any]:
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    data = AdaptiveDataModule(TensorDataset(inputs, torch.arange(64) % 3), batch_size=batch_size)
    return Classifier(torch.nn.Linear(4, 3), 3, learning_rate=0.1), data


strategy, ranks, steps, folder, checkpoint = sys.argv[1:6]
seed_everything(5)
module, data = classification(GLOBAL_BATCH // int(ranks))
logged = Logged()
sharded = ModelParallelStrategy(data_parallel_size=int(ranks), tensor_parallel_size=1)
trainer = quiet_trainer(
    devices=int(ranks),
    strategy=sharded if strategy == "fsdp2" else strategy,
    max_steps=int(steps),
    gradient_clip_val=0.05,
    log_every_n_steps=1,
    limit_val_batches=0,
    callbacks=[logged, Recorder(folder)],
)
trainer.fit(module, data, ckpt_path=None if checkpoint == "-" else checkpoint)
trainer.save_checkpoint(f"{folder}/last.ckpt")
end = {"losses": logged.losses, "parameters": _full_tensors(module.state_dict())}
if trainer.is_global_zero:
    torch.save(end, Path(folder) / "run.pt")
