r"""Draws without replacement whose inclusion probabilities are exact: systematic sampling.

    mass                   m_i    relative frequency of item i                    [N], > 0
    inclusion probability  pi_i   probability that item i is among the k drawn    [N], sums to k

An item with :math:`k\,m_i / \sum_j m_j \ge 1` is in every draw, and the others share the remaining
places in proportion to their masses (Madow, 1949, Annals of Mathematical Statistics 20(3)).
"""

import torch
from torch import Tensor

CERTAIN = 1 - 1e-9
"""Inclusion probability from which on an item is in every draw."""


def inclusion_probabilities(mass: Tensor, count: int) -> Tensor:
    """Probability of each item to be among ``count`` distinct draws: ``[N]`` float64.

    Args:
        mass: ``[N]`` float64, positive and finite.
        count: number of draws k, in ``[0, N]``.

    Returns:
        ``min(1, c * mass)`` with the c for which they sum to ``count``.
    """
    certain = torch.zeros(len(mass), dtype=torch.bool)
    while True:
        rest = count - int(certain.sum())
        remaining = mass.masked_fill(certain, 0.0)
        shares = remaining / remaining.sum().clamp(min=torch.finfo(torch.float64).tiny) * rest
        heavy = (shares >= CERTAIN) & ~certain
        if rest == 0 or not bool(heavy.any()):
            return shares.masked_fill(certain, 1.0)
        certain |= heavy


def systematic_sample(inclusion: Tensor, generator: torch.Generator) -> Tensor:
    """Distinct items, each included with exactly its probability.

    The items are shuffled, and points at distance 1 with a common random offset select from their
    cumulative probabilities.

    Args:
        inclusion: ``[N]`` float64 in (0, 1], summing to an integer k; 1 for an item in every draw.
        generator: source of the random numbers.

    Returns:
        ``[k]`` int64, distinct, in random order.
    """
    certain = inclusion == 1
    items = (~certain).nonzero().flatten()
    items = items[torch.randperm(len(items), generator=generator)]
    offset = torch.rand((), dtype=torch.float64, generator=generator)
    ends = inclusion[items].cumsum(0)
    total = float(ends[-1]) if len(items) else 0.0
    count = round(total)
    # The scale absorbs the rounding of the sum, so that no point lies beyond the last item.
    points = (torch.arange(count, dtype=torch.float64) + offset) * (total / max(count, 1))
    chosen = items[torch.searchsorted(ends, points, right=True).clamp(max=len(items) - 1)]
    drawn = torch.cat([certain.nonzero().flatten(), chosen])
    return drawn[torch.randperm(len(drawn), generator=generator)]
