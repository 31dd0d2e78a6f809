r"""How much better a completion did than what one could expect: the arithmetic.

    reward     [N]  of each completion; NaN where no reward applies to it
    group      [N]  int64 in [0, P): which prompt it answers
    advantage  [N]  what its tokens' log-probabilities are multiplied by

What the papers leave open, and what this file does:
  1. A NaN reward leaves the baseline, the spread and the batch, and its advantage is 0 (as TRL).
  2. All-equal rewards give exactly 0: rounding cannot make a small spread of them, and that a
     large advantage. Sums are in float64, against the greatest reward of the group.
  3. The standard deviation divides by n - 1, as in TRL and in verl. DeepSeekMath does not say; in a
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
    r"""Each reward less its group's mean, by choice over a standard deviation.

    ``"group"``: :math:`(r_i - \bar r) / (s + \epsilon)`, Shao et al. (2024, arXiv:2402.03300),
    section 4.1.2. ``"none"``: Liu et al. (2025, arXiv:2503.20783), Dr. GRPO, which also is the
    advantage of DOTS. ``"batch"``: s of all rewards of the step, as TRL (arXiv:2508.08221).

    Args:
        reward: ``[N]``, finite or NaN.
        group: ``[N]`` int64 in ``[0, size)``, in any order.
        size: number of groups P; one may be empty.
        scale: what to divide by.
        leave_one_out: the baseline is the mean of the others: RLOO (Ahmadian et al., 2024,
            arXiv:2402.14740), unbiased; G / (G - 1) times the difference to the mean of all.
        epsilon: added to the standard deviation, at least 0; TRL's 1e-4.

    Returns:
        ``[N]`` float32; 0 where the reward is NaN, or all (others) of its group are, or all equal.

    Raises:
        ValueError: if a reward is infinite, a group (or with ``"batch"`` the batch) is of one where
            more are needed, or an option is out of its range.
    """
    if scale not in ("none", "group", "batch"):
        raise ValueError(f"scale is {scale!r}; it must be one of ['none', 'group', 'batch']")
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}; it is added to a standard deviation: at least 0")
    reward = _checked(reward, group, size)
    _refuse_lone(group, size, scale=scale, leave_one_out=leave_one_out)
    known = ~reward.isnan()
    value, owner = reward[known], group[known]
    advantage = center_segments(value, owner, size)
    if leave_one_out:
        count = segment_count(owner, size)
        advantage = advantage * (count / (count - 1).clamp(min=1))[owner]
    if scale != "none":
        pool = owner if scale == "group" else torch.zeros_like(owner)
        deviation = segment_std(value, pool, size)[pool]
        advantage = torch.where(deviation == 0, 0.0, advantage / (deviation + epsilon))
    return torch.zeros_like(reward).masked_scatter(known, advantage).float()


def has_spread(reward: Tensor, group: Tensor, size: int, tolerance: float = 0.0) -> Tensor:
    """Whether the rewards of a group differ: ``[P]`` bool.

    Groups without spread have no gradient. DAPO's filter (Yu et al., 2025, arXiv:2503.14476,
    section 3.2) as TRL and verl do it.

    Args:
        reward: ``[N]``, finite or NaN; NaN does not count.
        group: ``[N]`` int64 in ``[0, size)``.
        size: number of groups P.
        tolerance: rewards that differ by no more are equal; at least 0.

    Raises:
        ValueError: if a reward is infinite or ``tolerance`` negative.
    """
    reward = _checked(reward, group, size)
    _check_tolerance(tolerance)
    known = ~reward.isnan()
    value, owner = reward[known], group[known]
    spread = segment_max(value, owner, size) + segment_max(-value, owner, size)
    return spread > tolerance  # -inf in a group without rewards


def group_outcomes(reward: Tensor, group: Tensor, size: int, tolerance: float = 0.0) -> Tensor:
    """Whether each group can teach: ``INFORMATIVE``, or why not.

    ``SOLVED`` and ``FAILED``: all rewards lie in [0, 1] and their mean is 1 or 0, the filter of
    DAPO (Yu et al., 2025, arXiv:2503.14476, equation 11) and of DOTS' rollout replay (Sun et al.,
    2025, arXiv:2506.05316, algorithm 1). ``FLAT``: all rewards are equal, or none is known.

    Args:
        reward: ``[N]``, finite, or NaN where no reward applies.
        group: ``[N]`` int64 in ``[0, size)``.
        size: number of groups P.
        tolerance: largest distance of the mean from 1 or 0 that counts as solved or failed, >= 0.

    Returns:
        ``[P]`` int64.

    Raises:
        ValueError: if a reward is infinite or ``tolerance`` negative.
    """
    reward = _checked(reward, group, size)
    _check_tolerance(tolerance)
    known = ~reward.isnan()
    value, owner = reward[known], group[known]
    least, greatest = -segment_max(-value, owner, size), segment_max(value, owner, size)
    mean = segment_mean(value, owner, size)
    outcome = torch.where(least < greatest, INFORMATIVE, FLAT)
    bounded = (segment_count(owner, size) > 0) & (least >= 0) & (greatest <= 1)
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
    """Right answers have ``+positive_weight``, wrong ones ``-negative_weight``; no baseline.

    Zhu et al. (2025, arXiv:2506.01347): positive sample reinforcement is (1, 0), negative is
    (0, 1), W-REINFORCE is (0.1, 1), and REINFORCE (1, 1). Their code drops the samples of weight 0
    before the mean of the loss; here they stay, with advantage 0, and count in it.

    Args:
        reward: ``[N]``; NaN has advantage 0.
        positive_weight: finite, at least 0.
        negative_weight: finite, at least 0.
        threshold: an answer is right from this reward on; 0.5 divides 0 from 1, and -1 from 1.

    Returns:
        ``[N]`` float32.

    Raises:
        ValueError: if a weight is negative or not finite.
    """
    _check_weights(positive_weight, negative_weight)
    sign = torch.where(reward >= threshold, positive_weight, -negative_weight)
    return torch.where(reward.isnan(), 0.0, sign).float()


def scale_by_sign(advantage: Tensor, *, positive: float, negative: float) -> Tensor:
    """Advantages above 0 times ``positive``, those below times ``negative``.

    The split of Zhu et al. (2025, arXiv:2506.01347) for advantages that have a baseline.

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

    Yu et al. (2025, arXiv:2503.14476), equation 13: 0 up to ``max_length - cache`` tokens, from
    there down in a line to -1 at ``max_length``, and -1 beyond. Their figures: 20480 and 4096.

    Args:
        lengths: ``[N]`` tokens of each completion.
        max_length: at which the penalty is whole, in tokens.
        cache: tokens over which it grows, in [1, max_length].

    Returns:
        ``[N]`` float32 in [-1, 0].

    Raises:
        ValueError: if ``cache`` is outside [1, ``max_length``].
    """
    if not 1 <= cache <= max_length:
        raise ValueError(
            f"cache is {cache} with max_length {max_length}; the penalty grows over the last "
            "`cache` tokens, so it must lie in [1, max_length]: DAPO takes a fifth"
        )
    return ((max_length - cache - lengths).double() / cache).clamp(-1, 0).float()


def pass_at_k(correct: Tensor, total: Tensor, k: int) -> Tensor:
    r"""The chance that at least one of k answers is right, from n answers of which c are.

    Unbiased: :math:`1 - \binom{n-c}{k} / \binom{n}{k}`, Chen et al. (2021, arXiv:2107.03374),
    equation 1; as a sum of logarithms, so no binomial overflows.

    Args:
        correct: ``[P]`` c, whole numbers in [0, total].
        total: ``[P]`` n.
        k: from 1 to the least of ``total``.

    Returns:
        ``[P]`` float64 in [0, 1].

    Raises:
        ValueError: if ``k`` is out of its range, or naming the prompts whose counts are wrong.
    """
    right, n = correct.double(), total.double()
    wrong = ((right < 0) | (right > n)).nonzero().flatten()
    if len(wrong):
        raise ValueError(
            f"correct is {correct[wrong][:8].tolist()} of {total[wrong][:8].tolist()} at index "
            f"{wrong[:8].tolist()}; it must lie in [0, total]"
        )
    if k < 1 or (len(n) and k > float(n.amin())):
        least = int(n.amin()) if len(n) else 0
        raise ValueError(
            f"k is {k}; pass@k needs at least k answers to each prompt, and one has {least}: "
            "sample more, or lower k (to at least 1)"
        )
    log_none = torch.zeros_like(right)
    for drawn in range(k):  # the chance that the next is wrong too; 0 where none is left
        log_none += torch.log1p(-(right / (n - drawn)).clamp(max=1))
    return -torch.expm1(log_none)


def _refuse_lone(group: Tensor, size: int, *, scale: str, leave_one_out: bool) -> None:
    if scale == "batch" and len(group) == 1:
        raise ValueError(
            "scale is 'batch' and there is one rollout; one has no standard deviation: generate "
            "more, or choose scale 'none'"
        )
    if not leave_one_out and scale != "group":
        return
    lone = (torch.bincount(group, minlength=size) == 1).nonzero().flatten()
    if len(lone):
        what = "leave_one_out needs others" if leave_one_out else "one has no standard deviation"
        raise ValueError(
            f"groups {lone[:8].tolist()} have 1 rollout; {what}: generate at least 2 for each "
            "prompt (group_size), or choose scale 'none' or 'batch' without leave_one_out, or "
            "advantages that need no baseline (psr_nsr_advantages; of a policy objective: signs)"
        )


def _check_tolerance(tolerance: float) -> None:
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance is {tolerance}; it must be at least 0 and finite")


def _check_weights(positive: float, negative: float) -> None:
    for name, value in (("positive", positive), ("negative", negative)):
        if not 0 <= value < math.inf:
            raise ValueError(
                f"the weight of {name} samples is {value}; it must be at least 0 and finite (the "
                "sign comes from the sample)"
            )


def _checked(reward: Tensor, group: Tensor, size: int) -> Tensor:
    if reward.shape != group.shape or reward.dim() != 1:
        raise ValueError(
            f"reward has shape {list(reward.shape)} and group {list(group.shape)}; both must be "
            "[N], one for each rollout"
        )
    reward = reward.detach().double()
    wrong = reward.isinf().nonzero().flatten()
    if len(wrong):
        raise ValueError(
            f"the rewards of index {wrong[:8].tolist()} are {reward[wrong][:8].tolist()}; a reward "
            "is finite, or NaN where none applies: look into the reward function"
        )
    outside = ((group < 0) | (group >= size)).nonzero().flatten()
    if len(outside):
        raise ValueError(
            f"the groups of index {outside[:8].tolist()} are {group[outside][:8].tolist()}; with "
            f"size {size} they must lie in [0, {size})"
        )
    return reward
