r"""Equations of prioritized experience replay (Schaul et al., 2016, arXiv:1511.05952).

Four quantities, each with its own name:

    priority     p_i        how surprising item i was                           [N], >= 0
    mass         p_i^alpha  what the sum tree stores                            [N], >= 0
    probability  P(i)       mass / sum of masses (equation 1)                   [N], sums to 1
    weight       w_i        what the loss is multiplied by (section 3.4)        [B], in (0, 1]

Departures from the paper:
  1. The paper leaves ``0 ** 0`` open; here an item of priority 0 is never drawn, whatever alpha.
  2. The weight :math:`(N P(i))^{-\beta} / \max_j w_j` is computed as
     :math:`(P_{\min} / P(i))^\beta`: N cancels, and nothing overflows.
"""

import torch
from torch import Tensor

from lit_adaptive.core.corrections import check_beta, ratio_powers


def proportional_priorities(td_error: Tensor, *, epsilon: float) -> Tensor:
    r""":math:`p_i = |\delta_i| + \epsilon`. Schaul et al. (2016), section 3.3, proportional.

    Args:
        td_error: ``[B]``, of any sign.
        epsilon: at least 0, in the unit of ``td_error``; above 0, items without error can be drawn.

    Returns:
        Priorities ``[B]``, not negative.

    Raises:
        ValueError: if ``epsilon`` is negative or NaN.
    """
    if not epsilon >= 0:
        raise ValueError(
            f"epsilon is {epsilon}; it must not be negative (at 0, items without error are never "
            "drawn again)"
        )
    return td_error.detach().abs() + epsilon


def rank_priorities(score: Tensor) -> Tensor:
    r""":math:`p_i = 1 / \mathrm{rank}(i)`, where the largest score has rank 1.

    Schaul et al. (2016), section 3.3, rank-based. Equal scores rank in the order of their indices.

    Args:
        score: ``[N]``, such as ``|td_error|``; not NaN.

    Returns:
        Priorities ``[N]`` float64.

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
    """Raise ValueError unless ``alpha`` is in [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha is {alpha}; it must lie in [0, 1] (0: uniform, 1: in proportion to priority)"
        )


def priority_masses(priority: Tensor, *, alpha: float) -> Tensor:
    r""":math:`p_i^\alpha`, the unnormalised probability. Schaul et al. (2016), equation 1.

    Priorities that are NaN, infinite or negative give invalid masses, which ``SumTree`` rejects.

    Args:
        priority: ``[N]``, finite and not negative.
        alpha: strength of the prioritization, in [0, 1]; 0 is uniform.

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

    Schaul et al. (2016), equation 1. Reference implementation; tests compare the samplers' draws,
    which come from a sum tree, with it.

    Args:
        priority: ``[N]``, finite and not negative.
        alpha: strength of the prioritization, in [0, 1]; 0 is uniform.

    Returns:
        Probabilities ``[N]`` float64 that sum to 1; 0 for priority 0, even at ``alpha=0``.

    Raises:
        ValueError: if ``alpha`` is outside [0, 1], a priority is NaN, infinite or negative (its
            index is named), or none is above 0.
    """
    invalid = ~((priority >= 0) & (priority < torch.inf))
    if bool(invalid.any()):
        index = invalid.nonzero().flatten()[:8]
        raise ValueError(
            f"the priorities of items {index.tolist()} are {priority[index].tolist()}; "
            "priorities are finite and not negative: look for NaN or inf in the loss"
        )
    if not bool((priority > 0).any()):
        raise ValueError("no priority is above 0, so nothing can be drawn: add a small epsilon")
    if alpha != 0:  # scaled to a maximum of 1, the sum of masses cannot overflow
        priority = priority.double() / priority.max().double()
    mass = priority_masses(priority, alpha=alpha)
    return mass / mass.sum()


def importance_sampling_weights(
    probability: Tensor, *, beta: float, min_probability: float | None = None
) -> Tensor:
    r"""Weights :math:`w_i = (N P(i))^{-\beta} / \max_j w_j`, which undo the bias of the draw.

    Schaul et al. (2016), section 3.4. At ``beta=1`` the mean of w f over draws is proportional to
    the uniform mean of f. The number of items N cancels against the maximum.

    Args:
        probability: ``[B]`` in (0, 1]: probability of each drawn item at the time of the draw.
        beta: strength of the bias correction, in [0, 1]; 1 corrects fully.
        min_probability: smallest probability in the buffer, or in the batch over all ranks, whose
            weight is 1. None: the smallest in ``probability``.

    Returns:
        Weights ``[B]`` float64 in (0, 1].

    Raises:
        ValueError: if ``beta`` is outside [0, 1], a probability outside (0, 1], or
            ``min_probability`` not above 0 or above one of them.
    """
    check_beta(beta)
    weight, least = ratio_powers(min_probability or 0.0, probability, beta)
    if min_probability is not None and not 0 < min_probability <= least:
        raise ValueError(
            f"min_probability is {min_probability}; it must be above 0 and not above {least}, the "
            "smallest in the batch: take it at the same draw"
        )
    return weight
