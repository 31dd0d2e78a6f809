"""Callback, datasets and module of the runs that tests start, kill, resume and compare."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset

from lit_adaptive.data import LongTailedDigits


class Recorder(Callback):
    """Writes the draws and weights of every step, and the final state, to a file per rank.

    Needs: nothing. Changes: nothing.
    """

    def __init__(self, folder: str, kill_at: int = -1) -> None:
        self.folder = Path(folder)
        self.kill_at = kill_at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {
            "batch": trainer.fit_loop.epoch_loop.total_batch_idx,
            "index": batch["index"].tolist(),
            "probability": batch["probability"].tolist(),
            "weight": batch["weight"].tolist(),
            "loss": float(outputs["loss"]),
        }
        with (self.folder / f"steps-{trainer.global_rank}.jsonl").open("a") as out:
            out.write(json.dumps(line) + "\n")
            out.flush()
        if line["batch"] == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = {
            "parameters": _full_tensors(pl_module.state_dict()),
            "data": trainer.datamodule.state_dict(),
            "callbacks": {
                type(callback).__name__: callback.state_dict()
                for callback in trainer.callbacks
                if type(callback).__module__.startswith("callbacks")
            },
        }
        torch.save(state, self.folder / f"end-{trainer.global_rank}.pt")


def _full_tensors(parameters: dict[str, Any]) -> dict[str, Tensor]:
    full: dict[str, Tensor] = {}
    for name, value in parameters.items():
        tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
        full[name] = tensor.detach().clone()
    return full


class Line(Dataset[dict[str, Tensor]]):
    """Points on a line with noise of increasing strength."""

    def __init__(self, size: int = 97) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(size, 3, generator=generator)
        noise = torch.randn(size, generator=generator) * torch.linspace(0, 3, size)
        self.y = self.x.sum(1) + noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


class Jittered(Dataset[dict[str, Any]]):
    """Digits with noise from the generators of torch, NumPy and Python, as in augmentation."""

    def __init__(self) -> None:
        self.digits = LongTailedDigits("train")
        self.targets = self.digits.targets

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.digits[index]
        noise = torch.randn(1) + np.random.randn() + random.random()  # noqa: NPY002
        return {**item, "input": item["input"] + 0.1 * noise.float()}


class Regression(LightningModule):
    """Weighted least squares with the per-sample error as TD error."""

    needs = frozenset({"batch.x", "batch.y", "batch.weight"})
    provides = frozenset({"signal.td_error"})

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        error = batch["y"] - self.net(batch["x"]).squeeze(1)
        return {"loss": (batch["weight"] * error.square()).mean(), "td_error": error.detach()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)
