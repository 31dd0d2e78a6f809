"""Datamodule of rollouts for policy gradients, with or without replay.

A *step* draws prompts, has an engine generate several completions of each, scores them, adds groups
from the replay buffer, and serves all groups in micro-batches, ``inner_epochs`` times. Completions
are generated when Lightning fetches a step's first micro-batch. The loader has a length, so
Lightning fetches no batch ahead, and the policy that generates is the one that is trained.

Gradients are accumulated as the Trainer says (``accumulate_grad_batches``): an optimizer update is
always one minibatch of ``batch_size * world_size / minibatches`` groups, cut into that many
micro-batches on each rank.

Where this departs from DOTS with Rollout Replay (Sun et al., 2025, algorithm 1), and why:
  1. If the buffer holds fewer groups than are to be replayed, the whole step is fresh, as in the
     paper; this also covers the first steps.
  2. ``callbacks.RolloutReplay`` stores the groups after the step they were generated for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.advantages import has_spread
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.shares import share_count
from lit_adaptive.data.fingerprint import row_hashes
from lit_adaptive.data.language import LanguageDataModule
from lit_adaptive.data.rollouts.collect import (
    FreshRollouts,
    RolloutCollector,
    collect_draw,
    collect_fresh_rollouts,
    collect_trajectories,
    count_tokens,
)
from lit_adaptive.data.rollouts.metrics import step_metrics
from lit_adaptive.data.rollouts.minibatches import MicroBatchBuilder, StepLayout, compute_prescores
from lit_adaptive.data.sampled import Batch, ServedBatches, in_mid_epoch, skip_save_at_this_step
from lit_adaptive.data.seeding import derive_seed, reseed
from lit_adaptive.data.text.prompt_dataset import PromptDataset
from lit_adaptive.data.text.tokenization import tokenizer_key
from lit_adaptive.replay.rollouts.buffer import RolloutBuffer
from lit_adaptive.replay.rollouts.groups import RolloutGroups
from lit_adaptive.replay.trajectories import TrajectoryStore
from lit_adaptive.rollout.engines.base import Engine
from lit_adaptive.rollout.engines.transformers import TransformersEngine
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer, as_scorer
from lit_adaptive.samplers import Draw, SamplerFactory, ShuffledSampler

OnChangedPrompts = Literal["error", "warn", "remap"]

_SERVE, _FRESH, _DEAL, _REPLAY, _REFERENCE, _TRAJECTORIES = range(6)  # random streams


@dataclass
class RolloutStep:
    """A step under way; the same on every rank.

    Attributes:
        number: number of the step, from 0; also the policy's version.
        groups: groups that are trained on: fresh ones, then replayed ones.
        fresh: all groups that were generated for this step, whether trained on or not; those of
            ``RolloutDataModule.roll_out`` first.
        keys: ``[replayed]`` int64, keys of the replayed groups in the replay buffer.
        position: number of micro-batches served.
        token_values: values per token ``[K]`` of ``groups``, computed before the first update.
        metrics: metrics of the step, by name.
    """

    number: int
    groups: RolloutGroups
    fresh: RolloutGroups
    keys: Tensor
    position: int = 0
    token_values: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """The step as tensors and primitives, without timings."""
        return {
            "number": self.number,
            "groups": self.groups.state_dict(),
            "fresh": self.fresh.state_dict(),
            "keys": self.keys.clone(),
            "position": self.position,
            "token_values": {name: value.clone() for name, value in self.token_values.items()},
            "metrics": {n: v for n, v in self.metrics.items() if "seconds" not in n},
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "RolloutStep":
        """The step that ``state_dict`` saved."""
        fields = dict(state)
        for name in ("groups", "fresh"):
            fields[name] = RolloutGroups.from_state_dict(state[name])
        return cls(**fields)


class RolloutDataModule(LanguageDataModule):
    """Prompts drawn by any sampler, completed by the policy, scored, and replayed.

    See ``MicroBatchBuilder`` for the keys of a batch.

    Args:
        dataset: prompts to train on. If it has demonstrations, each group holds one of them in
            place of a completion.
        sampler: chooses prompts; by default each once per pass, shuffled.
        val_dataset: prompts to validate on.
        test_dataset: prompts for ``test`` and ``predict``; by default ``val_dataset``.
        rewards: score completions. A ``lit_adaptive.rollout.Scorer`` combines several rewards with
            weights, a time-out and worker processes. The default compares with the column
            ``answer``.
        engine: generates completions; by default the policy itself.
        sampling: sampling parameters; the temperature must be above 0.
        group_size: rollouts per prompt, above 0.
        batch_size: groups per step and rank, replayed ones included.
        steps_per_epoch: steps per epoch; by default as many as draw each prompt once without
            replay.
        inner_epochs: passes over a step's groups, above 0.
        minibatches: optimizer updates per pass, above 0 and at most ``batch_size``.
        replay: buffer that keeps groups for later steps; requires ``callbacks.RolloutReplay``.
        replay_fraction: fraction of a step's groups that is replayed, in [0, 1); the paper's
            1 - delta.
        replay_beta: strength of the correction of the replay buffer's sampling bias, in [0, 1];
            1 corrects fully.
        drop_uninformative: leave out groups whose rewards are all equal (DAPO).
        replace_uninformative: fill the places of groups that were left out with replayed groups
            (POPO, arXiv:2606.01281), as far as the buffer has them.
        refill: how many times more prompts may be drawn to replace uninformative groups.
        mask_truncated: do not train on completions that reached ``max_new_tokens``; their rewards
            stay in the baseline.
        overlong_cache: number of tokens before ``max_new_tokens`` over which DAPO's soft length
            penalty grows; 0 for no penalty.
        share_prompts: train the rollouts of a group behind one copy of their prompt, where the
            model supports it and it is cheaper; the results are the same.
        beta: strength of the correction of the sampler's bias, in [0, 1]; 1 corrects fully.
        difficulty: see ``AdaptiveDataModule``.
        scores: see ``AdaptiveDataModule``.
        eval_batch_size: prompts per batch in validation, test and prediction.
        on_changed_data: on resuming with prompts or columns that differ from the checkpoint's,
            raise an error; or ``warn`` and go on with an empty replay buffer; or ``remap``, for a
            ``DifficultySampler``, which also takes each prompt's estimates by its id from the
            checkpoint, wherever it is now. A step that was under way is given up.
        seed: seed of everything random; by default that of ``seed_everything``.

    Attributes:
        step: the step under way; None before the first.
        counters: cumulative ``generated_tokens``, ``rollouts`` and ``num_tokens``.
        checkpoint_rows: ``[N]`` int64, row of each prompt in the data of the checkpoint, -1 for a
            new one; None unless prompts were remapped.

    Raises:
        ValueError: if an option is out of range.
    """

    dataset: PromptDataset
    _changed_data_options: ClassVar[tuple[str, ...]] = get_args(OnChangedPrompts)

    def __init__(
        self,
        dataset: PromptDataset,
        sampler: SamplerFactory = ShuffledSampler,
        *,
        val_dataset: PromptDataset | None = None,
        test_dataset: PromptDataset | None = None,
        rewards: Reward | Scorer | None = None,
        engine: Engine | None = None,
        sampling: SamplingParams | None = None,
        group_size: int = 8,
        batch_size: int = 32,
        steps_per_epoch: int | None = None,
        inner_epochs: int = 1,
        minibatches: int = 1,
        replay: RolloutBuffer | None = None,
        replay_fraction: float = 0.0,
        replay_beta: float = 0.0,
        drop_uninformative: bool = False,
        replace_uninformative: bool = False,
        refill: int = 0,
        mask_truncated: bool = False,
        overlong_cache: int = 0,
        share_prompts: bool = True,
        beta: float = 0.0,
        difficulty: str | None = None,
        scores: str | None = None,
        eval_batch_size: int | None = None,
        on_changed_data: OnChangedPrompts = "error",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            dataset,
            sampler,
            val_dataset=val_dataset,
            test_dataset=test_dataset,
            batch_size=batch_size,
            beta=beta,
            difficulty=difficulty,
            scores=scores,
            eval_batch_size=eval_batch_size,
            on_changed_data=on_changed_data,
            seed=seed,
        )
        self.sampling = sampling or SamplingParams()
        self.group_size = group_size
        self.demonstrations = int(dataset.demonstrated)
        self.steps_per_epoch = steps_per_epoch
        self.inner_epochs = inner_epochs
        self.minibatches = minibatches
        self.replay = replay
        self.replay_fraction = replay_fraction
        self.replay_beta = replay_beta
        self.drop_uninformative = drop_uninformative
        self.replace_uninformative = replace_uninformative
        self.refill = refill
        self.mask_truncated = mask_truncated
        self.overlong_cache = overlong_cache
        self.share_prompts = share_prompts
        self._check_options()
        self.scorer = as_scorer(rewards)
        self.engine = engine or TransformersEngine()
        if replay is not None:
            replay.generator.manual_seed(derive_seed(self.seed, _REPLAY))
        self.step: RolloutStep | None = None
        self.counters = {"generated_tokens": 0.0, "rollouts": 0.0, "num_tokens": 0.0}
        self._next_step = 0
        self._ahead = RolloutGroups.empty()  # rolled out before the next step
        self._train_ahead = True
        self._served = 0  # micro-batches of this epoch
        self._resumed = False
        self.checkpoint_rows: Tensor | None = None
        self._attached: Any = None

    def _check_options(self) -> None:
        check_at_least(
            group_size=(self.group_size, 1 + self.demonstrations),
            inner_epochs=(self.inner_epochs, 1),
            minibatches=(self.minibatches, 1),
            refill=(self.refill, 0),
            overlong_cache=(self.overlong_cache, 0),
            steps_per_epoch=(self.steps_per_epoch, 1),
        )
        if self.minibatches > self.batch_size:
            raise ValueError(
                f"minibatches is {self.minibatches}, but a step has {self.batch_size} groups per "
                "rank (batch_size) and groups are not split: lower minibatches"
            )
        if self.sampling.temperature <= 0:
            raise ValueError(
                f"temperature is {self.sampling.temperature}; greedy completions of a prompt are "
                "all equal, so nothing can be learnt from them: set it above 0"
            )
        if self.sampling.repetition_penalty != 1:
            raise ValueError(
                f"repetition_penalty is {self.sampling.repetition_penalty}; completions would be "
                "sampled from another distribution than the policy's, which no importance weight "
                "corrects here: set it to 1 (callbacks.PassAtK and RejectionSampling accept it)"
            )
        if not 0 <= self.replay_fraction < 1:
            raise ValueError(
                f"replay_fraction is {self.replay_fraction}; it must lie in [0, 1): some groups "
                "must be fresh"
            )
        if not 0 <= self.replay_beta <= 1:
            raise ValueError(f"replay_beta is {self.replay_beta}; it must lie in [0, 1]")
        if self.replay_fraction > 0 and self.replay is None:
            raise ValueError(
                f"replay_fraction is {self.replay_fraction}, but there is no replay buffer: set "
                "replay to a lit_adaptive.replay.RolloutBuffer, or replay_fraction to 0"
            )
        if self.replace_uninformative and (self.replay is None or not self.drop_uninformative):
            raise ValueError(
                "replace_uninformative is true, which fills the places of groups that were left "
                "out: set drop_uninformative to true and replay to a "
                "lit_adaptive.replay.RolloutBuffer"
            )
        if self.on_changed_data == "remap" and not hasattr(self.sampler, "load_remapped"):
            raise ValueError(
                f"on_changed_data is 'remap', but {type(self.sampler).__name__} keeps no estimates "
                "that could be taken over by id: set sampler to "
                "lit_adaptive.samplers.DifficultySampler, or on_changed_data to warn or error"
            )
        if self.overlong_cache > self.sampling.max_new_tokens:
            raise ValueError(
                f"overlong_cache is {self.overlong_cache}; completions have at most "
                f"{self.sampling.max_new_tokens} tokens (max_new_tokens): lower overlong_cache"
            )

    # Contract ------------------------------------------------------------------------------------

    @property
    def provides(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``."""
        keys = {"behavior_log_probs", "advantage", "age", "off_policy", "position", "target"}
        keys |= {"input_ids", "position_ids", "sequence", "index", "weight", "probability"}
        attributes = (
            "step",
            "finished_step",
            "roll_out",
            "trajectories",
            "sampler",
            "beta",
            "tokenizer",
            "texts",
        )
        names = {f"batch.{key}" for key in keys} | {f"data.{name}" for name in attributes}
        if self.replay is not None:
            names.add("data.replay")
        if hasattr(self.sampler, "set_prediction"):
            names.add("data.predictions")
        if self.sampler.learns:
            names |= {"data.update", "data.write_scores"}
        if self.sampler.follows_progress:
            names.add("data.advance")
        return frozenset(names)

    @property
    def needs(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``."""
        replays = self.replay_fraction > 0 or self.replace_uninformative
        duty = {"duty.rollout_replay"} if replays else set[str]()
        return super().needs | {"model.advantages"} | duty

    remedies: ClassVar[dict[str, str]] = {
        **LanguageDataModule.remedies,
        "duty.feedback": "the sampler learns from what it draws, and would stay as it is: add "
        "callbacks.PromptStatistics to trainer.callbacks",
        "duty.rollout_replay": "add callbacks.RolloutReplay, which fills the replay buffer",
        "model.advantages": "train lit_adaptive.modules.GRPO, or use DemonstrationsDataModule",
    }

    @property
    def finished_step(self) -> RolloutStep | None:
        """The step whose last micro-batch was served; None while a step is being served."""
        finished = self.step is not None and self.step.position >= self.layout.batches
        return self.step if finished else None

    def setup(self, stage: str) -> None:
        """Check before training that the objective accepts groups of this size.

        Raises:
            ValueError: if it does not.
        """
        super().setup(stage)
        if stage != "fit" or self.trainer is None:
            return
        size: int | None = getattr(self.sampler, "group_size", None)
        if size not in (None, self.group_size):
            raise ValueError(
                f"group_size is {self.group_size}, but {size} in the sampler, which counts the "
                "rollouts behind each pass rate: give both the same"
            )
        module: Any = self.trainer.lightning_module
        size = self.group_size
        try:
            reward = (torch.arange(size) == 0).float()
            advantage = module.advantages(reward, torch.zeros(size, dtype=torch.int64), 1)
        except ValueError as error:
            raise ValueError(
                f"group_size is {size}, and the objective rejects such groups: {error}"
            ) from error
        if not bool(advantage.any()):
            raise ValueError(
                f"group_size is {size}, and all advantages of such groups are 0: a reward is "
                "compared with the others of its group; use at least 2, or advantage signs"
            )

    # Serving -------------------------------------------------------------------------------------

    @property
    def layout(self) -> StepLayout:
        """How the Trainer's settings cut a step into micro-batches."""
        trainer = self.trainer
        return StepLayout(
            self.inner_epochs,
            self.minibatches,
            trainer.accumulate_grad_batches if trainer else 1,
            trainer.global_rank if trainer else 0,
            trainer.world_size if trainer else 1,
        )

    def train_dataloader(self) -> ServedBatches:
        """Micro-batches of the epoch's steps."""
        layout = self.layout
        if self.steps_per_epoch is None:
            self.steps_per_epoch = -(-self.sampler.size // (self.batch_size * layout.world_size))
        return ServedBatches(self.steps_per_epoch * layout.batches, self._serve)

    def _serve(self) -> Iterator[Batch]:
        layout = self.layout
        assert self.steps_per_epoch is not None  # set by train_dataloader
        if self._resumed and in_mid_epoch(self.trainer):
            skip_save_at_this_step(self.trainer)
        else:
            self._served = 0
        self._resumed = False
        while self._served < self.steps_per_epoch * layout.batches:
            if self.step is None or self.step.position >= layout.batches:
                self.step = self._begin_step(layout)
            step = self.step
            builder = self._builder(step)
            plan = list(builder.micro_batches(layout, self._seed(_DEAL, step.number)))
            for micro_batch in plan[step.position :]:
                if self._served >= self.steps_per_epoch * layout.batches:
                    return  # the next epoch continues this step
                batch = builder.build(micro_batch) | self._constants
                reseed(derive_seed(self._seed(_SERVE, step.number), step.position, layout.rank))
                if step.position == 0:
                    batch["metrics"] = step.metrics
                step.position += 1
                self._served += 1
                yield batch

    @property
    def _constants(self) -> dict[str, Any]:
        """Sampling parameters that the objective needs."""
        sampling = self.sampling
        return {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}

    def _seed(self, stream: int, number: int) -> int:
        return derive_seed(self.seed, stream, number)

    def _builder(self, step: RolloutStep) -> MicroBatchBuilder:
        groups = step.groups
        trained = torch.ones(groups.rollouts, dtype=torch.bool)
        if self.mask_truncated:
            trained = groups.stopped  # true for demonstrations
        module: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        ratio = getattr(module, "attention_cost_ratio", None) if self.share_prompts else None
        return MicroBatchBuilder(
            groups,
            trained,
            step.number,
            pad=int(self.tokenizer.pad_token_id),
            attention_cost_ratio=ratio,
            token_values=step.token_values,
        )

    def _begin_step(self, layout: StepLayout) -> RolloutStep:
        """Collect the next step, and compute the per-token values that its updates need."""
        module = self._attach()
        step, self._next_step = self._compose_step(module, layout), self._next_step + 1
        names = module.required_prescores(layout.minibatches * layout.inner_epochs)
        if names:
            one_pass = layout._replace(inner_epochs=1)
            seed = self._seed(_DEAL, step.number)
            prescores = compute_prescores(
                self._builder(step), self.trainer, names, one_pass, seed, self._constants
            )
            step.token_values = module.postprocess_prescores(prescores)
        return step

    def _attach(self) -> Any:
        """The module in training, after the engine has been connected to it."""
        module: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        if self._attached is not module:
            self.engine.attach(module)
            self._attached = module
            self._set_replay_fingerprint(module)
        return module

    @property
    def next_version(self) -> int:
        """Version of the policy that generates the next step: the number of that step."""
        return self._next_step

    def roll_out(
        self, index: Tensor, *, train: bool = True
    ) -> tuple[RolloutGroups, dict[str, float]]:
        """Complete and score prompts between two steps; all ranks must call it together.

        Their tokens are counted, and the next step has them in ``fresh``.

        Args:
            index: ``[K]`` int64, distinct prompts, the same on every rank.
            train: let the next step train on the informative groups in place of other fresh ones.

        Returns:
            Their groups, in this order, and timings and counts by name.
        """
        module, layout = self._attach(), self.layout
        self.engine.sync(self._next_step)
        uniform = torch.full((len(index),), 1 / self.sampler.size, dtype=torch.float64)
        groups, metrics, _ = collect_draw(
            self._collector(module),
            Draw(index, uniform),
            torch.ones(len(index)),
            version=self._next_step,
            seed=self._seed(_REFERENCE, self._next_step),
            rank=layout.rank,
            world_size=layout.world_size,
        )
        metrics["num_tokens"] = count_tokens(groups)
        for name in self.counters:
            self.counters[name] += metrics[name]
        self._ahead, self._train_ahead = RolloutGroups.cat([self._ahead, groups]), train
        return groups, metrics

    def _take_ahead(self, count: int) -> tuple[RolloutGroups, Tensor]:
        """Groups that ``roll_out`` made, and at most ``count`` informative ones among them."""
        groups, self._ahead = self._ahead, RolloutGroups.empty()
        spread = has_spread(groups.reward, groups.group, len(groups))
        return groups, spread.nonzero().flatten()[: count * self._train_ahead]

    def _compose_step(self, module: Any, layout: StepLayout) -> RolloutStep:
        """Fresh groups, and replayed ones if the buffer holds enough."""
        total, number = self.batch_size * layout.world_size, self._next_step
        replayed = share_count(self.replay_fraction, total, rounding=round)
        replayed = min(replayed, total - layout.world_size)
        if self.replay is not None:
            self.replay.expire(number)
        if self.replay is None or len(self.replay) < replayed:
            replayed = 0
        ahead, informative = self._take_ahead(total - replayed)
        fresh = self._collect_fresh(module, layout, total - replayed - len(informative))
        generated = RolloutGroups.cat([ahead, fresh.groups])
        groups = generated.select(torch.cat([informative, fresh.chosen + len(ahead)]))
        trained_fresh, keys = len(groups), torch.empty(0, dtype=torch.int64)
        if self.replace_uninformative and self.replay is not None:
            missing = total - replayed - trained_fresh
            replayed += min(missing, len(self.replay) - replayed)
        if replayed:
            assert self.replay is not None
            draw = self.replay.draw(replayed, version=number, beta=self.replay_beta)
            keys, groups = draw.key, RolloutGroups.cat([groups, draw.groups])
            groups.weight[trained_fresh:] *= draw.weight.float()
        for name in self.counters:
            self.counters[name] += fresh.metrics.pop(name, 0.0)
        drawn = fresh.groups if len(fresh.groups) else generated
        metrics = step_metrics(drawn, groups, trained_fresh, number, self.replay)
        metrics = fresh.metrics | metrics | self.counters
        return RolloutStep(number, groups, generated, keys, metrics=metrics)

    def _collect_fresh(self, module: Any, layout: StepLayout, count: int) -> FreshRollouts:
        """``count`` fresh groups over all ranks, by the policy as it is now."""
        self.engine.sync(self._next_step)
        return collect_fresh_rollouts(
            self._collector(module),
            self.sampler,
            count,
            refill=self.refill,
            drop=self.drop_uninformative,
            beta=self.beta,
            version=self._next_step,
            seed=self._seed(_FRESH, self._next_step),
            rank=layout.rank,
            world_size=layout.world_size,
        )

    def _collector(self, module: Any) -> RolloutCollector:
        return RolloutCollector(
            self.dataset,
            self.engine,
            self.scorer,
            self.sampling,
            self.group_size,
            self.demonstrations,
            self.overlong_cache,
            module.advantages,
        )

    def trajectory_facts(self, dataset: PromptDataset | None = None) -> dict[str, str]:
        """What stored trajectories of a dataset depend on, beside the weights, by name.

        Args:
            dataset: the prompts; by default those that are trained on.
        """
        module: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        return {
            "tokenizer": tokenizer_key(self.tokenizer),
            "prompts": (dataset or self.dataset).fingerprint,
            "model": module.architecture_fingerprint(),
            "temperature": repr(float(self.sampling.temperature)),
        }

    def collect_trajectories(
        self, folder: str, *, dataset: PromptDataset | None = None, samples: int | None = None
    ) -> Iterator[int]:
        """Roll out all prompts with the policy as it is, into a ``TrajectoryStore``; resumable.

        All ranks must call it together.

        Args:
            folder: of the store.
            dataset: prompts with the columns that the rewards need; by default those that are
                trained on.
            samples: rollouts per prompt; by default ``group_size``.

        Yields:
            The number of prompts that are still missing.

        Raises:
            ValueError: if the folder has trajectories of another policy, task or seed.
        """
        module, layout = self._attach(), self.layout
        self.engine.sync(self._next_step)
        sampling = self.sampling
        facts = self.trajectory_facts(dataset) | {
            "weights": module.fingerprint(),
            "sampling": f"top_p {sampling.top_p}, top_k {sampling.top_k}, max_new_tokens "
            f"{sampling.max_new_tokens}",
            "samples": str(samples or self.group_size),
            "seed": str(self.seed),
        }
        collector = replace(
            self._collector(module),
            dataset=dataset or self.dataset,
            group_size=samples or self.group_size,
        )
        yield from collect_trajectories(
            collector,
            TrajectoryStore(folder, facts),
            at_once=self.batch_size,
            seed=self._seed(_TRAJECTORIES, 0),
            rank=layout.rank,
            world_size=layout.world_size,
        )

    # State ---------------------------------------------------------------------------------------

    def _set_replay_fingerprint(self, module: Any) -> None:
        """Make the replay buffer reject groups of another model, tokenizer or dataset."""
        if self.replay is not None:
            self.replay.fingerprint = (
                f"{self.dataset.fingerprint}-{module.architecture_fingerprint()}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The sampler, the replay buffer, the step under way, and the position in the epoch."""
        return {
            "sampler": self.sampler.state_dict(),
            "replay": None if self.replay is None else self.replay.state_dict(),
            "step": None if self.step is None else self.step.state_dict(),
            "next_step": self._next_step,
            "ahead": self._ahead.state_dict(),
            "train_ahead": self._train_ahead,
            "served": self._served,
            "counters": dict(self.counters),
            "data": self._fingerprint,
            "ids": self._id_hashes,
            "day": self.dataset.day,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as if the run had never stopped; does nothing outside of training."""
        if not self._fitting():
            return
        same_data = self._check_data(state_dict)
        self.set_day(state_dict.get("day"))
        if self.replay is not None and self.trainer is not None:
            self._set_replay_fingerprint(self.trainer.lightning_module)
        self._next_step, self._served = int(state_dict["next_step"]), int(state_dict["served"])
        self.counters = dict(state_dict["counters"])
        self._resumed = True
        if self.on_changed_data == "remap" and not same_data:
            self._remap(state_dict)
            return
        self.sampler.load_state_dict(state_dict["sampler"])
        if self.replay is not None and state_dict["replay"] is not None and same_data:
            self.replay.load_state_dict(state_dict["replay"])
        self._ahead = RolloutGroups.from_state_dict(state_dict["ahead"])
        self._train_ahead = bool(state_dict["train_ahead"])
        step = state_dict["step"]
        self.step = None if step is None else RolloutStep.from_state_dict(step)

    @cached_property
    def _id_hashes(self) -> Tensor | None:
        """A hash of each prompt's id: ``[N]`` int64; None if ids are row numbers."""
        if self.dataset.id_column is None:
            return None
        return torch.from_numpy(row_hashes(self.ids).astype(np.int64))

    def _remap(self, state_dict: dict[str, Any]) -> None:
        """Take over the estimates of the prompts that the checkpoint has, by their ids.

        Raises:
            ValueError: if prompts have no ids, or none has an id of the checkpoint.
        """
        saved, ids = state_dict.get("ids"), self._id_hashes
        if saved is None or ids is None:
            raise ValueError(
                "on_changed_data is 'remap', but the prompts have no ids, now or in the "
                "checkpoint: give both sets a column of ids (the dataset's option id)"
            )
        known, order = saved.sort()
        place = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
        rows = torch.where(known[place] == ids, order[place], -1)
        if not bool((rows >= 0).any()):
            raise ValueError(
                "on_changed_data is 'remap', but no prompt has an id of the checkpoint's: start a "
                "new run"
            )
        sampler: Any = self.sampler
        sampler.load_remapped(state_dict["sampler"], rows)
        self.checkpoint_rows = rows

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Stop the scorer's worker processes, and close the engine."""
        self.checkpoint_rows = None
        self.scorer.close()
        self.engine.close()
