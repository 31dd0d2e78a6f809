"""Compiled loops of the sum tree; ``core.sum_tree`` describes the layout.

Batches descend or ascend level by level. Steps of one item depend on each other, those of different
items do not, so the processor overlaps their cache misses and additions.

The children of a node are summed in a fixed order: each quarter of four from left to right, then
the quarters from left to right. The prefix sum of a child is the start of its quarter plus the sum
within the quarter. Prefix sums never decrease; one exceeds its predecessor only if its child is
positive; and the last equals the node's sum, bit for bit.
"""

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core.kernels.compiled import compiled, inlined, prefetch

FANOUT = 16
SHIFT = 4  # log2 of the fan-out
TINY = 2.2250738585072014e-308  # smallest normal float64: no draw has a probability of 0
SAFE_TOTAL = 8e307  # sums below this never round to infinity

BLOCK_SHIFT = 8  # log2 of the block size; the smallest positive leaf of each block is stored
UNKNOWN = -1.0

OK, BAD, RISKY = 0, -1, -2

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@inlined
def _quarters(nodes: Floats, row: int) -> tuple[float, float, float, float]:
    """Sums of each four of a node's children, from left to right."""
    return (
        nodes[row, 0] + nodes[row, 1] + nodes[row, 2] + nodes[row, 3],
        nodes[row, 4] + nodes[row, 5] + nodes[row, 6] + nodes[row, 7],
        nodes[row, 8] + nodes[row, 9] + nodes[row, 10] + nodes[row, 11],
        nodes[row, 12] + nodes[row, 13] + nodes[row, 14] + nodes[row, 15],
    )


@inlined
def _sum_children(nodes: Floats, row: int) -> float:
    a, b, c, d = _quarters(nodes, row)
    return a + b + c + d


@inlined
def _update_least(low: Floats, block: int, old: float, new: float) -> None:
    """Update a block's smallest positive leaf, or mark it ``UNKNOWN`` if it must be searched."""
    least = low[block]
    if 0.0 < old <= least:
        low[block] = new if 0.0 < new <= old else UNKNOWN
    elif 0.0 < new < least:
        low[block] = new


@compiled
def least_positive(sums: Floats, low: Floats, capacity: int) -> float:
    """Smallest positive leaf; searches the blocks that are ``UNKNOWN``."""
    least = np.inf
    for block in range(low.size):
        if low[block] == UNKNOWN:
            smallest = np.inf
            for leaf in range(block << BLOCK_SHIFT, min((block + 1) << BLOCK_SHIFT, capacity)):
                if 0.0 < sums[leaf] < smallest:
                    smallest = sums[leaf]
            low[block] = smallest
        if low[block] < least:
            least = low[block]
    return least


@compiled
def rebuild(sums: Floats, offsets: Ints) -> None:
    """Recompute every inner node from its children."""
    nodes = sums.reshape(-1, FANOUT)
    for level in range(1, offsets.size):
        below, here = offsets[level - 1], offsets[level]
        for node in range((here - below) >> SHIFT):
            sums[here + node] = _sum_children(nodes, (below >> SHIFT) + node)


@compiled
def _parents(nodes: Ints, count: int) -> int:
    """Replace ``nodes`` by their parents, without equal neighbours; returns their number."""
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
def _refresh_above(sums: Floats, offsets: Ints, touched: Ints) -> None:
    """Recompute all ancestors of the leaves ``touched``, level by level; overwrites ``touched``."""
    nodes = sums.reshape(-1, FANOUT)
    count = touched.size
    for level in range(1, offsets.size):
        here = offsets[level]
        row = offsets[level - 1] >> SHIFT
        width = (here >> SHIFT) - row
        count = _parents(touched, count)
        if count > width:
            for k in range(width):
                touched[k] = k
            count = width
        for k in range(count):
            node = touched[k]
            sums[here + node] = _sum_children(nodes, row + node)


@inlined
def _prefetch_node(values: Floats, first: int) -> None:
    """Prefetch the two cache lines of a node's children."""
    prefetch(values, first)
    prefetch(values, first + FANOUT // 2)


@compiled
def prefetch_path(sums: Floats, offsets: Ints, index: Ints) -> None:
    """Prefetch the nodes that an update will change, except on the small upper levels."""
    for k in range(index.size):
        _prefetch_node(sums, index[k] >> SHIFT << SHIFT)
    if offsets.size > 2:
        for k in range(index.size):
            _prefetch_node(sums, offsets[1] + (index[k] >> 2 * SHIFT << SHIFT))


@compiled
def _powers(priority: Floats, exponent: float) -> Floats:
    """Masses ``priority ** exponent``; 0 for priority 0, even at exponent 0."""
    if exponent == 1.0:
        return priority
    mass = np.empty(priority.size)
    for k in range(priority.size):
        value = priority[k]
        mass[k] = value**exponent if value > 0.0 else 0.0
    return mass


@compiled
def update(
    sums: Floats,
    low: Floats,
    offsets: Ints,
    positive: Ints,
    capacity: int,
    index: Ints,
    priority: Floats,
    exponent: float,
    member: NDArray[np.bool_],
    force: bool,
) -> float:
    """Set leaves to ``priority ** exponent`` and recompute the nodes above.

    Returns:
        The largest priority; or, with nothing changed, ``BAD`` for invalid input or ``RISKY`` if
        the total might overflow. The caller then keeps a copy and calls with ``force``.
    """
    prefetch_path(sums, offsets, index)
    good = True
    greatest = 0.0
    for k in range(index.size):
        value = priority[k]
        good &= (index[k] >= 0) & (index[k] < capacity) & (value >= 0.0) & (value < np.inf)
        greatest = max(greatest, value)
    if good and member.size > 0:
        for k in range(index.size):
            good &= member[index[k]]
    if not good:
        return BAD
    mass = _powers(priority, exponent)
    if not force:
        bound = sums[offsets[-1]]
        for k in range(index.size):
            bound += mass[k]
        if not bound < SAFE_TOTAL:
            return RISKY
    grown = 0
    for k in range(index.size):
        leaf = index[k]
        old, new = float(sums[leaf]), float(mass[k])
        sums[leaf] = new
        grown += int(new > 0.0) - int(old > 0.0)
        _update_least(low, leaf >> BLOCK_SHIFT, old, new)
    positive[0] += grown
    _refresh_above(sums, offsets, index.copy())
    return greatest


@compiled
def _descend(sums: Floats, offsets: Ints, target: Floats, index: Ints) -> None:
    """Set ``index[k]`` to the leaf whose range of the cumulative sum contains ``target[k]``."""
    for k in range(index.size):
        index[k] = 0
    nodes = sums.reshape(-1, FANOUT)
    for level in range(offsets.size - 2, -1, -1):
        row = offsets[level] >> SHIFT
        next_start = offsets[level - 1] if level > 0 else 0
        for k in range(index.size):
            child, target[k] = _step(nodes, row + index[k], target[k])
            index[k] = (index[k] << SHIFT) + child
            if level > 0:
                _prefetch_node(sums, next_start + (index[k] << SHIFT))


@inlined
def _step(nodes: Floats, row: int, rest: float) -> tuple[int, float]:
    """Child of a node whose range contains the point ``rest``, and the offset in the child.

    The point is first limited to below the node's sum, the last prefix sum. So a first child whose
    prefix sum exceeds it exists, and is positive.
    """
    a, b, c, d = _quarters(nodes, row)
    b += a
    c += b
    d += c
    if rest >= d:
        rest = np.nextafter(d, 0.0)
    quarter, below = _passed(a, b, c, rest)
    p = nodes[row, 4 * quarter]
    q = p + nodes[row, 4 * quarter + 1]
    r = q + nodes[row, 4 * quarter + 2]
    child, within = _passed(below + p, below + q, below + r, rest)
    below = max(below, within)
    return 4 * quarter + child, rest - below


@inlined
def _passed(a: float, b: float, c: float, rest: float) -> tuple[int, float]:
    """Number of ``a <= b <= c`` that are at most ``rest``, and the largest of these, or 0.

    By multiplication: selections would become branches, half of which are mispredicted.
    """
    is_a = 1.0 if a <= rest else 0.0
    is_b = 1.0 if b <= rest else 0.0
    is_c = 1.0 if c <= rest else 0.0
    a, b, c = a * is_a, b * is_b, c * is_c
    b = max(b, a)
    return int(is_a + is_b + is_c), max(c, b)


@compiled
def get(sums: Floats, offsets: Ints, cumsum: Floats, index: Ints, mass: Floats) -> int:
    """Leaves that contain the points ``cumsum`` of the cumulative sum, and their masses."""
    total = sums[offsets[-1]]
    target = np.empty(cumsum.size)
    good = True
    for k in range(cumsum.size):
        good &= (cumsum[k] >= 0.0) & (cumsum[k] <= total)
        target[k] = cumsum[k]
    if not good:
        return BAD
    _descend(sums, offsets, target, index)
    for k in range(index.size):
        mass[k] = sums[index[k]]
    return OK


@compiled
def sample(
    sums: Floats,
    offsets: Ints,
    uniform: Floats,
    index: Ints,
    mass: Floats,
    divide: bool,
) -> int:
    """One leaf from each of K equal ranges of the cumulative sum, and its mass.

    With ``divide`` its probability instead. ``mass`` may be the same array as ``uniform``.
    """
    total = sums[offsets[-1]]
    share = 1.0 / uniform.size
    target = np.empty(uniform.size)
    good = total > 0.0
    for k in range(uniform.size):
        good &= (uniform[k] >= 0.0) & (uniform[k] <= 1.0)
        target[k] = (k + uniform[k]) * share * total
    if not good:
        return BAD
    _descend(sums, offsets, target, index)
    for k in range(index.size):
        mass[k] = sums[index[k]]
    if divide:
        for k in range(index.size):
            mass[k] = max(TINY, mass[k] / total)
    return OK
