"""Prioritized experience replay (Schaul et al., 2016, arXiv:1511.05952) as one class.

Proportional variant, section 3.3; stratified draws, appendix B.2.1; weights, section 3.4.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.corrections import check_beta
from lit_adaptive.core.prioritized import importance_sampling_weights, proportional_priorities
from lit_adaptive.replay.state import SavedState, check_settings
from lit_adaptive.replay.transitions.buffer import ReplayBuffer
from lit_adaptive.replay.transitions.nested import as_tensor, map_leaves
from lit_adaptive.samplers import PrioritizedSampler

_SHOWN = 8


class PrioritizedReplayBuffer(SavedState):
    """Draws transitions in proportion to their TD errors, with importance weights.

    ::

        buffer = PrioritizedReplayBuffer(capacity=100_000)
        buffer.add((state, action, reward, next_state, done))
        batch, weights, indices = buffer.sample(batch_size=32)
        buffer.update_priorities(indices, td_errors)

    Args:
        capacity: greatest number of transitions, above 0.
        alpha: strength of the prioritization, in [0, 1]; 0 is uniform.
        beta: strength of the bias correction, in [0, 1]; 1 corrects fully. The attribute can be
            set, such as by a schedule.
        epsilon: added to ``|td_error|``, not negative.
        normalize: scope of the maximum that weights are divided by: ``"batch"`` or ``"buffer"``.
        n_step: see ``TransitionRing``.
        gamma: see ``TransitionRing``.
        num_streams: see ``TransitionRing``.
        frame_stack: see ``TransitionRing``.
        seed: seed of the draws.
        device: device of transitions and priorities.

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
        proportional_priorities(torch.zeros(0), epsilon=epsilon)  # checks epsilon
        self.beta = beta
        self.epsilon = epsilon
        self.normalize = normalize
        self.replay = ReplayBuffer(
            capacity,
            sampler=partial(
                PrioritizedSampler, alpha=alpha, filled=False, seed=seed, device=device
            ),
            n_step=n_step,
            gamma=gamma,
            num_streams=num_streams,
            frame_stack=frame_stack,
            device=device,
        )

    @property
    def alpha(self) -> float:
        """Strength of the prioritization, in [0, 1]."""
        sampler = self.replay.sampler
        assert isinstance(sampler, PrioritizedSampler)
        return sampler.alpha

    @property
    def beta(self) -> float:
        """Strength of the bias correction, in [0, 1]."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        check_beta(value)
        self._beta = float(value)

    @property
    def capacity(self) -> int:
        """Greatest number of transitions."""
        return self.replay.capacity

    def __len__(self) -> int:
        """Number of transitions, at most ``capacity``."""
        return len(self.replay)

    def add(
        self,
        transition: Sequence[Any] | None = None,
        *,
        observation: Any = None,
        action: Any = None,
        reward: Any = None,
        next_observation: Any = None,
        terminated: Any = None,
        truncated: Any = False,
        stream: Any = None,
    ) -> Tensor:
        """Add one transition, or by keyword one step of each stream.

        New transitions get the greatest priority so far.

        Args:
            transition: ``(state, action, reward, next_state, done)`` of one stream, without batch
                axis; ``done`` is ``terminated``.
            observation: ``[E, ...]``; this and the following as in ``TransitionRing.add``.
            action: ``[E, ...]``.
            reward: ``[E]``.
            next_observation: ``[E, ...]``.
            terminated: ``[E]``.
            truncated: ``[E]``; with ``transition``, a single bool.
            stream: ``[E]``; with ``transition``, a single integer.

        Returns:
            Written slots, ``[K]`` int64; with ``n_step`` above 1, K may be 0 or above E.

        Raises:
            ValueError: if both forms are used or none, or as ``TransitionRing.add``.
        """
        steps = (observation, action, reward, next_observation, terminated)
        number = sum(part is not None for part in steps)
        if (transition is None) != (number == len(steps)) or (transition is not None and number):
            raise ValueError(
                "add takes either one tuple (state, action, reward, next_state, done) or all of "
                "observation, action, reward, next_observation and terminated by keyword"
            )
        if transition is None:
            return self.replay.add(*steps, truncated, stream)
        return self._add_one(transition, bool(truncated), stream)

    def _add_one(self, transition: Sequence[Any], truncated: bool, stream: Any) -> Tensor:
        if len(transition) != 5:
            raise ValueError(
                f"the transition has {len(transition)} parts; "
                "it is (state, action, reward, next_state, done)"
            )
        state, action, reward, next_state, done = transition
        if stream is None and self.replay.ring.num_streams > 1:
            raise ValueError(
                f"this is one transition for {self.replay.ring.num_streams} streams: "
                "pass its stream, or add all streams at once by keyword"
            )
        return self.replay.add(
            map_leaves(_batch_of_one, state),
            map_leaves(_batch_of_one, action),
            [float(reward)],
            map_leaves(_batch_of_one, next_state),
            [bool(done)],
            [truncated],
            [0 if stream is None else int(stream)],
        )

    def end_episode(self, stream: Any = None) -> Tensor:
        """Truncate running episodes; see ``TransitionRing.end_episode``."""
        return self.replay.end_episode(stream)

    def sample(self, batch_size: int = 32) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Draw ``batch_size`` transitions.

        Returns:
            The transitions of ``TransitionRing.get``, with ``index`` and ``probability`` ``[B]``;
            their importance weights ``[B]`` float32 in (0, 1]; and their slots ``[B]`` int64 for
            ``update_priorities``.

        Raises:
            ValueError: if the buffer has fewer transitions, or ``batch_size`` is not above 0.
        """
        draw = self.replay.draw(batch_size)
        sampler = self.replay.sampler
        weight = importance_sampling_weights(
            draw.probability,
            beta=self.beta,
            min_probability=sampler.min_probability() if self.normalize == "buffer" else None,
        )
        batch = self.replay.get(draw.index)
        batch["index"], batch["probability"] = draw
        return batch, weight.float(), draw.index

    def serial(self, indices: Tensor) -> Tensor:
        """Serial numbers of slots ``indices`` ``[B]``; see ``TransitionRing.serial``."""
        return self.replay.serial(indices)

    def update_priorities(self, indices: Any, td_errors: Any, serial: Tensor | None = None) -> None:
        """Set the priorities of drawn transitions to ``|td_error| + epsilon``.

        Args:
            indices: ``[B]`` slots from ``sample``.
            td_errors: ``[B]`` or ``[B, 1]``, of any sign.
            serial: ``[B]`` int64, ``serial(indices)`` at the draw. With it, slots overwritten since
                the draw are skipped.

        Raises:
            ValueError: naming the slots whose TD error is NaN or infinite, or that are out of range
                or empty; no priority changes then.
        """
        index = as_tensor(indices, "indices")
        if not isinstance(td_errors, Tensor):
            td_errors = torch.from_numpy(np.array(td_errors, dtype=np.float64))
        td_error = td_errors.detach().to("cpu", torch.float64)
        if td_error.shape == (*index.shape, 1):
            td_error = td_error.squeeze(-1)
        if index.dim() != 1 or td_error.shape != index.shape:
            raise ValueError(
                f"indices have shape {list(index.shape)}, td_errors {list(td_error.shape)}; "
                "both must be [B]"
            )
        finite = td_error.isfinite()
        if not bool(finite.all()):
            wrong = ~finite
            raise ValueError(
                f"the TD error of indices {index.cpu()[wrong][:_SHOWN].tolist()} is "
                f"{td_error[wrong][:_SHOWN].tolist()}; no priority was changed: "
                "look for NaN or inf in the loss"
            )
        self.replay.update(index, proportional_priorities(td_error, epsilon=self.epsilon), serial)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the transitions, the priorities, the generator and ``beta``."""
        return {
            "kind": "PrioritizedReplayBuffer",
            "beta": self.beta,
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that draws continue as if they had not been interrupted.

        Raises:
            ValueError: as ``ReplayBuffer.load_state_dict``.
        """
        check_settings(state, "PrioritizedReplayBuffer")
        beta, replay = state.get("beta"), state.get("replay")
        if not isinstance(beta, float) or not 0 <= beta <= 1 or not isinstance(replay, dict):
            raise ValueError(f"the state has beta={beta!r}: it is damaged. Nothing was changed")
        self.replay.load_state_dict(replay)
        self.beta = beta


def _batch_of_one(value: Any) -> Tensor:
    return as_tensor(value, "the transition")[None]
