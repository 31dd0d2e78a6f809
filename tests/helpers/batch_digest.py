"""A callback that writes a digest of every batch, and its loss, to a file."""

import hashlib
import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves


class BatchDigest(Callback):
    """Appends ``{"batch", "digest", "loss"}`` of every training step to ``file``.

    Needs: nothing. Changes: nothing.
    """

    needs = provides = frozenset()

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        digest = hashlib.sha256()
        # metrics hold seconds
        for leaf in tree_leaves({k: v for k, v in batch.items() if k != "metrics"}):
            if isinstance(leaf, Tensor):
                digest.update(leaf.detach().cpu().numpy().tobytes())
            elif isinstance(leaf, (int, float, str)):
                digest.update(repr(leaf).encode())
        line = {
            "batch": trainer.fit_loop.epoch_loop.total_batch_idx,
            "digest": digest.hexdigest(),
            "loss": repr(float(outputs["loss"])),
        }
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
