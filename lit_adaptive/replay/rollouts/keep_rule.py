"""Which rollout groups are stored, of repeated ones which, and the priority each starts with."""

from typing import Literal

import torch
from torch import Tensor

from lit_adaptive.core import freshness
from lit_adaptive.core.advantages import INFORMATIVE, group_outcomes
from lit_adaptive.replay.rollouts.groups import RolloutGroups

PrioritySignal = Literal["advantage", "learnability"]


def keep_outcomes(groups: RolloutGroups, tolerance: float) -> Tensor:
    """Outcome of each group, ``[P]`` int64; only ``INFORMATIVE`` groups are stored.

    As ``core.advantages.group_outcomes``, but a group with a demonstration is always informative.
    """
    outcome = group_outcomes(groups.reward, groups.group, len(groups), tolerance)
    outcome[groups.group[groups.demonstration]] = INFORMATIVE
    return outcome


def base_priorities(groups: RolloutGroups, signal: PrioritySignal) -> Tensor:
    """Priority of each group before freshness: ``[P]`` float64, not negative.

    Args:
        groups: rollouts with rewards and advantages.
        signal: ``"advantage"``: the mean of |A|; ``"learnability"``: p(1 - p).
    """
    if signal == "learnability":
        return freshness.learnability(groups.reward, groups.group, len(groups))
    return freshness.absolute_advantage(
        groups.advantage, groups.group, len(groups), mask=~groups.reward.isnan()
    )


def last_occurrences(values: Tensor) -> Tensor:
    """Ascending positions of the last occurrence of each value of ``values`` ``[K]``."""
    _, inverse = torch.unique(values, return_inverse=True)
    last = torch.zeros(int(inverse.max()) + 1 if len(inverse) else 0, dtype=torch.int64)
    positions = torch.arange(len(values))
    return last.scatter_reduce(0, inverse, positions, "amax").sort().values
