r"""What a replayed group of rollouts is worth, and how that fades (FreshPER, arXiv:2604.16918).

Rollouts were made by an older policy. Plain priorities keep drawing those that once surprised and
no longer do, and did worse than no replay at all in that paper; its remedy is one factor:

    base priority   what the group taught when it was made       uniform, |A| or p(1-p)
    freshness       exp(-age / tau), age in policy versions      1 when new
    priority        base * freshness
    mass            priority^alpha, which a draw goes by         as in ``core.prioritized``

As the policy moves on by one version, every priority shrinks by the same exp(-1/tau). So the *law*
changes only by what is added, updated or removed, and ``log_masses`` needs no current version.

Where this departs from the paper, and why:
  1. Priorities belong to groups, whose rollouts share a baseline, and not to single rollouts.
  2. Age counts policy versions, not optimizer steps: several steps may be made from one version.
  3. p(1-p) is computed as the variance of the group's rewards: equal for rewards of 0 and 1, and
     right for graded ones too.
"""

import math

import torch
from torch import Tensor

from lit_adaptive.core.prioritized import check_alpha
from lit_adaptive.core.segments import center_segments, segment_mean


def check_tau(tau: float) -> None:
    """Refuse a time that is not above 0.

    Raises:
        ValueError: with the remedy.
    """
    if not 0 < tau < math.inf:
        raise ValueError(
            f"tau is {tau}; ages in policy versions are divided by it, so it must be above 0 and "
            "finite (for priorities that do not fade choose the policy 'prioritized')"
        )


def freshness_factor(age: Tensor, *, tau: float) -> Tensor:
    """``exp(-age / tau)``: 1 when new, 1/e after ``tau`` versions. FreshPER.

    Args:
        age: ``[P]`` in policy versions, not negative.
        tau: policy versions, above 0; 500 in the paper (1000 on FrozenLake).

    Returns:
        ``[P]`` float64 in [0, 1].

    Raises:
        ValueError: if ``tau`` is not above 0, or an age is negative or NaN (its place is named).
    """
    check_tau(tau)
    wrong = ~(age >= 0)
    if bool(wrong.any()):
        where = wrong.nonzero().flatten()[:8]
        raise ValueError(
            f"the ages at {where.tolist()} are {age[where].tolist()}; no rollout is newer than "
            "the policy: pass the current version minus the rollout's"
        )
    return age.double().div(-tau).exp()


def fresh_priorities(base: Tensor, age: Tensor, *, tau: float) -> Tensor:
    """``base * exp(-age / tau)``. FreshPER.

    Args:
        base: ``[P]``, not negative.
        age: ``[P]`` in policy versions, not negative.
        tau: policy versions, above 0.

    Returns:
        Priorities ``[P]`` float64.

    Raises:
        ValueError: as ``freshness_factor``.
    """
    return base.double() * freshness_factor(age, tau=tau)


def log_masses(base: Tensor, version: Tensor, *, alpha: float, tau: float | None) -> Tensor:
    r"""Logarithm of masses, up to a constant that all groups share.

    :math:`\alpha(\log p_i + v_i / \tau)` is :math:`\log (p_i e^{-(v - v_i)/\tau})^\alpha` but for
    :math:`\alpha v / \tau`, which is the same for all groups and cancels in the law.

    Args:
        base: ``[P]``, above 0.
        version: ``[P]``, of the policy that made each group.
        alpha: in [0, 1].
        tau: policy versions, above 0; None: priorities do not fade.

    Returns:
        ``[P]`` float64.

    Raises:
        ValueError: if ``alpha`` or ``tau`` is out of its range.
    """
    check_alpha(alpha)
    log = base.double().log()
    if tau is not None:
        check_tau(tau)
        log = log + version.double() / tau
    return log * alpha


def uniform_priorities(size: int) -> Tensor:
    """The same base priority for each of ``size`` groups: ``[P]`` float64 of 1."""
    return torch.ones(size, dtype=torch.float64)


def absolute_advantage(
    advantage: Tensor, group: Tensor, size: int, *, counted: Tensor | None = None
) -> Tensor:
    """Mean of ``|A|`` over the rollouts of each group. FreshPER's base priority.

    Args:
        advantage: ``[N]``.
        group: ``[N]`` int64 in ``[0, size)``.
        size: number of groups P.
        counted: ``[N]`` bool, the rollouts that count; None: all.

    Returns:
        ``[P]`` float64, not negative; 0 for a group of which none counts.
    """
    value = advantage.detach().double().abs()
    if counted is not None:
        value, group = value[counted], group[counted]
    return segment_mean(value, group, size)


def learnability(reward: Tensor, group: Tensor, size: int) -> Tensor:
    """``p (1 - p)``, p being the share of a group's rollouts that are right.

    It is the variance of rewards of 0 and 1, greatest at p = 1/2 and 0 where nothing is left to
    learn. Of other rewards it is the variance, not divided by G - 1.

    Args:
        reward: ``[N]``; NaN where no reward applies, which does not count.
        group: ``[N]`` int64 in ``[0, size)``.
        size: number of groups P.

    Returns:
        ``[P]`` float64, not negative; 0 for a group without rewards.
    """
    known = ~reward.isnan()
    value, group = reward.detach()[known].double(), group[known]
    return segment_mean(center_segments(value, group, size).square(), group, size)
