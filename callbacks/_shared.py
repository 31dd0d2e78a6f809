"""What several callbacks do: gather over ranks, score the dataset, see how far training is."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_adaptive.data.seeding import reseed
from lit_adaptive.modules.base import evaluation_mode


def gather_over_ranks(
    found: dict[str, Tensor], trainer: Trainer, pl_module: LightningModule
) -> dict[str, Tensor]:
    """Each value's ``[B]`` of all ranks, one after another in rank order, equal on every rank."""
    if trainer.world_size == 1:
        return found
    everyone: dict[str, Tensor] = pl_module.all_gather(found)  # type: ignore[assignment]
    return {name: value.flatten(0, 1) for name, value in everyone.items()}


def losses_of(batch: dict[str, Any], trainer: Trainer, pl_module: LightningModule) -> Tensor:
    """Per-sample losses ``[B]`` without dropout, and without touching running statistics."""
    module: Any = pl_module
    with evaluation_mode(pl_module), trainer.precision_plugin.forward_context():
        losses: Tensor = module.per_sample_loss(batch)
    return losses.detach().float()


def score_all(trainer: Trainer, pl_module: LightningModule) -> tuple[Tensor, Tensor]:
    """The loss of every sample of the dataset, shared among ranks: indices ``[N]``, losses ``[N]``.

    Under several ranks all must call it together.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    parts: list[dict[str, Tensor]] = []
    for batch in data.scoring_dataloader():
        here: dict[str, Any] = trainer.strategy.batch_to_device(batch)
        losses = losses_of(here, trainer, pl_module)
        parts.append({"index": here["index"], "losses": losses, "counted": here["counted"]})
    mine = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    everyone = {
        name: value.cpu() for name, value in gather_over_ranks(mine, trainer, pl_module).items()
    }
    counted = everyone["counted"].bool()
    return everyone["index"][counted], everyone["losses"][counted]


def planned_steps(trainer: Trainer, asker: str) -> int:
    """Optimizer steps of the whole training.

    Raises:
        ValueError: if both ``max_steps`` and ``max_epochs`` are unlimited.
    """
    planned: list[float] = []
    if trainer.max_steps >= 0:
        planned.append(trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        # The last batch of an epoch steps even if its accumulation is not full.
        steps = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
        planned.append(steps * trainer.max_epochs)
    if not planned or min(planned) == float("inf"):
        raise ValueError(
            f"{asker} cannot tell when training ends (max_steps and max_epochs are both "
            "unlimited): give one of them, or the callback's `steps`"
        )
    return max(1, int(min(planned)))


def first_of_each(group: Tensor) -> tuple[Tensor, Tensor]:
    """The first sample of each group ``[G]``, and which of them each sample belongs to ``[N]``."""
    unit = torch.unique(group, return_inverse=True)[1]
    first = torch.full((int(unit.amax()) + 1,), len(unit))
    return first.scatter_reduce(0, unit, torch.arange(len(unit)), "amin"), unit


@contextmanager
def private_rng(seed: int) -> Generator[None]:
    """Within, torch's global streams follow from ``seed``; after it they go on as if untouched."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        reseed(seed)
        yield
