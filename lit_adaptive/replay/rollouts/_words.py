"""Where the words of records lie: in main memory, in page-locked memory, or in a file.

A file has no name: it is the operating system's to delete, even if the process is killed. What must
outlive the process is in ``state_dict``.
"""

import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_adaptive.replay.rollouts._kernels import BLOCK, Blocks, chain_free

GROWTH = 8
"""Room grows by at least an eighth."""

MAPPED = 1 << 20
"""Bytes from which a checkpoint's tensor is mapped from a file, where the storage is a folder."""


class Words:
    """Blocks of words that grow; those taken and given back are the compiled loops' business.

    Args:
        storage: ``"memory"``, ``"pinned"``, or a folder.

    Raises:
        ValueError: if there is no such folder, or no GPU to lock pages for.
    """

    def __init__(self, storage: str | Path) -> None:
        self.storage = storage
        self.pinned = storage == "pinned"
        self.folder = None if storage in ("memory", "pinned") else Path(storage)
        if self.pinned and not torch.cuda.is_available():
            raise ValueError(
                "storage is 'pinned', but there is no CUDA device to lock memory pages for: "
                "choose 'memory'"
            )
        if self.folder is not None and not self.folder.is_dir():
            raise ValueError(
                f"storage is {str(storage)!r}; it must be 'memory', 'pinned' or a folder that "
                "exists: make it, or correct the path"
            )
        self._file: Any = None
        self._words: NDArray[np.int32] = np.empty(0, np.int32)
        self._follow: NDArray[np.int32] = np.empty(0, np.int32)
        self._free = np.array([-1, 0], dtype=np.int64)

    @property
    def blocks(self) -> Blocks:
        """For the compiled loops; not to be kept, since ``reserve`` moves it."""
        return Blocks(self._words, self._follow, self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, the free ones included, wherever they are."""
        return self._words.nbytes + self._follow.nbytes

    def reserve(self, missing: int) -> None:
        """Make ``missing`` more blocks, or somewhat more, if above 0.

        Raises:
            MemoryError: if there is not so much memory; nothing changes then.
            OSError: if the disk is full; nothing changes then.
        """
        if missing <= 0:
            return
        before = len(self._follow)
        count = before + max(missing, before // GROWTH)
        if self.pinned:  # torch locks powers of two
            count = max(count, (1 << (count * BLOCK * 4 - 1).bit_length()) // (BLOCK * 4))
        try:
            follow = np.empty(count, np.int32)
            self._grow(count * BLOCK)
        except (MemoryError, RuntimeError) as error:
            raise MemoryError(
                f"the rollout buffer needs {count * BLOCK * 4:,} bytes of {self.storage} storage, "
                "which there are not: lower its capacity, or give storage a folder on a large "
                "disk. Nothing was changed"
            ) from error
        follow[:before] = self._follow
        self._follow = follow
        chain_free(self.blocks, before)

    def _grow(self, size: int) -> None:
        """Make ``_words`` this long; on an error it stays as it was."""
        if self.pinned:
            words = torch.empty(size, dtype=torch.int32, pin_memory=True).numpy()
            words[: len(self._words)] = self._words
            self._words = words
        elif self.folder is None:
            # realloc moves pages, not bytes. No view of the array lives outside of a loop's call.
            self._words.resize(size, refcheck=False)
        else:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            _allocate(self._file, size * 4)
            self._words = _mapped(self._file, np.dtype(np.int32), size)

    def empty(self, size: int, dtype: torch.dtype, *, lasting: bool = False) -> Tensor:
        """A tensor ``[size]`` for what is read.

        Args:
            size: number of elements.
            dtype: its type.
            lasting: for a checkpoint. Where the storage is a folder, what is large is mapped from
                a nameless file of its own: all groups together may not fit into memory.

        Raises:
            OSError: if the disk is full.
        """
        if self.folder is None or not lasting or size * dtype.itemsize < MAPPED:
            return torch.empty(size, dtype=dtype, pin_memory=self.pinned and not lasting)
        kind: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
        with tempfile.TemporaryFile(dir=self.folder) as file:
            _allocate(file, size * kind.itemsize)
            return torch.from_numpy(_mapped(file, kind, size))


def _allocate(file: Any, size: int) -> None:
    """Claim the room now: a mapped file on a disk that fills up later kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def _mapped(file: Any, kind: np.dtype[Any], size: int) -> NDArray[Any]:
    return np.asarray(np.memmap(file, kind, "r+", shape=(size,)))
