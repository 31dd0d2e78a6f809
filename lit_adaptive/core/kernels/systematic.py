"""The compiled loop of ``core.systematic``, which describes its draws."""

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core.kernels.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def one_of_each_range(ends: Floats, uniform: Floats) -> Ints:
    """One item from each of k equal ranges of the cumulative sum, none of them twice.

    An item across the border of two ranges, with the shares a and b of their width, is drawn from
    the second with probability b / (1 - a) if it was not drawn from the first. So the probability
    that it is drawn is a + (1 - a) b / (1 - a) = a + b.

    Args:
        ends: ``[N]``, cumulative sum of the inclusion probabilities, all below 1.
        uniform: ``[k]`` in [0, 1).

    Returns:
        ``[k]``, ascending.
    """
    drawn = np.empty(uniform.size, np.int64)
    width = ends[-1] / uniform.size  # 1 but for the rounding of the sum
    previous = -1
    for k in range(uniform.size):
        start = k * width
        border = np.searchsorted(ends, start, side="right")
        before = start - ends[border - 1] if border > 0 else 0.0
        after = ends[border] - start
        chance = 0.0 if border == previous else min(after / (width - before), 1.0)
        if uniform[k] < chance:
            item = border
        else:
            left = (uniform[k] - chance) / (1.0 - chance)
            point = start + after + left * (width - after)
            item = np.searchsorted(ends, point, side="right")
            item = max(item, border + 1)  # by rounding only, as the next two
        previous = min(max(item, previous + 1), ends.size - 1)
        drawn[k] = previous
    return drawn
