"""Gathering from all ranks, and dividing work among them."""

from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor


def gather_over_ranks(
    values: dict[str, Tensor], trainer: Trainer, pl_module: LightningModule
) -> dict[str, Tensor]:
    """Concatenate each ``[B]`` tensor of all ranks in rank order; equal on every rank."""
    if trainer.world_size == 1:
        return values
    gathered: dict[str, Tensor] = pl_module.all_gather(values)  # type: ignore[assignment]
    return {name: value.flatten(0, 1) for name, value in gathered.items()}


def gather_rows(rows: list[Any], trainer: Trainer) -> list[Any]:
    """Concatenate the lists of all ranks in rank order; all ranks must call it."""
    if trainer.world_size == 1:
        return rows
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, rows)
    return list(chain(*parts))


def equal_share(count: int, trainer: Trainer) -> Tensor:
    """Positions of this rank's share of ``count`` items: r, r + W, r + 2W ...

    Every rank gets equally many, so that a sharded model runs equally often on each; positions from
    ``count`` on are padding.
    """
    length = -(-count // trainer.world_size)
    return torch.arange(length) * trainer.world_size + trainer.global_rank


def interleave_ranks(
    rows: Tensor, size: int, trainer: Trainer, pl_module: LightningModule
) -> Tensor:
    """Rows ``[n, F]`` that each rank computed of its ``equal_share``, of all ranks: ``[size, F]``.

    In the order of the positions, padding left out.
    """
    if trainer.world_size == 1:
        return rows[:size]
    gathered: Tensor = pl_module.all_gather(rows.to(pl_module.device))  # type: ignore[assignment]
    return gathered.transpose(0, 1).flatten(0, 1)[:size]  # [W, n, F] before


def first_of_each_group(group: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first sample of each group.

    Args:
        group: group number of each sample, ``[N]`` int64.

    Returns:
        Index of the first sample of each of the G groups, ``[G]``, and for each sample the position
        of its group there, ``[N]``.
    """
    position = torch.unique(group, return_inverse=True)[1]
    first = torch.full((int(position.amax()) + 1,), len(position))
    return first.scatter_reduce(0, position, torch.arange(len(position)), "amin"), position
