"""A ring of transitions: the newest ``capacity`` of them.

A slot keeps its action, reward, how it ended, and two pointers of 4 bytes for each frame of its
observation and next observation. An observation that is bitwise the one its stream showed last is
not stored again; so a next observation costs memory only at an episode's end.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.kernels import ring as compiled
from lit_adaptive.core.kernels.row_copy import all_within
from lit_adaptive.files import load_state, save_state
from lit_adaptive.replay.transitions.frames import Bytes, as_bytes, same, store
from lit_adaptive.replay.transitions.storage import RingSize, RingStorage, check_state, layouts_of
from lit_adaptive.replay.transitions.validation import (
    StreamSteps,
    first_layouts,
    read_steps,
    read_streams,
)

KIND = "TransitionRing"
_SHOWN = 8  # offenders that an error lists


class TransitionRing:
    r"""The newest ``capacity`` transitions of ``num_streams`` streams; the oldest make room.

    With ``n_step`` above 1, each transition spans up to n steps (Sutton, 1988): the reward is
    :math:`\sum_{i<k} \gamma^i r_{t+i}`, the discount :math:`\gamma^k`, the next observation that
    after :math:`k \le n` steps. Termination ends a span and masks what follows; truncation ends it
    and does not mask. At an episode's end all spans of the stream end there. Whether one step
    follows another is told by these two flags alone (and ``end_episode``).

    Observations and actions are tensors, arrays or numbers, or dicts and tuples of them. All keep
    their type (uint8 and bool among them), but for float64, kept as float32, and integer actions,
    kept as int64. Memory is taken at the first ``add``, from the shapes and types seen there.

    Args:
        capacity: transitions kept, above 0.
        num_streams: environments that add side by side, above 0.
        n_step: steps that a transition spans at most, in [1, 255].
        gamma: discount per step, in [0, 1].
        frame_stack: above 1: the first axis of an observation (of each of its leaves) stacks this
            many frames, the newest last, and each frame is kept once.
        device: where observations and actions are kept, and transitions served from.

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
        for name, value in self.size._asdict().items():
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if n_step > 255:
            raise ValueError(f"n_step is {n_step}; it must lie in [1, 255]")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}; a discount per step lies in [0, 1]")
        self.capacity, self.num_streams, self.n_step, self.frame_stack = self.size
        self.gamma = float(gamma)
        self.device = torch.device(device)
        self.added = 0
        self._content: RingStorage | None = None
        self._powers = self.gamma ** np.arange(n_step + 1, dtype=np.float64)
        self._discounts = torch.from_numpy(self._powers).float().to(self.device)
        self._everyone = self._rows = np.arange(num_streams)
        # In a batch of stacks, the frame before each frame, and the frame behind it (-1: none).
        place = np.arange(num_streams * frame_stack, dtype=np.int32).reshape(-1, frame_stack)
        self._before, self._behind = place - 1, place + 1
        self._before[:, 0] = self._behind[:, -1] = -1
        self._none = np.zeros(place.shape, np.bool_)

    def __len__(self) -> int:
        """Transitions held, at most ``capacity``."""
        return min(self.added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept, free room included; 0 before the first ``add``."""
        return self._content.nbytes if self._content else 0

    @property
    def bookkeeping_nbytes(self) -> int:
        """Bytes of what is kept beyond the transitions' own data."""
        return self._content.bookkeeping_nbytes if self._content else 0

    @property
    def num_frames(self) -> int:
        """Frames there is room for; near ``capacity`` as long as next observations are shared."""
        return len(self._content.pool) if self._content else 0

    @property
    def frames_used(self) -> int:
        """Frames stored now."""
        return self._content.pool.used if self._content else 0

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
        """Add one step of each stream. A transition is written once its n steps are complete.

        Args:
            observation: ``[E, ...]`` before the step.
            action: ``[E, ...]``.
            reward: ``[E]``, finite.
            next_observation: ``[E, ...]`` after the step; at an episode's end the true final one.
            terminated: ``[E]`` bool: the episode came to its end; nothing follows.
            truncated: ``[E]`` bool: it was cut off; what would have followed still counts.
            stream: ``[E]`` which streams these are, each at most once; by default all, in order.

        Returns:
            Slots written, ``[K]`` int64 on ``device``, in the order of insertion: by stream, the
            older first. K may be 0 while steps are incomplete, and above E when episodes end. (Of
            more than ``capacity`` at once only the last are written.)

        Raises:
            ValueError: if a shape, type or nest is not that of the first ``add``, a reward is NaN
                or infinite, or a stream does not exist. Nothing is changed then.
        """
        which = self._everyone if stream is None else read_streams(stream, self.num_streams)
        content = self._content
        layouts = (
            content.layouts if content else first_layouts(observation, action, self.frame_stack)
        )
        step = observation, action, reward, next_observation, terminated, truncated
        given = read_steps(step, which, layouts, self.device)
        if content is None:
            content = self._content = RingStorage(self.size, layouts, self.device)
        return self._record(content, given)

    def end_episode(self, stream: Any = None) -> Tensor:
        """Truncate the episodes of ``stream`` ``[E]`` (by default all) at what they showed last.

        For when it is known only later that no step follows, such as an environment that was lost.

        Returns:
            Slots written, ``[K]`` int64: those of all steps that waited for more.

        Raises:
            ValueError: if a stream does not exist.
        """
        which = self._everyone if stream is None else read_streams(stream, self.num_streams)
        content = self._content
        if content is None:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        closed = compiled.end(
            which,
            content.pool.accounts,
            content.slots,
            content.streams,
            self.added,
            content.output,
        )
        self._take_actions(content, closed)
        return self._written(content, closed)

    def _record(self, content: RingStorage, given: StreamSteps) -> Tensor:
        """Enter one checked step of each stream; returns the slots written."""
        frames = given.stream.size * self.frame_stack
        content.pool.reserve(2 * frames)
        observed = [as_bytes(leaf, frames) for leaf in given.observation]
        arrived = [as_bytes(leaf, frames) for leaf in given.next_observation]
        closed, seen, new = compiled.record(
            self._compare(content, given, observed, arrived),
            content.pool.accounts,
            content.slots,
            content.streams,
            self._powers,
            self.added,
            content.output,
        )
        kept, (_, _, _, row, source) = content.pool.frames.bytes, content.output
        if seen:
            store(kept, row[0, :seen], source[0, :seen], observed)
        if new:
            store(kept, row[1, :new], source[1, :new], arrived)
        self._keep_actions(content, given, closed)
        return self._written(content, closed)

    def _compare(
        self, content: RingStorage, given: StreamSteps, observed: list[Bytes], arrived: list[Bytes]
    ) -> compiled.StepFrames:
        """Find out which frames are already there."""
        batch = given.stream.size
        shape = (batch, self.frame_stack)
        latest = content.streams.latest
        if given.stream is not self._everyone:
            latest = latest[given.stream]
        known = same(content.pool.frames.bytes, latest.ravel(), observed).reshape(shape)
        repeated = moved = self._none[:batch]
        if self.frame_stack > 1:
            behind = self._behind[:batch].ravel()
            moved = same(observed, behind, arrived).reshape(shape)
            if not known.all():
                before = self._before[:batch].ravel()
                repeated = same(observed, before, observed).reshape(shape)
        return compiled.StepFrames(
            given.stream, known, repeated, moved, given.reward, given.terminated, given.truncated
        )

    def _keep_actions(self, content: RingStorage, given: StreamSteps, closed: int) -> None:
        """Actions wait with their windows; those of single steps need not."""
        actions = [as_bytes(leaf, given.stream.size) for leaf in given.action]
        rows = self._rows[: given.stream.size]
        if self.n_step == 1:
            kept = min(closed, self.capacity)
            store(content.action.bytes, content.output.slot[:kept], rows[closed - kept :], actions)
        else:
            opened = content.output.opened[: given.stream.size]
            store(content.window_action.bytes, opened, rows, actions)
            self._take_actions(content, closed)

    def _take_actions(self, content: RingStorage, closed: int) -> None:
        """Give slots the actions of the windows they were made of."""
        kept = min(closed, self.capacity)
        slot, window = content.output.slot[:kept], content.output.window[:kept]
        store(content.action.bytes, slot, window, content.window_action.bytes)

    def _written(self, content: RingStorage, closed: int) -> Tensor:
        """Count the transitions and serve the slots written."""
        slot = torch.from_numpy(content.output.slot[: min(closed, self.capacity)].copy())
        self.added += closed
        return content.publish(slot)

    # -- serving ----------------------------------------------------------------------------------

    def get(self, index: Tensor) -> dict[str, Any]:
        r"""The transitions in slots ``index`` ``[B]``, copied.

        Returns:
            ``observation`` and ``next_observation`` ``[B, ...]``, nested as they came; ``action``
            ``[B, ...]``; ``reward`` ``[B]`` float32; ``terminated`` ``[B]`` bool; ``discount``
            ``[B]`` float32: :math:`\gamma^k` after k steps.

        Raises:
            ValueError: if a slot is out of range or empty, or nothing was ever added.
        """
        content = self._content
        if content is None:
            raise ValueError("nothing was added yet, so there is nothing to get: add transitions")
        found = content.look_up(index, len(self), self._discounts)
        if found is None:
            self._refuse_slots(index)
        assert found is not None
        pointer, reward, terminated, discount = found
        batch = reward.shape[0]
        stack = () if self.frame_stack == 1 else (self.frame_stack,)
        before, after = [], []
        for leaf in content.pool.frames.gather(pointer):
            both = leaf.view(2, batch, *stack, *leaf.shape[1:])
            before.append(both[0])
            after.append(both[1])
        actions = content.action.gather(index.to(self.device))
        return {
            "observation": content.layouts.observation.unflatten(before),
            "action": content.layouts.action.unflatten(actions),
            "reward": reward,
            "next_observation": content.layouts.observation.unflatten(after),
            "terminated": terminated,
            "discount": discount,
        }

    def serial(self, index: Tensor) -> Tensor:
        """Which transitions are in slots ``index`` ``[B]``: int64, counted from 0 since the first.

        A slot that was overwritten holds another serial number than before.

        Raises:
            ValueError: if a slot is out of range or empty.
        """
        return self.added - 1 - self.age(index)

    def age(self, index: Tensor) -> Tensor:
        """How many transitions came after those in slots ``index`` ``[B]``: int64, 0: none.

        Raises:
            ValueError: if a slot is out of range or empty.
        """
        self._refuse_slots(index)
        return (self.added - 1 - index.to(self.device, torch.int64)) % self.capacity

    def _refuse_slots(self, index: Tensor) -> None:
        """Complain of ``index`` unless all of it are filled slots."""
        if index.dim() != 1 or index.is_floating_point() or index.dtype is torch.bool:
            raise ValueError(
                f"index is {list(index.shape)} of {index.dtype}; slots are integers: pass [B] int64"
            )
        if index.device.type == "cpu" and all_within(index.numpy(), len(self)):
            return
        wrong = index[(index < 0) | (index >= len(self))]
        if wrong.numel():
            raise ValueError(
                f"slots {wrong[:_SHOWN].tolist()} hold no transition: {len(self)} of "
                f"{self.capacity} are filled, so indices lie in [0, {len(self)})"
            )

    # -- checkpoint -------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {**self.size._asdict(), "gamma": self.gamma}

    def state_dict(self) -> dict[str, Any]:
        """All transitions and open n-step spans: only what is used, copied, on the CPU."""
        content = self._content.state_dict(len(self)) if self._content else None
        return {"kind": KIND, **self._identity(), "added": self.added, "content": content}

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse a state that ``load_state_dict`` cannot take over; changes nothing.

        Raises:
            ValueError: naming what differs, or is damaged.
        """
        if state.get("kind") != KIND:
            raise ValueError(
                f"the state is of {state.get('kind')!r}, not of a {KIND}: "
                f"pass what {KIND}.state_dict returned"
            )
        for name, own in self._identity().items():
            if state.get(name) != own:
                raise ValueError(
                    f"the state has {name}={state.get(name)}, this ring {name}={own}: "
                    "make it with the same value"
                )
        added, content = state.get("added"), state.get("content")
        if not isinstance(added, int) or added < 0 or (content is None and added):
            raise ValueError(f"the state has added={added!r} and content to match: it is damaged")
        if content is None:
            return
        check_state(content, self.size, min(added, self.capacity))
        theirs = layouts_of(content, self.frame_stack)
        for mine, other in zip(
            self._content.layouts if self._content else (), theirs, strict=False
        ):
            if not mine.fits(other):
                raise ValueError(
                    f"the state's {mine.name} is {[tuple(leaf) for leaf in other.leaves]}, this "
                    f"ring's {[tuple(leaf) for leaf in mine.leaves]} (place, shape, type): "
                    "it is of another environment"
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the ring whose state this is would have gone on.

        Raises:
            ValueError: as ``check_state``; nothing is changed then.
        """
        self.check_state(state)
        self._content = None  # before new memory is taken
        self.added = int(state["added"])
        if state["content"] is not None:
            layouts = layouts_of(state["content"], self.frame_stack)
            self._content = RingStorage(self.size, layouts, self.device)
            self._content.load_state_dict(state["content"], len(self))

    def save(self, path: str | Path) -> None:
        """Write ``state_dict`` to ``path``, in full or not at all."""
        save_state(self.state_dict(), path)

    def load(self, path: str | Path) -> None:
        """Take over what ``save`` wrote.

        Raises:
            ValueError: if the file is damaged or not of a ring like this; nothing is changed then.
        """
        self.load_state_dict(load_state(path))
