"""The sum tree's loops, compiled. ``core.sumtree`` tells the layout; ``_sumtree_torch`` is the twin.

Whole batches go down or up level by level. The steps of one item depend on each other, those of
different items do not: so the processor overlaps their cache misses and additions.
"""

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core._compiled import compiled, compiled_reordered

FANOUT = 16
SHIFT = 4  # log2 of the fan-out
TINY = 2.2250738585072014e-308  # least normal float64: no draw reports a probability of 0
SAFE_TOTAL = 8e307  # no order of rounding takes a sum below this to infinity

OK, BAD, RISKY = 0, -1, -2

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled_reordered
def _least_positive(values: Floats, first: int) -> float:
    least = np.inf
    for child in range(FANOUT):
        value = values[first + child]
        value = value if value > 0.0 else np.inf
        least = value if value < least else least
    return least


@compiled
def _refresh_node(
    sums: Floats, low: Floats, prefixes: Floats, offsets: Ints, level: int, node: int
) -> None:
    """One node from its children: the sum, always from left to right, and the least positive."""
    first = offsets[level - 1] + (node << SHIFT)
    inner = first - offsets[1]
    here = offsets[level] + node
    total = 0.0
    if level == 1:
        for child in range(FANOUT):
            total += sums[first + child]
        low[here - offsets[1]] = _least_positive(sums, first)
    else:
        for child in range(FANOUT):
            total += sums[first + child]
            prefixes[inner + child] = total
        low[here - offsets[1]] = _least_positive(low, inner)
    sums[here] = total


@compiled
def rebuild(sums: Floats, low: Floats, prefixes: Floats, offsets: Ints) -> None:
    """Every node from its children."""
    for level in range(1, offsets.size):
        width = (offsets[level] - offsets[level - 1]) >> SHIFT
        for node in range(width):
            _refresh_node(sums, low, prefixes, offsets, level, node)


@compiled
def _refresh_above(
    sums: Floats, low: Floats, prefixes: Floats, offsets: Ints, nodes: Ints, count: int
) -> None:
    """All ancestors of ``count`` leaves, of which ``nodes`` holds the parents. ``nodes`` is lost."""
    for level in range(1, offsets.size):
        width = (offsets[level] - offsets[level - 1]) >> SHIFT
        if count > width:
            for k in range(width):
                nodes[k] = k
            count = width
        kept = 0
        before = -1
        for k in range(count):
            node = nodes[k]
            _refresh_node(sums, low, prefixes, offsets, level, node)
            above = node >> SHIFT
            if above != before:
                nodes[kept] = above
                kept += 1
            before = above
        count = kept


@compiled
def update(
    sums: Floats,
    low: Floats,
    prefixes: Floats,
    offsets: Ints,
    positive: Ints,
    capacity: int,
    index: Ints,
    mass: Floats,
    member: NDArray[np.bool_],
    force: bool,
) -> float:
    """Set leaves and refresh the nodes above them; returns the greatest new mass.

    Or ``BAD`` or ``RISKY``; nothing was done then. ``RISKY``: the total might overflow. The caller
    then keeps a copy and calls with ``force``.
    """
    good = True
    bound = sums[offsets[-1]]
    greatest = 0.0
    for k in range(index.size):
        good &= (index[k] >= 0) & (index[k] < capacity) & (mass[k] >= 0.0) & (mass[k] < np.inf)
        bound += mass[k]
        greatest = mass[k] if mass[k] > greatest else greatest
    if good and member.size > 0:
        for k in range(index.size):
            good &= member[index[k]]
    if not good:
        return BAD
    if not force and not bound < SAFE_TOTAL:
        return RISKY
    nodes = np.empty(index.size, np.int64)
    count = 0
    before = -1
    grown = 0
    for k in range(index.size):
        leaf = index[k]
        grown += np.int64(mass[k] > 0.0) - np.int64(sums[leaf] > 0.0)
        sums[leaf] = mass[k]
        node = leaf >> SHIFT
        if node != before:
            nodes[count] = node
            count += 1
        before = node
    positive[0] += grown
    _refresh_above(sums, low, prefixes, offsets, nodes, count)
    return greatest


@compiled
def _descend(sums: Floats, prefixes: Floats, offsets: Ints, target: Floats, index: Ints) -> None:
    """``index[k]`` becomes the leaf whose stretch of the cumulative sum holds ``target[k]``.

    In each node the target is first brought below the node's sum, the last prefix. So the first
    child whose prefix sum exceeds it exists, and is positive.
    """
    for k in range(index.size):
        index[k] = 0
    for level in range(offsets.size - 2, 0, -1):
        start = offsets[level] - offsets[1]
        for k in range(index.size):
            first = start + (index[k] << SHIFT)
            rest = target[k]
            total = prefixes[first + FANOUT - 1]
            if rest >= total:
                rest = np.nextafter(total, 0.0)
            child = 0
            for c in range(FANOUT):
                child += np.int64(prefixes[first + c] <= rest)
            target[k] = rest - (prefixes[first + child - 1] if child > 0 else 0.0)
            index[k] = (index[k] << SHIFT) + child
    for k in range(index.size):
        first = index[k] << SHIFT
        child = _leaf(sums, first, target[k])
        if child == FANOUT:
            total = 0.0
            for c in range(FANOUT):
                total += sums[first + c]
            child = _leaf(sums, first, np.nextafter(total, 0.0))
        index[k] = first + child


@compiled
def _leaf(sums: Floats, first: int, rest: float) -> int:
    """How many leaves of a node come before the point ``rest``."""
    child = 0
    prefix = 0.0
    for c in range(FANOUT):
        prefix += sums[first + c]
        child += np.int64(prefix <= rest)
    return child


@compiled
def get(
    sums: Floats, prefixes: Floats, offsets: Ints, cumsum: Floats, index: Ints, mass: Floats
) -> int:
    """Leaves that hold the given points of the cumulative sum, and their masses."""
    total = sums[offsets[-1]]
    target = np.empty(cumsum.size)
    good = True
    for k in range(cumsum.size):
        good &= (cumsum[k] >= 0.0) & (cumsum[k] <= total)
        target[k] = cumsum[k]
    if not good:
        return BAD
    _descend(sums, prefixes, offsets, target, index)
    for k in range(index.size):
        mass[k] = sums[index[k]]
    return OK


@compiled
def sample(
    sums: Floats,
    prefixes: Floats,
    offsets: Ints,
    uniform: Floats,
    index: Ints,
    mass: Floats,
    divide: bool,
) -> int:
    """One leaf from each of K equal stretches of the cumulative sum, and its mass.

    With ``divide`` its probability instead. ``mass`` may be the same array as ``uniform``.
    """
    total = sums[offsets[-1]]
    share = 1.0 / uniform.size
    target = np.empty(uniform.size)
    good = True
    for k in range(uniform.size):
        good &= (uniform[k] >= 0.0) & (uniform[k] <= 1.0)
        target[k] = (k + uniform[k]) * share * total
    if not good:
        return BAD
    _descend(sums, prefixes, offsets, target, index)
    for k in range(index.size):
        mass[k] = sums[index[k]]
    if divide:
        for k in range(index.size):
            chance = mass[k] / total
            mass[k] = chance if chance > TINY else TINY
    return OK
