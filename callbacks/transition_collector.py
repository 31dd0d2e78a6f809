"""Experience comes in while the model trains."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_adaptive.core.schedules import linear_schedule
from lit_adaptive.rollout.environments.streams import EnvironmentStreams, Step, Vectorization


class TransitionCollector(Callback):
    """Steps the environments with the model's ε-greedy policy and adds what happened to the replay.

    Under several ranks each steps its share of the environments, all transitions are gathered, and
    every rank adds all of them: one replay, the same everywhere. A resumed run goes on in the
    middle of the episodes it was in (see ``lit_adaptive.rollout.environments.streams``).

    Needs: ``data.replay`` and ``data.make_environment``; the module acts (``model.act``).
    Changes: the replay: new transitions come in, the oldest go (``duty.collect``).

    Args:
        transitions_per_batch: new transitions for each training batch; DQN has 4.
        warmup: transitions collected at random before the first batch, at least one batch.
        epsilon_start: share of random actions at first, in [0, 1].
        epsilon_end: and after ``epsilon_transitions``.
        epsilon_transitions: transitions over which it falls linearly.
        vectorization: ``sync`` steps environments in turn, ``async`` in a process each.
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
        if transitions_per_batch <= 0:
            raise ValueError(f"transitions_per_batch is {transitions_per_batch}; must be above 0")
        for name, share in (("epsilon_start", epsilon_start), ("epsilon_end", epsilon_end)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; a share of random actions lies in [0, 1]")
        if epsilon_transitions <= 0:
            raise ValueError(f"epsilon_transitions is {epsilon_transitions}; it must be above 0")
        self.transitions_per_batch = transitions_per_batch
        self.warmup = warmup
        self.epsilon_start = epsilon_start
        self.epsilon_end = epsilon_end
        self.epsilon_transitions = epsilon_transitions
        self.vectorization: Vectorization = vectorization
        self.generator = torch.Generator()
        self.collected = 0
        self._owed = 0.0
        self._streams: EnvironmentStreams | None = None
        self._restored: dict[str, Any] | None = None
        self._return = torch.zeros(0, dtype=torch.float64)
        self._finished: list[float] = []

    @property
    def epsilon(self) -> float:
        """Share of random actions now."""
        return linear_schedule(
            self.collected,
            start=self.epsilon_start,
            end=self.epsilon_end,
            steps=self.epsilon_transitions,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the environments, or bring them back; fill the replay up to ``warmup``."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        total = data.num_environments
        if total % trainer.world_size:
            raise ValueError(
                f"num_environments is {total} and there are {trainer.world_size} ranks; each rank "
                "steps an equal share: choose a multiple of the number of ranks"
            )
        if max(self.warmup, data.batch_size * trainer.world_size) > data.replay.capacity:
            raise ValueError(
                f"warmup is {self.warmup}, a global batch {data.batch_size * trainer.world_size}; "
                f"both must fit into the replay's capacity of {data.replay.capacity}"
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
            self._restored = None
        enough = max(self.warmup, data.batch_size * trainer.world_size)
        while len(data.replay) < enough:
            self._step(trainer, pl_module, epsilon=1.0)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Collect what this batch owes."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._owed += self.transitions_per_batch
        while self._owed >= data.num_environments:
            self._owed -= data.num_environments
            self._step(trainer, pl_module, epsilon=self.epsilon)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or trainer.global_step % every:
            return
        found = {"train/epsilon": self.epsilon, "train/transitions": float(self.collected)}
        if self._finished:
            found["train/return"] = sum(self._finished) / len(self._finished)
            self._finished.clear()
        pl_module.log_dict(found)

    def _step(self, trainer: Trainer, pl_module: LightningModule, *, epsilon: float) -> None:
        """One step of every environment on every rank."""
        assert self._streams is not None  # made in on_train_start
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        own = self._explore(pl_module, data, epsilon)
        step = self._streams.step(own)
        action, step = _from_all_ranks(pl_module, trainer.world_size, own, step)
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
        """ε-greedy actions ``[n]`` for this rank's streams.

        The dice are thrown for all streams on every rank, so that the generators stay equal.
        """
        assert self._streams is not None
        total, streams = self._streams.total, self._streams.streams
        dice = torch.rand(total, generator=self.generator)[streams]
        chance = torch.randint(int(data.action_space.n), (total,), generator=self.generator)[
            streams
        ]
        if epsilon >= 1:
            return chance
        act: Any = pl_module.act
        greedy: Tensor = act(self._streams.observation)
        return torch.where(dice < epsilon, chance, greedy.cpu())

    def state_dict(self) -> dict[str, Any]:
        """Environments, exploration and counters; equal on every rank."""
        if self._streams is None:
            return self._restored or {}
        return {
            "collected": self.collected,
            "owed": self._owed,
            "generator": self.generator.get_state(),
            "return": self._return.clone(),
            "finished": list(self._finished),
            "streams": self._streams.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the environments are there."""
        self._restored = state_dict or None

    def _restore(self, state: dict[str, Any]) -> None:
        assert self._streams is not None
        self._streams.load_state_dict(state["streams"])
        self.generator.set_state(state["generator"])
        self.collected, self._owed = state["collected"], state["owed"]
        self._return, self._finished = state["return"].clone(), list(state["finished"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the environments; what they were stays restorable."""
        if self._streams is not None:
            self._restored = self.state_dict()
            self._streams.close()
            self._streams = None


def _from_all_ranks(
    pl_module: LightningModule, world_size: int, action: Tensor, step: Step
) -> tuple[Tensor, Step]:
    """Every rank's transitions in the order of the streams (rank r owns r, r + W, ...)."""
    if world_size == 1:
        return action, step
    parts = {"action": action, **step._asdict()}
    # Gloo gathers no booleans.
    sent = {
        key: part.to(torch.uint8) if part.dtype == torch.bool else part
        for key, part in parts.items()
    }
    gather_over_ranks: Any = pl_module.all_gather(sent)
    ordered = {
        key: gather_over_ranks[key].transpose(0, 1).flatten(0, 1).to("cpu", part.dtype)
        for key, part in parts.items()
    }
    return ordered.pop("action"), Step(**ordered)
