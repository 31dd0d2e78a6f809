"""From groups of rollouts to the batches of a step's optimizer updates.

A step's groups are the same on every rank. For each pass over them they are dealt into minibatches,
one for each optimizer update; of a minibatch each rank takes its share of groups, and cuts it into
as many micro-batches as gradients are accumulated over. Whole groups go to a minibatch and a rank.
A micro-batch carries the divisors of the whole update, so the update does not depend on the cut.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.replay.rollouts.groups import RolloutGroups, ragged_positions


class Layout(NamedTuple):
    """How a step is cut.

    Attributes:
        inner_epochs: passes over the step's groups.
        minibatches: updates in a pass.
        accumulate: micro-batches of an update.
        rank: of this process.
        world_size: number of processes.
    """

    inner_epochs: int
    minibatches: int
    accumulate: int
    rank: int
    world_size: int

    @property
    def batches(self) -> int:
        """Micro-batches of a step on each rank."""
        return self.inner_epochs * self.minibatches * self.accumulate


class Part(NamedTuple):
    """A micro-batch, before it is made: which rollouts ``[B]``, and its update's divisors."""

    rollouts: Tensor
    tokens: float
    sequences: float


def parts(
    groups: RolloutGroups, trained: Tensor, layout: Layout, seed: int, *, together: bool = False
) -> Iterator[Part]:
    """This rank's micro-batches of a step, in order.

    The longest come first: what does not fit into memory shows at once, and rows of a micro-batch
    are about equally long.

    Args:
        groups: of all ranks.
        trained: ``[N]`` bool, the rollouts whose tokens count.
        layout: how the step is cut.
        seed: of the order in which groups are dealt into several minibatches.
        together: a group's rollouts stand together, sorted by its longest.
    """
    total = groups.prompt_lengths[groups.group] + groups.lengths
    longest = torch.zeros(len(groups), dtype=torch.int64)
    longest = longest.scatter_reduce(0, groups.group, total, "amax") if together else longest
    share = layout.accumulate * layout.world_size
    for epoch in range(layout.inner_epochs):
        order = torch.arange(len(groups))
        if layout.minibatches > 1:
            source = torch.Generator().manual_seed(derive_seed(seed, epoch))
            order = torch.randperm(len(groups), generator=source)
        for chunk in order.tensor_split(layout.minibatches):
            everyone = ragged_positions(groups.size, chunk)
            counted = everyone[trained[everyone]]
            tokens = float(groups.lengths[counted].sum()) / share
            sequences = len(counted) / share
            mine = ragged_positions(groups.size, chunk[layout.rank :: layout.world_size])
            mine = mine[total[mine].argsort(descending=True, stable=True)]
            if together:
                group = groups.group[mine]
                mine = mine[_sorted_by(longest[group], group)]
            for cut in mine.tensor_split(layout.accumulate):
                yield Part(cut, tokens, sequences)


def _sorted_by(length: Tensor, group: Tensor) -> Tensor:
    """The order of falling length, equal ones by group, stable."""
    by_group = group.argsort(stable=True)
    return by_group[length[by_group].argsort(descending=True, stable=True)]
