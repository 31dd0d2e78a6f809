"""A ring of transitions: the newest ``capacity`` of them.

A slot keeps its action, reward, how it ended, and two pointers of 4 bytes for each frame of its
observation and next observation. An observation that is bitwise the one its stream showed last is
not stored again; so a next observation costs memory only at an episode's end.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.replay import _ring_numba as compiled
from lit_adaptive.replay._ring_numba import Array
from lit_adaptive.replay.content import Content, Size, check_state, layouts_of
from lit_adaptive.replay.files import load_state, save_state
from lit_adaptive.replay.frames import frames_equal
from lit_adaptive.replay.nested import Layout

KIND = "TransitionRing"
_SHOWN = 8  # offenders that an error lists


class _Checked(NamedTuple):
    """What ``add`` was given, checked and flattened."""

    stream: Array
    observation: list[Tensor]
    next_observation: list[Tensor]
    action: list[Tensor]
    reward: Array
    terminated: Array
    truncated: Array
    layouts: tuple[Layout, Layout]


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
        capacity: transitions kept, at least ``num_streams * n_step``.
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
        self.size = Size(capacity, num_streams, n_step, frame_stack)
        for name, value in self.size._asdict().items():
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if n_step > 255:
            raise ValueError(f"n_step is {n_step}; it must lie in [1, 255]")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}; a discount per step lies in [0, 1]")
        if capacity < num_streams * n_step:
            raise ValueError(
                f"capacity is {capacity}; one step of {num_streams} streams may complete "
                f"{num_streams * n_step} transitions at once (n_step={n_step}): keep at least these"
            )
        self.capacity, self.num_streams, self.n_step, self.frame_stack = self.size
        self.gamma = float(gamma)
        self.device = torch.device(device)
        self.added = 0
        self._content: Content | None = None
        self._powers = self.gamma ** np.arange(n_step + 1, dtype=np.float64)
        self._discounts = torch.from_numpy(self._powers).float().to(self.device)
        self._everyone = np.arange(num_streams)
        self._no = np.zeros(num_streams, np.bool_)
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
            older first. K may be 0 while steps are incomplete, and above E when episodes end.

        Raises:
            ValueError: if a shape, type or nest is not that of the first ``add``, a reward is NaN
                or infinite, or a stream does not exist. Nothing is changed then.
        """
        given = self._check(
            observation, action, reward, next_observation, terminated, truncated, stream
        )
        content = self._content
        if content is None:
            content = self._content = Content(self.size, *given.layouts, self.device)
        k = self.frame_stack
        content.pool.reserve(2 * len(given.stream) * k)
        observed, arrived = given.observation, given.next_observation
        if k > 1:
            observed = [leaf.flatten(0, 1) for leaf in observed]
            arrived = [leaf.flatten(0, 1) for leaf in arrived]
        closed, seen, new = compiled.record(
            self._compare(content, given, observed, arrived),
            content.pool.accounts,
            content.slots,
            content.streams,
            self._powers,
            self.added,
            content.output,
        )
        for which, count, frames in ((0, seen, observed), (1, new, arrived)):
            if count:
                row, source = content.output.row[which], content.output.source[which]
                content.pool.write(row[:count], source[:count], frames)
        self._keep_actions(content, given)
        return self._written(content, closed, given.action if self.n_step == 1 else None)

    def end_episode(self, stream: Any = None) -> Tensor:
        """Truncate the episodes of ``stream`` ``[E]`` (by default all) at what they showed last.

        For when it is known only later that no step follows, such as an environment that was lost.

        Returns:
            Slots written, ``[K]`` int64: those of all steps that waited for more.

        Raises:
            ValueError: if a stream does not exist.
        """
        which = self._everyone if stream is None else self._read_streams(stream)
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
        return self._written(content, closed, None)

    def _compare(
        self, content: Content, given: _Checked, observed: list[Tensor], arrived: list[Tensor]
    ) -> compiled.Step:
        """Find out which frames are already there."""
        batch = len(given.stream)
        shape = (batch, self.frame_stack)
        latest = content.streams.latest
        if given.stream is not self._everyone:
            latest = latest[given.stream]
        known = content.pool.same(latest.ravel(), observed).reshape(shape)
        repeated = moved = self._none[:batch]
        if self.frame_stack > 1:
            behind = self._behind[:batch].ravel()
            moved = frames_equal(observed, behind, arrived).reshape(shape)
            if not known.all():
                before = self._before[:batch].ravel()
                repeated = frames_equal(observed, before, observed).reshape(shape)
        return compiled.Step(
            given.stream, known, repeated, moved, given.reward, given.terminated, given.truncated
        )

    def _keep_actions(self, content: Content, given: _Checked) -> None:
        """Actions wait with their windows; those of single steps need not."""
        if self.n_step == 1:
            return
        window = torch.from_numpy(content.output.opened[: len(given.stream)]).to(self.device)
        for kept, new in zip(content.window_action, given.action, strict=True):
            kept.index_copy_(0, window, new)

    def _written(self, content: Content, closed: int, action: list[Tensor] | None) -> Tensor:
        """Give closed windows' slots their actions (from the windows, if None); count and serve."""
        slot = torch.from_numpy(content.output.slot[:closed].copy())
        there = slot.to(self.device)
        if closed and action is None:
            window = torch.from_numpy(content.output.window[:closed]).to(self.device)
            action = [leaf.index_select(0, window) for leaf in content.window_action]
        for kept, new in zip(content.action, action or [], strict=bool(closed)):
            kept.index_copy_(0, there, new)
        content.publish(slot)
        self.added += closed
        return there

    # -- checking ---------------------------------------------------------------------------------

    def _check(
        self,
        observation: Any,
        action: Any,
        reward: Any,
        next_observation: Any,
        terminated: Any,
        truncated: Any,
        stream: Any,
    ) -> _Checked:
        which = self._everyone if stream is None else self._read_streams(stream)
        batch = len(which)
        if self._content is None:
            layouts = Layout(observation, "observation"), Layout(action, "action", widen=True)
            self._check_stack(layouts[0])
        else:
            layouts = self._content.observation_layout, self._content.action_layout
        observed = layouts[0].flatten(observation, batch, "observation")
        arrived = layouts[0].flatten(next_observation, batch, "next_observation")
        acted = layouts[1].flatten(action, batch, "action")
        rewards = _per_stream(reward, batch, np.float32, "reward")
        if not np.isfinite(rewards).all():
            wrong = ~np.isfinite(rewards)
            raise ValueError(
                f"the reward of streams {which[wrong][:_SHOWN].tolist()} is "
                f"{rewards[wrong][:_SHOWN].tolist()}; rewards are finite: look into the environment"
            )
        ended = _per_stream(terminated, batch, np.bool_, "terminated")
        cut = self._no[:batch]
        if truncated is not False:
            cut = _per_stream(truncated, batch, np.bool_, "truncated")
        if self.device.type != "cpu":
            observed, arrived, acted = (
                [leaf.to(self.device) for leaf in leaves] for leaves in (observed, arrived, acted)
            )
        return _Checked(which, observed, arrived, acted, rewards, ended, cut, layouts)

    def _check_stack(self, observation: Layout) -> None:
        for path, shape, _ in observation.leaves:
            if self.frame_stack > 1 and (not shape or shape[0] != self.frame_stack):
                raise ValueError(
                    f"observation{path} has shape {list(shape)} per stream; with frame_stack="
                    f"{self.frame_stack} its first axis stacks {self.frame_stack} frames"
                )

    def _read_streams(self, stream: Any) -> Array:
        which = np.array(_on_host(stream), dtype=np.int64)
        inside = (which >= 0) & (which < self.num_streams)
        if which.ndim != 1 or not inside.all() or len(np.unique(which)) < which.size:
            raise ValueError(
                f"stream is {which.tolist()}; pass [E] integers in [0, {self.num_streams}), each "
                "once: num_streams is the number of environments"
            )
        return which

    def _checked_slots(self, index: Tensor) -> Tensor:
        if index.dim() != 1 or index.is_floating_point() or index.dtype is torch.bool:
            raise ValueError(
                f"index is {list(index.shape)} of {index.dtype}; slots are integers: pass [B] int64"
            )
        host = index if index.device.type == "cpu" else index.cpu()
        if not compiled.all_within(host.numpy(), len(self)):
            wrong = host[(host < 0) | (host >= len(self))]
            raise ValueError(
                f"slots {wrong[:_SHOWN].tolist()} hold no transition: {len(self)} of "
                f"{self.capacity} are filled, so indices lie in [0, {len(self)})"
            )
        return index.to(self.device, torch.int64)

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
        index = self._checked_slots(index)
        content = self._content
        if content is None:
            raise ValueError("nothing was added yet, so there is nothing to get")
        slots = content.served
        pointer = slots.pointer.index_select(0, index).transpose(0, 1).flatten()
        stack = () if self.frame_stack == 1 else (self.frame_stack,)
        frames = [
            leaf.view(2, len(index), *stack, *leaf.shape[1:])
            for leaf in content.pool.gather(pointer)
        ]
        if self.n_step > 1:
            discount = self._discounts[slots.steps.index_select(0, index).int()]
        else:
            discount = self._discounts[1].repeat(len(index))
        observations, actions = content.observation_layout, content.action_layout
        return {
            "observation": observations.unflatten([leaf[0] for leaf in frames]),
            "action": actions.unflatten([leaf.index_select(0, index) for leaf in content.action]),
            "reward": slots.reward.index_select(0, index),
            "next_observation": observations.unflatten([leaf[1] for leaf in frames]),
            "terminated": slots.terminated.index_select(0, index),
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
        return (self.added - 1 - self._checked_slots(index)) % self.capacity

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
        for mine, theirs in zip(self._layouts(), layouts_of(content, self.frame_stack), strict=False):
            if not mine.fits(theirs):
                raise ValueError(
                    f"the state's {mine.name} is {[tuple(leaf) for leaf in theirs.leaves]}, this "
                    f"ring's {[tuple(leaf) for leaf in mine.leaves]} (place, shape, type): "
                    "it is of another environment"
                )

    def _layouts(self) -> tuple[Layout, ...]:
        content = self._content
        return (content.observation_layout, content.action_layout) if content else ()

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
            self._content = Content(self.size, *layouts, self.device)
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


def _on_host(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _per_stream(value: Any, batch: int, dtype: type[np.generic], name: str) -> Array:
    array = np.array(_on_host(value), dtype=dtype)
    if array.shape != (batch,):
        raise ValueError(
            f"{name} has shape {list(array.shape)}; expected [{batch}], one for each stream"
        )
    return array
