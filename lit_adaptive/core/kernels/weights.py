"""Weights that correct a draw, compiled; ``core.corrections`` has the equation.

In torch they take four times as long at 32 samples: every operation has a fixed cost.
"""

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core.kernels.compiled import compiled

Floats = NDArray[np.float64]


@compiled
def ratio_powers(numerator: float, probability: Floats, beta: float, weight: Floats) -> float:
    """Set ``weight`` to ``(numerator / probability) ** beta``.

    Args:
        numerator: not negative; 0 stands for the smallest probability.
        probability: ``[B]``.
        beta: in [0, 1].
        weight: ``[B]``, result.

    Returns:
        The smallest probability, 1 if there is none; or 0, with ``weight`` unchanged, if one is
        outside (0, 1].
    """
    least, good = 1.0, True
    for k in range(probability.size):
        good &= (probability[k] > 0.0) & (probability[k] <= 1.0)
        least = min(least, probability[k])
    if not good:
        return 0.0
    if numerator == 0.0:
        numerator = least
    for k in range(probability.size):
        ratio = numerator / probability[k]
        weight[k] = ratio if beta == 1.0 else ratio**beta
    return least
