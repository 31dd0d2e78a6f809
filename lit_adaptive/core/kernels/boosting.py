"""One AdaBoost-like update of a batch, compiled; ``core.boosting`` is its reference.

In torch the same update takes some thirty calls, 200 microseconds for 32 samples.
"""

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core.kernels.compiled import compiled, prefetch
from lit_adaptive.core.kernels.sum_tree import update

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]


@compiled
def _average_duplicates(index: Ints, loss: Floats | Singles) -> tuple[Ints, Floats]:
    """Distinct indices, ascending, and the mean loss of each."""
    ascending = True  # as draws are
    for k in range(1, index.size):
        ascending &= index[k - 1] <= index[k]
    order = np.arange(index.size) if ascending else np.argsort(index, kind="mergesort")
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
    loss: Floats | Singles,
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


@compiled
def exponentials(log_weight: Singles) -> Floats:
    """``exp(log_weight)`` in float64: the same bits as ``boost_tree`` writes to the tree."""
    mass = np.empty(log_weight.size)
    for k in range(log_weight.size):
        mass[k] = np.exp(np.float64(log_weight[k]))
    return mass


@compiled
def boost_tree(
    log_weight: Singles,
    velocity: Singles,
    index: Ints,
    loss: Floats | Singles,
    rule: tuple[float, float, float, float, float, float],
    sums: Floats,
    low: Floats,
    offsets: Ints,
    positive: Ints,
) -> bool:
    """Store ``boosted_log_weights``, and set the leaves of a sum tree to their exponentials.

    False, with nothing changed, if an index is outside ``[0, N)`` or its leaf is 0, as of a sample
    that is not inserted, or if a loss is not finite. ``SumTree.arrays`` are the last four.
    """
    for k in range(index.size):
        if not (0 <= index[k] < log_weight.size and np.isfinite(loss[k])):
            return False
        prefetch(log_weight, index[k])
        prefetch(sums, index[k])
    for k in range(index.size):
        if sums[index[k]] == 0.0:
            return False
    distinct, weights, velocities = boosted_log_weights(log_weight, velocity, index, loss, rule)
    mass, everyone = exponentials(weights), np.empty(0, np.bool_)
    update(sums, low, offsets, positive, log_weight.size, distinct, mass, 1.0, everyone, True)
    for k in range(distinct.size):
        log_weight[distinct[k]] = weights[k]
        if velocity.size > 0:
            velocity[distinct[k]] = velocities[k]
    return True
