"""Rows of tensors, and a pool of them in which frames are kept once and pointed to."""

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.kernels.ring import FREE, FrameReferences, chain, count
from lit_adaptive.core.kernels.row_copy import Array, copy_rows, same_rows
from lit_adaptive.replay.transitions.nested import LeafSpec

Bytes: TypeAlias = Array | Tensor
"""``[R, W]`` uint8: the bytes of R rows, an array on the CPU and a tensor elsewhere."""


def on_host(device: torch.device) -> bool:
    """Whether compiled loops can reach tensors there; tests say no, to run the other path."""
    return device.type == "cpu"


def as_bytes(leaf: Tensor, rows: int) -> Bytes:
    """The bytes of ``leaf``, whose first axes make up ``rows`` rows; not copied if contiguous."""
    width = leaf.numel() // rows if rows else 0
    if not on_host(leaf.device):
        return leaf.reshape(rows, width).view(torch.uint8)
    leaf = leaf.contiguous()
    if leaf.dtype is torch.bfloat16:  # unknown to NumPy
        leaf = leaf.view(torch.int16)
    array: Array = leaf.numpy().reshape(rows, width)
    return array.view(np.uint8)


def same(kept: list[Bytes], row: Array, rows: list[Bytes]) -> Array:
    """Which ``rows`` are bitwise those ``kept`` at ``row`` ``[M]`` int32, False at -1: ``[M]``."""
    equal = np.ones(row.size, np.bool_)
    for old, new in zip(kept, rows, strict=True):
        if isinstance(old, Tensor):
            assert isinstance(new, Tensor)
            at = torch.from_numpy(row).to(old.device)
            found = (old.index_select(0, at.clamp(min=0)) == new).all(1) & (at >= 0)
            equal &= found.cpu().numpy()
        else:
            assert not isinstance(new, Tensor)
            same_rows(old, row, new, equal)
    return equal


def store(kept: list[Bytes], row: Array, source: Array, rows: list[Bytes]) -> None:
    """Copy ``rows`` number ``source`` ``[K]`` to ``kept`` at ``row`` ``[K]``, both int64."""
    for old, new in zip(kept, rows, strict=True):
        if isinstance(old, Tensor):
            assert isinstance(new, Tensor)
            chosen = new.index_select(0, torch.from_numpy(source).to(new.device))
            old.index_copy_(0, torch.from_numpy(row).to(old.device), chosen)
        else:
            assert not isinstance(new, Tensor)
            copy_rows(old, row, source, new)


class LeafRows:
    """``rows`` rows of every leaf, not initialised.

    Attributes:
        leaves: ``[rows, ...]`` each.
        bytes: the same memory.
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
        """Make room for ``rows`` rows; what is there stays."""
        self.bytes = []  # views, which would keep the old memory
        try:
            for i, leaf in enumerate(self.leaves):  # one by one: only one is there twice
                self.leaves[i] = leaf.new_empty((rows, *leaf.shape[1:]))
                self.leaves[i][: leaf.shape[0]] = leaf
        finally:
            self.bytes = self._as_bytes()


class FramePool:
    """Frames, and accounts of which rows are in use.

    Memory that was never written is not taken from the system (on the CPU), so slack costs little.

    Args:
        frame: shape and type of every leaf.
        rows: frames that fit at first; the pool grows when it must.
        device: where frames are kept; the accounts are always on the CPU.
    """

    def __init__(self, frame: list[LeafSpec], rows: int, device: torch.device) -> None:
        self.frames = LeafRows(frame, rows, device)
        self.accounts = FrameReferences(np.zeros(rows, np.int32), np.array([-1, 0]))
        chain(self.accounts, 0)

    def __len__(self) -> int:
        """Rows, in use or free."""
        return self.accounts.references.size

    @property
    def used(self) -> int:
        """Rows in use."""
        return len(self) - int(self.accounts.free[FREE])

    def reserve(self, rows: int) -> None:
        """Have at least ``rows`` rows free; grow by a quarter at least, if at all."""
        free = int(self.accounts.free[FREE])
        if free >= rows:
            return
        before = len(self)
        after = before + max(rows - free, before // 4)
        self.frames.grow(after)
        references = np.zeros(after, np.int32)
        references[:before] = self.accounts.references
        self.accounts = FrameReferences(references, self.accounts.free)
        chain(self.accounts, before)

    def fill(self, leaves: list[Tensor], pointers: list[Array]) -> None:
        """Begin anew with these frames in the first rows, and int32 pointers (-1: none) to them."""
        self.reserve(leaves[0].shape[0] - self.used)
        self.frames.fill(leaves)
        self.accounts.references[:] = 0
        self.accounts.free[:] = -1, 0
        for array in pointers:
            count(self.accounts, array.ravel())
        chain(self.accounts, leaves[0].shape[0])
