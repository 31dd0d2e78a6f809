"""Base class of the modules that train a language model.

It builds the model and its frozen reference, saves and loads their weights, generates completions,
evaluates on validation and test sets, and configures the optimizer. ``GRPO`` and ``IWSFT`` add the
training step.
"""

from abc import abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.segments import segment_mean, segment_sum
from lit_adaptive.modules.base import EvaluatedModule, evaluation_mode
from lit_adaptive.modules.language.arguments import (
    ARGUMENTS,
    TOKENIZER,
    given_arguments,
    module_arguments,
    restore_tokenizer,
    tokenizer_files,
    warn_of_left_out,
)
from lit_adaptive.modules.language.checkpoints import (
    architecture_fingerprint,
    check_facts,
    drop_frozen_weights,
    load_weights,
    save_facts,
    weights_fingerprint,
)
from lit_adaptive.modules.language.network import LanguageModel
from lit_adaptive.modules.language.recipes import CausalLM
from lit_adaptive.modules.optimization import Optimization
from lit_adaptive.rollout.generation import (
    Completions,
    SamplingParams,
    generate,
    left_pad_sequences,
)
from lit_adaptive.rollout.models.tokenizers import decode_completions, stop_token_ids
from lit_adaptive.rollout.rewards.base import COMPLETION_IDS, Reward
from lit_adaptive.rollout.rewards.scorer import Scorer, as_scorer

_METRICS = ("nll", "token_accuracy", "exact_match")


class PolicyModule(EvaluatedModule):
    """A language model that is trained, evaluated and sampled from.

    Args:
        model: recipe of the language model.
        optimization: optimizer and learning-rate schedule.
        weights: path of a checkpoint of such a module to start from; by default the weights that
            ``model`` gives.
        max_new_tokens: maximum length of greedy completions, in tokens; 0 for none.
        reward: scores greedy completions; by default whether they equal the column ``answer``.

    Raises:
        ValueError: if ``max_new_tokens`` is negative, or ``weights`` does not exist.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        optimization: Optimization,
        weights: str | None,
        max_new_tokens: int,
        reward: Reward | Scorer | None,
    ) -> None:
        super().__init__()
        check_at_least(max_new_tokens=(max_new_tokens, 0))
        if weights is not None and not Path(weights).exists():
            raise ValueError(
                f"weights is {weights!r}, which does not exist: give the path of a checkpoint"
            )
        if given_arguments():
            self.save_hyperparameters(logger=False)
        self.recipe = model
        self._given = {"model": model, "reward": reward}
        self.optimization = optimization
        self.weights = weights
        self.max_new_tokens = max_new_tokens
        self.scorer = as_scorer(reward)
        self.language: LanguageModel | None = None
        self._tokenizer: Any = None  # of the checkpoint that this module was loaded from
        self._tokenizer_files: dict[str, bytes] | None = None
        self._frozen: tuple[LanguageModel, ...] = ()  # in a tuple it is not part of the state
        self.metrics = nn.ModuleDict(
            {
                stage: nn.ModuleDict({name: MeanMetric() for name in _METRICS})
                for stage in ("val", "test")
            }
        )
        if model.lora is not None:
            self.strict_loading = False  # a checkpoint holds the adapters only

    # Model and reference -------------------------------------------------------------------------

    @property
    def policy(self) -> LanguageModel:
        """The language model in training."""
        assert self.language is not None  # Lightning calls configure_model before anything else
        return self.language

    @property
    def tokenizer(self) -> Any:
        """The datamodule's tokenizer; without a trainer that of the checkpoint."""
        if self._trainer is None:
            return self._tokenizer
        return self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]

    @property
    def transformer(self) -> Any:
        """The transformers model, with its adapters if any."""
        return self.policy.base

    @property
    def attention_cost_ratio(self) -> float | None:
        """See ``probes.attention_cost_ratio``; None if prompts cannot be shared."""
        return self.policy.attention_cost_ratio

    def configure_model(self) -> None:
        """Build the model and those beside it; shard them where the strategy does."""
        if self.language is not None or (self._trainer is None and self._tokenizer is None):
            return  # load_from_checkpoint calls this before on_load_checkpoint
        self.language = self.build()
        models = [self.language, *self._build_companions()]
        if self.device_mesh is not None:
            for model in models:
                model.shard(self.device_mesh["data_parallel"])

    @abstractmethod
    def _build_companions(self) -> list[LanguageModel]:
        """Build the models beside the trained one: its reference, or its moving average."""

    def build(self) -> LanguageModel:
        """A new language model with the weights that training starts from."""
        language = self.recipe.build(self.tokenizer)
        if self.weights is not None:
            load_weights(language, self.weights, self.recipe.facts(language))
        if self._trainer is not None:
            self._check_data(language)
        return language

    def _check_data(self, language: LanguageModel) -> None:
        """Check that the model can read the rows of the datasets, and their longest sequences."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        rollouts: Any = getattr(data, "sampling", None)  # of RolloutDataModule
        for name in ("dataset", "val_dataset", "test_dataset"):
            dataset: Any = getattr(data, name, None)
            if getattr(dataset, "packing", False) and not language.packs:
                raise ValueError(
                    f"packing is true for {name}, but {type(language.base).__name__} lets samples "
                    "of one row affect each other (it carries a state from token to token, or does "
                    "not read position ids): set packing to false"
                )
            added: Any = getattr(dataset, "added_tokens", ())
            if added and not language.trains_embeddings:
                raise ValueError(
                    f"added_tokens of {name} are {[*added]}, but lora freezes the embeddings, so "
                    "that these tokens would never be learned: set the model's lora to null or, "
                    "where input and output embeddings are not tied, name the input embedding in "
                    "its targets"
                )
            prompts: Any = getattr(dataset, "prompt_lengths", None)
            if prompts is None:
                continue
            new = max(self.max_new_tokens - 1, 0)  # the last token is not read
            if name == "dataset":
                new = 0 if rollouts is None else rollouts.max_new_tokens
            remedy = "lower max_length of the dataset or max_new_tokens"
            self._check_length(language, name, int(prompts.max()), new, remedy)
            if getattr(dataset, "demonstrated", False):  # prompts with a good answer each
                remedy = "leave out the rows of long demonstrations"
                longest = int((prompts + dataset.demonstration_lengths).max())
                self._check_length(language, name, longest, 0, remedy)
            if hasattr(dataset, "offsets"):  # demonstrations
                remedy = "lower max_length of the dataset"
                self._check_length(language, name, int(dataset.lengths.max()), 0, remedy)

    @staticmethod
    def _check_length(
        language: LanguageModel, name: str, length: int, new: int, remedy: str
    ) -> None:
        limit = language.max_positions
        if limit is not None and length + new > limit:
            tokens = f"{length} tokens" + (f" and {new} of a completion" if new else "")
            raise ValueError(
                f"the longest sequence of {name} has {tokens}, but the model has {limit} positions "
                f"(max_position_embeddings): {remedy}, or choose a model with more positions"
            )

    def _build_frozen(self) -> LanguageModel:
        """Build the frozen reference."""
        frozen = self.build().requires_grad_(requires_grad=False).eval()
        self._frozen = (frozen,)
        return frozen

    def on_fit_start(self) -> None:
        """Move the frozen reference to the model's device."""
        for frozen in self._frozen:
            frozen.to(self.device)

    @contextmanager
    def _reference_model(self, reference: str) -> Generator[LanguageModel]:
        """The reference ``adapter_off`` or ``frozen``, without dropout and gradients."""
        if reference == "adapter_off":
            with torch.no_grad(), evaluation_mode(self.policy), self.policy.model.disable_adapter():
                yield self.policy
        else:
            with torch.no_grad():
                yield self._frozen[0]

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule, see ``Optimization``."""
        return self.optimization.configure_optimizers(
            self.policy.parameters(),
            lambda: self.trainer.estimated_stepping_batches,
            fused=self._may_fuse,
        )

    # Weights -------------------------------------------------------------------------------------

    @property
    def _facts(self) -> dict[str, Any]:
        return self.recipe.facts(self.policy)

    def fingerprint(self) -> str:
        """Hash of the model's config, adapters and weights; all ranks must call it together."""
        return weights_fingerprint(self.policy, self._facts)

    def architecture_fingerprint(self) -> str:
        """Hash of config, adapters and the weights' names and shapes; training keeps it."""
        return architecture_fingerprint(self.policy, self._facts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add arguments, tokenizer and facts; with LoRA, leave the frozen weights out."""
        save_facts(checkpoint, self._facts)
        if self._tokenizer_files is None:
            self._tokenizer_files = tokenizer_files(self.tokenizer)
        checkpoint[TOKENIZER] = self._tokenizer_files
        checkpoint[ARGUMENTS] = module_arguments(self, self._given)
        if self.recipe.lora is not None:
            drop_frozen_weights(checkpoint, self.policy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is one of this model; build the model if it is not there.

        Raises:
            ValueError: if its config or adapters are others.
        """
        if self.language is None:  # load_from_checkpoint
            warn_of_left_out(checkpoint)
            self._tokenizer = restore_tokenizer(checkpoint, "the checkpoint")
            self.configure_model()
        check_facts(checkpoint, self._facts, "ckpt_path")

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights; those that a LoRA has frozen are not reported as missing."""
        keys = super().load_state_dict(state_dict, strict, assign)
        parameters = self.named_parameters(remove_duplicate=False)  # tied ones have two names
        frozen = {name for name, p in parameters if not p.requires_grad}
        return keys._replace(missing_keys=[k for k in keys.missing_keys if k not in frozen])

    # Generation ----------------------------------------------------------------------------------

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any
    ) -> Tensor:
        """See ``LanguageModel.decode``."""
        return self.policy.decode(input_ids, attention_mask, position_ids, cache)

    def stops(self) -> list[int]:
        """Ids of the tokens that end a completion."""
        config = getattr(self.policy.model, "generation_config", None)
        return stop_token_ids(self.tokenizer, config)

    def suppressed_tokens(self) -> list[int]:
        """Ids that the model has but the tokenizer has not."""
        return self.policy.suppressed_tokens()

    def all_done(self, done: bool) -> bool:
        """Whether every rank is done; sharded models decode in step."""
        if self.device_mesh is None or self.trainer.world_size == 1:
            return done
        flag = torch.tensor(float(done), device=self.device)
        return bool(self.trainer.strategy.reduce(flag, reduce_op="mean") == 1)

    @contextmanager
    def decoding(self) -> Generator[None]:
        """Context in evaluation mode, without gradients, and in the run's precision."""
        if self._trainer is None:
            precision: Any = nullcontext()
        else:
            precision = self.trainer.precision_plugin.forward_context()
        with evaluation_mode(self), precision:
            yield

    def generate(
        self, prompt_ids: Tensor, prompt_mask: Tensor, sampling: SamplingParams
    ) -> Completions:
        """Completions of left-padded prompts; under sharding all ranks must call it together.

        Args:
            prompt_ids: ``[B, P]`` int64.
            prompt_mask: ``[B, P]`` bool, False at padding.
            sampling: sampling parameters. The seed comes from torch's global stream, which a
                resumed run repeats.

        Raises:
            ValueError: if a completion could be longer than the model's positions.
        """
        longest, new = int(prompt_mask.sum(1).max()), sampling.max_new_tokens
        remedy = "shorten the prompts or lower max_new_tokens"
        self._check_length(self.policy, "a batch of prompts", longest, new - 1, remedy)
        generator = None
        if sampling.temperature > 0:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        with self.decoding():
            return generate(
                self.policy.decode,
                prompt_ids,
                prompt_mask,
                sampling,
                self.stops(),
                generator=generator,
                all_done=self.all_done,
            )

    def detokenize(self, completions: list[Tensor]) -> list[str]:
        """Completions ``[T_i]`` as text, without stop tokens."""
        ids = [completion.tolist() for completion in completions]
        return decode_completions(self.tokenizer, ids, self.stops())

    def sample(
        self, prompts: list[str], samples: int, sampling: SamplingParams
    ) -> list[list[dict[str, Any]]]:
        """For each prompt, ``samples`` dictionaries, one for each completion.

        Each holds ``completion``, ``tokens``, ``log_prob`` and ``finish``.

        Args:
            prompts: texts as ``texts`` of the datamodule returns them.
            samples: completions per prompt, above 0.
            sampling: sampling parameters.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        ids = [tokens for tokens in data.encode_prompts(prompts) for _ in range(samples)]
        prompt_ids, mask = left_pad_sequences(ids, self.tokenizer.pad_token_id)
        completions = self.generate(prompt_ids.to(self.device), mask.to(self.device), sampling)
        rows = [
            {
                "completion": text,
                "tokens": tokens.tolist(),
                "log_prob": float(log_prob.sum()),
                "finish": finish,
            }
            for text, tokens, log_prob, finish in zip(
                self.detokenize(completions.tokens),
                completions.tokens,
                completions.log_probs,
                completions.finish,
                strict=True,
            )
        ]
        return [rows[start : start + samples] for start in range(0, len(rows), samples)]

    def complete(self, prompts: list[str]) -> list[str]:
        """One completion of each prompt, sampled at temperature 1."""
        sampling = SamplingParams(max_new_tokens=max(self.max_new_tokens, 1), temperature=1.0)
        return [rows[0]["completion"] for rows in self.sample(prompts, 1, sampling)]

    # Evaluation ----------------------------------------------------------------------------------

    def _complete_greedily(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Greedy completions of a batch's prompts, scored if the reward's column is there."""
        sampling = SamplingParams(max_new_tokens=self.max_new_tokens, temperature=0.0)
        completions = self.generate(batch["prompt_ids"], batch["prompt_mask"], sampling)
        texts = self.detokenize(completions.tokens)
        columns = {
            name: values
            for name, values in batch.items()
            if name != "prompt" and isinstance(values, list)
        }
        rewards: list[float | None] = [None] * len(texts)
        tokens = [completion.tolist() for completion in completions.tokens]
        if self.scorer.columns <= columns.keys():
            rewards = self.scorer.judge(batch["prompt"], texts, {**columns, COMPLETION_IDS: tokens})
        return {
            **columns,
            "completion": texts,
            "tokens": tokens,
            "log_probs": [log_probs.tolist() for log_probs in completions.log_probs],
            "finish": completions.finish,
            "reward": rewards,
        }

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        """Score a batch's demonstrations, and complete its prompts, whichever it holds."""
        counted = batch["counted"].to(self.device)
        metrics: Any = self.metrics[stage]
        if "input_ids" in batch:
            self._score_demonstrations(batch, metrics, counted)
        if self.max_new_tokens and "prompt_ids" in batch:
            rewards = self._complete_greedily(batch)["reward"]
            for reward, counts in zip(rewards, counted.tolist(), strict=True):
                if counts and reward is not None:
                    metrics["exact_match"].update(reward)

    def _score_demonstrations(self, batch: dict[str, Any], metrics: Any, counted: Tensor) -> None:
        scores, _ = self.policy.score_targets(batch, top_k=1)
        assert scores.top_token is not None  # as top_k is 1
        sequence, size = batch["sequence"], len(batch["index"])
        correct = (scores.top_token[:, 0] == batch["target"]).float()
        tokens = segment_sum(torch.ones_like(correct), sequence, size) * counted
        metrics["nll"].update(segment_mean(-scores.log_prob, sequence, size), tokens)
        metrics["token_accuracy"].update(segment_mean(correct, sequence, size), tokens)

    def _report(self, stage: str) -> None:
        metrics: Any = self.metrics[stage]
        for name in _METRICS:
            metric: MeanMetric = metrics[name]
            if self._updated_on_any_rank(metric):
                value = metric.compute()
                prog_bar = name != "token_accuracy"
                self.log(f"{stage}/{name}", value, prog_bar=prog_bar, sync_dist=True)
                if name == "nll":
                    self.log(f"{stage}/perplexity", value.exp(), sync_dist=True)
            metric.reset()

    def _updated_on_any_rank(self, metric: MeanMetric) -> bool:
        return bool(self._reduce(torch.tensor(float(metric.update_called)), "sum") > 0)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Greedy completions of the prompts that count; ``callbacks.CompletionWriter`` writes them.

        Raises:
            ValueError: if ``max_new_tokens`` is 0.
        """
        if self.max_new_tokens == 0:
            raise ValueError("max_new_tokens is 0, so nothing can be predicted: set it above 0")
        counted: list[bool] = batch["counted"].tolist()
        rows = self._complete_greedily(batch) | {"prompt": batch["prompt"]}
        selected = {
            name: [value for value, counts in zip(values, counted, strict=True) if counts]
            for name, values in rows.items()
        }
        return selected | {"index": batch["index"][batch["counted"]].cpu()}
