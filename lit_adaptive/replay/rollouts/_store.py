"""Groups of rollouts in numbered slots, without padding and without a Python object for each."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_adaptive.replay.rollouts import _kernels as loops
from lit_adaptive.replay.rollouts._words import Words
from lit_adaptive.replay.rollouts.groups import FIELDS, RolloutGroups

Ints = NDArray[np.int64]


class GroupStore:
    """Up to ``capacity`` groups; knows who is where and who came first, and nothing of draws.

    A group's key is ``serial * capacity + slot``: so its slot is known, and no other has it ever.

    Args:
        capacity: number of slots, above 0.
        storage: ``"memory"``, ``"pinned"``, or a folder.

    Raises:
        ValueError: as ``Words``.
    """

    def __init__(self, capacity: int, storage: str | Path) -> None:
        self.capacity = capacity
        self.words = Words(storage)
        self.serial = 0
        number = np.arange(capacity, dtype=np.int32)
        self.slots = loops.Slots(
            prompt=np.zeros(capacity, np.int64),
            version=np.zeros(capacity, np.int64),
            probability=np.zeros(capacity, np.float64),
            weight=np.zeros(capacity, np.float32),
            size=np.zeros(capacity, np.int32),
            asked=np.zeros(capacity, np.int32),
            tokens=np.zeros(capacity, np.int64),
            first=np.zeros(capacity, np.int32),
            last=np.zeros(capacity, np.int32),
            key=np.full(capacity, -1, np.int64),
            older=np.full(capacity, -1, np.int32),
            newer=np.full(capacity, -1, np.int32),
            item=number,
            place=number.copy(),
            ends=np.array([-1, -1, 0], dtype=np.int64),
        )

    def __len__(self) -> int:
        """Slots in use."""
        return int(self.slots.ends[2])

    @property
    def nbytes(self) -> int:
        """Bytes of everything, free room included."""
        return self.words.nbytes + sum(column.nbytes for column in self.slots)

    def in_order(self) -> Ints:
        """Slots in use ``[len(self)]``, the oldest first."""
        return loops.in_order(self.slots)

    def oldest(self, count: int, leaving: Ints) -> Ints:
        """The ``count`` oldest slots beside those that are ``leaving`` anyway."""
        if count <= 0:
            return np.empty(0, np.int64)
        marked = np.zeros(self.capacity, np.bool_)
        marked[leaving] = True
        return loops.oldest(self.slots, count, marked)

    def replace(self, leaving: Ints, groups: RolloutGroups) -> Ints:
        """Empty the slots ``leaving``, then make ``groups`` the newest; returns their slots.

        Raises:
            MemoryError: if there is no room; nothing changes then.
            OSError: if the disk is full; nothing changes then.
        """
        given, slots = _content(groups), self.slots
        tokens = np.bincount(groups.group.numpy(), given.lengths, len(groups)).astype(np.int64)
        needed = loops.blocks_needed(given.size, given.prompt_lengths, tokens)
        freed = loops.blocks_needed(
            slots.size[leaving], slots.asked[leaving], slots.tokens[leaving]
        )
        self.words.reserve(needed - freed - int(self.words.blocks.free[1]))
        loops.remove(self.words.blocks, slots, leaving)
        slot = slots.item[len(self) : len(self) + len(groups)].astype(np.int64)
        serial = np.arange(self.serial, self.serial + len(groups))
        loops.put(self.words.blocks, slots, given, slot, serial * self.capacity + slot)
        self.serial += len(groups)
        return slot

    def restore(self, groups: RolloutGroups, key: Tensor, item: Tensor, serial: int) -> None:
        """Fill an empty store with the groups, in order, that had these keys and permutation."""
        given = _content(groups)
        tokens = np.bincount(groups.group.numpy(), given.lengths, len(groups)).astype(np.int64)
        self.words.reserve(loops.blocks_needed(given.size, given.prompt_lengths, tokens))
        slot = (key % self.capacity).numpy()
        loops.put(self.words.blocks, self.slots, given, slot, key.numpy().copy())
        self.slots.item[:] = item.numpy()
        self.slots.place[item.numpy()] = np.arange(self.capacity, dtype=np.int32)
        self.serial = serial

    def read(self, slot: Ints, *, lasting: bool = False) -> RolloutGroups:
        """The groups in ``slot`` ``[k]``, in this order, copied; ``lasting`` as in ``Words.empty``.

        Raises:
            OSError: if ``lasting`` and the disk is full.
        """
        rollouts, asked, tokens = loops.counts(self.slots, slot)
        length = {
            "group": len(slot),
            "prompt_token": asked,
            "rollout": rollouts,
            "token": tokens,
        }
        empty = self.words.empty
        groups = RolloutGroups(
            **{
                name: empty(length[level], dtype, lasting=lasting)
                for name, (dtype, level) in FIELDS.items()
            }
        )
        loops.gather(self.words.blocks, self.slots, slot, _content(groups))
        return groups

    def slots_of(self, key: Tensor) -> tuple[Ints, NDArray[np.bool_]]:
        """Slots of ``key`` ``[k]``, and which of these groups are still there."""
        keys = key.numpy()
        slot = keys % self.capacity
        return slot, (self.slots.key[slot] == keys) & (keys >= 0)


def _content(groups: RolloutGroups) -> loops.Content:
    """The same memory as arrays, float32 of rollouts and tokens as words."""
    arrays: dict[str, Any] = {name: getattr(groups, name).contiguous().numpy() for name in FIELDS}
    for name in ("log_probs", "reward", "advantage"):
        arrays[name] = arrays[name].view(np.int32)
    return loops.Content(**arrays)
