"""A figure of the run's metrics."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._run_files import csv_logger, image_loggers, log_image
from lit_adaptive.report.curves import draw_learning_curve


class LearningCurve(Callback):
    """Draws ``learning_curve.png`` from the run's ``metrics.csv`` when training ends or fails.

    Every ``WandbLogger`` and ``TensorBoardLogger`` gets it too.

    Needs: the CSV logger that every ``lit-adaptive`` run has; without one it does nothing.
    Changes: nothing.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def _draw(self, trainer: Trainer) -> None:
        logger = csv_logger(trainer)
        if not trainer.is_global_zero or logger is None:
            return
        logger.save()
        metrics = Path(logger.log_dir) / "metrics.csv"
        if metrics.is_file():
            picture = metrics.with_name("learning_curve.png")
            draw_learning_curve(metrics, picture)
            for each in image_loggers(trainer):
                log_image(each, "learning_curve", picture, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the whole run."""
        self._draw(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Draw the metrics logged before the exception."""
        self._draw(trainer)
