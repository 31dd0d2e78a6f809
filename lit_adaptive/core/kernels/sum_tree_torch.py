"""Torch operations of a sum tree on a GPU, equal bit for bit to ``kernels.sum_tree``.

Children are added as whole columns, in the order of ``kernels.sum_tree``, never by ``Tensor.sum``.
"""

import torch
from torch import Tensor

from lit_adaptive.core.kernels.sum_tree import BAD, FANOUT, OK, RISKY, SAFE_TOTAL, SHIFT, TINY


def _prefixes(sums: Tensor, first: Tensor) -> Tensor:
    """Prefix sums over the children of nodes: ``first`` ``[K]`` to ``[K, 16]``."""
    columns = torch.arange(FANOUT, device=sums.device)
    within = sums[first[:, None] + columns].view(-1, 4, 4)
    for child in range(1, 4):
        within[:, :, child] += within[:, :, child - 1]
    for quarter in range(1, 4):
        within[:, quarter] += within[:, quarter - 1, 3:]
    return within.view(-1, FANOUT)


def _refresh(sums: Tensor, offsets: list[int], level: int, node: Tensor) -> None:
    first = offsets[level - 1] + (node << SHIFT)
    sums[offsets[level] + node] = _prefixes(sums, first)[:, -1]


def rebuild(sums: Tensor, offsets: list[int]) -> None:
    """Recompute every inner node from its children."""
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
    priority: Tensor,
    exponent: float,
    member: Tensor | None,
    force: bool,
) -> float:
    """Set leaves and recompute the nodes above; see ``kernels.sum_tree.update``."""
    if len(index) == 0:
        return 0.0
    good = (index >= 0) & (index < capacity) & (priority >= 0) & (priority < torch.inf)
    if not bool(good.all()) or not (member is None or bool(member[index].all())):
        return BAD
    mass = priority if exponent == 1 else torch.where(priority > 0, priority**exponent, 0.0)
    if not force and not float(sums[offsets[-1]] + mass.sum()) < SAFE_TOTAL:
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
    return float(priority.amax())


def _descend(sums: Tensor, offsets: list[int], rest: Tensor) -> Tensor:
    index = torch.zeros_like(rest, dtype=torch.int64)
    zero = torch.zeros_like(rest)
    for level in range(len(offsets) - 2, -1, -1):
        prefix = _prefixes(sums, offsets[level] + (index << SHIFT))
        rest = torch.minimum(rest, torch.nextafter(prefix[:, -1], zero))
        child = (prefix <= rest[:, None]).sum(1)
        before = prefix.gather(1, (child - 1).clamp_min(0)[:, None])[:, 0]
        rest = rest - torch.where(child > 0, before, zero)
        index = (index << SHIFT) + child
    return index


def get(sums: Tensor, offsets: list[int], cumsum: Tensor) -> tuple[int, Tensor, Tensor]:
    """Leaves that contain the points ``cumsum`` of the cumulative sum, and their masses."""
    total = sums[offsets[-1]]
    if not bool(((cumsum >= 0) & (cumsum <= total)).all()):
        return BAD, cumsum, cumsum
    index = _descend(sums, offsets, cumsum)
    return OK, index, sums[index]


def sample(
    sums: Tensor, offsets: list[int], uniform: Tensor, divide: bool
) -> tuple[int, Tensor, Tensor]:
    """One leaf from each of K equal ranges, and its mass (with ``divide`` its probability)."""
    total = sums[offsets[-1]]
    if not (bool(total > 0) and bool(((uniform >= 0) & (uniform <= 1)).all())):
        return BAD, uniform, uniform
    start = torch.arange(len(uniform), device=uniform.device, dtype=torch.float64)
    target = (start + uniform) * (1.0 / len(uniform)) * total
    index = _descend(sums, offsets, target)
    mass = sums[index]
    if divide:
        mass = (mass / total).clamp_min(TINY)
    return OK, index, mass


def least_positive(leaves: Tensor) -> float:
    """Smallest positive leaf; ``inf`` if there is none."""
    return float(torch.where(leaves > 0, leaves, torch.inf).amin())
