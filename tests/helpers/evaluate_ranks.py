"""Validate a classifier on 33 samples in RANKS processes, and write the metrics: FILE RANKS."""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from quiet_trainer import quiet_trainer
from torch.utils.data import TensorDataset

from lit_adaptive.data import AdaptiveDataModule
from lit_adaptive.modules import Classifier

file, ranks = Path(sys.argv[1]), int(sys.argv[2])
seed_everything(0)
samples = TensorDataset(torch.randn(33, 4), torch.arange(33) % 3)
# Of two ranks one has 17 samples, the other 16 and a last batch of padding only.
data = AdaptiveDataModule(samples, val_dataset=samples, eval_batch_size=16)
trainer = quiet_trainer(devices=ranks, strategy="ddp" if ranks > 1 else "auto")
(metrics,) = trainer.validate(Classifier(torch.nn.Linear(4, 3), 3), data, verbose=False)
if trainer.is_global_zero:
    file.write_text(json.dumps(metrics))
