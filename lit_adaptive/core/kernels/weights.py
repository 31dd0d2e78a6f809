"""A batch's importance weights on the CPU; ``core.prioritized`` tells the equation."""

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core.kernels.compiled import compiled

Floats = NDArray[np.float64]


@compiled
def bounds(probability: Floats) -> tuple[float, float]:
    """Least and greatest; NaN for both if one is NaN."""
    least, greatest = probability[0], probability[0]
    broken = False
    for k in range(probability.size):
        value = probability[k]
        least = min(least, value)
        greatest = max(greatest, value)
        broken |= value != value
    return (np.nan, np.nan) if broken else (least, greatest)


@compiled
def weights(probability: Floats, minimum: float, beta: float, out: Floats) -> bool:
    """Fill ``out``; False, and nothing done, unless 0 < minimum <= probability <= 1.

    A ``minimum`` of 0 stands for the least in the batch.
    """
    least, greatest = bounds(probability)
    if minimum == 0.0:
        minimum = least
    if not (minimum > 0.0 and minimum <= least and greatest <= 1.0):
        return False
    for k in range(probability.size):
        out[k] = (minimum / probability[k]) ** beta
    return True


@compiled
def inverse_weights(probability: Floats, size: float, beta: float, weight: Floats) -> bool:
    """``(size * probability) ** -beta``; false if a probability is not in (0, 1]."""
    good = True
    for k in range(probability.size):
        good &= (probability[k] > 0.0) & (probability[k] <= 1.0)
        relative = 1.0 / (size * probability[k])
        weight[k] = relative if beta == 1.0 else relative**beta
    return good
