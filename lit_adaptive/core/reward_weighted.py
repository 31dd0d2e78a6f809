r"""How often to draw a sample that earned a reward: the arithmetic.

A mass m_i >= 0 for each sample; its probability is :math:`P(i) = m_i / \sum_k m_k`.

    exponential    exp(r_i / tau)                  Peters & Schaal, ICML 2007 (RWR)
    rank           rank(i)^(-1 / tau)              Schaul et al., 2016, 1511.05952, section 3.3
    threshold      1 where r_i >= the threshold    SFT on filtered data: Qin & Springenberg, 2025,
    top            1 for the best share q             2507.12856
    nested         how many best shares hold i     the same, control code: percentiles 90, 95, 98
    proportional   r_i                             the same, SFT(Q): in proportion to quality

Each may be taken within groups, such as the answers to one prompt: ``group`` ``[N]`` holds integers
that name them.

Where this departs from the sources, and why:
  1. Exponents are taken against the greatest reward (of the group), so nothing overflows; what
     lies more than about 745 tau below it has mass 0.
  2. Equal rewards have equal masses: tied ranks share the masses of their places, and all that
     ties with the last of a best share belongs to it (as with a percentile filter).
  3. A best share q of N samples is ``ceil(q N)`` samples, at least one. The control code's
     ``np.percentile`` interpolates; where 1 / q is whole the two agree.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_adaptive.core.segments import (
    center_segments,
    segment_max,
    segment_mean,
    segment_std,
    segment_sum,
)

NESTED = (0.1, 0.05, 0.02)


def standardize_rewards(reward: Tensor, group: Tensor) -> Tensor:
    """Each reward less its group's mean, over its group's (population) standard deviation.

    The advantage of GRPO (Shao et al., 2024, arXiv:2402.03300, section 4.1.2), without an epsilon.

    Args:
        reward: ``[N]``, finite.
        group: ``[N]`` integers.

    Returns:
        ``[N]`` float64; 0 for all of a group whose rewards are equal, such as a group of one.

    Raises:
        ValueError: naming the samples whose reward is not finite, or if the shapes differ.
    """
    reward = _checked(reward, group)
    number, place = _numbered(group)
    deviation = segment_std(reward, place, number, correction=0)[place]
    centered = center_segments(reward, place, number)
    return torch.where(deviation == 0, 0.0, centered / deviation)


def exponential_masses(
    reward: Tensor, *, temperature: float, group: Tensor | None = None
) -> Tensor:
    r""":math:`\exp((r_i - \max_k r_k) / \tau)`. Peters & Schaal (2007), reward-weighted regression.

    Args:
        reward: ``[N]``, finite, of any sign.
        temperature: tau, above 0, in the unit of the rewards; small is greedy.
        group: ``[N]`` integers; if given, the maximum is the group's.

    Returns:
        ``[N]`` float64 in [0, 1]; 1 for the greatest.

    Raises:
        ValueError: if ``temperature`` is not above 0, or naming the samples whose reward is not
            finite.
    """
    check_temperature(temperature)
    reward = _checked(reward, group)
    if not len(reward):
        return reward
    if group is None:
        return ((reward - reward.amax()) / temperature).exp()
    number, place = _numbered(group)
    return ((reward - segment_max(reward, place, number)[place]) / temperature).exp()


def rank_masses(reward: Tensor, *, temperature: float = 1.0, group: Tensor | None = None) -> Tensor:
    r""":math:`\mathrm{rank}(i)^{-1/\tau}`, rank 1 being the greatest reward.

    Schaul et al. (2016), section 3.3, with alpha = 1 / tau. Equal rewards share the masses of the
    ranks they take up equally.

    Args:
        reward: ``[N]``, finite, of any sign.
        temperature: tau, above 0, without unit; small is greedy, and 1 gives ``1 / rank``.
        group: ``[N]`` integers; if given, ranks are within the group.

    Returns:
        ``[N]`` float64 in [0, 1].

    Raises:
        ValueError: if ``temperature`` is not above 0, or naming the samples whose reward is not
            finite.
    """
    check_temperature(temperature)
    standing = _standing(_checked(reward, group), group)
    mass = (standing.place + 1).double().pow(-1 / temperature)
    mean = segment_mean(mass, standing.run, standing.runs)
    return torch.empty_like(mass).scatter(0, standing.order, mean[standing.run])


def threshold_masses(reward: Tensor, *, threshold: float) -> Tensor:
    """1 for rewards of at least ``threshold``, else 0: SFT on filtered data.

    Args:
        reward: ``[N]``, finite, of any sign.
        threshold: in the unit of the rewards.

    Returns:
        ``[N]`` float64, each 0 or 1.

    Raises:
        ValueError: if no reward reaches the threshold (the highest is named), or naming the samples
            whose reward is not finite.
    """
    reward = _checked(reward)
    mass = (reward >= threshold).double()
    if len(mass) and not bool(mass.any()):
        raise ValueError(
            f"all {len(reward)} rewards are below the threshold {threshold:g}, the highest is "
            f"{float(reward.amax()):g}: lower the threshold, or take a best share (scheme: top)"
        )
    return mass


def top_masses(reward: Tensor, *, share: float, group: Tensor | None = None) -> Tensor:
    """1 for the best ``ceil(share * N)`` and for all that tie with the last of them, else 0.

    Args:
        reward: ``[N]``, finite, of any sign.
        share: q in (0, 1].
        group: ``[N]`` integers; if given, the best share of each group.

    Returns:
        ``[N]`` float64, each 0 or 1; at least one of each group is 1.

    Raises:
        ValueError: if ``share`` is outside (0, 1], or naming the samples whose reward is not
            finite.
    """
    return nested_masses(reward, shares=[share], group=group)


def nested_masses(
    reward: Tensor, *, shares: Sequence[float] = NESTED, group: Tensor | None = None
) -> Tensor:
    """How many of the best ``shares`` hold each sample: filtered datasets, concatenated.

    Qin & Springenberg (2025), control code: with the percentiles 90, 95 and 98 the best 2 % count
    three times, the next 3 % twice, the next 5 % once.

    Args:
        reward: ``[N]``, finite, of any sign.
        shares: each in (0, 1], in any order, at least one.
        group: ``[N]`` integers; if given, the best shares of each group.

    Returns:
        ``[N]`` float64: whole numbers from 0 to ``len(shares)``.

    Raises:
        ValueError: if there is no share or one is outside (0, 1], or naming the samples whose
            reward is not finite.
    """
    check_shares(shares)
    standing = _standing(_checked(reward, group), group)
    better = standing.first[standing.run]  # how many of the group have a greater reward
    held = torch.zeros(len(reward), dtype=torch.float64, device=reward.device)
    for share in shares:
        # The allowance: 0.07 * 100 is a little above 7, and means 7.
        wanted = (share * standing.size - 1e-9).ceil().clamp_min(1)
        held += better < wanted
    return torch.empty_like(held).scatter(0, standing.order, held)


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
    reward = _checked(reward)
    if bool((wrong := reward < 0).any()):
        raise ValueError(negative_reward(wrong.nonzero().flatten(), reward[wrong]))
    if len(reward) and not bool((reward > 0).any()):
        raise ValueError(
            f"all {len(reward)} rewards are 0, so none can be drawn in proportion to its own: "
            "choose the scheme exponential or rank, or look why nothing is rewarded"
        )
    if len(reward) and not float(reward.amax()) * len(reward) < math.inf:
        raise ValueError(
            f"the greatest reward is {float(reward.amax()):g}, and the sum of {len(reward)} such "
            "overflows: scale the rewards"
        )
    return reward


def balance_groups(mass: Tensor, group: Tensor) -> Tensor:
    """``mass`` scaled so that each group has 1 in all; a group without any stays without.

    Args:
        mass: ``[N]``, finite and not negative.
        group: ``[N]`` integers.

    Returns:
        ``[N]`` float64 in [0, 1].
    """
    mass = _checked(mass, group)
    number, place = _numbered(group)
    total = segment_sum(mass, place, number)[place]
    return torch.where(total > 0, mass / total, 0.0)


def check_temperature(temperature: float) -> None:
    """Refuse a ``temperature`` that is not above 0.

    Raises:
        ValueError: naming the value.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature is {temperature}; it must be above 0 and finite "
            "(to draw only the best, choose the scheme top)"
        )


def check_shares(shares: Sequence[float]) -> None:
    """Refuse best shares that are none.

    Raises:
        ValueError: if there is none, or one is outside (0, 1].
    """
    if not len(shares) or not all(0 < share <= 1 for share in shares):
        raise ValueError(
            f"best shares are {list(shares)}; give at least one, each in (0, 1] (0.1: the best "
            "tenth)"
        )


def negative_reward(index: Tensor, reward: Tensor) -> str:
    """What is wrong with the negative ``reward`` ``[K]`` of ``index`` ``[K]``."""
    return (
        f"the rewards of index {index[:8].tolist()} are {reward[:8].tolist()}; under the scheme "
        "proportional a reward is a share and not negative: shift them, or choose exponential or "
        "rank"
    )


def not_finite(index: Tensor, reward: Tensor) -> str:
    """What is wrong with the ``reward`` ``[K]`` of ``index`` ``[K]`` that are not finite."""
    return (
        f"the rewards of index {index[:8].tolist()} are {reward[:8].tolist()}; rewards are finite: "
        "look into the reward function"
    )


def _checked(reward: Tensor, group: Tensor | None = None) -> Tensor:
    reward = reward.detach().double()
    if bool((wrong := ~reward.isfinite()).any()):
        raise ValueError(not_finite(wrong.nonzero().flatten(), reward[wrong]))
    if group is not None and group.shape != reward.shape:
        raise ValueError(
            f"there are {len(reward)} rewards, but group has the shape {tuple(group.shape)}: give "
            "the group of each"
        )
    return reward


def _numbered(group: Tensor) -> tuple[int, Tensor]:
    """How many groups there are, and each sample's number in ``[0, groups)``."""
    names, place = torch.unique(group, return_inverse=True)
    return len(names), place


class _Standing(NamedTuple):
    """Samples in the order of their groups, and within them of descending rewards.

    Attributes:
        order: ``[N]`` which sample stands at each place.
        place: ``[N]`` 0, 1, ... within the group.
        run: ``[N]`` the run of equal rewards that each place belongs to, in ``[0, runs)``.
        runs: how many there are.
        first: ``[runs]`` the place within its group where each run begins.
        length: ``[runs]`` of each run.
        size: ``[N]`` of the group at each place.
    """

    order: Tensor
    place: Tensor
    run: Tensor
    runs: int
    first: Tensor
    length: Tensor
    size: Tensor


def _standing(reward: Tensor, group: Tensor | None) -> _Standing:
    order = torch.argsort(reward, descending=True, stable=True)
    number = torch.zeros_like(order) if group is None else _numbered(group)[1]
    order = order[torch.argsort(number[order], stable=True)]
    value, owner = reward[order], number[order]
    everywhere = torch.arange(len(order), device=order.device)
    sizes = torch.bincount(owner)
    place = everywhere - (sizes.cumsum(0) - sizes)[owner]
    begins = torch.ones_like(order, dtype=torch.bool)
    begins[1:] = (value[1:] != value[:-1]) | (owner[1:] != owner[:-1])
    run = begins.cumsum(0) - 1
    length = torch.bincount(run)
    return _Standing(order, place, run, len(length), place[begins], length, sizes[owner])
