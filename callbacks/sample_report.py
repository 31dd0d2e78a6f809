"""A picture and a table of what the sampler did, in the run's directory."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.functional import pad

from callbacks._shared import gather_over_ranks
from lit_adaptive.report.samples import (
    BINS,
    SampleRecord,
    draw_sample_report,
    law_histogram,
    write_sample_table,
)

MOST_SNAPSHOTS = 512
"""When there are more, every second is dropped: a long run's checkpoint stays small."""

PENDING = 64
"""Batches whose results wait where they are, to be counted all at once."""


class SampleReport(Callback):
    """Draws ``sample_report.png`` and writes ``samples.csv`` when training ends or breaks off.

    The picture: draws by class, draws against the last loss, the sampler's law over time, and the
    hardest and most drawn samples as images, texts or numbers. The table: every sample's class,
    draws, last loss and relative probability N P(i). Both go where the CSV logger writes, and the
    picture to every ``WandbLogger`` as ``sample_report``.

    It counts what was served to the training step of all ranks; after a selector such as
    ``OHEMSelector`` that is what it let through. The class is ``batch["target"]``, where that is
    ``[B]`` integers; for samples never drawn, the dataset's ``targets``, if it has them. Items that
    are shown are read from ``trainer.datamodule.dataset``, and the random state is put back
    afterwards. A checkpoint holds 16 bytes for each sample.

    Needs: ``data.sampler``; ``batch.index`` ``[B]``; ``training_step`` returns ``signal.losses``
    ``[B]``.
    Changes: nothing.

    Args:
        every_n_epochs: also write ``sample_report-epoch=K.png`` at the end of every so many epochs
            (K counts from 0, as checkpoints' names do); 0: only at the end.
        examples: how many of the hardest and of the most drawn samples to show, in [0, 64].
    """

    needs = frozenset({"data.sampler", "batch.index", "signal.losses"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "signal.losses": "choose a module whose training_step returns 'losses' [B], "
        "such as lit_adaptive.modules.Classifier",
    }

    def __init__(self, every_n_epochs: int = 0, examples: int = 8) -> None:
        if every_n_epochs < 0:
            raise ValueError(f"every_n_epochs is {every_n_epochs}; it must be above 0, or 0: never")
        if not 0 <= examples <= 64:
            raise ValueError(f"examples is {examples}; it must lie in [0, 64]")
        self.every_n_epochs = every_n_epochs
        self.examples = examples
        self._draws = torch.zeros(0, dtype=torch.int32)
        self._last_loss = torch.zeros(0, dtype=torch.float32)
        self._target = torch.zeros(0, dtype=torch.int64)
        self._epochs: list[int] = []
        self._histograms: list[Tensor] = []
        self._stride = 1
        self._pending: list[dict[str, Tensor]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make room for every sample, or see that there is room already."""
        if stage != "fit":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "sampler"):
            raise ValueError(
                f"the trainer's datamodule is {data!r}, which has no sampler to report on: "
                "use one such as lit_adaptive.data.AdaptiveDataModule"
            )
        size: int = data.sampler.size
        if len(self._draws) == 0:
            self._draws = torch.zeros(size, dtype=torch.int32)
            self._last_loss = torch.full((size,), float("nan"))
            self._target = torch.full((size,), -1)
        elif len(self._draws) != size:
            raise ValueError(
                f"this SampleReport has counted draws of {len(self._draws)} samples, and the "
                f"sampler here draws from {size}: resume with the same dataset, or start a new one"
            )

    # ------------------------------------------------------------------------- recording

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See the law, if it was not: resumed after an epoch's last batch, no other hook tells."""
        if not self._epochs or self._epochs[-1] < trainer.current_epoch:
            self._snapshot(trainer, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See the law before the epoch, when all callbacks are done with the last one."""
        self._snapshot(trainer, trainer.current_epoch)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Count the draws, remember losses and classes, of all ranks."""
        index: Tensor = batch["index"]
        losses: Tensor = outputs["losses"].detach()
        if losses.shape != index.shape:
            raise ValueError(
                f"training_step's 'losses' have the shape {list(losses.shape)} and the batch's "
                f"index {list(index.shape)}; return one loss for each sample, [B]"
            )
        found = {"index": index, "losses": losses, "target": _classes(batch.get("target"), index)}
        if trainer.world_size > 1 and "scored" in batch:
            # A selector lets through more here and less there, but it scored as many everywhere.
            missing = len(batch["scored"]["index"]) - len(index)
            found = {key: pad(value, (0, missing), value=-1) for key, value in found.items()}
        found = gather_over_ranks(found, trainer, pl_module)
        # Copied, as what a compiled step returned may be written to again; looked at many at a
        # time, as on an accelerator each look would wait for it.
        self._pending.append({key: value.clone() for key, value in found.items()})
        if len(self._pending) >= PENDING:
            self._absorb()

    def _absorb(self) -> None:
        """Write what is pending into the counts, in the order in which it came."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        index, losses, target = (
            torch.cat([one[key] for one in pending]).cpu() for key in ("index", "losses", "target")
        )
        served = index >= 0  # the others are a padding
        index, losses, target = index[served], losses[served], target[served]
        self._draws.index_add_(0, index, torch.ones_like(index, dtype=torch.int32))
        # NumPy promises that of an index given twice the last counts; torch does not.
        rows = index.numpy()
        self._last_loss.numpy()[rows] = losses.float().numpy()
        self._target.numpy()[rows] = target.numpy()

    def _snapshot(self, trainer: Trainer, epochs: int) -> None:
        """Keep the law after so many epochs; the latest always, of the others every stride-th."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        while self._epochs and (self._epochs[-1] >= epochs or self._epochs[-1] % self._stride):
            self._epochs.pop()
            self._histograms.pop()
        self._epochs.append(epochs)
        self._histograms.append(law_histogram(data.sampler.probabilities()))
        if len(self._epochs) > MOST_SNAPSHOTS:
            self._stride *= 2
            kept = [i for i, at in enumerate(self._epochs[:-1]) if at % self._stride == 0]
            kept.append(len(self._epochs) - 1)
            self._epochs = [self._epochs[i] for i in kept]
            self._histograms = [self._histograms[i] for i in kept]

    def state_dict(self) -> dict[str, Any]:
        """Counts, losses, classes and the law's histograms, copied; equal on every rank."""
        self._absorb()
        return {
            "draws": self._draws.clone(),
            "last_loss": self._last_loss.clone(),
            "target": self._target.clone(),
            "epochs": torch.tensor(self._epochs, dtype=torch.int64),
            "histogram": self._histogram().clone(),
            "stride": self._stride,
        }

    def _histogram(self) -> Tensor:
        if not self._histograms:
            return torch.zeros(0, BINS + 1, dtype=torch.int64)
        return torch.stack(self._histograms)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting.

        Raises:
            ValueError: if the state counts another number of samples, or is damaged; nothing
                changes then.
        """
        draws: Tensor = state_dict["draws"]
        if len(draws) == 0:
            return  # saved before there was anything to count
        if len(self._draws) not in (0, len(draws)):
            raise ValueError(
                f"the state's draws are of {len(draws)} samples, and the sampler here draws from "
                f"{len(self._draws)}: resume with the same dataset. Nothing was changed"
            )
        epochs, histogram = state_dict["epochs"], state_dict["histogram"]
        SampleRecord(  # refuses lengths that do not fit together
            draws, state_dict["last_loss"], state_dict["target"], draws, epochs, histogram
        )
        self._draws, self._pending = draws.clone(), []
        self._last_loss = state_dict["last_loss"].clone()
        self._target = state_dict["target"].clone()
        self._epochs, self._histograms = epochs.tolist(), list(histogram.clone())
        self._stride = int(state_dict["stride"])

    # ------------------------------------------------------------------------- reporting

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See the law after the epoch; draw if it is time."""
        epoch = trainer.current_epoch
        self._snapshot(trainer, epoch + 1)
        if self.every_n_epochs and (epoch + 1) % self.every_n_epochs == 0:
            self._report(trainer, f"sample_report-epoch={epoch}.png")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See the law once more, when all callbacks are done with the last epoch."""
        self._snapshot(trainer, max(trainer.current_epoch, *self._epochs[-1:], 0))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the whole run."""
        self._report(trainer, "sample_report.png", table=True)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Draw what there is. No rank is asked for anything: after an exception none may answer."""
        try:
            self._absorb()
            if self._draws.any():
                self._report(trainer, "sample_report.png", table=True)
        except Exception as error:  # the exception that ended the run matters more than this one
            warnings.warn(f"no sample report could be drawn: {error!r}", stacklevel=2)

    def _report(self, trainer: Trainer, name: str, *, table: bool = False) -> None:
        if not trainer.is_global_zero:
            return
        self._absorb()
        wandb = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        with _folder(trainer, needed=bool(wandb)) as folder:
            if folder is None:
                return
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            dataset: Any = getattr(data, "dataset", None)
            record = self._record(data.sampler.probabilities(), dataset)
            if table:
                write_sample_table(record, folder / "samples.csv")
            with isolate_rng():  # reading an item may throw dice
                draw_sample_report(
                    record,
                    folder / name,
                    title=f"{folder.parent.name} / {folder.name}",
                    examples=self.examples,
                    fetch=None if dataset is None else dataset.__getitem__,
                )
            for logger in wandb:
                logger.log_image(
                    key="sample_report", images=[str(folder / name)], step=trainer.global_step
                )

    def _record(self, law: Tensor, dataset: Any) -> SampleRecord:
        return SampleRecord(
            draws=self._draws,
            last_loss=self._last_loss,
            target=_filled_in(self._target, dataset),
            relative_probability=law.detach().cpu() * len(law),
            epochs=torch.tensor(self._epochs, dtype=torch.int64),
            histogram=self._histogram(),
        )


def _classes(target: Any, index: Tensor) -> Tensor:
    """The batch's classes ``[B]`` int64, or -1 where what it has is no class."""
    if not isinstance(target, Tensor) or target.shape != index.shape:
        return torch.full_like(index, -1)
    if target.is_floating_point() or target.is_complex():
        return torch.full_like(index, -1)
    return target.detach().to(index.device, torch.int64)


def _filled_in(target: Tensor, dataset: Any) -> Tensor:
    """``target`` with the dataset's own where it is unknown, if the two agree where it is known."""
    try:
        own = _classes(torch.as_tensor(dataset.targets), target)
    except Exception:  # many datasets have none, or none of this form
        return target
    known = target >= 0
    agree = own[known].equal(target[known])
    return torch.where(known, target, own) if agree else target


@contextmanager
def _folder(trainer: Trainer, *, needed: bool) -> Generator[Path | None]:
    """The CSV logger's directory, or a passing one if it is needed, or None."""
    for logger in trainer.loggers:
        # Not trainer.log_dir: that asks all ranks, and after an exception none may answer.
        if isinstance(logger, CSVLogger):
            folder = Path(logger.log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            return
    if not needed:
        yield None
        return
    with TemporaryDirectory() as passing:
        yield Path(passing)
