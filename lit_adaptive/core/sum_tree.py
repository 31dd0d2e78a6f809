"""Sum tree: draws indices in proportion to their masses, in batches, without drift.

Layout: nodes have 16 children. All levels lie in one float64 array, leaves first, each padded with
zeros to a multiple of 16, the root last. The smallest positive leaf of each 256 is stored, and
searched again after an update removed it. Memory: 8.6 bytes per slot.

Three rules make it exact:
    1. An inner node is recomputed from its children in a fixed order, never changed by a
       difference: the tree depends on its leaves only, not on the order of updates.
    2. During the descent the target is limited to below the node's sum, and the first child whose
       prefix sum exceeds it is taken. This child exists and is positive whatever the rounding, so
       no draw ends in an empty slot.
    3. The compiled loops (CPU) and the torch operations (GPU) perform the same floating-point
       operations in the same order: their draws are equal bit for bit.

Sampling by equal ranges follows Schaul et al. (2016, arXiv:1511.05952), appendix B.2.1.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.kernels import sum_tree as loops
from lit_adaptive.core.kernels import sum_tree_torch as batched

_SHOWN = 8  # invalid entries that an error lists
_ALL_MEMBERS = np.empty(0, dtype=np.bool_)


def _level_offsets(capacity: int) -> list[int]:
    """Offset of each level; the last is that of the root."""
    offsets, width = [0], capacity
    while True:
        width = -(-width // loops.FANOUT)
        offsets.append(offsets[-1] + width * loops.FANOUT)
        if width == 1:
            return offsets


class SumTree:
    """``capacity`` float64 masses, sampled and updated in batches, O(log capacity) each.

    Args:
        capacity: number of leaves (slots), above 0; initially 0, which means empty.
        device: device of the tree; compiled loops on ``cpu``, torch operations elsewhere.

    Attributes:
        arrays: the first arguments of ``kernels.sum_tree.update``; of a tree on the CPU only.

    Raises:
        ValueError: if ``capacity`` is not above 0.
    """

    def __init__(self, capacity: int, *, device: str | torch.device = "cpu") -> None:
        check_at_least(capacity=(capacity, 1))
        self.capacity = capacity
        self.device = torch.device(device)
        self._compiled = self.device.type == "cpu"  # tests turn it off to run the torch path
        self._offsets = _level_offsets(capacity)
        size = self._offsets[-1] + loops.FANOUT
        # NumPy requests huge pages, torch does not; random access is faster with them.
        self._sums = torch.from_numpy(np.full(size, 0.0)).to(self.device)
        blocks = -(-capacity >> loops.BLOCK_SHIFT) if self._compiled else 0
        self._low = np.full(blocks, np.inf)
        self._positive = torch.zeros(1, dtype=torch.int64)
        self._next = 0
        self._share_memory()

    def _share_memory(self) -> None:
        """Let the compiled loops see the tensors; a view for each call would cost as much."""
        if self._compiled:
            self._np_sums = self._sums.numpy()
            self._np_positive = self._positive.numpy()
            self._np_offsets = np.asarray(self._offsets, dtype=np.int64)
            self.arrays = (self._np_sums, self._low, self._np_offsets, self._np_positive)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy (``copy``, ``pickle``), whose arrays are views of its own tensors."""
        self.__dict__.update(state)
        self._share_memory()

    def __len__(self) -> int:
        """Number of positive leaves."""
        return int(self._positive)

    @property
    def total_priority(self) -> float:
        """Sum of all masses: the root. The specification's name."""
        return float((self._np_sums if self._compiled else self._sums)[self._offsets[-1]])

    @property
    def min_mass(self) -> float:
        """Smallest positive mass; ``inf`` if there is none."""
        if self._compiled:
            return float(loops.least_positive(self._np_sums, self._low, self.capacity))
        return batched.least_positive(self.masses)

    @property
    def masses(self) -> Tensor:
        """The leaves: ``[capacity]`` float64, a view that must not be written to."""
        return self._sums[: self.capacity]

    @property
    def nbytes(self) -> int:
        """Memory of the tree in bytes."""
        sums = self._sums.numel() * self._sums.element_size()
        return sums + self._low.nbytes

    def add(self, priority: Tensor) -> Tensor:
        """Write ``priority`` ``[K]`` to the next slots of the ring; returns the slots ``[K]``.

        Raises:
            ValueError: as ``update``; or if ``K`` is above the capacity.
        """
        if len(priority) > self.capacity:
            raise ValueError(
                f"{len(priority)} priorities do not fit a tree of {self.capacity} slots: "
                "add them in smaller batches"
            )
        end = self._next + len(priority)
        index = torch.arange(self._next, end, device=self.device) % self.capacity
        self.update(index, priority)
        self._next = end % self.capacity
        return index

    def update(
        self,
        index: Tensor,
        priority: Tensor,
        *,
        exponent: float = 1.0,
        member: Tensor | None = None,
    ) -> float:
        """Set the leaves ``index`` ``[K]`` to ``priority`` ``[K]``; the last of duplicates counts.

        Args:
            index: integers in ``[0, capacity)``.
            priority: finite and not negative; 0 empties the slot.
            exponent: in [0, 1]; the leaves become ``priority ** exponent``, but 0 stays 0.
            member: ``[capacity]`` bool; if given, indices that are not members are errors.

        Returns:
            The largest ``priority``; 0 if ``K`` is 0.

        Raises:
            ValueError: naming the invalid indices, or if the total would overflow; the tree is
                unchanged then.
        """
        index, priority = self._checked(index, priority)
        greatest = self._update(index, priority, exponent, member, force=False)
        if greatest == loops.RISKY:
            greatest = self._update_or_restore(index, priority, exponent, member)
        if greatest == loops.BAD:
            raise ValueError(_update_error(self.capacity, index, priority, member))
        return greatest

    def get(self, cumsum: Tensor) -> tuple[Tensor, Tensor]:
        """Leaves that contain points of the cumulative sum, and their masses, each ``[K]``.

        Args:
            cumsum: ``[K]`` in ``[0, total_priority]``.

        Raises:
            ValueError: if the total is 0, or a point is outside.
        """
        self._check_not_empty()
        cumsum = cumsum.detach().to(self.device, torch.float64).contiguous()
        if self._compiled:
            index, mass = torch.empty(len(cumsum), dtype=torch.int64), torch.empty_like(cumsum)
            code = loops.get(
                self._np_sums,
                self._np_offsets,
                cumsum.numpy(),
                index.numpy(),
                mass.numpy(),
            )
        else:
            code, index, mass = batched.get(self._sums, self._offsets, cumsum)
        if code == loops.BAD:
            raise ValueError(
                f"a point of the cumulative sum lies outside [0, {self.total_priority}], "
                f"the range of this tree: {_few(cumsum)}"
            )
        return index, mass

    def sample(self, uniform: Tensor, *, probability: bool = False) -> tuple[Tensor, Tensor]:
        """Draw one leaf from each of K equal ranges of the cumulative sum.

        Args:
            uniform: ``[K]`` in ``[0, 1]``: position of each draw in its range.
            probability: return the draws' probabilities instead of their masses.

        Returns:
            Indices ``[K]`` int64, ascending and never of an empty slot, and masses ``[K]``.

        Raises:
            ValueError: if the total is 0, or a number lies outside ``[0, 1]``.
        """
        return self.sample_(uniform.detach().to(torch.float64, copy=True), probability=probability)

    def sample_(self, uniform: Tensor, *, probability: bool = False) -> tuple[Tensor, Tensor]:
        """``sample`` with contiguous float64 numbers on the CPU, which are overwritten."""
        if self._compiled:
            points = uniform.numpy()
            slots = np.empty(points.size, dtype=np.int64)
            code = loops.sample(self._np_sums, self._np_offsets, points, slots, points, probability)
            index, mass = torch.from_numpy(slots), uniform
        else:
            code, index, mass = batched.sample(
                self._sums, self._offsets, uniform.to(self.device), probability
            )
        if code == loops.BAD:
            self._check_not_empty()
            raise ValueError("uniform numbers must lie in [0, 1]: draw them with torch.rand")
        return index, mass

    def assign(self, mass: Tensor) -> None:
        """Set all leaves at once to ``mass`` ``[capacity]``, finite and not negative.

        Raises:
            ValueError: if the masses are not one per slot and valid; nothing changes then.
        """
        fits = mass.shape == (self.capacity,)
        if not (fits and bool(mass.amin() >= 0) and bool(mass.amax() * len(mass) < torch.inf)):
            raise ValueError(
                f"the masses have shape {tuple(mass.shape)}; there must be one per slot "
                f"({self.capacity}), finite and not negative"
            )
        self._set_leaves(mass)

    def clear(self) -> None:
        """Empty all slots."""
        self._sums.zero_()
        self._low.fill(np.inf)
        self._positive.zero_()
        self._next = 0

    def state_dict(self) -> dict[str, Any]:
        """The leaves and the next slot of the ring, copied."""
        mass = self.masses.cpu().clone()
        return {"capacity": self.capacity, "mass": mass, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the leaves of a tree of the same capacity.

        Raises:
            ValueError: if the capacity differs or a mass is invalid; nothing changes then.
        """
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"the state is of a tree of capacity {state['capacity']}, but this one has "
                f"{self.capacity}: create it with the same capacity"
            )
        mass: Tensor = state["mass"]
        fits = mass.shape == (self.capacity,) and mass.dtype is torch.float64
        if not (fits and bool(((mass >= 0) & (mass < torch.inf)).all())):
            raise ValueError(
                "the state's masses are not one finite, non-negative float64 per slot: "
                "the file is damaged or not of a sum tree"
            )
        self._set_leaves(mass)
        self._next = int(state["next"])

    def _set_leaves(self, mass: Tensor) -> None:
        self._sums[: self.capacity] = mass.to(self.device)
        self._positive[0] = int((mass > 0).sum())
        if self._compiled:
            self._low.fill(loops.UNKNOWN)
            loops.rebuild(self._np_sums, self._np_offsets)
        else:
            batched.rebuild(self._sums, self._offsets)

    def _checked(self, index: Tensor, priority: Tensor) -> tuple[Tensor, Tensor]:
        if index.dtype is not torch.int64:
            if index.is_floating_point() or index.is_complex() or index.dtype is torch.bool:
                raise ValueError(f"index is {index.dtype}; indices are integers: pass int64")
            index = index.long()
        if index.dim() != 1 or index.shape != priority.shape:
            raise ValueError(
                f"index has shape {tuple(index.shape)}, priority {tuple(priority.shape)}; "
                "both must be [K]"
            )
        if priority.requires_grad or priority.dtype is not torch.float64:
            priority = priority.detach().to(torch.float64)
        if not (self._compiled and index.is_cpu and priority.is_cpu):
            index, priority = index.to(self.device), priority.to(self.device)
        return index.contiguous(), priority.contiguous()

    def _update(
        self,
        index: Tensor,
        priority: Tensor,
        exponent: float,
        member: Tensor | None,
        *,
        force: bool,
    ) -> float:
        if self._compiled:
            return loops.update(
                self._np_sums,
                self._low,
                self._np_offsets,
                self._np_positive,
                self.capacity,
                index.numpy(),
                priority.numpy(),
                exponent,
                _ALL_MEMBERS if member is None else member.numpy(),
                force,
            )
        return batched.update(
            self._sums,
            self._offsets,
            self._positive,
            self.capacity,
            index,
            priority,
            exponent,
            member,
            force,
        )

    def _update_or_restore(
        self, index: Tensor, priority: Tensor, exponent: float, member: Tensor | None
    ) -> float:
        """Update a tree whose total may overflow; restore the leaves if it does."""
        before = self.masses.clone()
        greatest = self._update(index, priority, exponent, member, force=True)
        if math.isinf(self.total_priority):
            self._set_leaves(before)
            raise ValueError(
                "with these priorities the total overflows the largest float64 (1.8e308); "
                f"the greatest is {greatest}: scale or clip them. Nothing was changed"
            )
        return greatest

    def _check_not_empty(self) -> None:
        if not self.total_priority > 0:
            raise ValueError(
                "the total priority is 0, so there is nothing to draw: "
                "add items or give one a priority above 0"
            )


def _update_error(capacity: int, index: Tensor, priority: Tensor, member: Tensor | None) -> str:
    """Message that names the invalid entries of an update."""
    outside = (index < 0) | (index >= capacity)
    if bool(outside.any()):
        return (
            f"index out of range: {_few(index[outside])}; indices lie in [0, {capacity}). "
            "Nothing was changed"
        )
    invalid = ~((priority >= 0) & (priority < torch.inf))
    if bool(invalid.any()):
        return (
            f"the priorities of index {_few(index[invalid])} are {_few(priority[invalid])}; "
            "priorities are finite and not negative: look for NaN or inf in the loss. Nothing was "
            "changed"
        )
    assert member is not None
    absent = index[~member[index]]
    return f"index {_few(absent)} was not inserted: insert it first. Nothing was changed"


def _few(values: Tensor) -> str:
    more = len(values) - _SHOWN
    return f"{values[:_SHOWN].tolist()}" + (f" and {more} more" if more > 0 else "")
