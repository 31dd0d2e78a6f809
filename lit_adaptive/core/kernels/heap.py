"""Array-based binary max-heap of the rank-based sampler.

heap   priority at each place, the largest first
item   item at each place
place  place of each item; -1: not in the heap
count  number of places in use
"""

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core.kernels.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def _sift(heap: Floats, item: Ints, place: Ints, count: int, here: int) -> None:
    """Move the entry at ``here`` up or down until the heap order holds."""
    value, moved = heap[here], item[here]
    while here > 0:
        parent = (here - 1) >> 1
        if heap[parent] >= value:
            break
        heap[here], item[here] = heap[parent], item[parent]
        place[item[here]] = here
        here = parent
    while True:
        child = 2 * here + 1
        if child >= count:
            break
        if child + 1 < count and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= value:
            break
        heap[here], item[here] = heap[child], item[child]
        place[item[here]] = here
        here = child
    heap[here], item[here] = value, moved
    place[moved] = here


@compiled
def put(heap: Floats, item: Ints, place: Ints, count: int, index: Ints, priority: Floats) -> int:
    """Set the priority of each index, appending new ones; returns the new count."""
    for k in range(index.size):
        here = int(place[index[k]])
        if here < 0:
            here = count
            item[here] = index[k]
            count += 1
        heap[here] = priority[k]
        _sift(heap, item, place, count, here)
    return count


@compiled
def remove(heap: Floats, item: Ints, place: Ints, count: int, index: Ints) -> int:
    """Remove the indices that are in the heap; returns the new count."""
    for k in range(index.size):
        here = int(place[index[k]])
        if here < 0:
            continue
        place[index[k]] = -1
        count -= 1
        if here < count:
            heap[here], item[here] = heap[count], item[count]
            _sift(heap, item, place, count, here)
    return count
