"""A picture of the run, in its directory."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger


class LearningCurve(Callback):
    """Draws ``learning_curve.png`` from the run's ``metrics.csv`` when training ends or breaks off.

    Needs: the CSV logger that every ``lit-adaptive`` run has; without one it does nothing.
    Changes: nothing.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def _draw(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            # Not trainer.log_dir: that asks all ranks, and after an exception none may answer.
            if isinstance(logger, CSVLogger):
                logger.save()
                metrics = Path(logger.log_dir) / "metrics.csv"
                if metrics.is_file():
                    from lit_adaptive.report.curves import draw_learning_curve  # loads matplotlib

                    draw_learning_curve(metrics, metrics.with_name("learning_curve.png"))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the whole run."""
        self._draw(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Draw what there is."""
        self._draw(trainer)
