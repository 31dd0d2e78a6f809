"""Annealing of the importance-sampling exponent beta."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._training_length import total_steps
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.schedules import linear_schedule


class BetaAnneal(Callback):
    """Moves ``beta`` linearly from ``start`` at the first step to ``end`` at the last.

    Schaul et al. (2016), section 3.4: unbiased updates matter most near convergence. The value
    follows from the step number, so a resumed run needs no saved state.

    Needs: ``data.beta``.
    Changes: the datamodule's ``beta``.

    Args:
        start: beta at the first step, in [0, 1].
        end: beta at the last step, in [0, 1].
        steps: optimizer steps of the schedule, above 0; by default the length of training.

    Raises:
        ValueError: if an argument is out of range, or the length of training is unlimited.
    """

    needs = frozenset({"data.beta"})
    provides: frozenset[str] = frozenset()

    def __init__(self, start: float = 0.4, end: float = 1.0, steps: int | None = None) -> None:
        for name, value in (("start", start), ("end", end)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; beta must lie in [0, 1]")
        check_at_least(steps=(steps, 1))
        self.start = start
        self.end = end
        self.steps = steps
        self._total = 1

    def _set(self, trainer: Trainer) -> None:
        beta = linear_schedule(
            trainer.global_step, start=self.start, end=self.end, steps=self._total
        )
        trainer.datamodule.beta = beta  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set beta for the first batch."""
        self._total = self.steps or total_steps(trainer, "BetaAnneal")
        self._set(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Set beta for the next batch."""
        self._set(trainer)
