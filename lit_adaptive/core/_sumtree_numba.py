"""The sum tree's loops, compiled. ``core.sumtree`` tells the layout; ``_sumtree_torch`` is the twin.

Whole batches go down or up level by level. The steps of one item depend on each other, those of
different items do not: so the processor overlaps their cache misses and additions.
"""

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core._compiled import compiled

FANOUT = 16
SHIFT = 4  # log2 of the fan-out
TINY = 2.2250738585072014e-308  # least normal float64: no draw reports a probability of 0
SAFE_TOTAL = 8e307  # no order of rounding takes a sum below this to infinity

BLOCK_SHIFT = 8  # the least positive leaf is kept per block of 256
UNKNOWN = -1.0

OK, BAD, RISKY = 0, -1, -2

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def _refresh_node(
    sums: Floats, prefixes: Floats, offsets: Ints, level: int, node: int
) -> None:
    """One node from its children: the sum, always from left to right."""
    first = offsets[level - 1] + (node << SHIFT)
    total = 0.0
    if level == 1:
        for child in range(FANOUT):
            total += sums[first + child]
    else:
        inner = first - offsets[1]
        for child in range(FANOUT):
            total += sums[first + child]
            prefixes[inner + child] = total
    sums[offsets[level] + node] = total


@compiled
def _note_least(low: Floats, block: int, old: float, new: float) -> None:
    """Keep a block's least positive leaf, or mark it ``UNKNOWN`` where only a search could tell."""
    least = low[block]
    if 0.0 < old <= least:
        low[block] = new if 0.0 < new <= old else UNKNOWN
    elif 0.0 < new < least:
        low[block] = new


@compiled
def least_positive(sums: Floats, low: Floats, capacity: int) -> float:
    """The least positive leaf of all, exactly; searches the blocks that are ``UNKNOWN``."""
    least = np.inf
    for block in range(low.size):
        if low[block] == UNKNOWN:
            found = np.inf
            for leaf in range(block << BLOCK_SHIFT, min((block + 1) << BLOCK_SHIFT, capacity)):
                if 0.0 < sums[leaf] < found:
                    found = sums[leaf]
            low[block] = found
        if low[block] < least:
            least = low[block]
    return least


@compiled
def rebuild(sums: Floats, prefixes: Floats, offsets: Ints) -> None:
    """Every node from its children."""
    for level in range(1, offsets.size):
        width = (offsets[level] - offsets[level - 1]) >> SHIFT
        for node in range(width):
            _refresh_node(sums, prefixes, offsets, level, node)


@compiled
def _parents(nodes: Ints, count: int) -> int:
    """``nodes`` becomes their parents, neighbours that are equal only once; returns how many."""
    kept = 0
    before = -1
    for k in range(count):
        node = nodes[k] >> SHIFT
        if node != before:
            nodes[kept] = node
            kept += 1
        before = node
    return kept


@compiled
def _refresh_above(sums: Floats, prefixes: Floats, offsets: Ints, nodes: Ints) -> None:
    """All ancestors of the leaves ``nodes``, level by level. ``nodes`` is used up."""
    count = nodes.size
    for level in range(1, offsets.size):
        count = _parents(nodes, count)
        width = (offsets[level] - offsets[level - 1]) >> SHIFT
        if count > width:
            for k in range(width):
                nodes[k] = k
            count = width
        if level == 1:
            for k in range(count):
                _refresh_node(sums, prefixes, offsets, 1, nodes[k])
        else:
            for k in range(count):
                _refresh_node(sums, prefixes, offsets, level, nodes[k])


@compiled
def update(
    sums: Floats,
    prefixes: Floats,
    low: Floats,
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
    grown = 0
    for k in range(index.size):
        leaf = index[k]
        old, new = sums[leaf], mass[k]
        sums[leaf] = new
        grown += np.int64(new > 0.0) - np.int64(old > 0.0)
        _note_least(low, leaf >> BLOCK_SHIFT, old, new)
    positive[0] += grown
    _refresh_above(sums, prefixes, offsets, index.copy())
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
