r"""Advantages of completions: rewards relative to a baseline.

    reward     [N]  reward of each completion; NaN where no reward applies to it
    group      [N]  int64 in [0, P): the prompt of each completion
    advantage  [N]  factor of the log-probabilities of the completion's tokens

What the papers leave open:
  1. A NaN reward is excluded from mean and standard deviation, and its advantage is 0 (as in TRL).
  2. Groups are flat, and have advantages of exactly 0, if their rewards are exactly equal; a mean
     off by rounding never leads to a large advantage.
  3. The standard deviation divides by n - 1, as in TRL and verl. DeepSeekMath does not say; in a
     group of 8, dividing by n would make advantages 7 % larger.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from lit_adaptive.core.segments import (
    center_segments,
    segment_count,
    segment_max,
    segment_mean,
    segment_std,
)

Scale = Literal["none", "group", "batch"]

INFORMATIVE, SOLVED, FAILED, FLAT = range(4)
"""What ``group_outcomes`` returns."""


def group_advantages(
    reward: Tensor,
    group: Tensor,
    size: int,
    *,
    scale: Scale = "group",
    leave_one_out: bool = False,
    epsilon: float = 1e-4,
) -> Tensor:
    r"""Each reward minus its group's mean, optionally divided by a standard deviation.

    Args:
        reward: ``[N]``, finite or NaN.
        group: ``[N]`` int64 in ``[0, size)``, in any order.
        size: number of groups P; groups may be empty.
        scale: standard deviation to divide by. ``"group"``: that of the group,
            :math:`(r_i - \bar r) / (s + \epsilon)`, Shao et al. (2024, arXiv:2402.03300), section
            4.1.2. ``"batch"``: that of all rewards, as in TRL (arXiv:2508.08221). ``"none"``: no
            division, Dr. GRPO (Liu et al., 2025, arXiv:2503.20783) and DOTS.
        leave_one_out: use the mean of the other rollouts as the baseline: RLOO (Ahmadian et al.,
            2024, arXiv:2402.14740), unbiased; G / (G - 1) times the difference to the group's mean.
        epsilon: added to the standard deviation, at least 0; 1e-4 as in TRL.

    Returns:
        ``[N]`` float32; 0 where the reward is NaN, or all known rewards of its group are equal.

    Raises:
        ValueError: if a reward is infinite, a group (for ``"batch"`` the batch) has one rollout
            where two are needed, or an option is out of its range.
    """
    if scale not in ("none", "group", "batch"):
        raise ValueError(f"scale is {scale!r}; it must be one of ['none', 'group', 'batch']")
    if not 0 <= epsilon < math.inf:
        raise ValueError(
            f"epsilon is {epsilon}; it is added to a standard deviation and must be at least 0"
        )
    known, value, index = _known_rewards(reward, group, size)
    _check_group_sizes(group, size, scale=scale, leave_one_out=leave_one_out)
    advantage = center_segments(value, index, size)
    if leave_one_out:
        count = segment_count(index, size)
        advantage = advantage * (count / (count - 1).clamp(min=1))[index]
    if scale != "none":
        pool = index if scale == "group" else torch.zeros_like(index)
        deviation = segment_std(value, pool, size)[pool]
        advantage = torch.where(deviation == 0, 0.0, advantage / (deviation + epsilon))
    return value.new_zeros(len(reward)).masked_scatter(known, advantage).float()


def has_spread(reward: Tensor, group: Tensor, size: int) -> Tensor:
    """Whether the known rewards of each group differ: ``[P]`` bool.

    Groups without spread have no gradient: DAPO's filter (Yu et al., 2025, arXiv:2503.14476,
    section 3.2) as implemented in TRL and verl.

    Args:
        reward: ``[N]``, finite, or NaN where no reward applies.
        group: ``[N]`` int64 in ``[0, size)``.
        size: number of groups P.

    Raises:
        ValueError: if a reward is infinite.
    """
    _, value, index = _known_rewards(reward, group, size)
    return segment_max(value, index, size) > -segment_max(-value, index, size)


def group_outcomes(reward: Tensor, group: Tensor, size: int, tolerance: float = 0.0) -> Tensor:
    """Whether each group has a learning signal: ``INFORMATIVE``, or the reason why not.

    ``SOLVED`` and ``FAILED``: all rewards lie in [0, 1] and their mean is 1 or 0, the filter of
    DAPO (Yu et al., 2025, arXiv:2503.14476, equation 11) and of DOTS' rollout replay (Sun et al.,
    2025, arXiv:2506.05316, algorithm 1). ``FLAT``: all rewards are equal, or none is known.

    Args:
        reward: ``[N]``, finite, or NaN where no reward applies.
        group: ``[N]`` int64 in ``[0, size)``.
        size: number of groups P.
        tolerance: distance of the mean from 1 or 0 up to which a group is solved or failed; at
            least 0.

    Returns:
        ``[P]`` int64: ``INFORMATIVE``, ``SOLVED``, ``FAILED`` or ``FLAT``.

    Raises:
        ValueError: if a reward is infinite or ``tolerance`` negative.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance is {tolerance}; it must be at least 0 and finite")
    _, value, index = _known_rewards(reward, group, size)
    least, greatest = -segment_max(-value, index, size), segment_max(value, index, size)
    mean = segment_mean(value, index, size)
    outcome = torch.where(least < greatest, INFORMATIVE, FLAT)
    bounded = (segment_count(index, size) > 0) & (least >= 0) & (greatest <= 1)
    outcome[bounded & (mean >= 1 - tolerance)] = SOLVED
    outcome[bounded & (mean <= tolerance)] = FAILED
    return outcome


def psr_nsr_advantages(
    reward: Tensor,
    *,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
    threshold: float = 0.5,
) -> Tensor:
    """``+positive_weight`` for correct completions and ``-negative_weight`` for others.

    Zhu et al. (2025, arXiv:2506.01347): positive sample reinforcement (PSR) has the weights (1, 0),
    negative (NSR) (0, 1), W-REINFORCE (0.1, 1), and REINFORCE (1, 1). There is no baseline. The
    paper's code drops the samples of weight 0 before the mean of the loss; here they count in it,
    with advantage 0.

    Args:
        reward: ``[N]``; NaN has advantage 0.
        positive_weight: finite, at least 0.
        negative_weight: finite, at least 0.
        threshold: least reward of a correct completion; 0.5 separates 0 from 1, and -1 from 1.

    Returns:
        ``[N]`` float32.

    Raises:
        ValueError: if a weight is negative or not finite.
    """
    _check_weights(positive_weight, negative_weight)
    sign = torch.where(reward >= threshold, positive_weight, -negative_weight)
    return torch.where(reward.isnan(), 0.0, sign).float()


def scale_by_sign(advantage: Tensor, *, positive: float, negative: float) -> Tensor:
    """Advantages above 0 times ``positive``, and those below 0 times ``negative``.

    The weighting of Zhu et al. (2025, arXiv:2506.01347) for advantages with a baseline.

    Args:
        advantage: any shape.
        positive: finite, at least 0.
        negative: finite, at least 0.

    Raises:
        ValueError: if a weight is negative or not finite.
    """
    _check_weights(positive, negative)
    return torch.where(advantage > 0, advantage * positive, advantage * negative)


def overlong_penalty(lengths: Tensor, *, max_length: int, cache: int) -> Tensor:
    r"""DAPO's soft overlong punishment, to be added to the reward.

    Yu et al. (2025, arXiv:2503.14476), equation 13: 0 up to ``max_length - cache`` tokens, then
    falling linearly to -1 at ``max_length``, and -1 beyond. The paper uses 20480 and 4096.

    Args:
        lengths: ``[N]`` tokens of each completion.
        max_length: tokens at which the penalty reaches -1.
        cache: tokens over which it falls, in [1, max_length].

    Returns:
        ``[N]`` float32 in [-1, 0].

    Raises:
        ValueError: if ``cache`` is outside [1, ``max_length``].
    """
    if not 1 <= cache <= max_length:
        raise ValueError(
            f"cache is {cache} with max_length {max_length}; the penalty falls over the last "
            "`cache` tokens, so it must lie in [1, max_length]: DAPO uses a fifth"
        )
    return ((max_length - cache - lengths).double() / cache).clamp(-1, 0).float()


def pass_at_k(correct: Tensor, total: Tensor, k: int) -> Tensor:
    r"""Probability that at least one of k completions is correct, from c correct ones of n.

    Unbiased: :math:`1 - \binom{n-c}{k} / \binom{n}{k}`, Chen et al. (2021, arXiv:2107.03374),
    equation 1; as a sum of logarithms, so no binomial overflows.

    Args:
        correct: ``[P]`` c, whole numbers in [0, total].
        total: ``[P]`` n.
        k: from 1 to the smallest of ``total``.

    Returns:
        ``[P]`` float64 in [0, 1].

    Raises:
        ValueError: if ``k`` is out of its range, or naming the prompts with impossible counts.
    """
    c, n = correct.double(), total.double()
    invalid = ((c < 0) | (c > n)).nonzero().flatten()
    if len(invalid):
        raise ValueError(
            f"correct is {correct[invalid][:8].tolist()} of {total[invalid][:8].tolist()} at index "
            f"{invalid[:8].tolist()}; it must lie in [0, total]"
        )
    if k < 1 or (len(n) and k > float(n.amin())):
        least = int(n.amin()) if len(n) else 0
        raise ValueError(
            f"k is {k}; pass@k needs at least k completions of each prompt, but one prompt has "
            f"{least}: sample more, or lower k (to at least 1)"
        )
    log_failure = torch.zeros_like(c)
    for drawn in range(k):  # probability that the next one is incorrect too
        log_failure += torch.log1p(-(c / (n - drawn)).clamp(max=1))
    return -torch.expm1(log_failure)


def _check_group_sizes(group: Tensor, size: int, *, scale: str, leave_one_out: bool) -> None:
    if scale == "batch" and len(group) == 1:
        raise ValueError(
            "scale is 'batch' but there is only one rollout, which has no standard deviation: "
            "generate more, or choose scale 'none'"
        )
    if not leave_one_out and scale != "group":
        return
    single = (segment_count(group, size) == 1).nonzero().flatten()
    if len(single):
        need = "leave_one_out" if leave_one_out else "the standard deviation of a group"
        raise ValueError(
            f"groups {single[:8].tolist()} have 1 rollout; {need} needs at least 2 for each prompt "
            "(group_size): generate more, choose scale 'none' or 'batch' without leave_one_out, or "
            "advantages without a baseline (advantage: signs)"
        )


def _check_weights(positive: float, negative: float) -> None:
    for name, value in (("positive", positive), ("negative", negative)):
        if not 0 <= value < math.inf:
            raise ValueError(
                f"the weight of {name} samples is {value}; it must be at least 0 and finite (the "
                "sign comes from the reward)"
            )


def _known_rewards(reward: Tensor, group: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mask of the known rewards ``[N]``, their values ``[K]`` float64 and groups ``[K]``."""
    if reward.shape != group.shape or reward.dim() != 1:
        raise ValueError(
            f"reward has shape {list(reward.shape)} and group {list(group.shape)}; both must be "
            "[N], one for each rollout"
        )
    reward = reward.detach().double()
    infinite = reward.isinf().nonzero().flatten()
    if len(infinite):
        raise ValueError(
            f"the rewards of index {infinite[:8].tolist()} are {reward[infinite][:8].tolist()}; a "
            "reward is finite, or NaN where none applies: look into the reward function"
        )
    outside = ((group < 0) | (group >= size)).nonzero().flatten()
    if len(outside):
        raise ValueError(
            f"the groups of index {outside[:8].tolist()} are {group[outside][:8].tolist()}; with "
            f"size {size} they must lie in [0, {size})"
        )
    known = ~reward.isnan()
    return known, reward[known], group[known]
