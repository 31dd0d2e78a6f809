"""A file of a classifier's predictions."""

import csv
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._ranks import gather_rows
from callbacks._run_files import run_directory, sample_id
from lit_adaptive.report.samples import class_name


class PredictionTable(Callback):
    """Writes ``predictions.csv`` at the end of ``lit-adaptive predict``, in the dataset's order.

    One row per sample, over all ranks: ``id``, ``predicted`` (class), ``probability`` of that class
    and ``target``, which is left out for a dataset without targets. Classes are named as in the
    ``classes`` of the dataset, if it has them, or else numbered.

    Needs: nothing of a training; ``predict_step`` returns ``index``, ``predicted`` and
        ``probability``, as ``lit_adaptive.modules.Classifier`` does.
    Changes: nothing.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, float, int]] = []
        self._has_targets = True

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the rows of a batch, without padding samples."""
        self._has_targets = "target" in batch
        counted: Tensor = batch["counted"]
        targets: Tensor = batch["target"] if self._has_targets else torch.zeros_like(counted).int()
        columns = (
            outputs["index"],
            outputs["predicted"],
            outputs["probability"],
            targets[counted].cpu(),
        )
        self._rows += zip(*(column.tolist() for column in columns), strict=True)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all ranks and write the file."""
        rows = gather_rows(self._rows, trainer)
        self._rows = []
        folder = run_directory(trainer)
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        ids: Any = getattr(data.evaluated_dataset, "ids", None)
        # The training set's, in whose order the model predicts; the evaluated set may lack some.
        classes: Any = getattr(data.dataset, "classes", None)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "predictions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            shown = 4 if self._has_targets else 3
            writer.writerow(["id", "predicted", "probability", "target"][:shown])
            for index, predicted, probability, target in sorted(rows):
                row = [sample_id(ids, index), class_name(classes, predicted), f"{probability:.6g}"]
                writer.writerow([*row, class_name(classes, target)][:shown])
