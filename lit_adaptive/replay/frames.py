"""A ring of frames: observations are kept once, transitions point to them.

Frames are numbered as they come; number f lives in row ``f % size``. Transitions come and go in the
order of insertion, and each points to frames at most ``window`` older than its own newest one. So
whatever lies more than ``window`` behind the oldest transition's newest frame is free: no reference
counts, no free list, nothing to leak. The ring grows when it would overwrite a frame in use.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_adaptive.replay.nested import bits

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

NOWHERE = 2**62
"""The frame number of no frame; above all others, so that it never is the oldest."""


def copy_rows(source: Tensor, first: int, target: Tensor, into: int, count: int) -> None:
    """Copy ``count`` rows from ring ``source`` at ``first`` into ring ``target`` at ``into``."""
    done = 0
    while done < count:
        here, there = (first + done) % len(source), (into + done) % len(target)
        run = min(count - done, len(source) - here, len(target) - there)
        target[there : there + run] = source[here : here + run]
        done += run


class FrameRing:
    """Rows of every leaf of an observation, numbered without end.

    Args:
        leaves: tensors ``[B, ...]`` whose rows look like the frames to come.
        size: frames that fit at first.
    """

    def __init__(self, leaves: list[Tensor], size: int) -> None:
        self.size = size
        self.head = 0
        self.leaves = [leaf.new_empty((size, *leaf.shape[1:])) for leaf in leaves]

    def append(self, leaves: list[Tensor]) -> None:
        """Store new frames, leaves ``[K, ...]``, as numbers ``head .. head + K``."""
        count = len(leaves[0])
        row = self.head % self.size
        for stored, new in zip(self.leaves, leaves, strict=True):
            if row + count <= self.size:
                stored[row : row + count] = new
            else:
                copy_rows(new, 0, stored, self.head, count)
        self.head += count

    def gather(self, rows: Tensor) -> list[Tensor]:
        """The leaves of ``rows`` ``[K]``, each ``[K, ...]``."""
        return [leaf.index_select(0, rows) for leaf in self.leaves]

    def rows(self, number: Integers) -> Integers:
        """Where frames of these numbers live."""
        return number % self.size

    def grow(self, tail: int, size: int) -> None:
        """Make room for ``size`` frames; those from ``tail`` on survive, in new rows."""
        for i, leaf in enumerate(self.leaves):  # one by one: at most one leaf is there twice
            larger = leaf.new_empty((size, *leaf.shape[1:]))
            copy_rows(leaf, tail, larger, tail, self.head - tail)
            self.leaves[i] = larger
        self.size = size

    def used(self, tail: int) -> list[Tensor]:
        """Copies of the frames from number ``tail`` on, in order."""
        copies: list[Tensor] = []
        for leaf in self.leaves:
            copy = leaf.new_empty((self.head - tail, *leaf.shape[1:]))
            copy_rows(leaf, tail, copy, 0, len(copy))
            copies.append(copy)
        return copies

    @property
    def nbytes(self) -> int:
        """Bytes of all frames, used or not."""
        return sum(leaf.numel() * leaf.element_size() for leaf in self.leaves)


def rows_equal(one: list[Tensor], other: list[Tensor], lead: int) -> Booleans:
    """Which rows agree bitwise in all leaves; the first ``lead`` axes are rows."""
    if all(torch.equal(bits(a), bits(b)) for a, b in zip(one, other, strict=True)):
        return np.ones(one[0].shape[:lead], dtype=np.bool_)
    equal: Tensor | None = None
    for a, b in zip(one, other, strict=True):
        same = (bits(a) == bits(b)).reshape(*a.shape[:lead], -1).all(-1)
        equal = same if equal is None else equal & same
    assert equal is not None
    return equal.cpu().numpy()
