"""Time that a run has taken."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class RunClock(Callback):
    """Logs ``train/seconds``: wall-clock since the start of the run, without validation.

    Warm-ups, collection, selection and everything else of a run is in it, and what it had taken
    before it was resumed.

    Needs: nothing.
    Changes: nothing.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None  # the clock runs

    def _stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def _start(self) -> None:
        self._since = time.perf_counter()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start."""
        self._start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the time."""
        self._stop()
        self._start()
        pl_module.log("train/seconds", self.seconds, rank_zero_only=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self._stop()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the time beside the validation's metrics."""
        if trainer.state.fn == TrainerFn.FITTING:
            pl_module.log("train/seconds", self.seconds, rank_zero_only=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on."""
        self._start()

    def state_dict(self) -> dict[str, Any]:
        """The time so far."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return {"seconds": self.seconds + running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a run's time."""
        self.seconds += state_dict["seconds"]
