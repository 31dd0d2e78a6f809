"""Environments that step together, restart one by one, and come back exactly after a crash.

Gymnasium offers no way to save an environment. But an environment is a function of the seed it was
reset with and the actions it was given since, so those two, which are plain integers, *are* its
state: ``load_state_dict`` resets each environment with its seed and plays its actions again.

Exact wherever ``reset(seed)`` decides everything that follows (all of Gymnasium's classic control,
MinAtar and ALE do; an environment that reads a clock or the network does not).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import Tensor

Vectorization = Literal["sync", "async"]


class Step(NamedTuple):
    """What one step of ``n`` environments gave; ``next_observation`` is the true final one."""

    observation: Tensor
    next_observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


class EnvironmentStreams:
    """``len(streams)`` environments out of ``total``; a rank owns a slice of all streams.

    Args:
        make_environment: builds one environment.
        streams: which of the ``total`` streams live in this process.
        total: number of streams over all ranks, at least ``len(streams)``.
        seed: stream ``i``'s ``k``-th episode is reset with ``seed + i + total * k``.
        vectorization: ``"sync"`` steps them in turn, ``"async"`` in a process each.
    """

    def __init__(
        self,
        make_environment: Callable[[], gymnasium.Env[Any, Any]],
        streams: Sequence[int],
        *,
        total: int,
        seed: int,
        vectorization: Vectorization = "sync",
    ) -> None:
        makers = [make_environment] * len(streams)
        self._vector: SyncVectorEnv | AsyncVectorEnv = (
            SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
            if vectorization == "sync"
            else AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
        )
        self.streams = list(streams)
        self.total = total
        self.seed = seed
        self._episode = [0] * total
        self._actions: list[list[int]] = [[] for _ in range(total)]
        observation, _ = self._vector.reset(seed=self._seeds())
        self._observation = torch.as_tensor(observation)

    @property
    def observation(self) -> Tensor:
        """What the environments show now: ``[n, ...]``."""
        return self._observation

    def _seeds(self) -> list[int | None]:
        return [self.seed + stream + self.total * self._episode[stream] for stream in self.streams]

    def step(self, action: Tensor) -> Step:
        """Step all environments of this process and restart those whose episode is over.

        Args:
            action: ``[n]`` int64.
        """
        before = self._observation
        shown, reward, terminated, truncated, _ = self._vector.step(action.numpy())
        step = Step(
            before,
            torch.as_tensor(shown),
            torch.as_tensor(reward, dtype=torch.float32),
            torch.from_numpy(terminated.copy()),
            torch.from_numpy(truncated & ~terminated),
        )
        self._observation = step.next_observation
        return step

    def record(self, action: Tensor, ended: Tensor) -> None:
        """Note the step of *all* ``total`` streams, and restart this process' ended ones.

        Args:
            action: ``[total]`` int64, what was just played in every stream.
            ended: ``[total]`` bool, whose episode is over.
        """
        for stream, played in enumerate(action.tolist()):
            self._actions[stream].append(played)
        for stream in ended.nonzero().flatten().tolist():
            self._actions[stream].clear()
            self._episode[stream] += 1
        own = ended[self.streams]
        if own.any():
            self._restart(own.numpy())

    def _restart(self, mask: np.ndarray[Any, Any]) -> None:
        observation, _ = self._vector.reset(seed=self._seeds(), options={"reset_mask": mask})
        self._observation = torch.as_tensor(observation)

    def state_dict(self) -> dict[str, Any]:
        """Episodes begun and actions played since, of all ``total`` streams."""
        return {
            "seed": self.seed,
            "total": self.total,
            "episode": torch.tensor(self._episode),
            "actions": [torch.tensor(played, dtype=torch.int64) for played in self._actions],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring every environment back to where it was: same seed, same actions.

        Raises:
            ValueError: if the state has another number of streams.
        """
        if state["total"] != self.total:
            raise ValueError(
                f"the checkpoint holds {state['total']} environment streams and this run has "
                f"{self.total}; resume with data.init_args.num_environments={state['total']}"
            )
        self.seed = state["seed"]
        self._episode = state["episode"].tolist()
        self._actions = [played.tolist() for played in state["actions"]]
        histories = [self._actions[stream] for stream in self.streams]
        longest = max(map(len, histories))
        # All environments step together, so one with a shorter history starts later; what it does
        # before that is thrown away.
        start = np.array([longest - len(history) for history in histories])
        everyone = np.ones(len(histories), dtype=np.bool_)
        self._restart(everyone)
        for time in range(longest):
            if time and (begins := start == time).any():
                self._restart(begins)
            action = [
                history[time - first] if time >= first else 0
                for history, first in zip(histories, start, strict=True)
            ]
            shown, _, terminated, truncated, _ = self._vector.step(np.array(action))
            self._observation = torch.as_tensor(shown)
            if (over := terminated | truncated).any():
                self._restart(over)
        if longest and (begins := start == longest).any():
            self._restart(begins)

    def close(self) -> None:
        """Close the environments."""
        self._vector.close()
