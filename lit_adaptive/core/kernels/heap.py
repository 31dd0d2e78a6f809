"""The loops of the rank-based sampler: an array-based binary heap with the greatest in front.

``heap`` holds priorities, ``item`` who stands at each place, ``place`` where each item stands (-1:
nowhere). Only the first ``count`` places count.
"""

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core.kernels.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def _settle(heap: Floats, item: Ints, place: Ints, count: int, here: int) -> None:
    """Move the entry at ``here`` up or down to where the heap's order holds again."""
    value, who = heap[here], item[here]
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
    heap[here], item[here] = value, who
    place[who] = here


@compiled
def put(heap: Floats, item: Ints, place: Ints, count: int, index: Ints, priority: Floats) -> int:
    """Give each index its priority, appending those that are not there; returns the count."""
    for k in range(index.size):
        here = int(place[index[k]])
        if here < 0:
            here = count
            item[here] = index[k]
            count += 1
        heap[here] = priority[k]
        _settle(heap, item, place, count, here)
    return count


@compiled
def remove(heap: Floats, item: Ints, place: Ints, count: int, index: Ints) -> int:
    """Take out the indices that are there; the last entry fills each gap. Returns the count."""
    for k in range(index.size):
        here = int(place[index[k]])
        if here < 0:
            continue
        place[index[k]] = -1
        count -= 1
        if here < count:
            heap[here], item[here] = heap[count], item[count]
            _settle(heap, item, place, count, here)
    return count
