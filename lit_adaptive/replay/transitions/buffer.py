"""Experience replay: a ring of transitions, and a sampler that draws from it."""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.replay.state import SavedState, check_settings
from lit_adaptive.replay.transitions.ring import TransitionRing
from lit_adaptive.samplers import AdaptiveSampler, Draw, SamplerFactory, UniformSampler


class ReplayBuffer(SavedState):
    """The newest ``capacity`` transitions, drawn by any sampler.

    Each transition is inserted into the sampler when its slot is written; a prioritized sampler
    then gives it the greatest priority so far.

    Args:
        capacity: greatest number of transitions, above 0.
        sampler: factory, called with ``capacity``; the sampler it returns is cleared.
        n_step: see ``TransitionRing``.
        gamma: see ``TransitionRing``.
        num_streams: see ``TransitionRing``.
        frame_stack: see ``TransitionRing``.
        device: device of the transitions.

    Attributes:
        ring: the transitions.
        sampler: the sampler.
        stale_updates: number of priorities for overwritten transitions, which were ignored.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        capacity: int,
        *,
        sampler: SamplerFactory = UniformSampler,
        n_step: int = 1,
        gamma: float = 0.99,
        num_streams: int = 1,
        frame_stack: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        self.ring = TransitionRing(
            capacity,
            num_streams=num_streams,
            n_step=n_step,
            gamma=gamma,
            frame_stack=frame_stack,
            device=device,
        )
        self.sampler = sampler(capacity)
        if self.sampler.size != capacity:
            raise ValueError(
                f"the sampler draws among {self.sampler.size} slots, the capacity is {capacity}: "
                "pass the factory's argument on to the sampler"
            )
        self.sampler.clear()
        self.stale_updates = 0

    @property
    def capacity(self) -> int:
        """Greatest number of transitions."""
        return self.ring.capacity

    def __len__(self) -> int:
        """Number of transitions, at most ``capacity``."""
        return len(self.ring)

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
        """Add one step of each stream; arguments and result as ``TransitionRing.add``."""
        return self._inserted(
            self.ring.add(
                observation, action, reward, next_observation, terminated, truncated, stream
            )
        )

    def end_episode(self, stream: Any = None) -> Tensor:
        """Truncate running episodes; see ``TransitionRing.end_episode``."""
        return self._inserted(self.ring.end_episode(stream))

    def _inserted(self, slots: Tensor) -> Tensor:
        if slots.shape[0]:
            self.sampler.insert(slots.to(self.sampler.device))
        return slots

    def draw(self, batch_size: int) -> Draw:
        """Draw ``batch_size`` slots with replacement.

        Raises:
            ValueError: if the buffer has fewer transitions, or ``batch_size`` is not above 0.
        """
        if batch_size > len(self):
            raise ValueError(
                f"batch_size is {batch_size} and the replay holds {len(self)} transitions: "
                "collect more before the first batch"
            )
        return self.sampler.draw(batch_size)

    def get(self, index: Tensor) -> dict[str, Any]:
        """Copies of the transitions in slots ``index`` ``[B]``; see ``TransitionRing.get``."""
        return self.ring.get(index)

    def serial(self, index: Tensor) -> Tensor:
        """Serial numbers of the transitions in slots ``index``; see ``TransitionRing.serial``."""
        return self.ring.serial(index)

    def age(self, index: Tensor) -> Tensor:
        """Ages of the transitions in slots ``index``; see ``TransitionRing.age``."""
        return self.ring.age(index)

    def update(self, index: Tensor, priority: Tensor, serial: Tensor | None = None) -> None:
        """Set the priorities of slots.

        Args:
            index: ``[K]`` int64, slots.
            priority: ``[K]``, finite and not negative.
            serial: ``[K]`` int64, ``serial(index)`` at the draw. With it, slots overwritten since
                then are skipped and counted in ``stale_updates``.

        Raises:
            ValueError: if a slot is out of range or empty, a priority is NaN, infinite or negative
                (nothing changes then), or the sampler takes no priorities.
        """
        if not isinstance(self.sampler, AdaptiveSampler):
            raise ValueError(
                f"{type(self.sampler).__name__} takes no priorities: "
                "use a prioritized sampler, or do not call update"
            )
        device = self.sampler.device
        if serial is None:
            self.sampler.update(index.to(device), priority.to(device))
            return
        index, serial = index.to(self.ring.device), serial.to(self.ring.device)
        current = self.ring.serial(index)
        if current.equal(serial):
            self.sampler.update(index.to(device), priority.to(device))
            return
        if serial.shape != index.shape or priority.shape != index.shape:
            raise ValueError(
                f"index has shape {list(index.shape)}, priority {list(priority.shape)}, serial "
                f"{list(serial.shape)}; all must be [K]"
            )
        fresh = (current == serial).nonzero().flatten()
        self.sampler.update(index[fresh].to(device), priority[fresh.to(priority.device)].to(device))
        self.stale_updates += index.shape[0] - fresh.shape[0]

    def state_dict(self) -> dict[str, Any]:
        """Copies of the transitions and the sampler's state."""
        return {
            "kind": "ReplayBuffer",
            "ring": self.ring.state_dict(),
            "sampler_kind": type(self.sampler).__name__,
            "sampler": self.sampler.state_dict(),
            "stale_updates": self.stale_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that draws continue as if they had not been interrupted.

        Raises:
            ValueError: if the state is of another capacity, sampler, or kind of transitions;
                nothing changes then.
        """
        check_settings(state, "ReplayBuffer", sampler_kind=type(self.sampler).__name__)
        stale_updates = state.get("stale_updates")
        ring, sampler = state.get("ring"), state.get("sampler")
        if not isinstance(ring, dict) or not isinstance(sampler, dict):
            raise ValueError(
                "the state lacks its transitions or its sampler: it is damaged. Nothing was changed"
            )
        if not isinstance(stale_updates, int):
            raise ValueError("the state lacks stale_updates: it is damaged. Nothing was changed")
        self.ring.check_state(ring)
        before = self.sampler.state_dict()
        self.sampler.load_state_dict(sampler)
        length = min(int(ring["added"]), self.capacity)
        if (drawable := self.sampler.count) != length:
            self.sampler.load_state_dict(before)
            raise ValueError(
                f"the state holds {length} transitions and its sampler draws among {drawable}: "
                "they were not saved together. Nothing was changed"
            )
        self.ring.load_state_dict(ring)
        self.stale_updates = stale_updates
