"""Online hard example mining (OHEM)."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._batch_selector import BatchSelector
from lit_adaptive.core.hard_examples import hardest_indices, kept_count


class OHEMSelector(BatchSelector):
    """Trains on the samples of greatest loss (Shrivastava et al., 2016).

    Each rank selects from its own share of the batch. The selection is biased by design and no
    weight corrects it, so wrong labels are selected too.

    Needs: ``model.per_sample_loss``; ``batch.index``.
    Changes: the batch.

    Args:
        keep: fraction of the batch in (0, 1], rounded up, or a number of samples above 1.

    Raises:
        ValueError: if ``keep`` is neither, or exceeds the batch size.
    """

    def __init__(self, keep: float = 0.5) -> None:
        kept_count(2**31, keep)  # validates
        self.keep = keep

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reject a ``keep`` above the batch size before training."""
        size: int | None = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
        if stage == "fit" and size is not None:
            kept_count(size, self.keep)

    def select(
        self, batch: dict[str, Any], losses: Tensor, trainer: Trainer, pl_module: LightningModule
    ) -> Tensor:
        """Select the samples of greatest loss."""
        return hardest_indices(losses, keep=self.keep)
