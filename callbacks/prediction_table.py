"""What was predicted of each sample, in a file."""

import csv
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._jsonl import gathered_rows, run_directory


class PredictionTable(Callback):
    """Writes ``predictions.csv`` at the end of ``lit-adaptive predict``, in the dataset's order.

    One line for each sample, over all ranks: its id, the predicted class, that class's probability
    and the target.

    Needs: nothing of a training; ``predict_step`` returns ``index``, ``predicted`` and
    ``probability``, as that of ``lit_adaptive.modules.Classifier`` does.
    Changes: nothing.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._found: list[tuple[int, int, float, int]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what counts."""
        counted: Tensor = batch["counted"]
        columns = (
            outputs["index"],
            outputs["predicted"],
            outputs["probability"],
            batch["target"][counted].cpu(),
        )
        self._found += zip(*(column.tolist() for column in columns), strict=True)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather and write."""
        found = gathered_rows(self._found, trainer)
        self._found = []
        folder = run_directory(trainer)
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dataset: Any = data.test_dataset or data.val_dataset
        ids: Any = getattr(dataset, "ids", None)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "predictions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "predicted", "probability", "target"])
            for index, predicted, probability, target in sorted(found):
                name = index if ids is None else ids[index]
                name = name.item() if isinstance(name, Tensor) else name
                writer.writerow([name, predicted, f"{probability:.6g}", target])
