"""Memory of a transition ring, allocated at its first step, and its checkpoint."""

from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.kernels.ring import RingWrites, StreamWindows, TransitionSlots, look_up
from lit_adaptive.core.kernels.row_copy import renumber
from lit_adaptive.replay.transitions.frames import FramePool, LeafRows, on_host
from lit_adaptive.replay.transitions.nested import LeafSpec, map_leaves
from lit_adaptive.replay.transitions.validation import TransitionLayouts, first_layouts


class RingSize(NamedTuple):
    """Sizes of a ring; see ``TransitionRing``."""

    capacity: int
    num_streams: int
    n_step: int
    frame_stack: int


class RingStorage:
    """Frames, slots and open windows.

    Slots and windows are arrays in main memory, where the bookkeeping runs. ``served`` has the
    slots as tensors on the ring's device; on the CPU they share memory with the arrays.

    Args:
        size: sizes of the ring.
        layouts: layouts of observations and actions; with ``frame_stack`` above 1, the first axis
            of each observation leaf is the stack.
        device: device of frames, actions and served slots.
    """

    def __init__(self, size: RingSize, layouts: TransitionLayouts, device: torch.device) -> None:
        self.size = size
        self.device = device
        self._shared = on_host(device)
        self.layouts = layouts
        capacity, streams, n, k = size
        stacked = int(k > 1)
        frame = [
            LeafSpec(path, shape[stacked:], dtype)
            for path, shape, dtype in layouts.observation.leaves
        ]
        # One frame per slot, stream, open window and end of an episode, and what one step may
        # take before it releases others.
        self.pool = FramePool(frame, capacity + capacity // 16 + streams * (n + 4 * k), device)
        self.slots = TransitionSlots(
            np.empty((capacity, 2, k), np.int32),
            np.empty(capacity, np.float32),
            np.empty(capacity, np.bool_),
            np.empty(capacity if n > 1 else 0, np.uint8),
        )
        self.served = [
            torch.from_numpy(array).to(device, copy=not self._shared) for array in self.slots
        ]
        self.streams = StreamWindows(
            np.full((streams, k), -1, np.int32),
            np.full((streams, n, k), -1, np.int32),
            np.zeros((streams, n)),
            np.zeros(streams, np.int64),
            np.zeros(streams, np.int64),
        )
        self.output = RingWrites(
            np.empty(streams * n, np.int64),
            np.empty(streams * n, np.int64),
            np.empty(streams, np.int64),
            np.empty((2, streams * k), np.int64),
            np.empty((2, streams * k), np.int64),
        )
        self.action = LeafRows(layouts.action.leaves, capacity, device)
        self.window_action = LeafRows(layouts.action.leaves, streams * n, device)

    @property
    def bookkeeping_nbytes(self) -> int:
        """Bytes beyond the transitions' data: pointers, reference counts, numbers of steps."""
        kept = (self.slots.pointer, self.slots.steps, *self.pool.references, *self.streams)
        return sum(array.nbytes for array in (*kept, *self.output))

    @property
    def nbytes(self) -> int:
        """Bytes of everything, free rows included."""
        rows = (self.pool.frames, self.action, self.window_action)
        outcomes = self.slots.reward.nbytes + self.slots.terminated.nbytes
        return self.bookkeeping_nbytes + outcomes + sum(part.nbytes for part in rows)

    def publish(self, slot: Tensor) -> Tensor:
        """Copy slots ``[K]`` int64 on the CPU to ``served``; returns them on the device."""
        if self._shared:
            return slot
        slot_on_device = slot.to(self.device)
        for array, served in zip(self.slots, self.served, strict=True):
            if len(array):
                rows = torch.from_numpy(array[slot.numpy()]).to(self.device)
                served.index_copy_(0, slot_on_device, rows)
        return slot_on_device

    def look_up(
        self, index: Tensor, length: int, discounts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Read slots ``index`` ``[B]``; None if one is not a filled slot.

        Args:
            index: ``[B]``, integers.
            length: number of filled slots.
            discounts: ``[n + 1]`` float32, powers of gamma.

        Returns:
            Rows ``[2 B k]`` of the frames of the observations, then of the next observations;
            reward, terminated and discount, each ``[B]``.
        """
        if index.dim() != 1 or index.is_floating_point() or index.dtype is torch.bool:
            return None
        if not self._shared:
            return self._look_up_on_device(index.to(self.device, torch.int64), length, discounts)
        batch = index.shape[0]
        row = np.empty((2, batch, self.size.frame_stack), np.int64)
        reward, discount = np.empty((2, batch), np.float32)
        terminated = np.empty(batch, np.bool_)
        slot = index.to("cpu", torch.int64).contiguous().numpy()
        outcome = row, reward, terminated, discount
        if not look_up(slot, length, self.slots, discounts.numpy(), *outcome):
            return None
        return (
            torch.from_numpy(row.ravel()),
            torch.from_numpy(reward),
            torch.from_numpy(terminated),
            torch.from_numpy(discount),
        )

    def _look_up_on_device(
        self, index: Tensor, length: int, discounts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        if bool(((index < 0) | (index >= length)).any()):
            return None
        pointers, reward, terminated, steps = self.served
        pointer = pointers.index_select(0, index).transpose(0, 1).flatten()
        if len(steps):
            discount = discounts[steps.index_select(0, index).int()]
        else:
            discount = discounts[1].repeat(len(index))
        outcome = reward.index_select(0, index), terminated.index_select(0, index)
        return pointer, *outcome, discount

    # -- checkpoint -------------------------------------------------------------------------------

    def state_dict(self, length: int) -> dict[str, Any]:
        """Copies of the first ``length`` slots and the open windows.

        Frames are in the order of the slots that reference them, so rings with equal contents have
        equal states.
        """
        order = np.arange(self.size.n_step)
        place = (self.streams.begin[:, None] + order) % self.size.n_step
        is_open = order < self.streams.open[:, None]
        row = np.arange(self.size.num_streams)[:, None]
        first = np.where(is_open[..., None], self.streams.first[row, place], -1)
        parts = (self.slots.pointer[:length], first, self.streams.latest)
        numbers = np.concatenate([part.ravel() for part in parts])
        used = torch.from_numpy(renumber(numbers, len(self.pool))).to(self.device)
        split = np.split(numbers, np.cumsum([part.size for part in parts])[:-1])
        pointer, window_first, latest = (
            torch.from_numpy(part.reshape(like.shape).copy())
            for part, like in zip(split, parts, strict=True)
        )
        window = (row * self.size.n_step + place)[is_open]
        _, reward, terminated, steps = (torch.from_numpy(array) for array in self.slots)
        return {
            "frames": self.layouts.observation.unflatten(
                [leaf.cpu() for leaf in self.pool.frames.gather(used)]
            ),
            "action": self._actions(self.action, torch.arange(length)),
            "pointer": pointer,
            "reward": reward[:length].clone(),
            "terminated": terminated[:length].clone(),
            "steps": steps[:length].clone(),
            "latest": latest,
            "open": torch.from_numpy(self.streams.open.copy()),
            "window_first": window_first,
            "window_gain": torch.from_numpy(np.where(is_open, self.streams.gain[row, place], 0.0)),
            "window_action": self._actions(self.window_action, torch.from_numpy(window)),
        }

    def _actions(self, rows: LeafRows, row: Tensor) -> Any:
        leaves = rows.gather(row.to(self.device))
        return self.layouts.action.unflatten([leaf.cpu() for leaf in leaves])

    def load_state_dict(self, state: dict[str, Any], length: int) -> None:
        """Load a state that ``check_state`` accepted."""
        pointer, first, latest = (
            state[name].numpy() for name in ("pointer", "window_first", "latest")
        )
        frames: list[Tensor] = self.layouts.observation.in_order(state["frames"], "observation")
        self.pool.fill(frames, [pointer, first, latest])
        for name in ("pointer", "reward", "terminated", "steps"):
            kept: Tensor = state[name]
            getattr(self.slots, name)[: len(kept)] = kept.numpy()
        self.publish(torch.arange(length))
        n, is_open = self.size.n_step, state["open"].numpy()
        self.streams.latest[:] = latest
        self.streams.first[:] = first
        self.streams.gain[:] = state["window_gain"].numpy()
        self.streams.open[:] = is_open
        self.streams.begin[:] = 0
        self.action.fill(self.layouts.action.in_order(state["action"], "action"))
        window = torch.from_numpy(np.flatnonzero(np.arange(n) < is_open[:, None])).to(self.device)
        actions = self.layouts.action.in_order(state["window_action"], "action")
        for kept, new in zip(self.window_action.leaves, actions, strict=True):
            kept[window] = new.to(self.device)


def layouts_of(state: dict[str, Any], frame_stack: int) -> TransitionLayouts:
    """Layouts of observations and actions in a state of ``RingStorage``."""

    def stacked(leaf: Tensor) -> Tensor:
        return leaf if frame_stack == 1 else leaf[:, None].expand(-1, frame_stack, *leaf.shape[1:])

    return first_layouts(map_leaves(stacked, state["frames"]), state["action"], frame_stack)


def check_state(state: dict[str, Any], size: RingSize, length: int) -> None:
    """Validate a state of ``RingStorage``.

    Args:
        state: the state.
        size: sizes of the ring.
        length: number of filled slots.

    Raises:
        ValueError: naming the damaged field.
    """
    _, streams, n, k = size
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "pointer": ((length, 2, k), torch.int32),
        "reward": ((length,), torch.float32),
        "terminated": ((length,), torch.bool),
        "steps": ((length if n > 1 else 0,), torch.uint8),
        "latest": ((streams, k), torch.int32),
        "open": ((streams,), torch.int64),
        "window_first": ((streams, n, k), torch.int32),
        "window_gain": ((streams, n), torch.float64),
    }
    for name, (shape, dtype) in expected.items():
        value = state.get(name)
        if not isinstance(value, Tensor) or value.shape != shape or value.dtype is not dtype:
            _damaged(f"{name} is not {list(shape)} of {dtype}")
    is_open: Tensor = state["open"]
    if not bool(((is_open >= 0) & (is_open < n)).all()):
        _damaged(f"a stream has {is_open.tolist()} open windows, with n_step={n}")
    if len(state["steps"]) and not bool(((state["steps"] > 0) & (state["steps"] <= n)).all()):
        _damaged(f"steps lie outside [1, {n}]")
    for name, count in (("action", length), ("window_action", int(is_open.sum()))):
        if _rows(state.get(name)) != {count}:
            _damaged(f"{name} is not {count} rows of tensors")
    frames = _rows(state.get("frames"))
    if len(frames) != 1 or -1 in frames:
        _damaged("frames are not tensors with equal numbers of rows")
    _check_pointers(state, next(iter(frames)), n)


def _rows(nested: Any) -> set[int]:
    """Numbers of rows of the leaves; -1 for a leaf that is not a batch of tensors."""
    rows: set[int] = set()
    map_leaves(
        lambda leaf: rows.add(len(leaf) if isinstance(leaf, Tensor) and leaf.dim() else -1), nested
    )
    return rows


def _check_pointers(state: dict[str, Any], frames: int, n: int) -> None:
    is_open = torch.arange(n) < state["open"][:, None]
    windows = state["window_first"]
    pointer = torch.cat([state["pointer"].flatten(), windows[is_open].flatten()])
    latest = state["latest"].flatten()
    known = latest[latest != -1]
    rows = torch.cat([pointer, known]).long()
    inside = bool(((rows >= 0) & (rows < frames)).all())
    if not inside or bool((windows[~is_open] != -1).any()):
        _damaged("it references frames that it does not hold")
    if not bool(torch.bincount(rows, minlength=frames).all()):
        _damaged("it holds frames without references")


def _damaged(reason: str) -> NoReturn:
    raise ValueError(f"the state is damaged, or of another version: {reason}. Nothing was changed")
