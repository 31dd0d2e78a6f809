"""Checkpoints that are written whole or not at all, and runs that continue from them."""

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_adaptive.files import write_atomically
from lit_adaptive.sharded import METADATA


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a local checkpoint beside its path and renames it when it is on the disk.

    Lightning writes into the folder of temporary files and copies, which another filesystem, a full
    disk or a signal can interrupt.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; remote paths are left to Lightning."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with write_atomically(path) as temporary:
            torch.save(checkpoint, temporary)


class AtomicTrainer(Trainer):
    """A Trainer whose checkpoints, folders of shards included, get their names last."""

    def save_checkpoint(
        self, filepath: Any, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Save under a temporary name, then rename; on every rank."""
        weights_only = bool(weights_only)  # Lightning reports None at each save
        path = str(self.strategy.broadcast(str(filepath)))
        if "://" in path:
            super().save_checkpoint(path, weights_only, storage_options)
            return
        # FSDP strategies write shards themselves, without this plugin.
        strategy: Any = self.strategy
        if type(strategy._checkpoint_io) in (type(None), TorchCheckpointIO):
            strategy._checkpoint_io = AtomicCheckpointIO()
        temporary = Path(f"{path}.partial")
        if self.is_global_zero:
            _remove(temporary)
        self.strategy.barrier()
        try:
            super().save_checkpoint(str(temporary), weights_only, storage_options)
            if self.is_global_zero:
                _replace(temporary, Path(path))
        finally:
            if self.is_global_zero:
                _remove(temporary)
        self.strategy.barrier()


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _replace(source: Path, target: Path) -> None:
    """Rename a file or folder over another one, after its content is on the disk."""
    if source.is_dir():
        for file in source.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
    if target.is_dir() or (source.is_dir() and target.exists()):
        old = target.with_name(target.name + ".old")  # a folder cannot be replaced at once
        _remove(old)
        target.rename(old)
        source.rename(target)
        _remove(old)
    else:
        source.replace(target)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(target.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the new name too
        finally:
            os.close(folder)


def newest_checkpoint(runs: Path) -> Path | None:
    """The newest ``last*.ckpt`` of the runs in a folder, complete; None if there is none."""
    complete = [path for path in runs.glob("*/checkpoints/last*.ckpt") if _is_complete(path)]
    return max(complete, key=_modified, default=None)


def best_checkpoint(checkpoint: Path) -> Path | None:
    """The best checkpoint by a monitor when ``checkpoint`` was saved; None if there is none."""
    for state in _load_state(checkpoint)["callbacks"].values():
        if isinstance(state, dict) and state.get("best_model_score") is not None:
            best = Path(state["best_model_path"])
            best = best if best.exists() else checkpoint.with_name(best.name)  # the run was moved
            return best if best.exists() else None
    return None


def _load_state(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint, or what a sharded one holds beside the shards."""
    file = checkpoint / METADATA if checkpoint.is_dir() else checkpoint
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return state


def _is_complete(path: Path) -> bool:
    return (path / METADATA).is_file() if path.is_dir() else path.stat().st_size > 0


def _modified(path: Path) -> int:
    return (path / METADATA if path.is_dir() else path).stat().st_mtime_ns


def continue_metrics(checkpoint: Path, logger: CSVLogger) -> None:
    """Begin ``metrics.csv`` with the rows of the run that a checkpoint continues.

    Rows that the resumed run logs again are left out: those of steps behind the checkpoint, and
    the one that ``ResumedMetrics`` restores. So is a last line that a kill has cut short.
    """
    metrics = checkpoint.parent.parent / "metrics.csv"
    if not metrics.is_file() or not logger.experiment:
        return
    state = _load_state(checkpoint)
    steps, pending = int(state["global_step"]), state.get(ResumedMetrics.PENDING) or {}
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    filled = [{k: v for k, v in row.items() if v} for row in rows]
    logger.experiment.metrics = [
        row
        for row in filled
        if int(row["step"]) < steps
        and not (pending and int(row["step"]) == pending["step"] and pending.keys() <= row.keys())
    ]
    logger.save()


class ResumedMetrics(Callback):
    """Saves the metrics that Lightning leaves out of a checkpoint, and restores them.

    They are the last value of each, which ``EarlyStopping`` and ``ModelCheckpoint`` monitor at the
    end of an epoch, and those of the step or epoch that ends, which reach the loggers only after
    the hooks in which checkpoints are saved.

    Needs: nothing.
    Changes: nothing.
    """

    PENDING = "pending_metrics"
    """Key of a checkpoint: metrics not logged yet, with their ``step`` and ``epoch``; or none."""

    needs = provides = frozenset[str]()

    def __init__(self) -> None:
        self._monitored: dict[str, Tensor] = {}
        self._pending: dict[str, Any] = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the last value of each metric, and what is still to be logged."""
        # What follows has no public name in Lightning.
        connector: Any = getattr(trainer, "_logger_connector")  # noqa: B009
        loop: Any = trainer.fit_loop
        checkpoint["callback_metrics"] = {
            name: torch.as_tensor(value).detach().cpu().clone()
            for name, value in trainer.callback_metrics.items()
        }
        within_epoch = connector._first_loop_iter is not None
        logs = trainer.training and (
            not within_epoch or (connector.should_update_logs and not loop._should_accumulate())
        )
        metrics = connector.metrics["log"] if logs else {}
        checkpoint[self.PENDING] = metrics and {
            "epoch": trainer.current_epoch,
            "step": loop.epoch_loop._batches_that_stepped - (not within_epoch),
            **{name: float(value) for name, value in metrics.items()},
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read them."""
        self._monitored = checkpoint.get("callback_metrics", {})
        self._pending = dict(checkpoint.get(self.PENDING) or {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the values, and log what the run before was about to log."""
        connector: Any = getattr(trainer, "_logger_connector")  # noqa: B009
        connector._callback_metrics.update(self._monitored)
        if self._pending:
            step = int(self._pending.pop("step"))
            for logger in trainer.loggers:
                logger.log_metrics(dict(self._pending), step)
        self._monitored, self._pending = {}, {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let ``ReduceLROnPlateau`` see this epoch too.

        Lightning leaves it out after a resumption, because it has no metrics then.
        """
        loop: Any = trainer.fit_loop
        loop._restarting = False


class ResumedOptions(Callback):
    """Lets options of optimizers, schedulers and ``EarlyStopping`` win over a checkpoint's.

    Lightning restores them with the state. Those that differ between the config that wrote the
    checkpoint and this one are set anew; a learning rate under a schedule is scaled. Another
    optimizer or scheduler, which cannot go on with that state, is refused.

    Needs: nothing.
    Changes: options of optimizers and schedulers in a resumed run.
    """

    needs = provides = frozenset[str]()

    def __init__(self) -> None:
        self._configured: list[list[dict[str, Any]]] = [[], []]
        self._saved: list[list[dict[str, Any]]] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the configured options; the state is restored behind this hook."""
        groups = [group for each in trainer.optimizers for group in each.param_groups]
        states = [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs]
        self._configured = [
            [{**_primitives(group), "lr": _base_rate(group)} for group in groups],
            [_primitives(state) for state in states],
        ]
        if self._saved is not None:
            _check_same_options(self._saved[0], self._configured[0], "optimizer")
            _check_same_options(self._saved[1], self._configured[1], "learning-rate schedule")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the configured options and the number of processes."""
        checkpoint["configured_options"] = self._configured
        checkpoint["world_size"] = trainer.world_size

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the options that the checkpoint's run was configured with.

        Warns if it had another number of processes.
        """
        ranks = checkpoint.get("world_size", trainer.world_size)
        if ranks != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint's run had {ranks} processes, this one has {trainer.world_size}: "
                "each step now takes "
                f"{trainer.world_size / ranks:g} times as many samples, because data.batch_size is "
                "that of a process. Resume with the same trainer.devices, or change batch_size or "
                "accumulate_grad_batches to match"
            )
        self._saved = checkpoint.get("configured_options")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if isinstance(callback, EarlyStopping) and state is not None:
                state["patience"] = callback.patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the options that have changed."""
        if self._saved is None:
            return
        groups = [group for each in trainer.optimizers for group in each.param_groups]
        for group, saved, new in zip(groups, self._saved[0], self._configured[0], strict=False):
            for name in _changed(saved, new):
                if name != "lr" or group["lr"] == saved["lr"]:
                    group[name] = new[name]
                else:
                    group["lr"] *= new["lr"] / saved["lr"]
                if name == "lr" and "initial_lr" in group:
                    group["initial_lr"] = new["lr"]
        schedulers = [each.scheduler for each in trainer.lr_scheduler_configs]
        for scheduler, saved, new in zip(
            schedulers, self._saved[1], self._configured[1], strict=False
        ):
            for name in _changed(saved, new):
                setattr(scheduler, name, new[name])


def _check_same_options(saved: list[dict[str, Any]], new: list[dict[str, Any]], what: str) -> None:
    """Reject an optimizer or scheduler whose options have other names than those saved."""
    names = [[sorted(options) for options in each] for each in (saved, new)]
    if names[0] != names[1]:
        there, here = (
            ", ".join(sorted({name for options in each for name in options})) or "there is none"
            for each in names
        )
        raise ValueError(
            f"the checkpoint's run had another {what} (options there: {there}; here: {here}), with "
            "whose state this one cannot go on: resume with the same, or begin a new run"
        )


def _base_rate(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))


def _changed(saved: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [name for name in new if name in saved and saved[name] != new[name]]


def _primitives(state: dict[str, Any]) -> dict[str, Any]:
    """Options of an optimizer's group or a scheduler: numbers, texts, and lists of them."""
    left_out = ("params", "initial_lr", "_last_lr")
    return {
        name: value
        for name, value in state.items()
        if name not in left_out and _is_primitive(value)
    }


def _is_primitive(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_primitive(each) for each in value)
    return value is None or isinstance(value, (bool, int, float, str))
