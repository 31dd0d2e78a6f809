"""Train with InfluenceRefresh in RANKS processes, to be killed at a place: FOLDER PLACE RANKS CKPT.

PLACE is ``collection``, ``scoring`` (of the second phase) or ``-``; CKPT a checkpoint or ``-``.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from killing_parts import EvenLength
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from quiet_trainer import quiet_trainer
from torch import Tensor

from callbacks import InfluenceRefresh
from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.scorer import Scorer


class Killed(InfluenceRefresh):
    """Kills the process when it has scored the prompts of the second phase."""

    def _best(self, scores: Tensor, data: Any) -> Tensor:
        if len(self._phases) == 1 and place == "scoring":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._best(scores, data)


folder, place, ranks, ckpt = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
seed_everything(3)
data = RolloutDataModule(
    PromptDataset(Arithmetic("train", size=60), columns=["answer"]),
    rewards=Scorer([EvenLength(100 if place == "collection" else -1)], workers=0),
    batch_size=6 // ranks,
    group_size=4,
    sampling=SamplingParams(5),
    steps_per_epoch=3,
    seed=5,
)
validation = PromptDataset(Arithmetic("validation", size=6, digits=1), columns=["answer"])
callback = Killed(
    {"sums": validation},
    2,
    fraction=0.25,
    validation_samples=4,
    dimensions=256,
    keep_ratio=1.0,
    samples_at_once=7,
    folder=str(folder / "trajectories"),
)
checkpoint = ModelCheckpoint(folder / "checkpoints", "{step}", save_top_k=-1, every_n_train_steps=1)
model = GRPO(
    ConfiguredLM(hidden_size=32, layers=1, heads=2),
    optimization=Optimization(learning_rate=1e-3),
    max_new_tokens=5,
)
trainer = quiet_trainer(
    max_epochs=2,
    callbacks=[callback, checkpoint],
    enable_checkpointing=True,
    devices=ranks,
    strategy="ddp" if ranks > 1 else "auto",
)
trainer.fit(model, data, ckpt_path=None if ckpt == "-" else ckpt)
end = {
    "weights": torch.cat([p.detach().flatten() for p in model.policy.parameters()]),
    "phases": callback._phases,
}
torch.save(end, folder / f"end-{trainer.global_rank}.pt")
