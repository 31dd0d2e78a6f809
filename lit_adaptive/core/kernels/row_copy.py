"""Comparing, copying and renumbering rows of bytes, and checks of indices, compiled."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core.kernels.compiled import compiled

Array = NDArray[Any]


@compiled
def same_rows(kept: Array, row: Array, frames: Array, same: Array) -> None:
    """Set ``same[m]`` to false unless ``kept[row[m]]`` and ``frames[m]`` are bitwise equal.

    Args:
        kept: ``[R, W]`` uint8.
        row: ``[M]`` int32; -1 equals nothing.
        frames: ``[M, W]`` uint8.
        same: ``[M]`` bool, changed.
    """
    width = frames.shape[1]
    for m in range(row.size):
        if row[m] < 0:
            same[m] = False
        at = 0
        while same[m] and at < width:
            stop = min(at + 1024, width)
            different = np.uint8(0)
            for i in range(at, stop):
                different |= kept[row[m], i] ^ frames[m, i]
            same[m] = different == 0
            at = stop


@compiled
def renumber(rows: Array, size: int) -> Array:
    """Number rows in the order of their first occurrence; returns them in this order.

    Args:
        rows: int32, changed into the new numbers; -1 stays.
        size: upper bound of the rows, exclusive.
    """
    number = np.full(size, -1, np.int32)
    order = np.empty(size, np.int64)
    count = 0
    for i in range(rows.size):
        row = rows[i]
        if row >= 0:
            if number[row] < 0:
                number[row] = count
                order[count] = row
                count += 1
            rows[i] = number[row]
    return order[:count]


@compiled
def copy_rows(kept: Array, row: Array, source: Array, rows: Array) -> None:
    """Set ``kept[row[i]] = rows[source[i]]`` for all i, in order; both are ``[R, W]`` uint8."""
    for i in range(row.size):
        for byte in range(rows.shape[1]):
            kept[row[i], byte] = rows[source[i], byte]


@compiled
def all_within(index: Array, size: int) -> bool:
    """Whether all of ``index`` lie in ``[0, size)``."""
    good = True
    for i in index:
        good &= (i >= 0) & (i < size)
    return good


@compiled
def all_finite(numbers: Array) -> bool:
    """Whether none of ``numbers`` is NaN or infinite."""
    good = True
    for number in numbers:
        good &= np.isfinite(number)
    return good
