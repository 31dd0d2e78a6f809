"""The sampler is told how far training is."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._shared import planned_steps


class CurriculumProgress(Callback):
    """Widens a curriculum, or ends InfoBatch's pruning, as training goes on.

    Progress is the share of all optimizer steps that is done. It follows from the step alone, so a
    resumed run needs no memory of it. Logs ``sampler/progress`` and ``sampler/drawable``, the share
    of the samples that can be drawn.

    Needs: a sampler that follows progress (``data.advance``).
    Changes: which samples can be drawn.

    Args:
        every_n_batches: between two looks at the progress, besides the one at the end of each
            epoch; 0: only that.
            Each look may cost O(N log N) where the curriculum goes by losses.
        steps: optimizer steps of the whole training; by default what ``max_steps`` or
            ``max_epochs`` come to.
    """

    needs = frozenset({"data.advance"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "data.advance": "choose a sampler with a plan, such as "
        "lit_adaptive.samplers.CurriculumSampler, or leave the callback out",
    }

    def __init__(self, every_n_batches: int = 0, steps: int | None = None) -> None:
        if every_n_batches < 0:
            raise ValueError(f"every_n_batches is {every_n_batches}; it must not be negative")
        if steps is not None and steps <= 0:
            raise ValueError(f"steps is {steps}; it must be above 0, or null for the whole run")
        self.every_n_batches = every_n_batches
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a training without an end."""
        self._total(trainer)

    def _total(self, trainer: Trainer) -> int:
        return self.steps or planned_steps(trainer, "CurriculumProgress")

    def _advance(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        progress = min(1.0, trainer.global_step / self._total(trainer))
        data.advance(progress)
        found = {
            "sampler/progress": progress,
            "sampler/drawable": data.sampler.count / data.sampler.size,
        }
        pl_module.log_dict(found, sync_dist=False)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look, if it is time."""
        often = self.every_n_batches and (batch_idx + 1) % self.every_n_batches == 0
        # Not on_train_epoch_end: Lightning leaves it out after some resumes.
        if often or trainer.is_last_batch:
            self._advance(trainer, pl_module)
