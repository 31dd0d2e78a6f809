"""Prioritized experience replay (Schaul et al., 2016, arXiv:1511.05952) in three calls.

Proportional variant, section 3.3; stratified draws, appendix B.2.1; weights, section 3.4.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lit_adaptive.core.prioritized import importance_weights, proportional_priorities
from lit_adaptive.replay.buffer import ReplayBuffer
from lit_adaptive.replay.files import load_state, save_state
from lit_adaptive.replay.nested import as_tensor
from lit_adaptive.samplers import PrioritizedSampler

_SHOWN = 8


class PrioritizedReplayBuffer:
    """Replays transitions in proportion to their TD errors, and tells how to correct for it.

    ::

        buffer = PrioritizedReplayBuffer(capacity=100_000)
        buffer.add((state, action, reward, next_state, done))
        batch, weights, indices = buffer.sample(batch_size=32)
        buffer.update_priorities(indices, td_errors)

    Args:
        capacity: transitions kept, above 0.
        alpha: how strongly to prioritize, in [0, 1]; 0 is uniform.
        beta: how much of the bias the weights correct, in [0, 1]; 1 is all of it. An attribute
            that may be set, such as by a schedule.
        epsilon: added to ``|td_error|``, above 0 or 0.
        normalize: the maximum that weights are divided by: the ``"batch"``'s or the whole
            ``"buffer"``'s.
        n_step: see ``TransitionRing``.
        gamma: see ``TransitionRing``.
        num_streams: see ``TransitionRing``.
        frame_stack: see ``TransitionRing``.
        seed: of the draws.
        device: where transitions and priorities are kept.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        capacity: int,
        alpha: float = 0.6,
        beta: float = 0.4,
        epsilon: float = 1e-6,
        normalize: Literal["batch", "buffer"] = "batch",
        n_step: int = 1,
        gamma: float = 0.99,
        num_streams: int = 1,
        frame_stack: int = 1,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        if normalize not in ("batch", "buffer"):
            raise ValueError(f"normalize is {normalize!r}; it must be 'batch' or 'buffer'")
        proportional_priorities(torch.zeros(0), epsilon=epsilon)  # refuses a negative epsilon
        self.beta = beta
        self.epsilon = epsilon
        self.normalize = normalize
        self.replay = ReplayBuffer(
            capacity,
            sampler=partial(PrioritizedSampler, alpha=alpha, filled=False, seed=seed, device=device),
            n_step=n_step,
            gamma=gamma,
            num_streams=num_streams,
            frame_stack=frame_stack,
            device=device,
        )

    @property
    def beta(self) -> float:
        """How much of the bias the weights correct, in [0, 1]."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(
                f"beta is {value}; it must lie in [0, 1] (0: no correction, 1: unbiased)"
            )
        self._beta = float(value)

    @property
    def capacity(self) -> int:
        """Transitions kept."""
        return self.replay.capacity

    def __len__(self) -> int:
        """Transitions held, at most ``capacity``."""
        return len(self.replay)

    def add(
        self,
        transition: tuple[Any, Any, Any, Any, Any] | None = None,
        *,
        observation: Any = None,
        action: Any = None,
        reward: Any = None,
        next_observation: Any = None,
        terminated: Any = None,
        truncated: Any = False,
        stream: Any = None,
    ) -> Tensor:
        """Add one transition, or by keyword one step of every stream.

        New transitions get the greatest priority so far, so that each is likely replayed once.

        Args:
            transition: ``(state, action, reward, next_state, done)`` of a single stream. ``done``
                means terminated; with ``n_step`` above 1, give truncation by keyword.
            observation: ``[E, ...]``, and so on; see ``TransitionRing.add``.
            action: see there.
            reward: see there.
            next_observation: see there.
            terminated: see there.
            truncated: see there.
            stream: see there.

        Returns:
            Slots written, ``[K]`` int64; with ``n_step`` above 1 there may be none, or several.

        Raises:
            ValueError: if both forms are given or none, or as ``TransitionRing.add``.
        """
        steps = (observation, action, reward, next_observation, terminated)
        if transition is None:
            if any(part is None for part in steps):
                raise ValueError(
                    "add takes either one tuple (state, action, reward, next_state, done) or all "
                    "of observation, action, reward, next_observation and terminated by keyword"
                )
            return self.replay.add(*steps, truncated, stream)
        if any(part is not None for part in steps) or truncated is not False or stream is not None:
            raise ValueError("give add one tuple or keywords, not both")
        if len(transition) != 5 or self.replay.ring.num_streams != 1:
            raise ValueError(
                f"a tuple of {len(transition)} for {self.replay.ring.num_streams} streams; it is "
                "(state, action, reward, next_state, done) of a single stream: with several use "
                "the keywords"
            )
        state, act, rew, following, done = transition
        return self.replay.add(
            _batch_of_one(state),
            _batch_of_one(act),
            [float(rew)],
            _batch_of_one(following),
            [bool(done)],
        )

    def sample(self, batch_size: int = 32) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Draw ``batch_size`` transitions.

        Returns:
            The transitions (see ``TransitionRing.get``); their importance weights ``[B]`` float32
            in (0, 1]; and their slots ``[B]`` int64, to be handed to ``update_priorities``.

        Raises:
            ValueError: if fewer transitions are held, or ``batch_size`` is not above 0.
        """
        draw = self.replay.draw(batch_size)
        sampler = self.replay.sampler
        weight = importance_weights(
            draw.probability,
            size=len(self),
            beta=self.beta,
            min_probability=sampler.min_probability() if self.normalize == "buffer" else None,
        )
        return self.replay.get(draw.index), weight.float(), draw.index

    def update_priorities(self, indices: Any, td_errors: Any) -> None:
        """Set the priorities of drawn transitions to ``|td_error| + epsilon``.

        Args:
            indices: ``[B]`` slots, as ``sample`` returned them.
            td_errors: ``[B]`` (or ``[B, 1]``), of any sign.

        Raises:
            ValueError: naming the slots whose TD error is NaN or infinite, or that are out of range
                or empty; no priority changes then.
        """
        index = as_tensor(indices)
        td_error = as_tensor(td_errors).reshape(-1).cpu().double()
        if td_error.shape != index.shape:
            raise ValueError(
                f"{td_error.numel()} TD errors for indices of shape {list(index.shape)}; "
                "expected one per index, [B]"
            )
        if not bool((finite := td_error.isfinite()).all()):
            wrong = ~finite
            raise ValueError(
                f"TD error of indices {index.cpu()[wrong][:_SHOWN].tolist()} is "
                f"{td_error[wrong][:_SHOWN].tolist()}; no priority was changed: "
                "look for NaN or inf in the loss"
            )
        self.replay.update(index, proportional_priorities(td_error, epsilon=self.epsilon))

    def state_dict(self) -> dict[str, Any]:
        """Transitions, priorities, draws and ``beta``."""
        return {
            "kind": "PrioritizedReplayBuffer",
            "beta": self.beta,
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the buffer whose state this is would have gone on.

        Raises:
            ValueError: as ``ReplayBuffer.load_state_dict``.
        """
        if state.get("kind") != "PrioritizedReplayBuffer":
            raise ValueError(
                f"the state is of {state.get('kind')!r}, not of a PrioritizedReplayBuffer: "
                "pass what PrioritizedReplayBuffer.state_dict returned"
            )
        self.replay.load_state_dict(state["replay"])
        self.beta = state["beta"]

    def save(self, path: str | Path) -> None:
        """Write ``state_dict`` to ``path``, in full or not at all."""
        save_state(self.state_dict(), path)

    def load(self, path: str | Path) -> None:
        """Take over what ``save`` wrote.

        Raises:
            ValueError: as ``ReplayBuffer.load``.
        """
        self.load_state_dict(load_state(path))


def _batch_of_one(nested: Any) -> Any:
    if isinstance(nested, dict):
        return {key: _batch_of_one(part) for key, part in nested.items()}
    if isinstance(nested, tuple):
        return tuple(_batch_of_one(part) for part in nested)
    return as_tensor(nested)[None]
