"""Rows of tensors, and a pool in which each frame is stored once and referenced by its row."""

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.kernels.ring import FREE, FrameReferences, chain, count
from lit_adaptive.core.kernels.row_copy import Array, copy_rows, same_rows
from lit_adaptive.replay.transitions.nested import LeafSpec

Bytes: TypeAlias = Array | Tensor
"""``[R, W]`` uint8, the bytes of R rows: an array on the CPU, a tensor on other devices."""


def on_host(device: torch.device) -> bool:
    """Whether compiled loops can read tensors on ``device``; tests patch it."""
    return device.type == "cpu"


def as_bytes(leaf: Tensor, rows: int) -> Bytes:
    """The bytes of ``leaf``, whose first axes are flattened to ``rows``; a view if contiguous."""
    width = leaf.numel() // rows if rows else 0
    if not on_host(leaf.device):
        return leaf.reshape(rows, width).view(torch.uint8)
    leaf = leaf.contiguous()
    if leaf.dtype is torch.bfloat16:  # NumPy has no such type
        leaf = leaf.view(torch.int16)
    array: Array = leaf.numpy().reshape(rows, width)
    return array.view(np.uint8)


def equal_rows(kept: list[Bytes], row: Array, rows: list[Bytes]) -> Array:
    """Whether stored rows are bitwise equal to others.

    Args:
        kept: stored bytes, one entry per leaf.
        row: ``[M]`` int32, stored rows; -1 equals nothing.
        rows: bytes of M rows, one entry per leaf.

    Returns:
        ``[M]`` bool.
    """
    equal = np.ones(row.size, np.bool_)
    for old, new in zip(kept, rows, strict=True):
        if isinstance(old, Tensor):
            assert isinstance(new, Tensor)
            at = torch.from_numpy(row).to(old.device)
            matches = (old.index_select(0, at.clamp(min=0)) == new).all(1) & (at >= 0)
            equal &= matches.cpu().numpy()
        else:
            assert not isinstance(new, Tensor)
            same_rows(old, row, new, equal)
    return equal


def write_rows(kept: list[Bytes], row: Array, source: Array, rows: list[Bytes]) -> None:
    """Set stored rows: ``kept[row[i]] = rows[source[i]]``.

    Args:
        kept: stored bytes, one entry per leaf; changed.
        row: ``[K]`` int64.
        source: ``[K]`` int64.
        rows: new bytes, one entry per leaf.
    """
    for old, new in zip(kept, rows, strict=True):
        if isinstance(old, Tensor):
            assert isinstance(new, Tensor)
            chosen = new.index_select(0, torch.from_numpy(source).to(new.device))
            old.index_copy_(0, torch.from_numpy(row).to(old.device), chosen)
        else:
            assert not isinstance(new, Tensor)
            copy_rows(old, row, source, new)


class LeafRows:
    """Uninitialised rows for every leaf.

    Attributes:
        leaves: ``[rows, ...]`` each.
        bytes: the same memory as bytes.

    Args:
        leaves: shape and type of every leaf.
        rows: number of rows.
        device: device of the leaves.
    """

    def __init__(self, leaves: list[LeafSpec], rows: int, device: torch.device) -> None:
        self.leaves = [
            torch.empty((rows, *leaf.shape), dtype=leaf.dtype, device=device) for leaf in leaves
        ]
        self.bytes = self._as_bytes()

    def _as_bytes(self) -> list[Bytes]:
        return [as_bytes(leaf, leaf.shape[0]) for leaf in self.leaves]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(leaf.nbytes for leaf in self.leaves)

    def gather(self, row: Tensor) -> list[Tensor]:
        """Copies of the leaves at ``row`` ``[K]``, each ``[K, ...]``."""
        return [leaf.index_select(0, row) for leaf in self.leaves]

    def fill(self, leaves: list[Tensor]) -> None:
        """Copy ``leaves`` ``[K, ...]`` into the first rows."""
        for kept, new in zip(self.leaves, leaves, strict=True):
            kept[: new.shape[0]] = new

    def grow(self, rows: int) -> None:
        """Grow to ``rows`` rows; the contents stay."""
        self.bytes = []  # views would keep the old memory
        try:
            for i, leaf in enumerate(
                self.leaves
            ):  # one by one, so that only one is in memory twice
                self.leaves[i] = leaf.new_empty((rows, *leaf.shape[1:]))
                self.leaves[i][: leaf.shape[0]] = leaf
        finally:
            self.bytes = self._as_bytes()


class FramePool:
    """Frames with their reference counts.

    On the CPU, the system allocates memory only when it is written, so unused rows cost little.

    Args:
        frame: shape and type of every leaf.
        rows: initial number of rows; the pool grows as needed.
        device: device of the frames; the reference counts are always on the CPU.
    """

    def __init__(self, frame: list[LeafSpec], rows: int, device: torch.device) -> None:
        self.frames = LeafRows(frame, rows, device)
        self.references = FrameReferences(np.zeros(rows, np.int32), np.array([-1, 0]))
        chain(self.references, 0)

    def __len__(self) -> int:
        """Rows, in use or free."""
        return self.references.counts.size

    @property
    def used(self) -> int:
        """Rows in use."""
        return len(self) - int(self.references.free[FREE])

    def reserve(self, rows: int) -> None:
        """Ensure at least ``rows`` free rows; growth is by at least a quarter."""
        free = int(self.references.free[FREE])
        if free >= rows:
            return
        before = len(self)
        after = before + max(rows - free, before // 4)
        self.frames.grow(after)
        counts = np.zeros(after, np.int32)
        counts[:before] = self.references.counts
        self.references = FrameReferences(counts, self.references.free)
        chain(self.references, before)

    def fill(self, leaves: list[Tensor], pointers: list[Array]) -> None:
        """Replace the contents.

        Args:
            leaves: frames, which take the first rows; one entry per leaf.
            pointers: int32 references to these rows; -1: none.
        """
        self.reserve(leaves[0].shape[0] - self.used)
        self.frames.fill(leaves)
        self.references.counts[:] = 0
        self.references.free[:] = -1, 0
        for array in pointers:
            count(self.references, array.ravel())
        chain(self.references, leaves[0].shape[0])
