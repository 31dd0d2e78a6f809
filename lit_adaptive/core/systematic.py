r"""Draws without replacement whose inclusion probabilities are exact.

    mass                   m_i    relative frequency of item i                    [N], > 0
    inclusion probability  pi_i   probability that item i is among the k drawn    [N], sums to k

An item with :math:`k\,m_i / \sum_j m_j \ge 1` is in every draw, and the others share the remaining
places in proportion to their masses. Equal ranges of the cumulative sum, one draw from each, follow
Schaul et al. (2016, arXiv:1511.05952), appendix B.2.1; that no item is drawn from two of them,
Deville's systematic sampling (Chauvet, 2012, Bernoulli 18(4), 1320-1340).
"""

import torch
from torch import Tensor

from lit_adaptive.core.kernels.systematic import one_of_each_range

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
    rest, shares = count, mass * (count / mass.sum())
    while rest > 0 and float(shares.max()) >= CERTAIN:
        certain |= shares >= CERTAIN
        rest = count - int(certain.sum())
        remaining = mass.masked_fill(certain, 0.0)
        shares = remaining / remaining.sum().clamp(min=torch.finfo(torch.float64).tiny) * rest
    return shares if rest == count else shares.masked_fill_(certain, 1.0)


def systematic_sample(inclusion: Tensor, generator: torch.Generator) -> Tensor:
    """Distinct items, each included with exactly its probability.

    Args:
        inclusion: ``[N]`` float64 in (0, 1], summing to an integer k; 1 for an item in every draw.
        generator: source of the random numbers.

    Returns:
        ``[k]`` int64, distinct, in random order.
    """
    if len(inclusion) and float(inclusion.max()) == 1:
        certain = inclusion == 1
        items = (~certain).nonzero().flatten()
        chosen = items[_one_of_each_range(inclusion[items], generator)]
        drawn = torch.cat([certain.nonzero().flatten(), chosen])
    else:
        drawn = _one_of_each_range(inclusion, generator)
    return drawn[torch.randperm(len(drawn), generator=generator)]


def _one_of_each_range(inclusion: Tensor, generator: torch.Generator) -> Tensor:
    ends = inclusion.cumsum(0)
    count = round(float(ends[-1])) if len(ends) else 0
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    uniform = torch.rand(count, dtype=torch.float64, generator=generator)
    return torch.from_numpy(one_of_each_range(ends.numpy(), uniform.numpy()))


def uniform_sample(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Distinct numbers below ``size``, all selections and orders equally likely, in O(count).

    These are the first steps of Fisher and Yates's shuffle.

    Args:
        size: number of items N.
        count: number of draws k, in ``[0, N]``.
        generator: source of the random numbers.

    Returns:
        ``[k]`` int64.
    """
    moved: dict[int, int] = {}  # places of the shuffled list that differ from range(size)
    drawn: list[int] = []
    uniform = torch.rand(count, dtype=torch.float64, generator=generator).tolist()
    for place, number in enumerate(uniform):
        other = place + int(number * (size - place))
        drawn.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return torch.tensor(drawn, dtype=torch.int64)
