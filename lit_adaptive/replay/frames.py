"""A pool of frames: observations are kept once, and transitions point to them."""

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.replay._ring_numba import (
    FREE,
    Array,
    Pool,
    chain,
    count,
    same_rows,
)
from lit_adaptive.replay.nested import Leaf


def as_bytes(frames: Tensor) -> Tensor:
    """``[R, ...]`` of any type as ``[R, W]`` uint8, without copying if contiguous."""
    return frames.reshape(len(frames), -1).view(torch.uint8)


class FramePool:
    """Rows of every leaf of a frame; ``accounts`` knows which of them are in use.

    Memory that was never written is not taken from the system (on the CPU), so slack costs little.

    Args:
        frame: shape and type of every leaf.
        rows: frames that fit at first; the pool grows when it must.
        device: where frames are kept; the accounts are always on the CPU.
    """

    def __init__(self, frame: list[Leaf], rows: int, device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"
        self._set_leaves(
            [torch.empty((rows, *leaf.shape), dtype=leaf.dtype, device=device) for leaf in frame]
        )
        self.accounts = Pool(np.zeros(rows, np.int32), np.array([-1, 0]))
        chain(self.accounts, 0)

    def _set_leaves(self, leaves: list[Tensor]) -> None:
        self.leaves = leaves
        self._bytes = [as_bytes(leaf) for leaf in leaves]
        self._np_bytes: list[Array] = [b.numpy() for b in self._bytes] if self._on_cpu else []

    def __len__(self) -> int:
        """Rows, in use or free."""
        return len(self.accounts.references)

    @property
    def used(self) -> int:
        """Rows in use."""
        return len(self) - int(self.accounts.free[FREE])

    @property
    def nbytes(self) -> int:
        """Bytes of all frames, in use or free."""
        return sum(leaf.nbytes for leaf in self.leaves)

    def reserve(self, rows: int) -> None:
        """Have at least ``rows`` rows free; grow by a quarter at least, if at all."""
        free = int(self.accounts.free[FREE])
        if free >= rows:
            return
        before = len(self)
        after = before + max(rows - free, before // 4)
        self._bytes, self._np_bytes = [], []  # views, which would keep the old memory
        try:
            for i, leaf in enumerate(self.leaves):  # one by one: only one is there twice
                larger = leaf.new_empty((after, *leaf.shape[1:]))
                larger[:before] = leaf
                self.leaves[i] = larger
        finally:
            self._set_leaves(self.leaves)
        references = np.zeros(after, np.int32)
        references[:before] = self.accounts.references
        self.accounts = Pool(references, self.accounts.free)
        chain(self.accounts, before)

    def same(self, row: Array, frames: list[Tensor]) -> Array:
        """Which ``frames``, leaves ``[M, ...]``, are bitwise those in ``row`` ``[M]`` int32.

        Returns:
            ``[M]`` bool; false where ``row`` is -1.
        """
        return _same(self._bytes, self._np_bytes, row, frames)

    def write(self, row: Array, source: Array, frames: list[Tensor]) -> None:
        """Store frames number ``source`` ``[K]`` int64 in ``row`` ``[K]`` int64."""
        into = torch.from_numpy(row)
        every = len(source) == len(frames[0])  # sources ascend, each once
        chosen = None if every else torch.from_numpy(source)
        for leaf, new in zip(self.leaves, frames, strict=True):
            rows = new if chosen is None else new.index_select(0, chosen.to(new.device))
            leaf.index_copy_(0, into.to(leaf.device), rows)

    def gather(self, rows: Tensor) -> list[Tensor]:
        """Copies of the frames in ``rows`` ``[K]``, leaves ``[K, ...]``."""
        return [leaf.index_select(0, rows) for leaf in self.leaves]

    def fill(self, frames: list[Tensor], pointers: list[Array]) -> None:
        """Begin anew with these frames in the first rows, and pointers (-1: none) to them."""
        rows = len(frames[0])
        self.accounts.references[:] = 0
        self.accounts.free[:] = -1, 0
        for array in pointers:
            count(self.accounts, array.ravel())
        chain(self.accounts, rows)
        for leaf, new in zip(self.leaves, frames, strict=True):
            leaf[:rows] = new


def frames_equal(kept: list[Tensor], row: Array, frames: list[Tensor]) -> Array:
    """Which ``frames`` ``[M, ...]`` are bitwise those ``kept`` at ``row`` ``[M]`` int32."""
    kept_bytes = [as_bytes(leaf) for leaf in kept]
    on_cpu = kept_bytes[0].device.type == "cpu"
    return _same(kept_bytes, [b.numpy() for b in kept_bytes] if on_cpu else [], row, frames)


def _same(kept: list[Tensor], np_kept: list[Array], row: Array, frames: list[Tensor]) -> Array:
    same = np.ones(len(row), np.bool_)
    if np_kept:
        for old, new in zip(np_kept, frames, strict=True):
            same_rows(old, row, as_bytes(new).numpy(), same)
        return same
    at = torch.from_numpy(row).to(kept[0].device)
    equal = at >= 0
    at = at.clamp(min=0)
    for bytes_, new in zip(kept, frames, strict=True):
        equal &= (bytes_.index_select(0, at) == as_bytes(new)).all(1)
    return np.asarray(equal.cpu().numpy())
