"""The correction of the sampling bias grows as training goes on."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._shared import planned_steps
from lit_adaptive.core.schedules import linear_schedule


class BetaAnneal(Callback):
    """Moves ``beta`` linearly from ``start`` to ``end``, reached when training ends.

    Schaul et al. (2016), section 3.4: unbiased updates matter most near convergence. The value
    follows from the step alone, so a resumed run needs no memory of it.

    Needs: ``data.beta``.
    Changes: the datamodule's ``beta``.

    Args:
        start: at the first step, in [0, 1].
        end: at the last, in [0, 1].
        steps: optimizer steps it takes; by default ``max_steps`` (or what ``max_epochs`` come to).
    """

    needs = frozenset({"data.beta"})
    provides: frozenset[str] = frozenset()

    def __init__(self, start: float = 0.4, end: float = 1.0, steps: int | None = None) -> None:
        for name, value in (("start", start), ("end", end)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; beta must lie in [0, 1]")
        if steps is not None and steps <= 0:
            raise ValueError(f"steps is {steps}; it must be above 0, or null for the whole run")
        self.start = start
        self.end = end
        self.steps = steps

    def _set(self, trainer: Trainer) -> None:
        steps = self.steps or planned_steps(trainer, "BetaAnneal")
        beta = linear_schedule(trainer.global_step, start=self.start, end=self.end, steps=steps)
        trainer.datamodule.beta = beta  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set it before the first batch is served."""
        self._set(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Set it for the batch that is served next."""
        self._set(trainer)
