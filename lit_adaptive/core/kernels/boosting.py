"""One AdaBoost-like update of a batch, compiled; ``core.boosting`` is its reference.

In torch the same update takes some thirty calls, 200 microseconds for 32 samples.
"""

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core.kernels.compiled import compiled

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]


@compiled
def _average_duplicates(index: Ints, loss: Floats) -> tuple[Ints, Floats]:
    """Distinct indices, ascending, and the mean loss of each."""
    order = np.argsort(index, kind="mergesort")
    distinct, mean = np.empty(index.size, np.int64), np.empty(index.size)
    size, repeats = 0, 0
    for k in order:
        if size > 0 and distinct[size - 1] == index[k]:
            repeats += 1
            mean[size - 1] += (loss[k] - mean[size - 1]) / repeats
        else:
            distinct[size], mean[size] = index[k], loss[k]
            size, repeats = size + 1, 1
    return distinct[:size], mean[:size]


@compiled
def boosted_log_weights(
    log_weight: Singles,
    velocity: Singles,
    index: Ints,
    loss: Floats,
    rule: tuple[float, float, float, float, float, float],
) -> tuple[Ints, Singles, Singles]:
    """Distinct samples of a batch, their new log weights and velocities; changes no argument.

    Args:
        log_weight: ``[N]``.
        velocity: ``[N]``, or empty without momentum; then the third result is empty.
        index: ``[B]`` in ``[0, N)``.
        loss: ``[B]``, finite.
        rule: learning rate, momentum, decay, baseline, smallest and largest log weight.
    """
    rate, momentum, decay, baseline, low, high = rule
    distinct, mean = _average_duplicates(index, loss)
    size = distinct.size
    least, greatest = np.inf, -np.inf
    for k in range(size):
        least, greatest = min(least, mean[k]), max(greatest, mean[k])
    span = greatest / 2 - least / 2  # halved, the range of opposite extremes is finite
    weights = np.empty(size, np.float32)
    velocities = np.empty(size if velocity.size > 0 else 0, np.float32)
    for k in range(size):
        gain = (mean[k] / 2 - least / 2) / span - baseline if span > 0 else 0.0
        if velocity.size > 0:
            gain = momentum * velocity[distinct[k]] + (1 - momentum) * gain
            velocities[k] = gain
        moved = (1 - decay) * log_weight[distinct[k]] + rate * gain
        weights[k] = min(max(moved, low), high)
    return distinct, weights, velocities
