"""The update of ``core.boosting`` for one batch, compiled; equal to it but for rounding."""

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core.kernels.compiled import compiled, prefetch
from lit_adaptive.core.kernels.sum_tree import prefetch_path, update

BAD = -1

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]


@compiled
def exponentials(log_weight: Singles, mass: Floats) -> None:
    """The mass of each log weight, to the bit what ``boost`` gives (torch rounds otherwise)."""
    for k in range(log_weight.size):
        mass[k] = np.exp(np.float64(log_weight[k]))


@compiled
def _merge(index: Ints, loss: Floats | Singles, into: Ints, mean: Floats) -> int:
    """Distinct indices, ascending, with the mean of their losses; returns how many."""
    distinct = True
    for k in range(1, index.size):
        distinct &= index[k - 1] < index[k]
    if distinct:
        into[:] = index
        mean[:] = loss
        return int(index.size)
    order = np.argsort(index, kind="mergesort")
    kept, times = 0, 0
    for place in range(index.size):
        k = order[place]
        if kept > 0 and into[kept - 1] == index[k]:
            times += 1
            mean[kept - 1] += (np.float64(loss[k]) - mean[kept - 1]) / times
        else:
            into[kept] = index[k]
            mean[kept] = loss[k]
            kept += 1
            times = 1
    return kept


@compiled
def boost(
    log_weight: Singles,
    velocity: Singles,
    index: Ints,
    loss: Floats | Singles,
    leaves: Floats,
    rule: tuple[float, float, float, float, float, float],
    into: Ints,
    mass: Floats,
) -> int:
    """Update the log weights of ``index``; ``into`` and ``mass`` get what the tree must hold.

    ``rule`` is learning rate, momentum, decay, baseline, and the bounds. ``velocity`` may be empty
    if momentum is 0. ``leaves`` are the tree's: what is not inserted has mass 0. Returns how many
    distinct samples there were, or ``BAD`` and does nothing.
    """
    size = log_weight.size
    for k in range(index.size):
        if not (0 <= index[k] < size and np.isfinite(loss[k])):
            return BAD
        prefetch(log_weight, index[k])
    for k in range(index.size):
        if leaves[index[k]] == 0.0:
            return BAD
    rate, momentum, decay, baseline, low, high = rule
    kept = _merge(index, loss, into, mass)
    least, greatest = np.inf, -np.inf
    for k in range(kept):
        least, greatest = min(least, mass[k]), max(greatest, mass[k])
    span = greatest / 2 - least / 2
    for k in range(kept):
        gain = (mass[k] / 2 - least / 2) / span - baseline if span > 0 else 0.0
        if velocity.size > 0:
            gain = momentum * velocity[into[k]] + (1 - momentum) * gain
            velocity[into[k]] = gain
        moved = (1 - decay) * log_weight[into[k]] + rate * gain
        log_weight[into[k]] = min(max(moved, low), high)
        mass[k] = np.exp(np.float64(log_weight[into[k]]))
    return kept


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
) -> int:
    """``boost``, and its masses into the tree of the same size: one call, as each costs its own."""
    capacity = log_weight.size
    prefetch_path(sums, offsets, index)
    into, mass = np.empty(index.size, dtype=np.int64), np.empty(index.size)
    kept = boost(log_weight, velocity, index, loss, sums[:capacity], rule, into, mass)
    if kept > 0:
        everyone = np.empty(0, dtype=np.bool_)
        into, mass = into[:kept], mass[:kept]
        update(sums, low, offsets, positive, capacity, into, mass, 1.0, everyone, True)
    return kept
