r"""Prioritized experience replay: the arithmetic (Schaul et al., 2016, arXiv:1511.05952).

Four quantities share this file, and never a name:

    priority     p_i        how surprising item i was                  [N], >= 0
    mass         p_i^alpha  what the sum tree stores                   [N], >= 0
    probability  P(i)       mass / sum of masses (equation 1)          [N], sums to 1
    weight       w_i        what the loss is multiplied by (sec. 3.4)  [B], in (0, 1]

Where this departs from the paper, and why:
  1. The paper leaves ``0 ** 0`` open; here an item of priority 0 is never drawn, whatever alpha.
  2. The weight :math:`(N P(i))^{-\beta} / \max_j w_j` is computed as
     :math:`(P_{\min} / P(i))^\beta`: N cancels, and nothing overflows.
"""

import torch
from torch import Tensor

from lit_adaptive.core.kernels.weights import weights


def proportional_priorities(td_error: Tensor, *, epsilon: float) -> Tensor:
    r""":math:`p_i = |\delta_i| + \epsilon`. Schaul et al. (2016), section 3.3, proportional.

    Args:
        td_error: ``[B]``, of any sign.
        epsilon: above 0 or 0, in the unit of ``td_error``; keeps items without error drawable.

    Returns:
        Priorities ``[B]``, not negative.

    Raises:
        ValueError: if ``epsilon`` is negative or NaN.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon is {epsilon}; it must not be negative (0 lets items vanish)")
    return td_error.detach().abs() + epsilon


def rank_priorities(score: Tensor) -> Tensor:
    r""":math:`p_i = 1 / \mathrm{rank}(i)`, rank 1 being the greatest score.

    Schaul et al. (2016), section 3.3, rank-based. Equal scores rank in the order of their indices.

    Args:
        score: ``[N]``, such as ``|td_error|``; not NaN.

    Returns:
        Priorities ``[N]`` float64: 1, 1/2, ..., 1/N in the order of ``score``.

    Raises:
        ValueError: naming the indices whose score is NaN.
    """
    if bool((missing := score.isnan()).any()):
        raise ValueError(
            f"the scores of items {missing.nonzero().flatten()[:8].tolist()} are NaN and have no "
            "rank: look for NaN in the loss"
        )
    order = torch.argsort(score.detach(), descending=True, stable=True)
    rank = torch.empty(len(score), dtype=torch.float64, device=score.device)
    rank[order] = torch.arange(1, len(score) + 1, dtype=torch.float64, device=score.device)
    return 1 / rank


def check_alpha(alpha: float) -> None:
    """Refuse an ``alpha`` that is not in [0, 1].

    Raises:
        ValueError: naming the value.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha is {alpha}; it must lie in [0, 1] (0: uniform, 1: in proportion to priority)"
        )


def priority_masses(priority: Tensor, *, alpha: float) -> Tensor:
    r""":math:`p_i^\alpha`, the unnormalised probability. Schaul et al. (2016), equation 1.

    What is no priority (NaN, infinite, negative) gives what is no mass, for the tree to refuse.

    Args:
        priority: ``[N]``, finite and not negative.
        alpha: how strongly to prioritize, in [0, 1]; 0 is uniform.

    Returns:
        Masses ``[N]`` float64; 0 for priority 0, even at ``alpha=0``.

    Raises:
        ValueError: if ``alpha`` is outside [0, 1].
    """
    check_alpha(alpha)
    priority = priority.detach().to(torch.float64)
    if alpha == 1:
        return priority
    if alpha == 0:
        return torch.where((priority > 0) & (priority < torch.inf), 1.0, priority)
    return priority.pow(alpha)


def sampling_probabilities(priority: Tensor, *, alpha: float) -> Tensor:
    r"""Probability of drawing each item: :math:`P(i) = p_i^\alpha / \sum_k p_k^\alpha`.

    Schaul et al. (2016), equation 1.

    Args:
        priority: ``[N]``, finite and not negative; the unit of ``|td_error|``.
        alpha: how strongly to prioritize, in [0, 1]; 0 is uniform.

    Returns:
        Probabilities ``[N]`` float64 that sum to 1. An item of priority 0 is never drawn, not even
        at ``alpha=0``; the paper leaves ``0 ** 0`` open.

    Raises:
        ValueError: if ``alpha`` is outside [0, 1], a priority is NaN, infinite or negative (its
            index is named), or none is above 0.
    """
    wrong = ~((priority >= 0) & (priority < torch.inf))
    if bool(wrong.any()):
        where = wrong.nonzero().flatten()[:8]
        raise ValueError(
            f"the priorities of items {where.tolist()} are {priority[where].tolist()}; "
            "priorities are finite and not negative: look for NaN or inf in the loss"
        )
    if not bool((priority > 0).any()):
        raise ValueError("no priority is above 0, so nothing can be drawn: add a small epsilon")
    # Scaled by the greatest before summing, so the sum cannot overflow; P(i) stays the same.
    mass = priority_masses(priority.double() / priority.max().double(), alpha=alpha)
    if alpha == 0:
        mass = (priority > 0).double()
    return mass / mass.sum()


def importance_sampling_weights(
    probability: Tensor, *, size: int, beta: float, min_probability: float | None = None
) -> Tensor:
    r"""Weights :math:`w_i = (N P(i))^{-\beta} / \max_j w_j`: they undo the bias of the draw.

    Schaul et al. (2016), section 3.4. At ``beta=1`` the mean of w f over draws is proportional to
    the uniform mean of f.

    Args:
        probability: ``[B]``, in (0, 1]: of each drawn item, at its draw.
        size: number of items N that could be drawn, above 0. It cancels against the maximum.
        beta: how much of the bias to correct, in [0, 1].
        min_probability: of the item that carries the greatest weight: that of the whole buffer (or
            of the batch over all ranks). None: the least in ``probability``.

    Returns:
        Weights ``[B]`` float64 in (0, 1].

    Raises:
        ValueError: if ``beta`` is outside [0, 1], ``size`` is not above 0, a probability is outside
            (0, 1], or ``min_probability`` is above one of them or not above 0.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}; it must lie in [0, 1] (0: no correction, 1: unbiased)")
    if size <= 0:
        raise ValueError(f"size is {size}; the number of items that could be drawn is above 0")
    if probability.requires_grad or probability.dtype is not torch.float64:
        probability = probability.detach().to(torch.float64)
    if not probability.is_cpu:
        return _weights_on_device(probability, beta, min_probability)
    weight = torch.empty_like(probability)
    least = -1.0 if min_probability == 0 else (min_probability or 0.0)  # 0 stands for None
    if len(weight) and not weights(probability.numpy(), least, float(beta), weight.numpy()):
        raise ValueError(_complaint(probability, min_probability))
    return weight


def _weights_on_device(probability: Tensor, beta: float, min_probability: float | None) -> Tensor:
    if len(probability) == 0:
        return torch.empty_like(probability)
    least, greatest = torch.aminmax(probability)
    minimum = least if min_probability is None else probability.new_tensor(min_probability)
    if not bool((minimum > 0) & (minimum <= least) & (greatest <= 1)):
        raise ValueError(_complaint(probability, min_probability))
    return torch.div(minimum, probability).pow(beta)


def _complaint(probability: Tensor, min_probability: float | None) -> str:
    least, greatest = (float(bound) for bound in torch.aminmax(probability))
    if not (least > 0 and greatest <= 1):
        return (
            f"probabilities range from {least} to {greatest}; they must lie in (0, 1]: "
            "pass the probabilities that came with the draw"
        )
    return (
        f"min_probability is {min_probability}; it must be above 0 and not above {least}, the "
        "least in the batch: take it at the same draw"
    )
