"""Collection of transitions while the model trains."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.schedules import linear_schedule
from lit_adaptive.rollout.environments.streams import (
    EnvironmentStep,
    EnvironmentStreams,
    Vectorization,
)


class TransitionCollector(Callback):
    """Steps the environments with the model's ε-greedy policy and adds transitions to the replay.

    Each rank steps an equal share of the environments; the transitions of all ranks are gathered
    and added on every rank, so the replays stay equal. A resumed run continues inside the episodes
    it was in (see ``lit_adaptive.rollout.environments.streams``).

    Needs: ``data.replay`` and ``data.make_environment``; the module acts (``model.act``).
    Changes: the replay: adds new transitions, which replace the oldest (``duty.collect``).

    Args:
        transitions_per_batch: mean number of new transitions per training batch, above 0; DQN uses
            4. Environments step together: a remainder is carried over to the next batches.
        warmup: transitions collected with random actions before the first batch; at least one
            global batch is collected.
        epsilon_start: probability of a random action at the start, in [0, 1].
        epsilon_end: probability of a random action after ``epsilon_transitions``, in [0, 1].
        epsilon_transitions: number of transitions over which epsilon changes linearly, above 0.
        vectorization: ``sync`` steps the environments one after another, ``async`` in a process
            each.

    Raises:
        ValueError: if an argument is out of range, the environments cannot be divided among the
            ranks, or the warm-up exceeds the replay's capacity.
    """

    needs = frozenset({"data.replay", "data.make_environment", "model.act"})
    provides = frozenset({"duty.collect"})

    def __init__(
        self,
        transitions_per_batch: float = 4,
        warmup: int = 1_000,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.05,
        epsilon_transitions: int = 10_000,
        vectorization: Vectorization = "sync",
    ) -> None:
        check_at_least(warmup=(warmup, 0), epsilon_transitions=(epsilon_transitions, 1))
        if not 0 < transitions_per_batch < math.inf:
            raise ValueError(
                f"transitions_per_batch is {transitions_per_batch}; it must be above 0 and finite"
            )
        for name, value in (("epsilon_start", epsilon_start), ("epsilon_end", epsilon_end)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; a probability lies in [0, 1]")
        self.transitions_per_batch = transitions_per_batch
        self.warmup = warmup
        self.epsilon_start = epsilon_start
        self.epsilon_end = epsilon_end
        self.epsilon_transitions = epsilon_transitions
        self.vectorization: Vectorization = vectorization
        self.generator = torch.Generator()
        self.collected = 0
        self._seed = 0  # of the random numbers
        self._due = 0.0  # transitions not yet collected for the batches so far
        self._streams: EnvironmentStreams | None = None
        self._restored: dict[str, Any] | None = None
        self._return = torch.zeros(0, dtype=torch.float64)  # of the running episodes
        self._finished: list[float] = []  # returns of episodes since the last log

    @property
    def epsilon(self) -> float:
        """Current probability of a random action."""
        return linear_schedule(
            self.collected,
            start=self.epsilon_start,
            end=self.epsilon_end,
            steps=self.epsilon_transitions,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start or restore the environments, and fill the replay up to ``warmup``."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        total = data.num_environments
        if total % trainer.world_size:
            raise ValueError(
                f"num_environments is {total} and there are {trainer.world_size} ranks; each rank "
                "steps an equal share: choose a multiple of the number of ranks"
            )
        global_batch = data.batch_size * trainer.world_size
        minimum = max(self.warmup, global_batch)
        if minimum > data.replay.capacity:
            raise ValueError(
                f"warmup is {self.warmup} and a global batch {global_batch}; both must fit into "
                f"the replay's capacity of {data.replay.capacity}"
            )
        if self._streams is not None:
            self._streams.close()
        self._streams = EnvironmentStreams(
            data.make_environment,
            range(trainer.global_rank, total, trainer.world_size),
            total=total,
            seed=data.seed,
            vectorization=self.vectorization,
        )
        self._return = torch.zeros(total, dtype=torch.float64)
        if self._restored is None:
            self.generator.manual_seed(data.seed)
        else:
            self._restore(self._restored)
            if self._restored.get("seed", data.seed) != data.seed:
                self.generator.manual_seed(data.seed)
            self._restored = None
        self._seed = data.seed
        while len(data.replay) < minimum:
            self._step(trainer, pl_module, epsilon=1.0)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Collect the transitions that are due."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._due += self.transitions_per_batch
        while self._due >= data.num_environments:
            self._due -= data.num_environments
            self._step(trainer, pl_module, epsilon=self.epsilon)
        log_interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not log_interval or trainer.global_step % log_interval:
            return
        metrics = {"train/epsilon": self.epsilon, "train/transitions": float(self.collected)}
        if self._finished:
            metrics["train/return"] = sum(self._finished) / len(self._finished)
            self._finished.clear()
        pl_module.log_dict(metrics)

    def _step(self, trainer: Trainer, pl_module: LightningModule, *, epsilon: float) -> None:
        """Step every environment of every rank once."""
        assert self._streams is not None  # set in on_train_start
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        local_action = self._explore(pl_module, data, epsilon)
        local_step = self._streams.step(local_action)
        action, step = _gather_streams(pl_module, trainer.world_size, local_action, local_step)
        data.replay.add(
            step.observation,
            action,
            step.reward,
            step.next_observation,
            step.terminated,
            step.truncated,
        )
        ended = step.terminated | step.truncated
        self._streams.record(action, ended)
        self.collected += len(action)
        self._return += step.reward
        if ended.any():
            self._finished += self._return[ended].tolist()
            self._return[ended] = 0.0

    def _explore(self, pl_module: LightningModule, data: Any, epsilon: float) -> Tensor:
        """ε-greedy actions ``[n]`` of this rank's streams.

        Every rank draws the random numbers of all streams, so that the generators stay equal.
        """
        assert self._streams is not None
        total, streams = self._streams.total, self._streams.streams
        uniform = torch.rand(total, generator=self.generator)[streams]
        actions = int(data.action_space.n)
        random_action = torch.randint(actions, (total,), generator=self.generator)[streams]
        if epsilon >= 1:
            return random_action
        act: Any = pl_module.act
        greedy: Tensor = act(self._streams.observation)
        return torch.where(uniform < epsilon, random_action, greedy.cpu())

    def state_dict(self) -> dict[str, Any]:
        """Environments, generator and counters; equal on every rank."""
        if self._streams is None:
            return self._restored or {}
        return {
            "collected": self.collected,
            "due": self._due,
            "seed": self._seed,
            "generator": self.generator.get_state(),
            "return": self._return.clone(),
            "finished": list(self._finished),
            "streams": self._streams.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the environments are started."""
        self._restored = state_dict or None

    def _restore(self, state: dict[str, Any]) -> None:
        assert self._streams is not None
        self._streams.load_state_dict(state["streams"])
        self.generator.set_state(state["generator"])
        self.collected, self._due = state["collected"], state["due"]
        self._return, self._finished = state["return"].clone(), list(state["finished"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the environments; a later fit restores them."""
        if self._streams is not None:
            self._restored = self.state_dict()
            self._streams.close()
            self._streams = None


def _gather_streams(
    pl_module: LightningModule, world_size: int, action: Tensor, step: EnvironmentStep
) -> tuple[Tensor, EnvironmentStep]:
    """Transitions of all ranks in the order of the streams (rank r steps r, r + W, ...)."""
    if world_size == 1:
        return action, step
    parts = {"action": action, **step._asdict()}
    # Gloo cannot gather booleans.
    sent = {
        key: part.to(torch.uint8) if part.dtype == torch.bool else part
        for key, part in parts.items()
    }
    gathered: Any = pl_module.all_gather(sent)
    ordered = {
        key: gathered[key].transpose(0, 1).flatten(0, 1).to("cpu", part.dtype)
        for key, part in parts.items()
    }
    return ordered.pop("action"), EnvironmentStep(**ordered)
