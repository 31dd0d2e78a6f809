"""What modules around a language model share: building it, answering prompts, evaluating it."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_adaptive.core.reductions import means, sums
from lit_adaptive.modules.base import AdaptiveModule
from lit_adaptive.modules.language_model import CausalLM, LanguageModel
from lit_adaptive.rollout.generation import Completions, Sampling, generate, left_padded
from lit_adaptive.rollout.rewards import ExactMatch, Reward, checked_rewards
from lit_adaptive.rollout.tokenizers import stop_ids

_PREFIX = "language."
_GREEDY = 0.0
_NAMES = ("nll", "token_accuracy", "exact_match")


class GeneratingModule(AdaptiveModule):
    """A language model that is evaluated on demonstrations and on its own greedy answers.

    Args:
        model: how the language model comes to be.
        weights: a checkpoint of such a module to begin with; None: the model's own weights.
        max_new_tokens: of greedy answers; 0: none are given.
        reward: judges them; by default whether they equal the column ``answer``.

    Raises:
        ValueError: if ``max_new_tokens`` is negative, or ``weights`` is no such checkpoint.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        weights: str | None,
        max_new_tokens: int,
        reward: Reward | None,
    ) -> None:
        super().__init__()
        if max_new_tokens < 0:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}; it must be at least 0 (0: no answers)"
            )
        if weights is not None and not Path(weights).is_file():
            raise ValueError(f"weights is {weights!r}, which is no file: give a checkpoint's path")
        self.recipe = model
        self.weights = weights
        self.max_new_tokens = max_new_tokens
        self.reward = reward or ExactMatch()
        self.language: LanguageModel | None = None
        self.metrics = nn.ModuleDict(
            {stage: nn.ModuleDict({n: MeanMetric() for n in _NAMES}) for stage in ("val", "test")}
        )
        if model.lora is not None:
            self.strict_loading = False  # a checkpoint holds the adapters only

    # The model -----------------------------------------------------------------------------------

    @property
    def policy(self) -> LanguageModel:
        """The language model in training."""
        assert self.language is not None  # Lightning calls configure_model before anything else
        return self.language

    @property
    def tokenizer(self) -> Any:
        """The datamodule's."""
        return self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]

    def built(self) -> LanguageModel:
        """A new language model, with the weights that training begins with."""
        language = self.recipe.build(self.tokenizer)
        if self.weights is not None:
            _load(language, self.weights)
        return language

    def fingerprint(self) -> str:
        """Of all weights: hex digits that tell this model from any other. All ranks must ask."""
        digest = hashlib.blake2b(digest_size=16)
        for name, parameter in sorted(self.policy.named_parameters()):
            whole: Any = parameter.detach()
            if hasattr(whole, "full_tensor"):
                whole = whole.full_tensor()
            digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
            digest.update(whole.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what LoRA does not train."""
        if self.recipe.lora is None:
            return
        trained = {n for n, p in self.policy.named_parameters() if p.requires_grad}
        state: dict[str, Any] = checkpoint["state_dict"]
        for name in [*state]:
            model, _, parameter = name.partition(".")
            if model in ("language", "average") and parameter not in trained:
                del state[name]

    # Answers -------------------------------------------------------------------------------------

    def _stops(self) -> list[int]:
        config = getattr(self.policy.model, "generation_config", None)
        return stop_ids(self.tokenizer, config)

    def _all_done(self, done: bool) -> bool:
        """Whether every rank is done: sharded models decode together."""
        if self.device_mesh is None or self.trainer.world_size == 1:
            return done
        flag = torch.tensor(float(done), device=self.device)
        return bool(self.trainer.strategy.reduce(flag, reduce_op="mean") == 1)

    def _generator(self) -> torch.Generator:
        """Seeded from the global stream, which is part of what a resumed run repeats."""
        seed = int(torch.randint(2**62, ()))
        return torch.Generator(device="cpu").manual_seed(seed)

    @torch.no_grad()
    def answers(self, prompt_ids: Tensor, prompt_mask: Tensor, sampling: Sampling) -> Completions:
        """Completions of left-padded prompts ``[B, P]``. Under sharding all ranks must ask.

        Args:
            prompt_ids: ``[B, P]`` int64.
            prompt_mask: ``[B, P]`` bool, False where padded.
            sampling: how.
        """
        training = self.training
        self.eval()
        found = generate(
            self.policy.decode,
            prompt_ids,
            prompt_mask,
            sampling,
            self._stops(),
            generator=self._generator() if sampling.temperature > 0 else None,
            all_done=self._all_done,
        )
        self.train(training)
        return found

    def texts(self, tokens: list[Tensor]) -> list[str]:
        """Completions as text, without the token that ends them."""
        stops = set(self._stops())
        kept = [[t for t in each.tolist() if t not in stops] for each in tokens]
        found: list[str] = self.tokenizer.batch_decode(kept, skip_special_tokens=True)
        return found

    def sample(
        self, prompts: list[str], samples: int, sampling: Sampling
    ) -> list[list[dict[str, Any]]]:
        """``samples`` completions of each prompt, each with its log-probability and its finish.

        Args:
            prompts: texts as the datamodule's dataset gives them.
            samples: above 0.
            sampling: how.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        ids = [each for each in data.encode_prompts(prompts) for _ in range(samples)]
        prompt_ids, mask = left_padded(ids, self.tokenizer.pad_token_id)
        found = self.answers(prompt_ids.to(self.device), mask.to(self.device), sampling)
        rows = [
            {"completion": text, "log_prob": float(log_prob.sum()), "finish": finish}
            for text, log_prob, finish in zip(
                self.texts(found.tokens), found.log_probs, found.finish, strict=True
            )
        ]
        return [rows[start : start + samples] for start in range(0, len(rows), samples)]

    def complete(self, prompts: list[str]) -> list[str]:
        """One completion of each prompt, drawn at temperature 1."""
        sampling = Sampling(max_new_tokens=max(self.max_new_tokens, 1), temperature=1.0)
        return [rows[0]["completion"] for rows in self.sample(prompts, 1, sampling)]

    # Evaluation ----------------------------------------------------------------------------------

    def _greedy(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Greedy answers to a batch's prompts, judged if there is something to judge by."""
        sampling = Sampling(max_new_tokens=self.max_new_tokens, temperature=_GREEDY)
        found = self.answers(batch["prompt_ids"], batch["prompt_mask"], sampling)
        texts = self.texts(found.tokens)
        columns = {
            name: values
            for name, values in batch.items()
            if name != "prompt" and isinstance(values, list)
        }
        rewards: list[float | None] = [None] * len(texts)
        if getattr(self.reward, "column", None) in (None, *columns):
            rewards = checked_rewards(self.reward, batch["prompt"], texts, columns)
        return {
            **columns,
            "completion": texts,
            "tokens": [each.tolist() for each in found.tokens],
            "log_probs": [each.tolist() for each in found.log_probs],
            "finish": found.finish,
            "reward": rewards,
        }

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        found, _ = self.policy(
            batch["input_ids"],
            batch["position_ids"],
            batch["position"],
            batch["target"],
            top_k=1,
        )
        sequence, counted = batch["sequence"], batch["counted"].to(self.device)
        size = len(batch["index"])
        right = (found.top_token[:, 0] == batch["target"]).float()
        tokens = sums(torch.ones_like(right), sequence, size) * counted
        metrics: Any = self.metrics[stage]
        metrics["nll"].update(means(-found.log_prob, sequence, size), tokens)
        metrics["token_accuracy"].update(means(right, sequence, size), tokens)
        if self.max_new_tokens and "prompt_ids" in batch:
            rewards = self._greedy(batch)["reward"]
            for reward, counts in zip(rewards, counted.tolist(), strict=True):
                if counts and reward is not None:
                    metrics["exact_match"].update(reward)

    def _report(self, stage: str) -> None:
        metrics: Any = self.metrics[stage]
        for name in _NAMES:
            metric: MeanMetric = metrics[name]
            if name == "exact_match" and not self._answered(metric):
                metric.reset()
                continue
            value = metric.compute()
            shown = name != "token_accuracy"
            self.log(f"{stage}/{name}", value, prog_bar=shown, sync_dist=True)
            if name == "nll":
                self.log(f"{stage}/perplexity", value.exp(), sync_dist=True)
            metric.reset()

    def _answered(self, metric: MeanMetric) -> bool:
        """Whether any rank judged an answer."""
        judged = torch.tensor(float(metric.update_called), device=self.device)
        if self.trainer.world_size > 1:
            judged = self.trainer.strategy.reduce(judged, reduce_op="sum")
        return bool(judged > 0)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add to the metrics what counts of this batch."""
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log them over all ranks."""
        self._report("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add to the metrics what counts of this batch."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log them over all ranks."""
        self._report("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Greedy answers to the prompts that count; ``callbacks.CompletionWriter`` writes them.

        Raises:
            ValueError: if ``max_new_tokens`` is 0.
        """
        if self.max_new_tokens == 0:
            raise ValueError("max_new_tokens is 0, so nothing can be predicted: set it above 0")
        counted: list[bool] = batch["counted"].tolist()
        found = self._greedy(batch) | {"prompt": batch["prompt"]}
        kept = {
            name: [value for value, counts in zip(values, counted, strict=True) if counts]
            for name, values in found.items()
        }
        return kept | {"index": batch["index"][batch["counted"]].cpu()}

    def _logs_now(self) -> bool:
        """Whether this training step is one that is logged."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (self.global_step + 1) % every == 0


def _load(language: LanguageModel, path: str) -> None:
    """Give ``language`` the weights of a checkpoint.

    Raises:
        ValueError: if it cannot be read, or is of another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(
            f"weights is {path!r}, which is no checkpoint of lit-adaptive: {error}"
        ) from error
    own = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
    known = language.state_dict()
    unknown = [name for name in own if name not in known or own[name].shape != known[name].shape]
    absent = [] if language.adapted else [name for name in known if name not in own]
    if unknown or absent or not own:
        raise ValueError(
            f"weights is {path!r}, a checkpoint of another model: it has {unknown[:3]}, which this "
            f"one has not or in another shape, and lacks {absent[:3]}"
        )
    language.load_state_dict(own, strict=False)
