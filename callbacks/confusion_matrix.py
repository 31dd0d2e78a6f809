"""A picture of a classifier's errors."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from callbacks._run_files import image_loggers, local_run_directory, log_image
from lit_adaptive.report.samples import class_name
from lit_adaptive.report.text import visible

_MAX_COUNTED = 30  # classes up to which the cells have numbers
_LONGEST_NAME = 20


class ConfusionMatrix(Callback):
    """Draws ``confusion_matrix.png``: how many samples of each class are predicted as which.

    Of the last validation when training ends, and in ``lit-adaptive validate`` and ``test``, over
    all ranks. Classes are named as in the ``classes`` of the dataset, if it has them, or else
    numbered. Every ``WandbLogger`` and ``TensorBoardLogger`` gets the picture too.

    Needs: ``model.num_classes``; ``validation_step`` and ``test_step`` return ``predicted`` and
        ``target`` ``[n]``, as those of ``lit_adaptive.modules.Classifier`` do.
    Changes: nothing.
    """

    needs = frozenset({"model.num_classes"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "model.num_classes": "train a classifier, such as lit_adaptive.modules.Classifier",
    }

    def __init__(self) -> None:
        self._metric: MulticlassConfusionMatrix | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from zero."""
        classes: Any = pl_module.num_classes
        self._metric = MulticlassConfusionMatrix(classes, validate_args=False).to(pl_module.device)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the samples of a batch."""
        assert self._metric is not None
        self._metric.update(outputs["predicted"], outputs["target"])

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the counts of all ranks."""
        assert self._metric is not None
        self._metric.compute()  # kept by the metric

    on_test_epoch_end = on_validation_epoch_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw the last counts."""
        if self._metric is None or not trainer.is_global_zero:
            return
        path = local_run_directory(trainer) / "confusion_matrix.png"
        dataset: Any = getattr(trainer.datamodule, "dataset", None)  # type: ignore[attr-defined]
        _draw(self._metric.compute().cpu(), getattr(dataset, "classes", None), path)
        self._metric = None
        for logger in image_loggers(trainer):
            log_image(logger, "confusion_matrix", path, trainer.global_step)


def _draw(counts: Tensor, classes: Any, path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    number = len(counts)
    side = min(max(5, 2 + 0.5 * number), 24)  # inches
    figure = Figure(figsize=(side, side), layout="constrained")
    names = [visible(class_name(classes, c), _LONGEST_NAME) for c in range(number)]
    with rc_context({"text.parse_math": False}):
        shown: Any = ConfusionMatrixDisplay(counts.numpy(), display_labels=names).plot(
            include_values=number <= _MAX_COUNTED,
            xticks_rotation="vertical",
            cmap="Blues",
            ax=figure.add_subplot(),
            colorbar=False,
        )
        correct = float(counts.trace() / counts.sum())
        shown.ax_.set_title(f"{int(counts.sum()):,} samples, {correct:.1%} correct")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
