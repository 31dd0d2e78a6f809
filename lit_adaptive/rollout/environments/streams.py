"""Environments that step together, restart one by one, and resume exactly from a checkpoint.

Gymnasium cannot save an environment. But its state is a function of the seed of the last reset and
the actions since, so those are saved: ``load_state_dict`` resets each environment with its seed and
replays its actions.

This is exact if ``reset(seed)`` determines everything that follows, as in Gymnasium's classic
control, MinAtar and ALE; not if an environment reads a clock or the network.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import Tensor

Vectorization = Literal["sync", "async"]


class EnvironmentStep(NamedTuple):
    """One step of ``n`` environments; ``next_observation`` is that before any restart."""

    observation: Tensor
    next_observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


class EnvironmentStreams:
    """The environments of this process, a subset of the ``total`` streams of all ranks.

    Args:
        make_environment: builds one environment.
        streams: numbers of the streams in this process, in [0, total).
        total: number of streams over all ranks, at least ``len(streams)``.
        seed: base seed; episode ``k`` of stream ``i`` is reset with ``seed + i + total * k``.
        vectorization: ``"sync"`` to step in turn, ``"async"`` to use a process per environment.
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
        """Current observations: ``[n, ...]``."""
        return self._observation

    def _seeds(self) -> list[int | None]:
        return [self.seed + stream + self.total * self._episode[stream] for stream in self.streams]

    def step(self, action: Tensor) -> EnvironmentStep:
        """Step all environments of this process.

        Args:
            action: ``[n]`` int64.
        """
        observation = self._observation
        next_observation, reward, terminated, truncated, _ = self._vector.step(action.numpy())
        step = EnvironmentStep(
            observation,
            torch.as_tensor(next_observation),
            torch.as_tensor(reward, dtype=torch.float32),
            torch.from_numpy(terminated.copy()),
            torch.from_numpy(truncated & ~terminated),
        )
        self._observation = step.next_observation
        return step

    def record(self, action: Tensor, ended: Tensor) -> None:
        """Record the step of *all* ``total`` streams, and restart those here that have ended.

        Args:
            action: ``[total]`` int64, the last action of every stream.
            ended: ``[total]`` bool, True where the episode is over.
        """
        for stream, number in enumerate(action.tolist()):
            self._actions[stream].append(number)
        for stream in ended.nonzero().flatten().tolist():
            self._actions[stream].clear()
            self._episode[stream] += 1
        local = ended[self.streams]
        if local.any():
            self._restart(local.numpy())

    def _restart(self, mask: np.ndarray[Any, Any]) -> None:
        observation, _ = self._vector.reset(seed=self._seeds(), options={"reset_mask": mask})
        self._observation = torch.as_tensor(observation)

    def state_dict(self) -> dict[str, Any]:
        """Episode numbers, and actions in the current episode, of all ``total`` streams."""
        return {
            "seed": self.seed,
            "total": self.total,
            "episode": torch.tensor(self._episode),
            "actions": [torch.tensor(actions, dtype=torch.int64) for actions in self._actions],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore every environment: reset it with its seed, and replay its actions.

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
        self._actions = [actions.tolist() for actions in state["actions"]]
        histories = [self._actions[stream] for stream in self.streams]
        longest = max(map(len, histories))
        # All environments step together, so one with a shorter history starts later; its earlier
        # steps are discarded by a restart.
        start = np.array([longest - len(history) for history in histories])
        self._restart(np.ones(len(histories), dtype=np.bool_))
        for time in range(longest):
            if time and (begins := start == time).any():
                self._restart(begins)
            action = [
                history[time - first] if time >= first else 0
                for history, first in zip(histories, start, strict=True)
            ]
            observation, _, terminated, truncated, _ = self._vector.step(np.array(action))
            self._observation = torch.as_tensor(observation)
            if (ended := terminated | truncated).any():
                self._restart(ended)
        if longest and (begins := start == longest).any():
            self._restart(begins)

    def close(self) -> None:
        """Close the environments."""
        self._vector.close()
