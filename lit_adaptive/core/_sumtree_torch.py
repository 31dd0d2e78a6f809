"""The sum tree's batched steps in torch, for trees on a GPU: the twin of ``_sumtree_numba``.

The same operations in the same order, so both give the same bits: sums run from left to right over
a node's children (as FANOUT additions of whole columns), never through ``Tensor.sum``.
"""

import torch
from torch import Tensor

from lit_adaptive.core._sumtree_numba import BAD, FANOUT, OK, RISKY, SAFE_TOTAL, SHIFT, TINY


def _row_sums(children: Tensor) -> Tensor:
    total = torch.zeros_like(children[:, 0])
    for child in range(FANOUT):
        total = total + children[:, child]
    return total


def _refresh(
    sums: Tensor, offsets: list[int], level: int, node: Tensor
) -> None:
    columns = torch.arange(FANOUT, device=sums.device)
    child = offsets[level - 1] + (node << SHIFT)[:, None] + columns
    sums[offsets[level] + node] = _row_sums(sums[child])


def rebuild(sums: Tensor, offsets: list[int]) -> None:
    """Every node from its children."""
    for level in range(1, len(offsets)):
        width = (offsets[level] - offsets[level - 1]) >> SHIFT
        node = torch.arange(width, device=sums.device)
        _refresh(sums, offsets, level, node)


def update(
    sums: Tensor,
   
    offsets: list[int],
    positive: Tensor,
    capacity: int,
    index: Tensor,
    mass: Tensor,
    member: Tensor | None,
    force: bool,
) -> float:
    """Set leaves, refresh the nodes above; the greatest mass, or ``BAD`` or ``RISKY``."""
    good = (index >= 0) & (index < capacity) & (mass >= 0) & (mass < torch.inf)
    if not bool(good.all()):
        return BAD
    if member is not None and not bool(member[index].all()):
        return BAD
    if not force and not float(sums[-1] + mass.sum()) < SAFE_TOTAL:
        return RISKY
    leaf, inverse = torch.unique(index, return_inverse=True)
    order = torch.arange(len(index), device=index.device)
    last = torch.zeros_like(leaf).scatter_reduce_(0, inverse, order, "amax", include_self=False)
    value = mass[last]
    positive += (value > 0).sum().cpu() - (sums[leaf] > 0).sum().cpu()
    sums[leaf] = value
    node = leaf
    for level in range(1, len(offsets)):
        node = torch.unique_consecutive(node >> SHIFT)
        _refresh(sums, offsets, level, node)
    return float(mass.amax()) if len(mass) else 0.0


def _descend(sums: Tensor, offsets: list[int], target: Tensor) -> Tensor:
    index = torch.zeros_like(target, dtype=torch.int64)
    zero = torch.zeros_like(target)
    for level in range(len(offsets) - 2, -1, -1):
        first = offsets[level] + (index << SHIFT)
        prefix, below, child = zero, zero, torch.zeros_like(index)
        for c in range(FANOUT):
            prefix = prefix + sums[first + c]
            passed = prefix <= target
            child = child + passed
            below = torch.where(passed, prefix, below)
        value = sums[first + child]
        target = torch.minimum(target - below, torch.nextafter(value, zero))
        index = (index << SHIFT) + child
    return index


def get(sums: Tensor, offsets: list[int], cumsum: Tensor) -> tuple[int, Tensor, Tensor]:
    """Leaves that hold the given points of the cumulative sum, and their masses."""
    total = sums[-1]
    if not bool(((cumsum >= 0) & (cumsum <= total)).all()):
        return BAD, cumsum, cumsum
    top = torch.nextafter(total, torch.zeros_like(total))
    index = _descend(sums, offsets, torch.minimum(cumsum, top))
    return OK, index, sums[index]


def sample(
    sums: Tensor, offsets: list[int], uniform: Tensor, divide: bool
) -> tuple[int, Tensor, Tensor]:
    """One leaf from each of K equal stretches, and its mass (with ``divide`` its probability)."""
    if not bool(((uniform >= 0) & (uniform <= 1)).all()):
        return BAD, uniform, uniform
    total = sums[-1]
    top = torch.nextafter(total, torch.zeros_like(total))
    stretch = torch.arange(len(uniform), device=uniform.device, dtype=torch.float64)
    target = (stretch + uniform) * (1.0 / len(uniform)) * total
    index = _descend(sums, offsets, torch.minimum(target, top))
    mass = sums[index]
    if divide:
        mass = (mass / total).clamp_min(TINY)
    return OK, index, mass


def least_positive(leaves: Tensor) -> float:
    """The least positive leaf, ``inf`` if there is none."""
    return float(torch.where(leaves > 0, leaves, torch.inf).amin())
