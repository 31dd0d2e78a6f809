"""The newest state of a run, saved by time, at its end, and before a signal ends it."""

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from callbacks._run_files import run_directory

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_LEAST_RATIO = 20  # of the time between two saves to that of a save


class NewestCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, the newest state, beside the best one of ``ModelCheckpoint``.

    It is saved after the warm-up of the other callbacks if that was long, after an optimizer step
    whenever ``interval`` has passed, and at the end. SIGINT, SIGTERM and SIGHUP end the run after
    the current step (or validation), saved, with exit status 128 + signal; a second one ends it at
    once. Under SLURM, SIGTERM is left to Lightning. A resumed run remembers the best checkpoint of
    the run it continues, while its file exists.

    Needs: nothing.
    Changes: nothing.

    Args:
        dirpath: folder of ``last.ckpt``; by default ``checkpoints`` in the run's directory.
        interval: seconds between two saves, at least 0; at least twenty times what a save takes.

    Raises:
        ValueError: if ``interval`` is negative.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def __init__(self, dirpath: str | None = None, interval: float = 60.0) -> None:
        if not interval >= 0:
            raise ValueError(f"interval is {interval}; seconds between saves are at least 0")
        self.dirpath = dirpath
        self.interval = interval
        self.path: Path | None = None
        self._last_global_step_saved = -1  # the name that ModelCheckpoint has
        self._step = 0
        self._saved_at = 0.0
        self._save_seconds = 0.0
        self._signal: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder."""
        folder = Path(self.dirpath) if self.dirpath else run_directory(trainer) / "checkpoints"
        self.path = Path(trainer.strategy.broadcast(folder / "last.ckpt"))
        self._saved_at = time.monotonic()

    # Saving --------------------------------------------------------------------------------------

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run or self._last_global_step_saved == trainer.global_step:  # type: ignore[attr-defined]
            return
        started = time.monotonic()
        for logger in trainer.loggers:
            logger.save()  # so that the metrics are as new as the state
        self._last_global_step_saved = trainer.global_step
        trainer.save_checkpoint(str(self.path))
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - started

    def _proceed(self, trainer: Trainer) -> None:
        """Save if it is due, and end the run, with 128 + signal, if a signal has come."""
        elapsed = time.monotonic() - self._saved_at
        due = elapsed >= max(self.interval, _LEAST_RATIO * self._save_seconds)
        reduce = trainer.strategy.reduce_boolean_decision
        if not reduce(due or self._signal is not None, all=False):
            return
        self._save(trainer)
        if reduce(self._signal is not None, all=False):
            number = int(trainer.strategy.broadcast(self._signal or signal.SIGTERM))
            where = "" if trainer.fast_dev_run else f"; the state is in {self.path}"  # type: ignore[attr-defined]
            rank_zero_info(f"{signal.Signals(number).name}: stopped{where}")
            raise SystemExit(128 + number)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a long warm-up, which the other callbacks have finished."""
        self._step = trainer.global_step
        self._install_handlers()  # over those that Lightning has installed meanwhile
        self._proceed(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save after an optimizer step if it is due; between steps gradients are accumulated."""
        loop: Any = trainer.fit_loop  # what follows has no public name in Lightning
        # A state of before a validation would resume behind it: its metrics would be missing.
        validates = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if trainer.global_step != self._step and not validates:
            self._step = trainer.global_step
            self._proceed(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if it is due, behind the saves of the callbacks before."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._proceed(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        self._save(trainer)

    # Signals -------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals."""
        self._install_handlers()

    def _install_handlers(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is None or (name == "SIGTERM" and SLURMEnvironment.detect()):
                continue
            self._previous_handlers.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise SystemExit(128 + number)
        self._signal = number
        name = signal.Signals(number).name
        print(f"{name}: saving after this step; once more to stop at once", flush=True)

    def _restore_handlers(self, trainer: Trainer) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)
        # Lightning has seen ours as the original ones, and restores what it has seen.
        connector: Any = getattr(trainer, "_signal_connector")  # noqa: B009
        connector._original_handlers.update(self._previous_handlers)
        self._previous_handlers = {}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._restore_handlers(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._restore_handlers(trainer)

    # Resuming ------------------------------------------------------------------------------------

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the callbacks of Lightning take over a best checkpoint in another run's folder."""
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                best = state["best_model_path"]
                if best and Path(best).exists():
                    state["dirpath"] = callback.dirpath
