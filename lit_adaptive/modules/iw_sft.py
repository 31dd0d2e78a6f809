"""Importance-weighted supervised fine-tuning of a causal language model, as a LightningModule.

The equations, and which ratio is whose, are told in ``lit_adaptive.core.iw_sft``. Where this
departs from the paper's code, and why:
  1. The reference's log-probabilities are computed once, before training, so no second model stays
     in memory (``reference: cached``).
  2. Loss is averaged over the tokens of all ranks; under accumulation each micro-batch is averaged
     on its own, unless ``reduction`` is ``fixed``.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from lit_adaptive.core.iw_sft import (
    Clamp,
    Objective,
    Ratio,
    RatioLevel,
    TokenWeights,
    check_options,
    check_temperature,
    dft_weights,
    iw_sft_weights,
    label_smoothed_losses,
    resolve_clamp,
    self_normalize,
)
from lit_adaptive.core.log_probs import TokenLogProbs
from lit_adaptive.core.segments import Reduction, reduce_segments, segment_mean
from lit_adaptive.modules.language_model import LanguageModel, read
from lit_adaptive.modules.model_builders import CausalLM
from lit_adaptive.modules.optimization import Optimization
from lit_adaptive.modules.referenced import ReferencedModule
from lit_adaptive.rollout.rewards.base import Reward

Batch = dict[str, Any]
Reference = Literal["cached", "frozen", "adapter_off"]

IWSFT_OPTIMIZATION = Optimization(
    learning_rate=1e-5, betas=(0.9, 0.95), schedule="cosine", warmup=0.05
)


class IWSFT(ReferencedModule):
    """Fine-tunes on demonstrations with iw-SFT, DFT or plain SFT; returns each sample's own loss.

    Logs ``train/loss``, ``nll``, ``perplexity``, ``token_accuracy`` and, of the weights of tokens,
    ``iw/mean``, ``iw/max``, ``iw/clamped`` (share) and ``iw/ess`` (share); ``tokens`` counts what
    was trained on. On validation sets ``nll``, ``perplexity``, ``token_accuracy`` and, with
    ``max_new_tokens``, ``exact_match``: the mean reward of greedy answers.

    Args:
        model: how the language model comes to be.
        objective: ``iw``, ``dft`` or ``nll`` (plain SFT).
        ratio: of ``iw``: the paper's ``policy_over_ref``, or the specification's.
        level: of ``iw``: one weight for each ``sequence``, or for each ``token``.
        temperature: log ratios are divided by it; above 0.
        clamp: bounds of the weights; ``default`` are the paper's.
        normalize: divide weights by their mean over the batch, of all ranks.
        reference: ``cached``: scored once by ``callbacks.ReferenceLogProbs`` (until then weights
            are 1); ``frozen``: a second copy of the model as it begins; ``adapter_off``: the model
            without its LoRA.
        q_decay: weights by a moving average of the policy, with this decay per step, in [0, 1).
        label_smoothing: share in [0, 1).
        reduction: ``token``, ``sequence``, or ``fixed``: the sum divided by ``count``.
        count: of ``fixed``, per rank and micro-batch.
        optimization: optimizer and learning-rate schedule.
        weights: a checkpoint of such a module to begin with, in place of the model's own weights.
        max_new_tokens: of greedy answers on validation sets and of ``predict``; 0: none.
        reward: judges greedy answers; by default whether they equal the column ``answer``.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    provides = frozenset(
        {"signal.losses", "model.per_sample_loss", "model.token_log_probs", "model.fingerprint"}
    ) | frozenset({"model.complete", "model.sample"})

    def __init__(
        self,
        model: CausalLM,
        *,
        objective: Objective = "iw",
        ratio: Ratio = "policy_over_ref",
        level: RatioLevel = "sequence",
        temperature: float = 1.0,
        clamp: Clamp = "default",
        normalize: bool = False,
        reference: Reference = "cached",
        q_decay: float | None = None,
        label_smoothing: float = 0.0,
        reduction: Reduction = "token",
        count: float | None = None,
        optimization: Optimization = IWSFT_OPTIMIZATION,
        weights: str | None = None,
        max_new_tokens: int = 32,
        reward: Reward | None = None,
    ) -> None:
        super().__init__(model, weights=weights, max_new_tokens=max_new_tokens, reward=reward)
        check_options(objective, ratio, level, reduction, count=count)
        check_temperature(temperature)
        resolve_clamp(clamp, ratio, level)
        self.optimization = optimization
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")
        if q_decay is not None and not 0 <= q_decay < 1:
            raise ValueError(f"q_decay is {q_decay}; it must lie in [0, 1), or be null")
        if reference == "adapter_off" and model.lora is None:
            raise ValueError(
                "reference is 'adapter_off', but the model has no adapters: give the model a lora, "
                "or choose reference cached"
            )
        self.objective: Objective = objective
        self.ratio: Ratio = ratio
        self.level: RatioLevel = level
        self.temperature, self.normalize = temperature, normalize
        self.clamp: Clamp = clamp
        self.reference: Reference = reference
        self.q_decay, self.label_smoothing = q_decay, label_smoothing
        self.reduction: Reduction = reduction
        self.count = count
        self.average: LanguageModel | None = None
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64))

    @property
    def needs(self) -> frozenset[str]:
        """Keys of the batch; the reference's log-probabilities if they are to be cached."""
        names = {"input_ids", "position_ids", "position", "target", "sequence", "weight"}
        if self.objective == "iw" and self.reference == "cached":
            names.add("ref_log_probs")
        return frozenset(f"batch.{name}" for name in names)

    remedies = {  # noqa: RUF012
        "batch.ref_log_probs": "add callbacks.ReferenceLogProbs, or set the model's reference to "
        "frozen (a second model in memory) or, with LoRA, adapter_off",
        "batch.target": "use lit_adaptive.data.DemonstrationsDataModule",
    }

    # The models ----------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the model, the frozen reference and the moving average that are asked for."""
        if self.language is not None:
            return
        self.language = self.built()
        parts = [self.language]
        if self.objective == "iw" and self.reference == "frozen":
            parts.append(self._freeze())
        if self.objective == "iw" and self.q_decay is not None:
            self.average = self.built().requires_grad_(requires_grad=False)
            self.average.load_state_dict(self.language.state_dict())  # adapters begin at random
            parts.append(self.average)
        for part in parts:
            if self.device_mesh is not None:
                part.shard(self.device_mesh["data_parallel"])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, and the moving average after it."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None and self.q_decay is not None:
            with torch.no_grad():
                pairs = zip(self.average.parameters(), self.policy.parameters(), strict=True)
                for mean, now in pairs:
                    mean.lerp_(now, 1 - self.q_decay)

    # The objective -------------------------------------------------------------------------------

    def token_log_probs(self, batch: Batch) -> Tensor:
        """Log-probability of each completion token: ``[K]``."""
        return read(self.policy, batch)[0].log_prob

    def per_sample_loss(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of each sample's tokens: ``[B]``."""
        return segment_mean(-self.token_log_probs(batch), batch["sequence"], len(batch["index"]))

    def _reference(self, batch: Batch) -> Tensor | None:
        """The reference's log-probabilities ``[K]``; None before they were scored."""
        if self.reference == "cached":
            return batch.get("ref_log_probs")
        return self._reference_log_probs(batch, self.reference)

    @torch.no_grad()
    def _weights(self, log_prob: Tensor, batch: Batch) -> TokenWeights | None:
        if self.objective == "nll":
            return None
        if self.objective == "dft":
            return dft_weights(log_prob)
        reference = self._reference(batch)
        if reference is None:
            return None
        if self.average is not None:
            # Whoever switches this module to evaluation and back leaves it with dropout.
            log_prob = read(self.average.eval(), batch)[0].log_prob
        return iw_sft_weights(
            log_prob,
            reference,
            batch["sequence"],
            len(batch["index"]),
            ratio=self.ratio,
            level=self.level,
            temperature=self.temperature,
            clamp=self.clamp,
        )

    def _over_ranks(self, *values: Tensor | float) -> list[Tensor]:
        """Each value's mean over the ranks."""
        found = torch.stack([torch.as_tensor(v, device=self.device).float() for v in values])
        if self.trainer.world_size > 1:
            found = self.trainer.strategy.reduce(found, reduce_op="mean")
        return list(found)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The weighted loss, and each sample's own."""
        logging = self._logs_now()
        found, mean = read(
            self.policy, batch, top_k=int(logging), smoothing=self.label_smoothing > 0
        )
        losses = label_smoothed_losses(found.log_prob, mean, self.label_smoothing)
        weights = self._weights(found.log_prob.detach(), batch)
        trained = self._over_ranks(float(len(losses)))[0]  # tokens of a rank, on average
        count = max(float(trained), 1.0) if self.reduction == "token" else self.count
        if weights is not None:
            weight = weights.weight
            if self.normalize:
                total, tokens = self._over_ranks(weight.sum(), float(len(weight)))
                weight = self_normalize(weight, total / tokens.clamp(min=1))
            weights = TokenWeights(weight, weights.clamped)
            losses = losses * weight
        size = len(batch["index"])
        loss = reduce_segments(
            losses,
            batch["sequence"],
            size,
            reduction=self.reduction,
            count=count,
            sample_weight=batch["weight"],
        )
        self.tokens += (trained * self.trainer.world_size).round().long()  # type: ignore[operator]
        if logging:
            self._log_step(loss.detach(), found, weights, batch)
        nll = segment_mean(-found.log_prob.detach(), batch["sequence"], size)
        return {"loss": loss, "losses": nll}

    def _log_step(
        self, loss: Tensor, found: TokenLogProbs, weights: TokenWeights | None, batch: Batch
    ) -> None:
        nll = -found.log_prob.detach().mean()
        assert found.top_token is not None
        values = {
            "train/loss": loss,
            "train/nll": nll,
            "train/perplexity": nll.exp(),
            "train/token_accuracy": (found.top_token[:, 0] == batch["target"]).float().mean(),
            "train/tokens": torch.as_tensor(self.tokens).float(),
        }
        if weights is not None and len(weights.weight):
            w = weights.weight
            values |= {
                "iw/mean": w.mean(),
                "iw/max": w.max(),
                "iw/clamped": weights.clamped.float().mean(),
                "iw/ess": w.sum().square() / (len(w) * w.square().sum().clamp(min=1e-30)),
            }
        self.log_dict(values, batch_size=len(batch["index"]))
