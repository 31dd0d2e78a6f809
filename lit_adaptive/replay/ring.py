"""A ring of transitions: the newest ``capacity`` of them, whatever they hold.

A slot keeps action, reward, how the transition ended, and where its two observations are among the
frames (``lit_adaptive.replay.frames``): 8 bytes of pointers, plus 1 for the number of steps if
``n_step`` is above 1. An observation that is bitwise the one its stream showed last is that one and
is not stored again; so a next observation costs nothing but at an episode's end.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_adaptive.replay.frames import (
    NOWHERE,
    Booleans,
    FrameRing,
    Integers,
    copy_rows,
    rows_equal,
)
from lit_adaptive.replay.n_step import Closed, NStepWindows
from lit_adaptive.replay.nested import (
    Layout,
    Signature,
    as_tensor,
    flatten,
    layout_of,
    signature,
    unflatten,
)

_SHOWN = 8


class _Steps(NamedTuple):
    """One step of B streams, checked."""

    stream: Integers
    observation: list[Tensor]
    next_observation: list[Tensor]
    action: Tensor
    reward: NDArray[np.float64]
    terminated: Booleans
    ended: Booleans


class TransitionRing:
    """The newest ``capacity`` transitions of ``num_streams`` streams, the oldest overwritten first.

    Memory is taken at the first ``add``, from the shapes and types seen there. Observations are
    tensors, arrays, or dicts and tuples of them; float64 ones are kept as float32, all other types
    (uint8 and bool among them) as they are. Integer actions are kept as int64.

    Args:
        capacity: transitions kept, above 0.
        num_streams: environments that add side by side, above 0.
        n_step: rewards summed per transition before bootstrapping, above 0.
        gamma: discount per step, in [0, 1].
        frame_stack: the first axis of an observation stacks this many frames, the newest last.
            Consecutive observations share all but one; each frame is kept once.
        device: where transitions are kept.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        capacity: int,
        *,
        num_streams: int = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        frame_stack: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        sizes = {
            "capacity": capacity,
            "num_streams": num_streams,
            "n_step": n_step,
            "frame_stack": frame_stack,
        }
        for name, size in sizes.items():
            if size <= 0:
                raise ValueError(f"{name} is {size}; it must be above 0")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}; a discount per step lies in [0, 1]")
        self.capacity = capacity
        self.num_streams = num_streams
        self.n_step = n_step
        self.gamma = gamma
        self.frame_stack = frame_stack
        self.device = torch.device(device)
        self.added = 0
        # Frames a transition may point back; see ``_refresh_stale`` for those that would not fit.
        self._window = 4 * num_streams * (n_step + 2 * frame_stack) + 64
        self._everyone = np.arange(num_streams)
        self._discounts = torch.tensor(
            [gamma**k for k in range(n_step + 1)], dtype=torch.float64, device=self.device
        ).float()
        self._signature: Signature | None = None
        self._layout: Layout = None

    def _allocate(self, leaves: list[Tensor], layout: Layout, action: Tensor) -> None:
        self._layout = layout
        self._signature = signature(leaves, layout)
        frames = leaves if self.frame_stack == 1 else [leaf[:, 0] for leaf in leaves]
        # Episodes of 32 steps fit; with shorter ones it grows.
        self._frames = FrameRing(frames, self.capacity + self.capacity // 32 + 2 * self._window)
        self._room = self._frames.size  # frame number below which nothing in use is overwritten
        self._latest = np.full((self.num_streams, self.frame_stack), NOWHERE, dtype=np.int64)
        self._windows = NStepWindows(
            self.num_streams, self.n_step, self.gamma, self.frame_stack, action
        )
        slots, device = self.capacity, self.device
        self._action = torch.empty((slots, *action.shape[1:]), dtype=action.dtype, device=device)
        self._reward = torch.empty(slots, dtype=torch.float32, device=device)
        self._terminated = torch.empty(slots, dtype=torch.bool, device=device)
        self._pointer = torch.empty(
            (slots, 2, self.frame_stack), dtype=torch.int32, device=device
        )
        counted = slots if self.n_step > 1 else 0
        steps = torch.uint8 if self.n_step < 256 else torch.int32
        self._steps = torch.empty(counted, dtype=steps, device=device)

    def __len__(self) -> int:
        """Transitions held, at most ``capacity``."""
        return min(self.added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept, observations included; 0 before the first ``add``."""
        if self._signature is None:
            return 0
        slots = (self._action, self._reward, self._terminated, self._pointer, self._steps)
        return self._frames.nbytes + sum(t.numel() * t.element_size() for t in slots)

    @property
    def num_frames(self) -> int:
        """Frames there is room for; it stays near ``capacity`` as long as observations are shared."""
        return 0 if self._signature is None else self._frames.size

    def add(
        self,
        observation: Any,
        action: Any,
        reward: Any,
        next_observation: Any,
        terminated: Any,
        truncated: Any = False,
        stream: Any = None,
    ) -> Tensor:
        """Add one step of each stream; transitions appear once their n steps are complete.

        Args:
            observation: ``[E, ...]`` before the step.
            action: ``[E, ...]``.
            reward: ``[E]``, finite.
            next_observation: ``[E, ...]`` after it; at an episode's end the true final one.
            terminated: ``[E]`` bool: the episode came to an end; nothing follows.
            truncated: ``[E]`` bool: it was cut off; what would follow still counts.
            stream: ``[E]`` which streams these are, each at most once; by default all, in order.

        Returns:
            Slots written, ``[K]`` int64, in the order of insertion. K may be 0 while n steps
            are incomplete, and above E when an episode ends. (Of more than ``capacity``
            transitions at once only the last ones are written.)

        Raises:
            ValueError: if shapes, types or structure are not those of the first ``add``, a reward
                is NaN or infinite, or a stream does not exist. Nothing is added then.
        """
        layout = layout_of(observation) if self._signature is None else self._layout
        steps = self._read(
            layout, observation, action, reward, next_observation, terminated, truncated, stream
        )
        if self._signature is None:
            self._allocate(steps.observation, layout, steps.action)
        self._refresh_stale(len(steps.stream))
        fresh = ~self._continues(steps)
        begins, first = self._number(steps.observation, fresh, self._latest[steps.stream], 0)
        shared = self._shares(steps)
        grown, second = self._number(
            steps.next_observation, ~shared, np.roll(first, -1, axis=1), int(begins.sum()), last=True
        )
        closing = self._windows.closing(steps.stream, steps.ended)
        self._make_room(int(begins.sum()) + int(grown.sum()), closing)
        self._store_frames(steps.observation, begins)
        self._store_frames(steps.next_observation, grown)
        self._latest[steps.stream] = second
        closed = self._windows.push(
            steps.stream, first, steps.action, steps.reward, steps.ended
        )
        return self._write(closed, second, steps.terminated)

    # -- reading the input ------------------------------------------------------------------------

    def _read(
        self,
        layout: Layout,
        observation: Any,
        action: Any,
        reward: Any,
        next_observation: Any,
        terminated: Any,
        truncated: Any,
        stream: Any,
    ) -> _Steps:
        which = self._everyone if stream is None else self._streams(stream)
        leaves = flatten(observation, layout, self.device)
        following = flatten(next_observation, layout, self.device)
        expected = self._signature or signature(leaves, layout)
        _check_leaves("observation", leaves, expected, layout, len(which))
        _check_leaves("next_observation", following, expected, layout, len(which))
        if self._signature is None and self.frame_stack > 1:
            _check_stack(expected, self.frame_stack)
        acted = as_tensor(action).cpu()
        if not (acted.is_floating_point() or acted.dtype == torch.bool):
            acted = acted.long()
        self._check_action(acted, len(which))
        rewards = _per_stream("reward", reward, len(which)).astype(np.float64)
        if not np.isfinite(rewards).all():
            wrong = np.flatnonzero(~np.isfinite(rewards))
            raise ValueError(
                f"reward of streams {which[wrong][:_SHOWN].tolist()} is "
                f"{rewards[wrong][:_SHOWN].tolist()}; rewards are finite: look into the environment"
            )
        terminal = _per_stream("terminated", terminated, len(which)) != 0
        cut = _per_stream("truncated", truncated, len(which)) != 0
        return _Steps(which, leaves, following, acted, rewards, terminal, terminal | cut)

    def _streams(self, stream: Any) -> Integers:
        which = np.asarray(as_tensor(stream).cpu().numpy(), dtype=np.int64).reshape(-1)
        inside = (which >= 0) & (which < self.num_streams)
        if not inside.all() or len(np.unique(which)) < len(which):
            raise ValueError(
                f"streams are {which[:_SHOWN].tolist()}; each lies in [0, {self.num_streams}) "
                "and comes at most once per add: set num_streams to the number of environments"
            )
        return which

    def _check_action(self, action: Tensor, batch: int) -> None:
        if self._signature is None:
            fits = action.dim() >= 1 and len(action) == batch
            expected = f"[{batch}, ...]"
        else:
            kept = self._action
            fits = action.shape == (batch, *kept.shape[1:]) and action.dtype == kept.dtype
            expected = f"{[batch, *kept.shape[1:]]} of {kept.dtype}"
        if not fits:
            raise ValueError(
                f"action is {list(action.shape)} of {action.dtype}; expected {expected}, "
                "one action per stream, all alike"
            )

    # -- observations -----------------------------------------------------------------------------

    def _continues(self, steps: _Steps) -> Booleans:
        """Whose observation is bitwise what the stream showed last: ``[B]``."""
        latest = self._latest[steps.stream]
        known = latest[:, 0] != NOWHERE
        if not known.any():
            return known
        rows = np.where(known[:, None], self._frames.rows(latest), 0)
        shown = self._frames.gather(torch.from_numpy(rows.ravel()).to(self.device))
        shown = [
            one.view(leaf.shape) for one, leaf in zip(shown, steps.observation, strict=True)
        ]
        return known & rows_equal(shown, steps.observation, 1)

    def _shares(self, steps: _Steps) -> Booleans:
        """Whose next observation is the observation moved on by one frame: ``[B]``."""
        if self.frame_stack == 1:
            return np.ones(len(steps.stream), dtype=np.bool_)
        older = [leaf[:, 1:] for leaf in steps.observation]
        return rows_equal(older, [leaf[:, :-1] for leaf in steps.next_observation], 1)

    def _number(
        self, leaves: list[Tensor], fresh: Booleans, shared: Integers, after: int, *, last: bool = False
    ) -> tuple[Booleans, Integers]:
        """Which frames are to be stored, ``[B, k]``, and the numbers of all, ``[B, k]``.

        Args:
            leaves: observations.
            fresh: ``[B]`` whose frames are new (all but repetitions within the stack).
            shared: ``[B, k]`` numbers of the others' frames.
            after: new frames numbered before these.
            last: the newest frame is new in any case.
        """
        stored = np.repeat(fresh[:, None], self.frame_stack, axis=1)
        if self.frame_stack > 1 and fresh.any():
            rows = torch.from_numpy(np.flatnonzero(fresh)).to(self.device)
            chosen = [leaf.index_select(0, rows) for leaf in leaves]
            again = rows_equal(
                [leaf[:, 1:] for leaf in chosen], [leaf[:, :-1] for leaf in chosen], 2
            )
            stored[fresh, 1:] = ~again
        if last:
            stored[~fresh, -1] = True
            fresh_or_last = np.repeat(fresh[:, None], self.frame_stack, axis=1)
            fresh_or_last[:, -1] = True
        else:
            fresh_or_last = np.repeat(fresh[:, None], self.frame_stack, axis=1)
        number = self._frames.head + after + stored.cumsum().reshape(stored.shape) - 1
        return stored, np.where(fresh_or_last, number, shared)

    def _store_frames(self, leaves: list[Tensor], stored: Booleans) -> None:
        if not stored.any():
            return
        if self.frame_stack > 1:
            leaves = [leaf.flatten(0, 1) for leaf in leaves]
        if not stored.all():
            rows = torch.from_numpy(np.flatnonzero(stored)).to(self.device)
            leaves = [leaf.index_select(0, rows) for leaf in leaves]
        self._frames.append(leaves)

    def _tail(self, closing: int) -> int:
        """The oldest frame in use once ``closing`` more transitions are written."""
        live = min(len(self), self.capacity - closing)
        newest = self._frames.head
        if live > 0:
            oldest = (self.added - live) % self.capacity
            newest -= 1
            newest -= (newest - int(self._pointer[oldest, 1, -1])) % self._frames.size
        return max(newest - self._window, 0)

    def _make_room(self, frames: int, closing: int) -> None:
        """Let ``frames`` more frames overwrite nothing that stays in use."""
        needed = self._frames.head + frames
        if needed <= self._room:
            return
        tail = self._tail(closing)
        if needed > tail + self._frames.size:
            self._grow(tail, max(needed - tail, self._frames.size + self._frames.size // 8))
        self._room = tail + self._frames.size

    def _grow(self, tail: int, size: int) -> None:
        newest = self._frames.head - 1
        live = self._pointer[: len(self)]
        number = newest - (newest - live.long()) % self._frames.size
        self._frames.grow(tail, size)
        live.copy_(number % size)

    def _refresh_stale(self, batch: int) -> None:
        """Move on the frames of streams that were not added to for long, before they get lost.

        A stream's latest observation and open windows must not lie more than a window back. Where
        all streams are added to at every step, none ever does.
        """
        horizon = self._frames.head + 2 * self.frame_stack * batch - self._window
        oldest = self._latest[:, 0]
        if self.n_step > 1:
            oldest = np.minimum(oldest, self._windows.frame[:, 0, 0])
        if horizon <= 0 or oldest.min() >= horizon:
            return
        for stream in np.flatnonzero(oldest < horizon):
            if not self._windows.open[stream]:
                self._latest[stream] = NOWHERE  # its next observation is stored anew
                continue
            held = np.concatenate([self._windows.frame[stream].ravel(), self._latest[stream]])
            number, of = np.unique(held[held != NOWHERE], return_inverse=True)
            self._make_room(len(number), 0)
            moved = held.copy()
            moved[held != NOWHERE] = self._frames.head + of
            rows = torch.from_numpy(self._frames.rows(number)).to(self.device)
            self._frames.append(self._frames.gather(rows))
            self._windows.frame[stream] = moved[: -self.frame_stack].reshape(
                self.n_step, self.frame_stack
            )
            self._latest[stream] = moved[-self.frame_stack :]

    # -- slots ------------------------------------------------------------------------------------

    def _write(self, closed: Closed, latest: Integers, terminated: Booleans) -> Tensor:
        count = len(closed.row)
        kept = slice(max(count - self.capacity, 0), None)
        start = self.added + kept.start
        row = closed.row[kept]
        pointer = np.stack([closed.frame[kept], latest[row]], axis=1)
        pointer = self._frames.rows(pointer).astype(np.int32)
        self._put(self._pointer, start, torch.from_numpy(pointer))
        self._put(self._action, start, closed.action[kept])
        self._put(self._reward, start, torch.from_numpy(closed.reward[kept]))
        self._put(self._terminated, start, torch.from_numpy(terminated[row]))
        if self.n_step > 1:
            self._put(self._steps, start, torch.from_numpy(closed.steps[kept]))
        self.added += count
        return torch.arange(start, self.added) % self.capacity

    def _put(self, slots: Tensor, start: int, rows: Tensor) -> None:
        at = start % self.capacity
        if at + len(rows) <= self.capacity:
            slots[at : at + len(rows)] = rows
        else:
            copy_rows(rows, 0, slots, start, len(rows))

    def _checked(self, index: Tensor) -> Tensor:
        if index.dtype.is_floating_point or index.dtype == torch.bool or index.dim() != 1:
            raise ValueError(
                f"index is {list(index.shape)} of {index.dtype}; slots are integers, [B]"
            )
        if len(index):
            least, greatest = index.aminmax()
            if int(least) < 0 or int(greatest) >= len(self):
                wrong = index[(index < 0) | (index >= len(self))][:_SHOWN].tolist()
                raise ValueError(
                    f"slots {wrong} hold no transition; {len(self)} of {self.capacity} are filled, "
                    f"so indices lie in [0, {len(self)})"
                )
        return index.to(self.device)

    def get(self, index: Tensor) -> dict[str, Any]:
        """The transitions in slots ``index`` ``[B]``, copied.

        Returns:
            ``observation`` and ``next_observation`` ``[B, ...]`` (nested as they came), ``action``
            ``[B, ...]``, ``reward`` ``[B]`` float32, ``terminated`` ``[B]`` bool, and ``discount``
            ``[B]`` float32: what the value of ``next_observation`` counts, gamma^k after k steps.

        Raises:
            ValueError: if a slot is out of range or empty.
        """
        index = self._checked(index)
        if len(self) == 0:
            raise ValueError("the replay is empty, there is nothing to get: add transitions first")
        pointer = self._pointer.index_select(0, index).transpose(0, 1).flatten()
        stack = () if self.frame_stack == 1 else (self.frame_stack,)
        both = [
            leaf.view(2, len(index), *stack, *leaf.shape[1:])
            for leaf in self._frames.gather(pointer)
        ]
        if self.n_step > 1:
            discount = self._discounts[self._steps.index_select(0, index).long()]
        else:
            discount = self._discounts[1].expand(len(index)).clone()
        return {
            "observation": unflatten([leaf[0] for leaf in both], self._layout),
            "action": self._action.index_select(0, index),
            "reward": self._reward.index_select(0, index),
            "next_observation": unflatten([leaf[1] for leaf in both], self._layout),
            "terminated": self._terminated.index_select(0, index),
            "discount": discount,
        }

    def age(self, index: Tensor) -> Tensor:
        """How many transitions came after those in slots ``index`` ``[B]``: int64, 0 is the newest.

        Raises:
            ValueError: if a slot is out of range or empty.
        """
        return (self.added - 1 - self._checked(index)) % self.capacity

    def serial(self, index: Tensor) -> Tensor:
        """The how-manieth transition ever added is in slots ``index`` ``[B]``: int64, from 0 on.

        Raises:
            ValueError: if a slot is out of range or empty.
        """
        return self.added - 1 - self.age(index)

    # -- state ------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What two rings must have in common to take over each other's state."""
        return {
            "capacity": self.capacity,
            "num_streams": self.num_streams,
            "n_step": self.n_step,
            "gamma": self.gamma,
            "frame_stack": self.frame_stack,
        }

    def state_dict(self) -> dict[str, Any]:
        """All transitions, open n-step windows included; only what is used, copied."""
        state: dict[str, Any] = {"kind": "TransitionRing", **self._identity(), "added": self.added}
        if self._signature is None:
            return state
        tail = self._tail(0)
        newest = self._frames.head - 1
        live = len(self)
        number = newest - (newest - self._pointer[:live].long()) % self._frames.size
        windows = self._windows.state_dict()
        windows["frame"] = _shifted(windows["frame"], -tail)
        return state | {
            "layout": self._layout,
            "signature": [list(leaf) for leaf in self._signature],
            "frames": self._frames.used(tail),
            "pointer": (number - tail).int(),
            "action": self._action[:live].clone(),
            "reward": self._reward[:live].clone(),
            "terminated": self._terminated[:live].clone(),
            "steps": self._steps[:live].clone(),
            "latest": _shifted(torch.from_numpy(self._latest), -tail),
            "windows": windows,
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse a state that ``load_state_dict`` could not take over; changes nothing.

        Raises:
            ValueError: naming what differs.
        """
        if state.get("kind") != "TransitionRing":
            raise ValueError(
                f"the state is of {state.get('kind')!r}, not of a TransitionRing: "
                "pass what TransitionRing.state_dict returned"
            )
        for name, own in self._identity().items():
            if state[name] != own:
                raise ValueError(
                    f"the state has {name}={state[name]}, this ring {name}={own}: "
                    "make it with the same value"
                )
        if self._signature is None or "signature" not in state:
            return
        theirs = [tuple(leaf) for leaf in state["signature"]]
        if theirs != self._signature or state["layout"] != self._layout:
            raise ValueError(
                f"the state's observations are {theirs}, this ring's {self._signature} "
                "(place, shape, type): it is of another environment"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the ring whose state this is would have gone on.

        Raises:
            ValueError: if the state is of another capacity, n_step, gamma, number of streams, frame
                stack or of other observations; nothing changes then.
        """
        self.check_state(state)
        self.added = state["added"]
        if "signature" not in state:
            self._signature = None
            return
        frames: list[Tensor] = state["frames"]
        leaves = [leaf.to(self.device) for leaf in frames]
        stacked = leaves if self.frame_stack == 1 else [leaf[:, None] for leaf in leaves]
        self._allocate(stacked, state["layout"], state["action"])
        self._signature = [
            (str(path), list(shape), str(dtype)) for path, shape, dtype in state["signature"]
        ]
        count = len(leaves[0])
        if count > self._frames.size:
            self._frames.grow(0, count + self._window)
        self._frames.append(leaves)
        self._room = self._frames.size
        for name in ("pointer", "action", "reward", "terminated", "steps"):
            kept: Tensor = state[name]
            getattr(self, f"_{name}")[: len(kept)] = kept.to(self.device)
        self._latest = state["latest"].numpy().copy()
        self._windows.load_state_dict(state["windows"])


def _shifted(number: Tensor, by: int) -> Tensor:
    """Frame numbers counted from elsewhere; that of no frame stays."""
    return torch.where(number == NOWHERE, number, number + by)


def _per_stream(name: str, value: Any, batch: int) -> NDArray[Any]:
    if value is False:
        return np.zeros(batch, dtype=np.bool_)
    array: NDArray[Any] = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    if array.shape != (batch,):
        raise ValueError(
            f"{name} has shape {list(array.shape)}; expected [{batch}], one per stream"
        )
    return array


def _check_leaves(
    name: str, leaves: list[Tensor], expected: Signature, layout: Layout, batch: int
) -> None:
    for leaf, (path, shape, dtype) in zip(leaves, expected, strict=True):
        if leaf.dim() == 0 or list(leaf.shape) != [batch, *shape] or str(leaf.dtype) != dtype:
            raise ValueError(
                f"{name}{path} is {list(leaf.shape)} of {leaf.dtype}; expected "
                f"{[batch, *shape]} of {dtype}: [streams, ...] and the same at every add"
            )


def _check_stack(expected: Signature, frame_stack: int) -> None:
    for path, shape, _ in expected:
        if not shape or shape[0] != frame_stack:
            raise ValueError(
                f"observation{path} has shape {shape} per stream; with frame_stack={frame_stack} "
                f"its first axis stacks {frame_stack} frames"
            )
