"""Training progress for samplers that follow a plan."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._training_length import total_steps
from lit_adaptive.core.bounds import check_at_least


class CurriculumProgress(Callback):
    """Reports training progress to the sampler: widens a curriculum, or ends InfoBatch's pruning.

    Progress is the fraction of the optimizer steps completed. Logs ``sampler/progress`` and
    ``sampler/drawable``, the fraction of the samples that can be drawn.

    Needs: a sampler that follows progress (``data.advance``).
    Changes: which samples can be drawn (``duty.progress``).

    Args:
        every_n_batches: batches between updates within an epoch; 0 updates only at the end of each
            epoch. An update may cost O(N log N) if the curriculum orders samples by loss.
        steps: optimizer steps of the whole training, above 0; by default the length of training.

    Raises:
        ValueError: if an argument is out of range, or the length of training is unlimited.
    """

    needs = frozenset({"data.advance"})
    provides = frozenset({"duty.progress"})
    remedies = {  # noqa: RUF012
        "data.advance": "choose a sampler that follows progress, such as "
        "lit_adaptive.samplers.CurriculumSampler, or leave the callback out",
    }

    def __init__(self, every_n_batches: int = 0, steps: int | None = None) -> None:
        check_at_least(every_n_batches=(every_n_batches, 0), steps=(steps, 1))
        self.every_n_batches = every_n_batches
        self.steps = steps
        self._total = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the length of training; a resumed run of another length updates the sampler."""
        restored, self._total = self._total, self.steps or total_steps(trainer, type(self).__name__)
        if restored and restored != self._total:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            data.advance(min(1.0, trainer.global_step / self._total))

    def state_dict(self) -> dict[str, Any]:
        """The length of training."""
        return {"total": self._total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the length of the training that was saved."""
        self._total = int(state_dict["total"])

    def _advance(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        progress = min(1.0, trainer.global_step / self._total)
        data.advance(progress)
        metrics = {
            "sampler/progress": progress,
            "sampler/drawable": data.sampler.count / data.sampler.size,
        }
        pl_module.log_dict(metrics, sync_dist=False)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the sampler if it is due."""
        due = self.every_n_batches and (batch_idx + 1) % self.every_n_batches == 0
        # Not on_train_epoch_end, which Lightning skips after some resumes.
        if due or trainer.is_last_batch:
            self._advance(trainer, pl_module)
