"""Which rollout groups are stored, and the priority that each starts with."""

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


def check_finite(groups: RolloutGroups) -> None:
    """Reject rewards, advantages and log-probabilities that cannot be replayed.

    Raises:
        ValueError: naming the field and the prompts.
    """
    fields = (groups.reward, groups.advantage, groups.log_probs)
    if all(bool(field.isfinite().all()) for field in fields):
        return
    group, owner = groups.group, groups.sequence
    scored = ~groups.reward.isnan()
    generated = ~groups.demonstration[owner]
    for name, invalid, of in (
        ("reward", groups.reward.isinf(), group),
        ("advantage", scored & ~groups.advantage.isfinite(), group),
        ("log_probs", generated & ~groups.log_probs.isfinite(), group[owner]),
    ):
        if bool(invalid.any()):
            prompts = groups.prompt[torch.unique(of[invalid])][:8].tolist()
            raise ValueError(
                f"{name} of the groups of prompts {prompts} is NaN or infinite; replayed values "
                "must be finite: check the reward function or the engine. Nothing was changed"
            )
