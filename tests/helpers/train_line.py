"""Train on ``Line``: ``train_line.py FOLDER WORKERS KILL_AT CHECKPOINT DEVICES``.

KILL_AT is a batch number or -1; CHECKPOINT is a path or '-'.
"""

import sys

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from recorder import Line, Recorder, Regression

from callbacks import BetaAnneal, PriorityRefresh
from lit_adaptive.data import AdaptiveDataModule
from lit_adaptive.samplers import PrioritizedSampler

if __name__ == "__main__":
    folder, workers, kill_at, checkpoint, devices = sys.argv[1:6]
    seed_everything(3)
    data = AdaptiveDataModule(
        Line(),
        PrioritizedSampler,
        batch_size=8,
        num_workers=int(workers),
        beta=0.4,
        normalize="batch",
    )
    saver = ModelCheckpoint(
        f"{folder}/checkpoints", every_n_train_steps=3, save_last=True, save_top_k=-1
    )
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=int(devices),
        strategy="ddp" if int(devices) > 1 else "auto",
        use_distributed_sampler=False,
        accumulate_grad_batches=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PriorityRefresh(), BetaAnneal(), Recorder(folder, int(kill_at)), saver],
    )
    trainer.fit(Regression(), data, ckpt_path=None if checkpoint == "-" else checkpoint)
