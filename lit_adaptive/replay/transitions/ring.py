"""A ring buffer of transitions, in which each frame is stored once.

A slot has an action, a reward, a terminated flag, and a reference of 4 bytes for each frame of its
observation and next observation. An observation that is bitwise equal to its stream's latest one is
not stored again; so a next observation takes memory only at the end of an episode.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.kernels import ring as compiled
from lit_adaptive.core.kernels.row_copy import all_within
from lit_adaptive.replay.state import SavedState, check_settings
from lit_adaptive.replay.transitions.frames import Bytes, as_bytes, equal_rows, write_rows
from lit_adaptive.replay.transitions.storage import RingSize, RingStorage, check_state, layouts_of
from lit_adaptive.replay.transitions.validation import (
    StreamSteps,
    first_layouts,
    read_steps,
    read_streams,
)

KIND = "TransitionRing"
_SHOWN = 8  # greatest number of values listed in an error


class TransitionRing(SavedState):
    r"""The newest ``capacity`` transitions of ``num_streams`` streams; the oldest are overwritten.

    With ``n_step`` above 1, each transition spans up to n steps (Sutton, 1988): the reward is
    :math:`\sum_{i<k} \gamma^i r_{t+i}`, the discount :math:`\gamma^k`, the next observation that
    after :math:`k \le n` steps. Termination and truncation end all spans of the stream; only
    termination masks the bootstrap value. Episode boundaries are given by these two flags alone
    (and ``end_episode``).

    Observations and actions are tensors, arrays or numbers, or dicts and tuples of them. Types are
    kept, except that float64 becomes float32 and integer actions become int64. Memory is allocated
    at the first ``add``, which sets shapes and types.

    Args:
        capacity: greatest number of transitions, above 0.
        num_streams: number of environments that add in parallel, above 0.
        n_step: greatest number of steps that a transition spans, in [1, 255].
        gamma: discount per step, in [0, 1].
        frame_stack: if above 1, the number of frames stacked in the first axis of each observation
            leaf, the newest last; each frame is stored once.
        device: device of observations, actions and returned transitions.

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
        self.size = RingSize(capacity, num_streams, n_step, frame_stack)
        check_at_least(**{name: (value, 1) for name, value in self.size._asdict().items()})
        if n_step > 255:
            raise ValueError(f"n_step is {n_step}; it must lie in [1, 255]")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}; a discount per step must lie in [0, 1]")
        self.capacity, self.num_streams, self.n_step, self.frame_stack = self.size
        self.gamma = float(gamma)
        self.device = torch.device(device)
        self.added = 0
        self._storage: RingStorage | None = None
        self._powers = self.gamma ** np.arange(n_step + 1, dtype=np.float64)
        self._discounts = torch.from_numpy(self._powers).float().to(self.device)
        self._all_streams = self._rows = np.arange(num_streams)
        # In a batch of stacks, the frame before each frame, and the frame after it (-1: none).
        place = np.arange(num_streams * frame_stack, dtype=np.int32).reshape(-1, frame_stack)
        self._before, self._after = place - 1, place + 1
        self._before[:, 0] = self._after[:, -1] = -1
        self._none = np.zeros(place.shape, np.bool_)

    def __len__(self) -> int:
        """Number of transitions, at most ``capacity``."""
        return min(self.added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of all memory, free rows included; 0 before the first ``add``."""
        return self._storage.nbytes if self._storage else 0

    @property
    def bookkeeping_nbytes(self) -> int:
        """Bytes beyond the transitions' own data."""
        return self._storage.bookkeeping_nbytes if self._storage else 0

    @property
    def num_frames(self) -> int:
        """Number of allocated frames; near ``capacity`` while next observations are shared."""
        return len(self._storage.pool) if self._storage else 0

    @property
    def frames_used(self) -> int:
        """Number of stored frames."""
        return self._storage.pool.used if self._storage else 0

    # -- adding -----------------------------------------------------------------------------------

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
        """Add one step of each stream; a transition is written once its n steps are complete.

        Args:
            observation: ``[E, ...]``, before the step.
            action: ``[E, ...]``.
            reward: ``[E]``, finite.
            next_observation: ``[E, ...]``, after the step; at the end of an episode the final one,
                not that of the next episode.
            terminated: ``[E]`` bool, whether the episode ended in a terminal state.
            truncated: ``[E]`` bool, whether the episode was cut off; its value still counts.
            stream: ``[E]`` distinct integers, the streams; None: all, in order.

        Returns:
            Written slots, ``[K]`` int64 on ``device``, in the order of insertion: by stream, the
            oldest first. K is 0 while steps are incomplete, and may exceed E when episodes end. Of
            more than ``capacity`` transitions at once, only the last are written.

        Raises:
            ValueError: if a shape, type or structure differs from the first step's, a reward is NaN
                or infinite, or a stream does not exist. Nothing is changed then.
        """
        streams = self._all_streams if stream is None else read_streams(stream, self.num_streams)
        storage = self._storage
        layouts = (
            storage.layouts if storage else first_layouts(observation, action, self.frame_stack)
        )
        step = observation, action, reward, next_observation, terminated, truncated
        steps = read_steps(step, streams, layouts, self.device)
        if storage is None:
            storage = self._storage = RingStorage(self.size, layouts, self.device)
        return self._record(storage, steps)

    def end_episode(self, stream: Any = None) -> Tensor:
        """Truncate the running episodes of some streams at their latest observation.

        For a stream whose last step was not marked as truncated, such as a lost environment.

        Args:
            stream: ``[E]`` distinct integers, the streams; None: all.

        Returns:
            Written slots, ``[K]`` int64, of all steps whose transitions were incomplete.

        Raises:
            ValueError: if a stream does not exist.
        """
        streams = self._all_streams if stream is None else read_streams(stream, self.num_streams)
        storage = self._storage
        if storage is None:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        closed = compiled.end(
            streams,
            storage.pool.references,
            storage.slots,
            storage.streams,
            self.added,
            storage.output,
        )
        self._take_actions(storage, closed)
        return self._written(storage, closed)

    def _record(self, storage: RingStorage, steps: StreamSteps) -> Tensor:
        """Record one validated step of each stream; returns the written slots."""
        frames = steps.stream.size * self.frame_stack
        storage.pool.reserve(2 * frames)
        observed = [as_bytes(leaf, frames) for leaf in steps.observation]
        arrived = [as_bytes(leaf, frames) for leaf in steps.next_observation]
        closed, seen, new = compiled.record(
            self._compare(storage, steps, observed, arrived),
            storage.pool.references,
            storage.slots,
            storage.streams,
            self._powers,
            self.added,
            storage.output,
        )
        kept, (_, _, _, row, source) = storage.pool.frames.bytes, storage.output
        if seen:
            write_rows(kept, row[0, :seen], source[0, :seen], observed)
        if new:
            write_rows(kept, row[1, :new], source[1, :new], arrived)
        self._keep_actions(storage, steps, closed)
        return self._written(storage, closed)

    def _compare(
        self, storage: RingStorage, steps: StreamSteps, observed: list[Bytes], arrived: list[Bytes]
    ) -> compiled.StepFrames:
        """Compare frames with those already stored."""
        batch = steps.stream.size
        shape = (batch, self.frame_stack)
        latest = storage.streams.latest
        if steps.stream is not self._all_streams:
            latest = latest[steps.stream]
        known = equal_rows(storage.pool.frames.bytes, latest.ravel(), observed).reshape(shape)
        repeated = moved = self._none[:batch]
        if self.frame_stack > 1:
            after = self._after[:batch].ravel()
            moved = equal_rows(observed, after, arrived).reshape(shape)
            if not known.all():
                before = self._before[:batch].ravel()
                repeated = equal_rows(observed, before, observed).reshape(shape)
        return compiled.StepFrames(
            steps.stream, known, repeated, moved, steps.reward, steps.terminated, steps.truncated
        )

    def _keep_actions(self, storage: RingStorage, steps: StreamSteps, closed: int) -> None:
        """Store actions with their windows, or in their slots if ``n_step`` is 1."""
        actions = [as_bytes(leaf, steps.stream.size) for leaf in steps.action]
        rows = self._rows[: steps.stream.size]
        if self.n_step == 1:
            kept = min(closed, self.capacity)
            write_rows(
                storage.action.bytes, storage.output.slot[:kept], rows[closed - kept :], actions
            )
        else:
            opened = storage.output.opened[: steps.stream.size]
            write_rows(storage.window_action.bytes, opened, rows, actions)
            self._take_actions(storage, closed)

    def _take_actions(self, storage: RingStorage, closed: int) -> None:
        """Copy actions from closed windows to their slots."""
        kept = min(closed, self.capacity)
        slot, window = storage.output.slot[:kept], storage.output.window[:kept]
        write_rows(storage.action.bytes, slot, window, storage.window_action.bytes)

    def _written(self, storage: RingStorage, closed: int) -> Tensor:
        """Count the transitions and publish the written slots."""
        slot = torch.from_numpy(storage.output.slot[: min(closed, self.capacity)].copy())
        self.added += closed
        return storage.publish(slot)

    # -- serving ----------------------------------------------------------------------------------

    def get(self, index: Tensor) -> dict[str, Any]:
        r"""Copies of the transitions in some slots.

        Args:
            index: ``[B]`` integers, filled slots.

        Returns:
            ``observation`` and ``next_observation`` ``[B, ...]``, nested as added; ``action``
            ``[B, ...]``; ``reward`` ``[B]`` float32; ``terminated`` ``[B]`` bool; ``discount``
            ``[B]`` float32: :math:`\gamma^k` after k steps.

        Raises:
            ValueError: if a slot is out of range or empty, or nothing was added yet.
        """
        storage = self._storage
        if storage is None:
            raise ValueError("nothing was added yet: add transitions before get")
        slots = storage.look_up(index, len(self), self._discounts)
        if slots is None:
            self._check_slots(index)
        assert slots is not None
        pointer, reward, terminated, discount = slots
        batch = reward.shape[0]
        stack = () if self.frame_stack == 1 else (self.frame_stack,)
        before, after = [], []
        for leaf in storage.pool.frames.gather(pointer):
            both = leaf.view(2, batch, *stack, *leaf.shape[1:])
            before.append(both[0])
            after.append(both[1])
        actions = storage.action.gather(index.to(self.device))
        return {
            "observation": storage.layouts.observation.unflatten(before),
            "action": storage.layouts.action.unflatten(actions),
            "reward": reward,
            "next_observation": storage.layouts.observation.unflatten(after),
            "terminated": terminated,
            "discount": discount,
        }

    def serial(self, index: Tensor) -> Tensor:
        """Serial numbers of the transitions in some slots.

        An overwritten slot has another serial number.

        Args:
            index: ``[B]`` integers, filled slots.

        Returns:
            ``[B]`` int64, counted from 0 since the first ``add``.

        Raises:
            ValueError: if a slot is out of range or empty.
        """
        return self.added - 1 - self.age(index)

    def age(self, index: Tensor) -> Tensor:
        """Numbers of transitions added after those in some slots.

        Args:
            index: ``[B]`` integers, filled slots.

        Returns:
            ``[B]`` int64; 0 for the newest.

        Raises:
            ValueError: if a slot is out of range or empty.
        """
        self._check_slots(index)
        return (self.added - 1 - index.to(self.device, torch.int64)) % self.capacity

    def _check_slots(self, index: Tensor) -> None:
        """Raise ValueError unless ``index`` holds filled slots only."""
        if index.dim() != 1 or index.is_floating_point() or index.dtype is torch.bool:
            raise ValueError(
                f"index is {list(index.shape)} of {index.dtype}; slots must be [B] integers"
            )
        if index.device.type == "cpu" and all_within(index.numpy(), len(self)):
            return
        wrong = index[(index < 0) | (index >= len(self))]
        if wrong.numel():
            raise ValueError(
                f"slots {wrong[:_SHOWN].tolist()} hold no transition: {len(self)} of "
                f"{self.capacity} are filled, so indices must lie in [0, {len(self)})"
            )

    # -- checkpoint -------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """Options in which a state must agree."""
        return {**self.size._asdict(), "gamma": self.gamma}

    def state_dict(self) -> dict[str, Any]:
        """Copies of all transitions and open n-step windows on the CPU, without free rows."""
        content = self._storage.state_dict(len(self)) if self._storage else None
        return {"kind": KIND, **self._settings(), "added": self.added, "content": content}

    def check_state(self, state: dict[str, Any]) -> None:
        """Validate a state for ``load_state_dict``; changes nothing.

        Raises:
            ValueError: naming the option that differs, or the damaged field.
        """
        check_settings(state, KIND, **self._settings())
        added, content = state.get("added"), state.get("content")
        if not isinstance(added, int) or added < 0 or (content is None and added):
            raise ValueError(f"the state has added={added!r} and content to match: it is damaged")
        if content is None:
            return
        check_state(content, self.size, min(added, self.capacity))
        state_layouts = layouts_of(content, self.frame_stack)
        ring_layouts = self._storage.layouts if self._storage else ()
        for layout, state_layout in zip(ring_layouts, state_layouts, strict=False):
            if not layout.fits(state_layout):
                raise ValueError(
                    f"the state's {layout.name} is {[tuple(leaf) for leaf in state_layout.leaves]},"
                    f" this ring's {[tuple(leaf) for leaf in layout.leaves]} (path, shape, type): "
                    "use a state of the same environment"
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved ring, open n-step windows included.

        Raises:
            ValueError: as ``check_state``; nothing is changed then.
        """
        self.check_state(state)
        self._storage = None  # before new memory is taken
        self.added = int(state["added"])
        if state["content"] is not None:
            layouts = layouts_of(state["content"], self.frame_stack)
            self._storage = RingStorage(self.size, layouts, self.device)
            self._storage.load_state_dict(state["content"], len(self))
