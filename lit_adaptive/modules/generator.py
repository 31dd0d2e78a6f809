"""Evaluating a language model: on demonstrations, and on its own greedy answers."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_adaptive.core.segments import segment_mean, segment_sum
from lit_adaptive.modules.language_model import read
from lit_adaptive.modules.model_builders import CausalLM
from lit_adaptive.modules.policy import PolicyModule
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward, checked_rewards
from lit_adaptive.rollout.rewards.matching import ExactMatch

_GREEDY = 0.0
_NAMES = ("nll", "token_accuracy", "exact_match")


class GeneratingModule(PolicyModule):
    """A policy that is evaluated.

    Args:
        model: see ``PolicyModule``.
        weights: see ``PolicyModule``.
        max_new_tokens: of greedy answers; 0: none are given.
        reward: judges them; by default whether they equal the column ``answer``.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        weights: str | None,
        max_new_tokens: int,
        reward: Reward | None,
    ) -> None:
        super().__init__(model, weights=weights, max_new_tokens=max_new_tokens)
        self.reward = reward or ExactMatch()
        self.metrics = nn.ModuleDict(
            {stage: nn.ModuleDict({n: MeanMetric() for n in _NAMES}) for stage in ("val", "test")}
        )

    def _greedy(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Greedy answers to a batch's prompts, judged if there is something to judge by."""
        sampling = SamplingParams(max_new_tokens=self.max_new_tokens, temperature=_GREEDY)
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
        """Demonstrations are scored, prompts are answered, whichever the batch has."""
        counted = batch["counted"].to(self.device)
        metrics: Any = self.metrics[stage]
        if "target" in batch:
            self._score(batch, metrics, counted)
        if self.max_new_tokens and "prompt_ids" in batch:
            rewards = self._greedy(batch)["reward"]
            for reward, counts in zip(rewards, counted.tolist(), strict=True):
                if counts and reward is not None:
                    metrics["exact_match"].update(reward)

    def _score(self, batch: dict[str, Any], metrics: Any, counted: Tensor) -> None:
        found, _ = read(self.policy, batch, top_k=1)
        assert found.top_token is not None  # asked for
        sequence = batch["sequence"]
        size = len(batch["index"])
        right = (found.top_token[:, 0] == batch["target"]).float()
        tokens = segment_sum(torch.ones_like(right), sequence, size) * counted
        metrics["nll"].update(segment_mean(-found.log_prob, sequence, size), tokens)
        metrics["token_accuracy"].update(segment_mean(right, sequence, size), tokens)

    def _report(self, stage: str) -> None:
        metrics: Any = self.metrics[stage]
        for name in _NAMES:
            metric: MeanMetric = metrics[name]
            if not self._asked(metric):
                metric.reset()
                continue
            value = metric.compute()
            shown = name != "token_accuracy"
            self.log(f"{stage}/{name}", value, prog_bar=shown, sync_dist=True)
            if name == "nll":
                self.log(f"{stage}/perplexity", value.exp(), sync_dist=True)
            metric.reset()

    def _asked(self, metric: MeanMetric) -> bool:
        """Whether any rank measured it."""
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
