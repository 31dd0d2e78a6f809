"""A figure and a table of the sampler's draws, in the run's directory."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.functional import pad

from callbacks._ranks import gather_over_ranks
from callbacks._run_files import csv_logger, image_loggers, log_image
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.report.samples import (
    BINS,
    SampleRecord,
    draw_sample_report,
    probability_histogram,
    write_sample_table,
)

MAX_SNAPSHOTS = 512
"""Above it every second snapshot is dropped, which keeps the checkpoints of long runs small."""

MAX_PENDING = 64
"""Batches whose results stay on their device before they are counted together."""


class SampleReport(Callback):
    """Draws ``sample_report.png`` and writes ``samples.csv`` when training ends or fails.

    The figure shows draws by class, draws against the last loss, the sampling distribution over
    time, and the hardest and most drawn samples as images, texts or numbers. The table has every
    sample's class, draws, last loss and relative probability N P(i). Both go into the CSV logger's
    directory, and the figure to every ``WandbLogger`` and ``TensorBoardLogger``.

    Samples are counted as the training step of each rank gets them, after a selector such as
    ``OHEMSelector``. Their class is ``batch["target"]`` if that is ``[B]`` integers; for samples
    never drawn, the dataset's ``targets`` if it has them. Its name is that of the dataset's
    ``classes``. The samples shown are read from ``trainer.datamodule.dataset`` with the random
    state restored afterwards. A checkpoint holds 16 bytes per sample.

    Needs: ``data.sampler``; ``batch.index`` ``[B]``; ``training_step`` returns ``signal.losses``
    ``[B]``.
    Changes: nothing.

    Args:
        every_n_epochs: interval in epochs at whose end ``sample_report-epoch=K.png`` is also
            written (K counts from 0, as in the names of checkpoints); 0 disables it.
        examples: number of hardest and of most drawn samples to show, in [0, 64].

    Raises:
        ValueError: if an argument is out of range, or a checkpoint is of another dataset.
    """

    needs = frozenset({"data.sampler", "batch.index", "signal.losses"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "signal.losses": "choose a module whose training_step returns 'losses' [B], "
        "such as lit_adaptive.modules.Classifier",
    }

    def __init__(self, every_n_epochs: int = 0, examples: int = 8) -> None:
        check_at_least(every_n_epochs=(every_n_epochs, 0))
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
        """Allocate one entry per sample, or check those of a checkpoint."""
        if stage != "fit":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "sampler"):
            raise ValueError(
                f"the trainer's datamodule is {data!r}, which has no sampler to report on: "
                "use a datamodule such as lit_adaptive.data.AdaptiveDataModule"
            )
        size: int = data.sampler.size
        if len(self._draws) == 0:
            self._draws = torch.zeros(size, dtype=torch.int32)
            self._last_loss = torch.full((size,), float("nan"))
            self._target = torch.full((size,), -1)
        elif len(self._draws) != size:
            raise ValueError(
                f"this SampleReport has counted draws of {len(self._draws)} samples, but the "
                f"sampler draws from {size}: resume with the same dataset, or start a new run"
            )

    # Recording -----------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the distribution if no other hook did: after a resume at an epoch's last batch."""
        if not self._epochs or self._epochs[-1] < trainer.current_epoch:
            self._snapshot(trainer, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the distribution after all callbacks have finished the previous epoch."""
        self._snapshot(trainer, trainer.current_epoch)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Record draws, losses and classes of all ranks."""
        index: Tensor = batch["index"]
        losses: Tensor = outputs["losses"].detach()
        if losses.shape != index.shape:
            raise ValueError(
                f"training_step's 'losses' have the shape {list(losses.shape)} and the batch's "
                f"index {list(index.shape)}; return one loss per sample, [B]"
            )
        drawn = {"index": index, "losses": losses, "target": _classes(batch.get("target"), index)}
        if trainer.world_size > 1 and "scored" in batch:
            # A selector keeps a different number on each rank, out of equally many.
            missing = len(batch["scored"]["index"]) - len(index)
            drawn = {key: pad(value, (0, missing), value=-1) for key, value in drawn.items()}
        drawn = gather_over_ranks(drawn, trainer, pl_module)
        # Cloned, as a compiled step may reuse the memory of its outputs; counted later, as each
        # transfer from an accelerator synchronizes with it.
        self._pending.append({key: value.clone() for key, value in drawn.items()})
        if len(self._pending) >= MAX_PENDING:
            self._absorb()

    def _absorb(self) -> None:
        """Count the pending batches, in their order."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        index, losses, target = (
            torch.cat([batch[key] for batch in pending]).cpu()
            for key in ("index", "losses", "target")
        )
        real = index >= 0  # not padding
        index, losses, target = index[real], losses[real], target[real]
        self._draws.index_add_(0, index, torch.ones_like(index, dtype=torch.int32))
        # With repeated indices NumPy, unlike torch, guarantees that the last value remains.
        rows = index.numpy()
        self._last_loss.numpy()[rows] = losses.float().numpy()
        self._target.numpy()[rows] = target.numpy()

    def _snapshot(self, trainer: Trainer, epochs: int) -> None:
        """Record the distribution after ``epochs`` epochs.

        The latest snapshot is always kept, of the others those at multiples of the stride.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        while self._epochs and (self._epochs[-1] >= epochs or self._epochs[-1] % self._stride):
            self._epochs.pop()
            self._histograms.pop()
        self._epochs.append(epochs)
        self._histograms.append(probability_histogram(data.sampler.probabilities()))
        if len(self._epochs) > MAX_SNAPSHOTS:
            self._stride *= 2
            kept = [i for i, epoch in enumerate(self._epochs[:-1]) if epoch % self._stride == 0]
            kept.append(len(self._epochs) - 1)
            self._epochs = [self._epochs[i] for i in kept]
            self._histograms = [self._histograms[i] for i in kept]

    def state_dict(self) -> dict[str, Any]:
        """Counts, losses, classes and histograms, as copies; equal on every rank."""
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
        """Restore the counts.

        Raises:
            ValueError: if the state is of another number of samples, or damaged; nothing is changed
                then.
        """
        draws: Tensor = state_dict["draws"]
        if len(draws) == 0:
            return  # saved before setup
        if len(self._draws) not in (0, len(draws)):
            raise ValueError(
                f"the checkpoint has draws of {len(draws)} samples, but the sampler draws from "
                f"{len(self._draws)}: resume with the same dataset. Nothing was changed"
            )
        epochs, histogram = state_dict["epochs"], state_dict["histogram"]
        SampleRecord(  # checks the lengths
            draws, state_dict["last_loss"], state_dict["target"], draws, epochs, histogram
        )
        self._draws, self._pending = draws.clone(), []
        self._last_loss = state_dict["last_loss"].clone()
        self._target = state_dict["target"].clone()
        self._epochs, self._histograms = epochs.tolist(), list(histogram.clone())
        self._stride = int(state_dict["stride"])

    # Reporting -----------------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the distribution after the epoch; draw the figure if it is due."""
        epoch = trainer.current_epoch
        self._snapshot(trainer, epoch + 1)
        if self.every_n_epochs and (epoch + 1) % self.every_n_epochs == 0:
            self._report(trainer, f"sample_report-epoch={epoch}.png")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the distribution after all callbacks have finished the last epoch."""
        self._snapshot(trainer, max(trainer.current_epoch, *self._epochs[-1:], 0))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figure and write the table."""
        self._report(trainer, "sample_report.png", table=True)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Report the samples until the exception, without communication between ranks."""
        try:
            self._absorb()
            if self._draws.any():
                self._report(trainer, "sample_report.png", table=True)
        except Exception as error:  # must not hide the exception that ended the run
            warnings.warn(f"the sample report could not be drawn: {error!r}", stacklevel=2)

    def _report(self, trainer: Trainer, name: str, *, table: bool = False) -> None:
        if not trainer.is_global_zero:
            return
        self._absorb()
        loggers = image_loggers(trainer)
        if csv_logger(trainer) is None and not loggers:
            return
        with _figure_folder(trainer) as folder:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            dataset: Any = getattr(data, "dataset", None)
            record = self._record(data.sampler.probabilities(), dataset)
            if table:
                write_sample_table(record, folder / "samples.csv")
            with isolate_rng():  # reading a sample may draw random numbers
                draw_sample_report(
                    record,
                    folder / name,
                    title=f"{folder.parent.name} / {folder.name}",
                    examples=self.examples,
                    fetch=None if dataset is None else dataset.__getitem__,
                )
            for logger in loggers:
                log_image(logger, "sample_report", folder / name, trainer.global_step)

    def _record(self, probability: Tensor, dataset: Any) -> SampleRecord:
        return SampleRecord(
            draws=self._draws,
            last_loss=self._last_loss,
            target=_with_dataset_classes(self._target, dataset),
            relative_probability=probability.detach().cpu() * len(probability),
            epochs=torch.tensor(self._epochs, dtype=torch.int64),
            histogram=self._histogram(),
            classes=getattr(dataset, "classes", None),
        )


def _classes(target: Any, index: Tensor) -> Tensor:
    """Classes ``[B]`` int64 of a batch; -1 where ``target`` holds no classes."""
    if not isinstance(target, Tensor) or target.shape != index.shape:
        return torch.full_like(index, -1)
    if target.is_floating_point() or target.is_complex():
        return torch.full_like(index, -1)
    return target.detach().to(index.device, torch.int64)


def _with_dataset_classes(target: Tensor, dataset: Any) -> Tensor:
    """``target`` with unknown classes from the dataset, if it agrees on the known classes."""
    try:
        classes = _classes(torch.as_tensor(dataset.targets), target)
    except Exception:  # many datasets have no targets, or in another form
        return target
    known = target >= 0
    agrees = classes[known].equal(target[known])
    return torch.where(known, target, classes) if agrees else target


@contextmanager
def _figure_folder(trainer: Trainer) -> Generator[Path]:
    """The CSV logger's directory, or a temporary one from which Weights & Biases uploads."""
    if (logger := csv_logger(trainer)) is not None:
        folder = Path(logger.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with TemporaryDirectory() as temporary:
        yield Path(temporary)
