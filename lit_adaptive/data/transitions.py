"""Datamodule of a replay buffer: transitions are collected during training and drawn again."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import gymnasium
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.sampled import Batch, SampledDataModule, ServedBatches
from lit_adaptive.replay import ReplayBuffer
from lit_adaptive.rollout.environments.make import make_environment
from lit_adaptive.samplers import SamplerFactory, UniformSampler


class TransitionsDataModule(SampledDataModule):
    r"""Transitions of a Gymnasium environment, drawn from a replay buffer by any sampler.

    A batch holds ``observation``, ``action``, ``reward`` (summed over n steps, discounted),
    ``next_observation`` (n steps later), ``terminated``, ``discount`` (:math:`\gamma^k`), and the
    draw's ``index``, ``probability``, ``weight`` and ``serial``. Validation, test and prediction
    serve ``seed``: the episodes that ``callbacks.EpisodeEvaluation`` plays.

    Args:
        environment: a Gymnasium id, such as ``CartPole-v1``, ``MinAtar/Breakout-v1`` or
            ``ALE/Breakout-v5``.
        sampler: chooses the transitions to replay.
        capacity: maximum number of transitions; the oldest are overwritten.
        batch_size: transitions per batch and rank.
        batches_per_epoch: batches after which an epoch ends (and validation may run).
        num_environments: environments that collect in parallel, over all ranks.
        n_step: number of rewards summed before bootstrapping, above 0.
        gamma: discount factor per step, in [0, 1].
        beta: see ``SampledDataModule``.
        normalize: see ``SampledDataModule``.
        frame_stack: number of frames that the observation's first axis stacks; each frame is stored
            once.
        environment_kwargs: arguments of the environment.
        evaluation_environment_kwargs: arguments that replace those of ``environment_kwargs`` in
            greedy episodes, such as unclipped rewards, or ``render_mode: human`` to watch them.
        evaluation_episodes: greedy episodes per validation.
        storage: device of the transitions, ``cpu`` or ``cuda``.
        seed: seed of environments, exploration and sampler; by default that of ``seed_everything``.
    """

    remedies: ClassVar[dict[str, str]] = {
        **SampledDataModule.remedies,
        "duty.collect": "add callbacks.TransitionCollector to trainer.callbacks, "
        "or the replay buffer stays empty",
        "duty.feedback": "add callbacks.PriorityRefresh to trainer.callbacks, or all transitions "
        "keep the same priority (a callback of your own that calls the datamodule's update "
        "declares provides = {'duty.feedback'})",
    }

    def __init__(
        self,
        environment: str,
        sampler: SamplerFactory = UniformSampler,
        *,
        capacity: int = 100_000,
        batch_size: int = 32,
        batches_per_epoch: int = 1000,
        num_environments: int = 8,
        n_step: int = 1,
        gamma: float = 0.99,
        beta: float = 1.0,
        normalize: Literal["batch", "buffer"] = "batch",
        frame_stack: int = 1,
        environment_kwargs: dict[str, Any] | None = None,
        evaluation_environment_kwargs: dict[str, Any] | None = None,
        evaluation_episodes: int = 20,
        storage: str = "cpu",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            batches_per_epoch=batches_per_epoch,
            beta=beta,
            normalize=normalize,
            seed=seed,
        )
        check_at_least(
            num_environments=(num_environments, 1), evaluation_episodes=(evaluation_episodes, 1)
        )
        for kwargs in (environment_kwargs or {}, evaluation_environment_kwargs or {}):
            if (mode := kwargs.get("render_mode")) not in (None, "human"):
                raise ValueError(
                    f"render_mode is {mode!r}, but no frames are recorded here: add "
                    "callbacks.EpisodeVideo to record greedy episodes, or use 'human' in "
                    "evaluation_environment_kwargs to watch them"
                )
        self.environment = environment
        self.environment_kwargs = environment_kwargs or {}
        self.evaluation_environment_kwargs = evaluation_environment_kwargs or {}
        self.num_environments = num_environments
        self.evaluation_seeds = 10_000_000 + self.seed + torch.arange(evaluation_episodes)
        self.replay = ReplayBuffer(
            capacity,
            sampler=sampler,
            n_step=n_step,
            gamma=gamma,
            num_streams=num_environments,
            frame_stack=frame_stack,
            device=storage,
        )
        self.sampler = self.replay.sampler
        self.sampler.generator.manual_seed(self.seed)
        with self.make_environment() as environment_:  # an unknown one is rejected before training
            self.observation_space = environment_.observation_space
            self.action_space = environment_.action_space

    @property
    def needs(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``."""
        return super().needs | {"duty.collect"}

    @property
    def provides(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``."""
        keys = ("observation", "action", "reward", "next_observation", "terminated", "discount")
        names = {f"batch.{key}" for key in (*keys, "serial")}
        names |= {"data.replay", "data.make_environment", "data.evaluation_seeds"}
        return super().provides | names

    def make_environment(
        self, *, evaluation: bool = False, **kwargs: Any
    ) -> gymnasium.Env[Any, Any]:
        """Make an environment, for collection or for a greedy episode.

        Args:
            evaluation: whether it is for a greedy episode.
            kwargs: arguments of the environment that replace the configured ones.
        """
        evaluated = self.evaluation_environment_kwargs if evaluation else {}
        return make_environment(
            self.environment, **{**self.environment_kwargs, **evaluated, **kwargs}
        )

    def update(self, drawn: dict[str, Tensor], priority: Tensor) -> None:
        """Set new priorities, except of slots overwritten since they were drawn."""
        self.replay.update(drawn["index"], priority, serial=drawn["serial"])

    def _serve(self) -> Iterator[Batch]:
        batches = self.epoch()
        for draw in batches:
            batch = self.replay.get(draw.index)
            batch["serial"] = self.replay.serial(draw.index)
            batches.acknowledge()
            yield self.weighted(batch, draw)

    def train_dataloader(self) -> ServedBatches:
        """Replayed transitions, drawn when they are fetched."""
        return ServedBatches(self.batches_per_epoch, self._serve)

    def _episodes(self) -> DataLoader[dict[str, Tensor]]:
        world, rank = (
            (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        )
        local = self.evaluation_seeds[rank::world]
        if len(local) == 0:
            raise ValueError(
                f"evaluation_episodes is {len(self.evaluation_seeds)}, but there are {world} ranks "
                "and each plays at least one: raise evaluation_episodes"
            )
        seeds: Any = local  # a tensor is a dataset of its rows
        return DataLoader(seeds, batch_size=len(self.evaluation_seeds), collate_fn=_as_seeds)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The seeds of this rank's greedy episodes, in one batch."""
        return self._episodes()

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def state_dict(self) -> dict[str, Any]:
        """The buffer with its sampler, and the position in the epoch."""
        return {
            "batches": self._epoch_state(),
            "replay": self.replay.state_dict(),
            "seed": self.seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the same transitions, priorities and draws; does nothing in evaluation.

        So a checkpoint can be tested with another capacity or sampler.
        """
        if not self._fitting():
            return
        self.replay.load_state_dict(state_dict["replay"])
        self._restored = state_dict["batches"]
        self._restore_seed(state_dict)


def _as_seeds(rows: list[Tensor]) -> dict[str, Tensor]:
    return {"seed": torch.stack(rows)}
