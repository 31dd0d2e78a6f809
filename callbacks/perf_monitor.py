"""Speed of a training, and where its time goes."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ThroughputMonitor


class PerfMonitor(ThroughputMonitor):
    """Logs samples and tokens per second, the share of the device's peak, and seconds by purpose.

    ``train/device/*`` are those of Lightning's ``ThroughputMonitor``, over the last ``window_size``
    batches: ``samples_per_sec``; of language models ``items_per_sec``, which are trained tokens;
    and on GPUs that Lightning knows ``mfu``, the share of their peak that the forward and backward
    passes of the training batches use (6 FLOPs per parameter and token, 4 if it is frozen, padding
    included; generation takes time, but its FLOPs are not counted).

    ``train/seconds/*`` divide the time between the ends of two batches without validation:
    ``generation`` and ``rewards`` of rollouts, ``training`` (forward and backward passes, and the
    optimizer), and ``other`` (selection and all other callbacks, data, logging). ``lit-adaptive
    report`` shows their shares.

    Needs: nothing.
    Changes: its own place among the callbacks, which becomes the first.

    Args:
        window_size: batches over which rates are averaged, above 1.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def __init__(self, window_size: int = 10) -> None:
        if window_size < 2:
            raise ValueError(f"window_size is {window_size}; it must be above 1")
        super().__init__(_samples, _tokens, window_size=window_size, separator="/")
        self._began = self._ended = self._paused = 0.0
        self._flops_per_token = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Become the first callback, so that the others' time is not counted as training."""
        super().setup(trainer, pl_module, stage)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.remove(self)
        callbacks.insert(0, self)

    def on_train_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Count the parameters, and start the clock."""
        super().on_train_start(trainer, *arguments)
        parameters = trainer.lightning_module.parameters()
        self._flops_per_token = sum((6 if p.requires_grad else 4) * p.numel() for p in parameters)
        self._ended = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch is there."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Log."""
        now = time.perf_counter()
        metrics = batch.get("metrics", {})
        generation = metrics.get("seconds/generation", 0.0)
        rewards = metrics.get("reward_fn/seconds", 0.0)
        waited = self._began - self._ended
        seconds = {"training": now - self._began, "other": max(waited - generation - rewards, 0.0)}
        if "metrics" in batch:
            seconds["rewards"] = rewards  # the module logs that of generation
        pl_module.log_dict({f"train/seconds/{name}": value for name, value in seconds.items()})
        padded = batch["input_ids"].numel() if "input_ids" in batch else None
        flops = padded and self._flops_per_token * padded
        pl_module.flops_per_batch = flops  # type: ignore[assignment]
        super().on_train_batch_end(trainer, pl_module, outputs, batch)
        self._ended = now

    def on_validation_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Stop the clock."""
        super().on_validation_start(trainer, *arguments)
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Go on."""
        super().on_validation_end(trainer, *arguments)
        self._ended += time.perf_counter() - self._paused


def _samples(batch: Any) -> int:
    return len(batch["reward"] if "reward" in batch else batch["index"])


def _tokens(batch: Any) -> int:
    """Trained tokens of a language model's batch; else samples."""
    return len(batch["target"]) if "input_ids" in batch else _samples(batch)
