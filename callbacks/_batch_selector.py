"""Base class of the callbacks that train on a subset of each batch."""

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._scoring import per_sample_losses


class BatchSelector(Callback):
    """Scores each batch without gradients, and keeps only the selected samples for training.

    It works with any sampler: draw a large batch, train on a part of it. Index, probability and
    weight are selected together with the inputs. ``batch["scored"]`` holds ``index`` and ``losses``
    of the full batch, for ``LossRefresh``. Logs ``select/kept``, the fraction of the batch kept.

    Needs: ``model.per_sample_loss``; ``batch.index``.
    Changes: the batch.
    """

    needs: frozenset[str] = frozenset({"model.per_sample_loss", "batch.index"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "model.per_sample_loss": "choose a module with per_sample_loss(batch), "
        "such as lit_adaptive.modules.Classifier",
    }

    @abstractmethod
    def select(
        self, batch: dict[str, Any], losses: Tensor, trainer: Trainer, pl_module: LightningModule
    ) -> Tensor:
        """Select at least one sample of a batch.

        Args:
            batch: training batch of size B; an implementation may change its ``weight``.
            losses: per-sample losses ``[B]`` of the current model.
            trainer: the trainer that runs the fit.
            pl_module: the module in training.

        Returns:
            Positions of the selected samples in the batch, ``[K]`` int64.
        """

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Score the batch and reduce it to the selected samples."""
        losses = per_sample_losses(batch, trainer, pl_module)
        size = len(losses)
        scored = {"index": batch["index"], "losses": losses}
        selected = self.select(batch, losses, trainer, pl_module)
        for name, value in batch.items():
            batch[name] = _take(value, selected, size)
        batch["scored"] = scored
        pl_module.log("select/kept", len(selected) / size, sync_dist=False, batch_size=size)


def _take(value: Any, selected: Tensor, size: int) -> Any:
    """Take the selected entries of tensors and lists that have one entry per sample."""
    if isinstance(value, Tensor):
        return value[selected.to(value.device)] if value.dim() and len(value) == size else value
    if isinstance(value, dict):
        return {name: _take(part, selected, size) for name, part in value.items()}
    if isinstance(value, (list, tuple)) and len(value) == size:
        return [value[position] for position in selected.tolist()]
    return value
