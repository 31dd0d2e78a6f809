"""Prompts answered by the policy in training, as a datamodule: GRPO's data, with or without replay.

A *step* draws prompts, has an engine answer each several times, judges the answers, mixes in groups
from a replay, and serves the whole in micro-batches, ``inner_epochs`` times. The answers are
written when Lightning asks for a step's first micro-batch; as the loader has a length, it asks just
then and not one batch ahead, so the policy that answers is the one that is trained.

Gradients are accumulated as the Trainer says (``accumulate_grad_batches``): an optimizer update is
always one minibatch of ``batch_size * world_size / minibatches`` groups, cut into so many
micro-batches on each rank.

Where this departs from DOTS with Rollout Replay (Sun et al., 2025, algorithm 1), and why:
  1. Where fewer groups are left than are to be replayed, the whole batch is fresh, as in the paper;
     so it is too while the replay is still filling.
  2. A group is stored after the step it was written for, by ``callbacks.RolloutReplay``, with what
     that callback keeps.
"""

from collections.abc import Iterator
from typing import Any

import torch

from lit_adaptive.data.language import LanguageDataModule
from lit_adaptive.data.rollouts.collect import RolloutCollector
from lit_adaptive.data.rollouts.layout import Layout
from lit_adaptive.data.rollouts.metrics import step_metrics
from lit_adaptive.data.rollouts.minibatches import MinibatchBuilder, compute_prescores
from lit_adaptive.data.rollouts.options import check_objective, check_options, scorer_of
from lit_adaptive.data.rollouts.step import RolloutStep, fresh_groups
from lit_adaptive.data.sampled import Batch, ServedBatches, do_not_save_again, in_mid_epoch
from lit_adaptive.data.seeding import derive_seed, reseed
from lit_adaptive.data.text.prompt_dataset import PromptDataset
from lit_adaptive.replay.rollouts.buffer import RolloutBuffer
from lit_adaptive.replay.rollouts.groups import RolloutGroups
from lit_adaptive.rollout.engines.base import Engine
from lit_adaptive.rollout.engines.transformers import TransformersEngine
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer
from lit_adaptive.samplers import SamplerFactory, ShuffledSampler

_FRESH, _DEAL, _REPLAY = 1, 2, 3  # streams of random numbers


class RolloutDataModule(LanguageDataModule):
    """Prompts drawn by any sampler, answered by the policy, judged, and replayed.

    ``data.rollout_batches`` tells what a batch holds.

    Args:
        dataset: prompts to train on. If it has demonstrations, each group holds one of them.
        sampler: chooses prompts; by default each once per pass, shuffled.
        val_dataset: prompts to validate on.
        test_dataset: prompts for ``test`` and ``predict``; by default ``val_dataset``.
        rewards: judge answers; several with their weights, a time-out and processes of their own:
            ``lit_adaptive.rollout.Scorer``.
        engine: writes answers; by default the policy itself.
        sampling: how; ``temperature`` must be above 0.
        group_size: answers of a prompt, above 0.
        batch_size: groups of a step and rank, replayed ones among them.
        steps_per_epoch: by default as many as see each prompt once if none is replayed.
        inner_epochs: passes over a step's groups, above 0.
        minibatches: optimizer updates in a pass, above 0 and at most ``batch_size``.
        replay: keeps groups for later steps; needs ``callbacks.RolloutReplay``.
        replay_fraction: of a step's groups, in [0, 1); the paper's 1 - delta.
        replay_beta: how much of the replay's own bias weights correct, in [0, 1].
        drop_uninformative: leave out groups whose rewards are all equal (DAPO).
        refill: so many times more prompts are drawn, until all groups are informative.
        mask_truncated: answers that were cut teach nothing; their rewards stay in the baseline.
        overlong_cache: DAPO's soft punishment of length sets in so many tokens before the limit.
        share_prompts: answers of a group are trained on behind one copy of their prompt, where the
            model can and it is cheaper; the results are the same.
        beta: how much of the sampler's bias weights correct, in [0, 1].
        difficulty: see ``AdaptiveDataModule``.
        scores: see ``AdaptiveDataModule``.
        eval_batch_size: prompts answered at once where nothing is trained.
        seed: of all that is random; by default that of ``seed_everything``.

    Attributes:
        step: the step under way, None before the first.
        counters: cumulative ``generated_tokens``, ``rollouts`` and ``num_tokens``.

    Raises:
        ValueError: if an option is out of range, or rows do not fit (which).
    """

    dataset: PromptDataset
    _attached: Any

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
        refill: int = 0,
        mask_truncated: bool = False,
        overlong_cache: int = 0,
        share_prompts: bool = True,
        beta: float = 0.0,
        difficulty: str | None = None,
        scores: str | None = None,
        eval_batch_size: int | None = None,
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
            seed=seed,
        )
        self.sampling = sampling or SamplingParams()
        self.group_size, self.demonstrations = group_size, int(dataset.demonstrated)
        self.inner_epochs, self.minibatches = inner_epochs, minibatches
        self.replay, self.replay_fraction, self.replay_beta = replay, replay_fraction, replay_beta
        self.drop_uninformative, self.refill = drop_uninformative, refill
        self.mask_truncated, self.overlong_cache = mask_truncated, overlong_cache
        self.steps_per_epoch, self.share_prompts = steps_per_epoch, share_prompts
        check_options(self)
        self.scorer = scorer_of(rewards)
        self.engine = engine or TransformersEngine()
        if replay is not None:
            replay.generator.manual_seed(derive_seed(self.seed, _REPLAY))
        self.step: RolloutStep | None = None
        self.counters = {"generated_tokens": 0.0, "rollouts": 0.0, "num_tokens": 0.0}
        self._number, self._served = 0, 0  # steps begun; micro-batches of this epoch
        self._resumed, self._attached = False, None

    # What it offers and needs --------------------------------------------------------------------

    @property
    def provides(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``."""
        names = {"behavior_log_probs", "advantage", "age", "off_policy", "position", "target"}
        names |= {"input_ids", "position_ids", "sequence", "index", "weight", "probability"}
        own = ("step", "finished_step", "sampler", "beta", "tokenizer", "texts")
        offered = {f"batch.{name}" for name in names} | {f"data.{name}" for name in own}
        if self.replay is not None:
            offered.add("data.replay")
        if self.sampler.learns:
            offered |= {"data.update", "data.write_scores"}
        if self.sampler.follows_progress:
            offered.add("data.advance")
        return frozenset(offered)

    @property
    def needs(self) -> frozenset[str]:
        """An objective that makes advantages of rewards; a callback that fills the replay."""
        duty = {"duty.rollout_replay"} if self.replay_fraction > 0 else set[str]()
        return frozenset({"model.advantages"} | duty)

    remedies = {  # noqa: RUF012
        "duty.rollout_replay": "add callbacks.RolloutReplay, which fills the replay",
        "model.advantages": "train lit_adaptive.modules.GRPO, or give demonstrations to IWSFT",
    }

    @property
    def finished_step(self) -> RolloutStep | None:
        """The step whose last micro-batch was served; None in the midst of one."""
        over = self.step is not None and self.step.position >= self.layout.batches
        return self.step if over else None

    def setup(self, stage: str) -> None:
        """Refuse, before training, what the objective cannot learn from."""
        super().setup(stage)
        if stage == "fit" and self.trainer is not None:
            check_objective(self.trainer.lightning_module, self.group_size)

    # Serving -------------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        """How a step is cut, as the Trainer has it."""
        trainer = self.trainer
        return Layout(
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
            each = self.batch_size * layout.world_size
            self.steps_per_epoch = -(-self.sampler.size // each)
        return ServedBatches(self.steps_per_epoch * layout.batches, self._serve)

    def _serve(self) -> Iterator[Batch]:
        layout = self.layout
        assert self.steps_per_epoch is not None  # train_dataloader has set it
        if self._resumed and in_mid_epoch(self.trainer):
            do_not_save_again(self.trainer)
        else:
            self._served = 0
        self._resumed = False
        while self._served < self.steps_per_epoch * layout.batches:
            if self.step is None or self.step.position >= layout.batches:
                self.step = self._begin(layout)
            step = self.step
            maker = self._maker(step)
            rest = list(maker.parts(layout, self._seed(_DEAL, step.number)))
            for part in rest[step.position :]:
                if self._served >= self.steps_per_epoch * layout.batches:
                    return  # the next epoch goes on with this step
                batch = maker.batch(part) | self._constants
                reseed(derive_seed(self._seed(0, step.number), step.position, layout.rank))
                if step.position == 0:
                    batch["metrics"] = step.metrics
                step.position += 1
                self._served += 1
                yield batch

    @property
    def _constants(self) -> dict[str, Any]:
        """What the objective must know of how answers were drawn."""
        sampling = self.sampling
        return {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}

    def _seed(self, stream: int, number: int) -> int:
        return derive_seed(self.seed, stream, number)

    def _maker(self, step: RolloutStep) -> MinibatchBuilder:
        groups = step.groups
        trained = torch.ones(groups.rollouts, dtype=torch.bool)
        if self.mask_truncated:
            trained = groups.stopped  # as demonstrations are
        pad = int(self.tokenizer.pad_token_id)
        model: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        cost = getattr(model, "attention_cost_ratio", None) if self.share_prompts else None
        return MinibatchBuilder(
            groups, trained, step.number, pad=pad, attention_cost_ratio=cost, more=step.more
        )

    def _begin(self, layout: Layout) -> RolloutStep:
        """The next step."""
        model: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        if self._attached is not model:
            self.engine.attach(model)
            self._attached = model
            self._check_replay(model)
        step, self._number = self._mixed(model, layout), self._number + 1
        names = model.required_prescores(layout.minibatches * layout.inner_epochs)
        if names:
            once = layout._replace(inner_epochs=1)
            seed = self._seed(_DEAL, step.number)
            found = compute_prescores(
                self._maker(step), self.trainer, names, once, seed, self._constants
            )
            step.more = model.postprocess_prescores(found)
        return step

    def _mixed(self, model: Any, layout: Layout) -> RolloutStep:
        """Fresh groups, and some of the replay's if it has enough."""
        total, number = self.batch_size * layout.world_size, self._number
        replayed = min(round(self.replay_fraction * total), total - layout.world_size)
        if self.replay is not None:
            self.replay.expire(number)
        if self.replay is None or len(self.replay) < replayed:
            replayed = 0
        self.engine.sync(number)
        made = fresh_groups(
            self._asking(model),
            self.sampler,
            total - replayed,
            refill=self.refill,
            drop=self.drop_uninformative,
            beta=self.beta,
            version=number,
            seed=self._seed(_FRESH, number),
            rank=layout.rank,
            world_size=layout.world_size,
        )
        groups, keys = made.groups.select(made.chosen), torch.empty(0, dtype=torch.int64)
        if replayed:
            assert self.replay is not None
            old = self.replay.draw(replayed, version=number, weight_beta=self.replay_beta)
            keys, groups = old.key, RolloutGroups.cat([groups, old.groups])
            groups.weight[len(made.chosen) :] *= old.weight.float()
        for name in ("generated_tokens", "rollouts", "num_tokens"):
            self.counters[name] += made.took.pop(name)
        told = step_metrics(made.groups, groups, len(made.chosen), number, self.replay)
        metrics = made.took | told | self.counters
        return RolloutStep(number, groups, made.groups, keys, metrics=metrics)

    def _asking(self, model: Any) -> RolloutCollector:
        return RolloutCollector(
            self.dataset,
            self.engine,
            self.scorer,
            self.sampling,
            self.group_size,
            self.demonstrations,
            self.overlong_cache,
            model.advantages,
        )

    # Memory --------------------------------------------------------------------------------------

    def _check_replay(self, model: Any) -> None:
        """Groups of another model, tokenizer or dataset are of no use."""
        if self.replay is not None:
            self.replay.fingerprint = (
                f"{self.dataset.fingerprint}-{model.architecture_fingerprint()}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The sampler, the replay, the step under way, and how far all has come."""
        return {
            "sampler": self.sampler.state_dict(),
            "replay": None if self.replay is None else self.replay.state_dict(),
            "step": None if self.step is None else self.step.state_dict(),
            "number": self._number,
            "served": self._served,
            "counters": dict(self.counters),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as if the run had never stopped; nothing where nothing is drawn."""
        if not self._fitting():
            return
        if self.replay is not None and self.trainer is not None:
            self._check_replay(self.trainer.lightning_module)
        self.sampler.load_state_dict(state_dict["sampler"])
        if self.replay is not None and state_dict["replay"] is not None:
            self.replay.load_state_dict(state_dict["replay"])
        saved = state_dict["step"]
        self.step = None if saved is None else RolloutStep.from_state_dict(saved)
        self._number, self._served = int(state_dict["number"]), int(state_dict["served"])
        self.counters = dict(state_dict["counters"])
        self._resumed = True

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Stop the rewards' processes, and let the engine go."""
        self.scorer.close()
        self.engine.close()
