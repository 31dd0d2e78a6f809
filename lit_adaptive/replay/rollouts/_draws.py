"""Draws without taking one twice: uniform, or from a sum tree at exactly stated chances."""

import numpy as np

from lit_adaptive.core.kernels.compiled import compiled
from lit_adaptive.core.kernels.sum_tree import FANOUT
from lit_adaptive.replay.rollouts._kernels import Array, Slots, exchange


@compiled
def shuffle_front(slots: Slots, uniform: Array) -> Array:
    """Distinct slots in use, all equally likely: the first steps of Fisher and Yates' shuffle.

    Args:
        slots: of which ``item`` and ``place`` change.
        uniform: ``[K]`` in [0, 1), K at most the number in use.
    """
    found = np.empty(uniform.size, np.int64)
    for k in range(uniform.size):
        left = slots.ends[2] - k
        exchange(slots, k, k + min(int(uniform[k] * left), left - 1))
        found[k] = slots.item[k]
    return found


@compiled
def _find(sums: Array, offsets: Array, point: float) -> tuple[int, float]:
    """The positive leaf that holds ``point`` of the cumulative sum, and how far into it."""
    index = 0
    for level in range(offsets.size - 2, -1, -1):
        begin = offsets[level] + FANOUT * index
        child, within = 0, 0.0
        for i in range(FANOUT):
            value = float(sums[begin + i])
            if value > 0.0:
                child, within = i, min(point, float(np.nextafter(value, 0.0)))
                if point < value:
                    break
                point -= value
        index, point = FANOUT * index + child, within
    return index, point


@compiled
def _next_positive(sums: Array, leaf: int, capacity: int) -> int:
    """The first positive leaf after ``leaf``; ``leaf`` itself if there is none."""
    for after in range(leaf + 1, capacity):
        if sums[after] > 0.0:
            return after
    return leaf


@compiled
def distinct(sums: Array, offsets: Array, capacity: int, uniform: Array) -> Array:
    """One leaf from each of K equal ranges of the cumulative sum, none of them twice.

    Each range has its own uniform number, as in Schaul et al. (2016), appendix B.2.1. A leaf that
    lies across the border of two ranges, with shares a and b of their width, is taken in the second
    with chance b / (1 - a) if it was not taken in the first, and never otherwise; so each leaf
    is taken with a chance of exactly its mass by the width. Deville's systematic
    sampling (Chauvet, 2012, Bernoulli 18(4), 1320-1340).

    Args:
        sums: of a tree, of whose positive leaves none is as wide as a range.
        offsets: of the tree's levels.
        capacity: of the tree.
        uniform: ``[K]`` in [0, 1).
    """
    width = float(sums[offsets[-1]]) / uniform.size
    found = np.empty(uniform.size, np.int64)
    border, chance, after, taken = -1, 0.0, 0.0, -1
    for k in range(uniform.size):
        if k > 0:
            border, within = _find(sums, offsets, k * width)
            after = (float(sums[border]) - within) / width
            chance = 0.0 if taken == border else min(after / (1.0 - within / width), 1.0)
        if uniform[k] < chance:
            taken = border
        else:
            rest = (float(uniform[k]) - chance) / (1.0 - chance)
            taken, _ = _find(sums, offsets, (k + after + rest * (1.0 - after)) * width)
            if taken <= border:  # by rounding only
                taken = _next_positive(sums, border, capacity)
        found[k] = taken
    return found
