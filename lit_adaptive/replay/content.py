"""Everything a transition ring allocates once it has seen its first step, and its checkpoint."""

from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.replay._ring_numba import Array, Output, Slots, Streams, renumber
from lit_adaptive.replay.frames import FramePool
from lit_adaptive.replay.nested import Layout, Leaf, map_nested


class Size(NamedTuple):
    """How many of everything; see ``TransitionRing``."""

    capacity: int
    num_streams: int
    n_step: int
    frame_stack: int


class Content:
    """Frames, slots and open windows.

    Slots and windows are arrays in main memory, where the bookkeeping runs. ``served`` holds the
    slots as tensors on the device that transitions are served from: the same memory on the CPU.

    Args:
        size: how many of everything.
        observation: layout of observations; each leaf's first axis is the frame stack, if above 1.
        action: layout of actions.
        device: where frames and actions are kept, and slots served from.
    """

    def __init__(
        self, size: Size, observation: Layout, action: Layout, device: torch.device
    ) -> None:
        self.size = size
        self.device = device
        self.observation_layout = observation
        self.action_layout = action
        capacity, streams, n, k = size
        stacked = int(k > 1)
        frame = [Leaf(path, shape[stacked:], dtype) for path, shape, dtype in observation.leaves]
        # Beside a frame per slot: one per stream and open window, one per episode's end, and what
        # one step may take before it gives back.
        self.pool = FramePool(frame, capacity + capacity // 16 + streams * (n + 4 * k), device)
        self.slots = Slots(
            np.empty((capacity, 2, k), np.int32),
            np.empty(capacity, np.float32),
            np.empty(capacity, np.bool_),
            np.empty(capacity if n > 1 else 0, np.uint8),
        )
        self.served = Slots(*(torch.from_numpy(array).to(device) for array in self.slots))
        self.streams = Streams(
            np.full((streams, k), -1, np.int32),
            np.full((streams, n, k), -1, np.int32),
            np.zeros((streams, n)),
            np.zeros(streams, np.int64),
            np.zeros(streams, np.int64),
        )
        self.output = Output(
            np.empty(streams * n, np.int64),
            np.empty(streams * n, np.int64),
            np.empty(streams, np.int64),
            np.empty((2, streams * k), np.int64),
            np.empty((2, streams * k), np.int64),
        )
        self.action = _empty(action, capacity, device)
        self.window_action = _empty(action, streams * n if n > 1 else 0, device)

    @property
    def bookkeeping_nbytes(self) -> int:
        """Bytes beyond what a transition is: pointers, counts of references, numbers of steps."""
        kept = (self.slots.pointer, self.slots.steps, *self.pool.accounts, *self.streams)
        return sum(array.nbytes for array in (*kept, *self.output))

    @property
    def nbytes(self) -> int:
        """Bytes of everything, free rows included."""
        data = (self.slots.reward.nbytes, self.slots.terminated.nbytes, self.pool.nbytes)
        actions = (leaf.nbytes for leaf in (*self.action, *self.window_action))
        return self.bookkeeping_nbytes + sum(data) + sum(actions)

    def publish(self, slot: Tensor) -> None:
        """Serve the slots ``[K]`` int64 (on the CPU) as they are now."""
        if self.device.type == "cpu":
            return
        there = slot.to(self.device)
        for array, served in zip(self.slots, self.served, strict=True):
            if len(array):
                rows = torch.from_numpy(array[slot.numpy()]).to(self.device)
                served.index_copy_(0, there, rows)

    # -- checkpoint -------------------------------------------------------------------------------

    def state_dict(self, length: int) -> dict[str, Any]:
        """The first ``length`` slots and the open windows, copied.

        Frames come in the order of the slots that point to them; so equal content gives equal
        states, wherever its frames happen to lie.
        """
        order = np.arange(self.size.n_step)
        place = (self.streams.begin[:, None] + order) % self.size.n_step
        is_open = order < self.streams.open[:, None]
        row = np.arange(self.size.num_streams)[:, None]
        first = np.where(is_open[..., None], self.streams.first[row, place], -1)
        parts = (self.slots.pointer[:length], first, self.streams.latest)
        pointer = np.concatenate([part.ravel() for part in parts])
        used = torch.from_numpy(renumber(pointer, len(self.pool))).to(self.device)
        pointers = np.split(pointer, np.cumsum([part.size for part in parts])[:-1])
        pointer, first, latest = (
            torch.from_numpy(numbers.reshape(part.shape).copy())
            for numbers, part in zip(pointers, parts, strict=True)
        )
        window = (row * self.size.n_step + place)[is_open]
        _, reward, terminated, steps = (torch.from_numpy(array) for array in self.slots)
        return {
            "frames": self.observation_layout.unflatten(
                [leaf.cpu() for leaf in self.pool.gather(used)]
            ),
            "action": self._actions(self.action, torch.arange(length)),
            "pointer": pointer,
            "reward": reward[:length].clone(),
            "terminated": terminated[:length].clone(),
            "steps": steps[:length].clone(),
            "latest": latest,
            "open": torch.from_numpy(self.streams.open.copy()),
            "window_first": first,
            "window_gain": torch.from_numpy(
                np.where(is_open, self.streams.gain[row, place], 0.0)
            ),
            "window_action": self._actions(self.window_action, torch.from_numpy(window)),
        }

    def _actions(self, leaves: list[Tensor], row: Tensor) -> Any:
        there = row.to(self.device)
        return self.action_layout.unflatten([leaf.index_select(0, there).cpu() for leaf in leaves])

    def load_state_dict(self, state: dict[str, Any], length: int) -> None:
        """Take over a state that ``check_state`` accepted."""
        frames: list[Tensor] = self.observation_layout.in_order(state["frames"], "observation")
        self.pool.reserve(len(frames[0]) - self.pool.used)
        pointer, first, latest = (
            state[name].numpy() for name in ("pointer", "window_first", "latest")
        )
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
        actions = self.action_layout.in_order(state["action"], "action")
        for stored, kept in zip(self.action, actions, strict=True):
            stored[:length] = kept
        window = torch.from_numpy(np.flatnonzero(np.arange(n) < is_open[:, None])).to(self.device)
        actions = self.action_layout.in_order(state["window_action"], "action")
        for stored, kept in zip(self.window_action, actions, strict=True):
            stored[window] = kept.to(self.device)


def _empty(layout: Layout, rows: int, device: torch.device) -> list[Tensor]:
    return [
        torch.empty((rows, *leaf.shape), dtype=leaf.dtype, device=device) for leaf in layout.leaves
    ]


def layouts_of(state: dict[str, Any], frame_stack: int) -> tuple[Layout, Layout]:
    """Layouts of observations and actions in a state that ``Content.state_dict`` returned."""

    def stacked(leaf: Tensor) -> Tensor:
        return leaf if frame_stack == 1 else leaf[:, None].expand(-1, frame_stack, *leaf.shape[1:])

    observation = Layout(map_nested(stacked, state["frames"]), "observation")
    return observation, Layout(state["action"], "action", widen=True)


def check_state(state: dict[str, Any], size: Size, length: int) -> None:
    """Refuse what no ``Content.state_dict`` of this size returns.

    Raises:
        ValueError: saying what is wrong.
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
        found = state.get(name)
        if not isinstance(found, Tensor) or found.shape != shape or found.dtype is not dtype:
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
    if len(frames) != 1:
        _damaged("frames are not tensors of equally many rows")
    _check_pointers(state, next(iter(frames)), n)


def _rows(nested: Any) -> set[int]:
    """How many rows the leaves have; -1 for what is no batch of tensors."""
    found: set[int] = set()
    map_nested(
        lambda leaf: found.add(len(leaf) if isinstance(leaf, Tensor) and leaf.dim() else -1), nested
    )
    return found


def _check_pointers(state: dict[str, Any], frames: int, n: int) -> None:
    is_open = torch.arange(n) < state["open"][:, None]
    windows = state["window_first"]
    pointer = torch.cat([state["pointer"].flatten(), windows[is_open].flatten()])
    latest = state["latest"].flatten()
    known = latest[latest != -1]
    everything = torch.cat([pointer, known]).long()
    inside = bool(((everything >= 0) & (everything < frames)).all())
    if not inside or bool((windows[~is_open] != -1).any()):
        _damaged("it points to frames that are not there")
    if not bool(torch.bincount(everything, minlength=frames).all()):
        _damaged("it holds frames that nothing points to")


def _damaged(what: str) -> NoReturn:
    raise ValueError(f"the state is damaged, or of another version: {what}. Nothing was changed")
