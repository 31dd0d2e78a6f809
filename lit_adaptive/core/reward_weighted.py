r"""Masses of samples by reward; the probability of a draw is :math:`P(i) = m_i / \sum_k m_k`.

    exponential    exp(r_i / tau)                    Peters & Schaal, ICML 2007 (RWR)
    rank           rank(i)^(-1 / tau)                Schaul et al., 2016, 1511.05952, section 3.3
    threshold      1 where r_i >= the threshold      SFT on filtered data: Qin & Springenberg, 2025,
    top            1 in the best share q             2507.12856
    nested         number of best shares with i      the same, control code: percentiles 90, 95, 98
    proportional   r_i                               the same, SFT(Q): in proportion to quality

Each may be applied within groups, such as the completions of one prompt: ``group`` ``[N]`` holds an
integer for each sample, of any value. ``top`` is ``nested`` with a single share.

Departures from the sources:
  1. Exponents are relative to the largest reward (of the group), so nothing overflows; a sample
     more than about 745 tau below it has mass 0.
  2. Equal rewards have equal masses: tied ranks share the masses of their ranks, and all samples
     that tie with the last of a best share belong to it (as with a percentile filter).
  3. The best share q of N samples is ``ceil(q N)`` samples, at least one. The control code's
     ``np.percentile`` interpolates; where 1 / q is whole the two agree.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_adaptive.core.segments import (
    center_segments,
    segment_count,
    segment_max,
    segment_mean,
    segment_std,
    segment_sum,
)
from lit_adaptive.core.shares import share_count

NESTED = (0.1, 0.05, 0.02)
"""The best shares of Qin & Springenberg's control code."""


def standardize_rewards(reward: Tensor, group: Tensor) -> Tensor:
    """Each reward minus its group's mean, divided by its group's population standard deviation.

    The advantage of GRPO (Shao et al., 2024, arXiv:2402.03300, section 4.1.2), without an epsilon.

    Args:
        reward: ``[N]``, finite.
        group: ``[N]`` integers.

    Returns:
        ``[N]`` float64; 0 in groups whose rewards are equal, such as groups of one.

    Raises:
        ValueError: naming the samples whose reward is not finite, or if the shapes differ.
    """
    reward = _to_float64(reward, group)
    index, size = _index_groups(group, reward)
    deviation = segment_std(reward, index, size, correction=0)[index]
    centered = center_segments(reward, index, size)
    return torch.where(deviation == 0, 0.0, centered / deviation)


def exponential_masses(
    reward: Tensor, *, temperature: float, group: Tensor | None = None
) -> Tensor:
    r""":math:`\exp((r_i - \max_k r_k) / \tau)`. Peters & Schaal (2007), reward-weighted regression.

    Args:
        reward: ``[N]``, finite, of any sign.
        temperature: tau, above 0, in the unit of the rewards; small values are greedy.
        group: ``[N]`` integers; if given, the maximum is that of the group.

    Returns:
        ``[N]`` float64 in [0, 1]; 1 for the largest reward.

    Raises:
        ValueError: if ``temperature`` is not above 0, or naming the samples whose reward is not
            finite.
    """
    check_temperature(temperature)
    reward = _to_float64(reward, group)
    index, size = _index_groups(group, reward)
    return ((reward - segment_max(reward, index, size)[index]) / temperature).exp()


def rank_masses(reward: Tensor, *, temperature: float = 1.0, group: Tensor | None = None) -> Tensor:
    r""":math:`\mathrm{rank}(i)^{-1/\tau}`, where the largest reward has rank 1.

    Schaul et al. (2016), section 3.3, with alpha = 1 / tau. Equal rewards share the masses of their
    ranks equally.

    Args:
        reward: ``[N]``, finite, of any sign.
        temperature: tau, above 0, without unit; small values are greedy, and 1 gives ``1 / rank``.
        group: ``[N]`` integers; if given, ranks are within the group.

    Returns:
        ``[N]`` float64 in [0, 1].

    Raises:
        ValueError: if ``temperature`` is not above 0, or naming the samples whose reward is not
            finite.
    """
    check_temperature(temperature)
    ranking = _rank(_to_float64(reward, group), group)
    mass = (ranking.position + 1).double().pow(-1 / temperature)
    mean = segment_mean(mass, ranking.tie, ranking.ties)
    return torch.empty_like(mass).scatter(0, ranking.order, mean[ranking.tie])


def threshold_masses(reward: Tensor, *, threshold: float) -> Tensor:
    """1 for rewards of at least ``threshold``, else 0: SFT on filtered data.

    Args:
        reward: ``[N]``, finite, of any sign.
        threshold: in the unit of the rewards.

    Returns:
        ``[N]`` float64, each 0 or 1.

    Raises:
        ValueError: if no reward reaches the threshold, or naming the samples whose reward is not
            finite.
    """
    reward = _to_float64(reward)
    mass = (reward >= threshold).double()
    if len(mass) and not bool(mass.any()):
        raise ValueError(
            f"all {len(reward)} rewards are below the threshold {threshold:g}, the highest is "
            f"{float(reward.amax()):g}: lower the threshold, or take a best share (scheme: top)"
        )
    return mass


def nested_masses(
    reward: Tensor, *, shares: Sequence[float] = NESTED, group: Tensor | None = None
) -> Tensor:
    """Number of the best ``shares`` that contain each sample: filtered datasets, concatenated.

    Qin & Springenberg (2025), control code: with the percentiles 90, 95 and 98 the best 2 % count
    three times, the next 3 % twice, the next 5 % once. A single share is the filter ``top``.

    Args:
        reward: ``[N]``, finite, of any sign.
        shares: each in (0, 1], in any order, at least one.
        group: ``[N]`` integers; if given, the best shares of each group.

    Returns:
        ``[N]`` float64: whole numbers from 0 to ``len(shares)``; above 0 for at least one sample of
        each group.

    Raises:
        ValueError: if there is no share or one is outside (0, 1], or naming the samples whose
            reward is not finite.
    """
    check_shares(shares)
    ranking = _rank(_to_float64(reward, group), group)
    better = ranking.first[ranking.tie]  # number of larger rewards in the group
    sizes, size_index = torch.unique(ranking.group_size, return_inverse=True)
    mass = torch.zeros(len(reward), dtype=torch.float64, device=reward.device)
    for share in shares:
        counts = better.new_tensor([share_count(share, size) for size in sizes.tolist()])
        mass += better < counts[size_index]
    return torch.empty_like(mass).scatter(0, ranking.order, mass)


def proportional_masses(reward: Tensor) -> Tensor:
    """The rewards themselves. SFT(Q): Qin & Springenberg (2025).

    Args:
        reward: ``[N]``, finite and not negative.

    Returns:
        ``[N]`` float64.

    Raises:
        ValueError: if all are 0, their sum overflows, or naming the samples whose reward is
            negative or not finite.
    """
    check_rewards(reward, nonnegative=True)
    reward = reward.detach().double()
    if len(reward) and not bool((reward > 0).any()):
        raise ValueError(
            f"all {len(reward)} rewards are 0, so nothing can be drawn in proportion to them: "
            "choose the scheme exponential or rank, or find out why nothing is rewarded"
        )
    if len(reward) and not float(reward.amax()) * len(reward) < math.inf:
        raise ValueError(
            f"the largest reward is {float(reward.amax()):g}, and the sum of {len(reward)} such "
            "rewards overflows: scale the rewards"
        )
    return reward


def balance_groups(mass: Tensor, group: Tensor) -> Tensor:
    """``mass`` scaled so that each group has a total of 1; a group of mass 0 keeps mass 0.

    Args:
        mass: ``[N]``, finite and not negative.
        group: ``[N]`` integers.

    Returns:
        ``[N]`` float64 in [0, 1].
    """
    mass = _to_float64(mass, group)
    index, size = _index_groups(group, mass)
    total = segment_sum(mass, index, size)[index]
    return torch.where(total > 0, mass / total, 0.0)


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless ``temperature`` is above 0 and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature is {temperature}; it must be above 0 and finite "
            "(to draw only the best, choose the scheme top)"
        )


def check_shares(shares: Sequence[float]) -> None:
    """Raise ValueError unless there is at least one share, and all are in (0, 1]."""
    if not len(shares) or not all(0 < share <= 1 for share in shares):
        raise ValueError(
            f"best shares are {list(shares)}; give at least one, each in (0, 1] (0.1: the best "
            "tenth)"
        )


def check_rewards(
    reward: Tensor, *, index: Tensor | None = None, nonnegative: bool = False
) -> None:
    """Check that rewards are finite, and if ``nonnegative`` not below 0.

    Args:
        reward: ``[K]``.
        index: ``[K]`` sample of each reward, for the message; None: its position.
        nonnegative: whether negative rewards are invalid.

    Raises:
        ValueError: naming the samples whose reward is invalid.
    """
    invalid = ~reward.isfinite()
    rule = "rewards are finite: look into the reward function"
    if nonnegative and not bool(invalid.any()):
        invalid = reward < 0
        rule = (
            "the scheme proportional needs rewards that are not negative: shift them, or choose "
            "exponential or rank"
        )
    if bool(invalid.any()):
        place = invalid.nonzero().flatten() if index is None else index[invalid]
        raise ValueError(
            f"the rewards of index {place[:8].tolist()} are {reward[invalid][:8].tolist()}; {rule}"
        )


def _to_float64(reward: Tensor, group: Tensor | None = None) -> Tensor:
    check_rewards(reward)
    if group is not None and group.shape != reward.shape:
        raise ValueError(
            f"there are {len(reward)} rewards, but group has shape {tuple(group.shape)}: give "
            "the group of each sample"
        )
    return reward.detach().double()


def _index_groups(group: Tensor | None, reward: Tensor) -> tuple[Tensor, int]:
    """Index of each sample's group in ``[0, groups)``, and the number of groups; None: one."""
    if group is None:
        return torch.zeros_like(reward, dtype=torch.int64), 1
    labels, index = torch.unique(group, return_inverse=True)
    return index, len(labels)


class _Ranking(NamedTuple):
    """Samples sorted by group and, within a group, by descending reward.

    Attributes:
        order: ``[N]`` sample at each place of the sorted sequence.
        position: ``[N]`` 0, 1, ... within the group, at each place.
        tie: ``[N]`` index of the run of equal rewards at each place, in ``[0, ties)``.
        ties: number of runs of equal rewards.
        first: ``[ties]`` position within its group where each run begins.
        group_size: ``[N]`` size of the group at each place.
    """

    order: Tensor
    position: Tensor
    tie: Tensor
    ties: int
    first: Tensor
    group_size: Tensor


def _rank(reward: Tensor, group: Tensor | None) -> _Ranking:
    index, size = _index_groups(group, reward)
    order = torch.argsort(reward, descending=True, stable=True)
    order = order[torch.argsort(index[order], stable=True)]
    value, index = reward[order], index[order]
    sizes = segment_count(index, size)
    position = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[index]
    begins = torch.ones_like(order, dtype=torch.bool)
    begins[1:] = (value[1:] != value[:-1]) | (index[1:] != index[:-1])
    tie = begins.cumsum(0) - 1
    return _Ranking(order, position, tie, int(begins.sum()), position[begins], sizes[index])
