"""Per-sample losses of a batch and of the whole training dataset."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._ranks import gather_over_ranks
from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.progress import progress_bar


def per_sample_losses(
    batch: dict[str, Any], trainer: Trainer, pl_module: LightningModule
) -> Tensor:
    """Losses ``[B]`` float32 in evaluation mode: without dropout, running statistics unchanged."""
    module: Any = pl_module
    with evaluation_mode(pl_module), trainer.precision_plugin.forward_context():
        losses: Tensor = module.per_sample_loss(batch)
    return losses.detach().float()


def score_dataset(trainer: Trainer, pl_module: LightningModule) -> tuple[Tensor, Tensor]:
    """Compute the loss of every sample of the training dataset; all ranks must call it.

    Returns:
        Indices ``[N]`` and losses ``[N]``, equal on every rank.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    parts: list[dict[str, Tensor]] = []
    loader = data.scoring_dataloader()
    with progress_bar("losses of all samples", len(loader)) as advance:
        for cpu_batch in loader:
            batch: dict[str, Any] = trainer.strategy.batch_to_device(cpu_batch)
            losses = per_sample_losses(batch, trainer, pl_module)
            parts.append({"index": batch["index"], "losses": losses, "counted": batch["counted"]})
            advance(1)
    local = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    scores = {k: value.cpu() for k, value in gather_over_ranks(local, trainer, pl_module).items()}
    counted = scores["counted"].bool()
    return scores["index"][counted], scores["losses"][counted]
