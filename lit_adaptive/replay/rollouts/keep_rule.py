"""Which groups teach something, how much, and what is wrong with those that cannot be kept."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_adaptive.core import freshness as core
from lit_adaptive.core.advantages import INFORMATIVE, group_outcomes
from lit_adaptive.replay.rollouts.groups import RolloutGroups

Signal = Literal["advantage", "learnability"]


def reasons(groups: RolloutGroups, tolerance: float) -> NDArray[np.int64]:
    """Why each group is not kept: ``[P]``, 0 if it is.

    Of rewards in [0, 1] the mean must lie between 0 and 1, by more than ``tolerance``; and no
    rewards may be all equal. Groups with a demonstration are kept anyway.
    """
    reason = group_outcomes(groups.reward, groups.group, len(groups), tolerance)
    reason[groups.group[groups.demonstration]] = INFORMATIVE
    return reason.numpy()


def base_priorities(groups: RolloutGroups, signal: Signal) -> Tensor:
    """How much each group teaches: ``[P]`` float64, not negative."""
    group, count = groups.group, len(groups)
    if signal == "learnability":
        return core.learnability(groups.reward, group, count)
    told = ~groups.reward.isnan()
    return core.absolute_advantage(groups.advantage, group, count, counted=told)


def last_of_each(prompts: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of the places ``chosen``, ascending, the last of each prompt, ascending."""
    _, first = np.unique(prompts[chosen][::-1], return_index=True)
    return np.sort(chosen[::-1][first])


def refuse_unsound(groups: RolloutGroups) -> None:
    """Refuse values that no priority and no ratio can be made of.

    Raises:
        ValueError: naming the field and the prompts.
    """
    told = ~groups.reward.isnan()
    log_prob = ~groups.log_probs.isfinite()
    if bool(log_prob.any()):  # seldom: a look at every token
        log_prob &= ~groups.demonstration[groups.sequence]
    checks: Iterable[tuple[str, Tensor, Tensor]] = (
        ("reward", groups.reward.isinf(), groups.group),
        ("advantage", told & ~groups.advantage.isfinite(), groups.group),
        ("log_probs", log_prob, groups.group),
    )
    for name, wrong, group in checks:
        if bool(wrong.any()):
            owner = group[groups.sequence] if name == "log_probs" else group
            prompts = groups.prompt[torch.unique(owner[wrong])][:8].tolist()
            raise ValueError(
                f"{name} of the groups of prompts {prompts} is NaN or infinite; what is replayed "
                "must be finite: look for it where it is made. Nothing was changed"
            )


def checked_priorities(key: Tensor, priority: Tensor) -> tuple[Tensor, Tensor]:
    """Keys ``[K]`` int64 and priorities ``[K]`` float64 on the CPU.

    Raises:
        ValueError: naming the keys whose priority is NaN, infinite or negative, or shapes that
            differ.
    """
    key, priority = key.detach().cpu(), priority.detach().to("cpu", torch.float64)
    if key.dtype is not torch.int64 or key.dim() != 1 or key.shape != priority.shape:
        raise ValueError(
            f"key is {list(key.shape)} of {key.dtype} and priority {list(priority.shape)}; "
            "both must be [K], the keys int64 as the draw gave them"
        )
    wrong = ~((priority >= 0) & priority.isfinite())
    if bool(wrong.any()):
        raise ValueError(
            f"the priorities of the groups with key {key[wrong][:8].tolist()} are "
            f"{priority[wrong][:8].tolist()}; priorities are finite and not negative: look for "
            "NaN in the advantages. Nothing was changed"
        )
    return key, priority


def check_arguments(
    capacity: int, policy: str, signal: str, epsilon: float, max_age: int | None, tolerance: float
) -> None:
    """Refuse a buffer's arguments that are out of their ranges.

    Raises:
        ValueError: naming the argument, its value and its range.
    """
    if capacity <= 0:
        raise ValueError(f"capacity is {capacity}; a buffer holds at least one group")
    for name, value, known in (
        ("policy", policy, ["uniform", "prioritized", "fresh"]),
        ("signal", signal, ["advantage", "learnability"]),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it must be one of {known}")
    if not 0 < epsilon < torch.inf:
        raise ValueError(
            f"epsilon is {epsilon}; it must be above 0 and finite, so that every group can be drawn"
        )
    if max_age is not None and max_age < 0:
        raise ValueError(
            f"max_age is {max_age}; an age in policy versions is not negative (None: no limit)"
        )
    if not 0 <= tolerance < 0.5:
        raise ValueError(f"tolerance is {tolerance}; it must lie in [0, 0.5)")
