"""Importance-weighted supervised fine-tuning of a causal language model, as a LightningModule.

``lit_adaptive.core.iw_sft`` has the equations, and the origin of each ratio. Where this departs
from the paper's code, and why:
  1. The reference's log-probabilities are computed once, before training, so that no second model
     stays in memory (``reference: cached``).
  2. ``psft`` compares the policy with its moving average (``q_decay``), as PPO-EWMA does (Hilton et
     al., 2022, arXiv:2110.00641). The paper compares it with the policy before the last 8 updates.
  3. The loss is averaged over the tokens, or sequences, of an update's micro-batches and ranks; the
     paper's code averages each micro-batch separately.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lit_adaptive.core.iw_sft import (
    EAFT_TOP,
    Clamp,
    Objective,
    Ratio,
    TokenWeights,
    check_iw_sft_options,
    dft_weights,
    eaft_weights,
    iw_sft_weights,
    label_smoothed_losses,
    psft_weights,
    self_normalize,
)
from lit_adaptive.core.log_probs import Distributions, TokenLogProbs
from lit_adaptive.core.policy_ratios import RatioLevel
from lit_adaptive.core.segments import Reduction, reduce_segments, segment_mean
from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.modules.language.network import LanguageModel
from lit_adaptive.modules.language.policy import PolicyModule
from lit_adaptive.modules.language.recipes import CausalLM
from lit_adaptive.modules.optimization import Optimization
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer

Batch = dict[str, Any]
Reference = Literal["cached", "frozen", "adapter_off"]

IWSFT_OPTIMIZATION = Optimization(
    learning_rate=1e-5, betas=(0.9, 0.95), schedule="cosine", warmup=0.05
)


class IWSFT(PolicyModule):
    """Fine-tunes on demonstrations with iw-SFT, its kin or plain SFT.

    The signal is each sample's loss.

    Logs ``train/loss``, ``nll``, ``perplexity``, ``token_accuracy``, ``tokens`` (trained so far),
    ``kl`` (of ``asft``) and, of the token weights, ``iw/mean``, ``iw/max``, ``iw/clamped``
    (fraction) and ``iw/ess`` (fraction). On validation sets ``nll``, ``perplexity``,
    ``token_accuracy`` and, if ``max_new_tokens`` is above 0, ``exact_match``: the mean reward of
    greedy completions.

    Args:
        model: recipe of the language model.
        objective: ``iw``, ``dft``, ``asft``, ``eaft``, ``psft`` or ``nll`` (plain SFT).
        ratio: ratio of ``iw``: the paper's ``policy_over_ref``, or the specification's
            ``ref_over_policy``.
        level: one weight of ``iw`` per ``sequence`` or per ``token``.
        temperature: divisor of the log ratios, above 0.
        clamp: lower and upper bound of the weights; ``default`` for the paper's.
        normalize: whether to divide the weights by their mean over the batch of all ranks.
        reference: ``cached``: log-probabilities computed once by ``callbacks.ReferenceLogProbs``
            (until then all weights are 1); ``frozen``: a second copy of the initial model;
            ``adapter_off``: the model without its LoRA. ``asft`` needs one of these two.
        q_decay: decay per step of a moving average of the policy that the weights are computed
            with, in [0, 1); by default they are computed with the policy itself. It is the old
            policy of ``psft``, which needs it.
        asft_beta: coefficient of the KL divergence to the reference in ``asft``, at least 0 (0:
            ``dft``).
        eaft_alpha: exponent of the entropy of ``eaft``, at least 0 (0: plain SFT).
        psft_clip: relative increase of a token's probability over the old policy at which ``psft``
            ignores the token, above 0.
        label_smoothing: weight of the uniform distribution in the targets, in [0, 1).
        reduction: ``token``, ``sequence``, or ``fixed``: the sum divided by ``count``.
        count: divisor of ``fixed``, per rank and micro-batch.
        optimization: optimizer and learning-rate schedule.
        weights: path of a checkpoint of ``IWSFT`` or ``GRPO`` to start from.
        max_new_tokens: maximum length of greedy completions in validation and ``predict``, in
            tokens; 0 for none.
        reward: scores greedy completions; by default whether they equal the column ``answer``.

    Raises:
        ValueError: if an argument is out of range, or ``adapter_off`` is set without LoRA.
    """

    provides = frozenset(
        {"signal.losses", "model.per_sample_loss", "model.token_log_probs", "model.fingerprint"}
    ) | frozenset({"model.complete", "model.sample", "model.recipe"})

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
        asft_beta: float = 0.1,
        eaft_alpha: float = 1.0,
        psft_clip: float = 0.2,
        label_smoothing: float = 0.0,
        reduction: Reduction = "token",
        count: float | None = None,
        optimization: Optimization = IWSFT_OPTIMIZATION,
        weights: str | None = None,
        max_new_tokens: int = 32,
        reward: Reward | Scorer | None = None,
    ) -> None:
        super().__init__(
            model,
            optimization=optimization,
            weights=weights,
            max_new_tokens=max_new_tokens,
            reward=reward,
        )
        check_iw_sft_options(
            objective,
            ratio,
            level,
            temperature=temperature,
            clamp=clamp,
            reduction=reduction,
            count=count,
            objectives=Objective,
        )
        if not 0 <= asft_beta < math.inf:
            raise ValueError(f"asft_beta is {asft_beta}; it must be at least 0 and finite")
        if objective == "asft" and reference == "cached":
            raise ValueError(
                "objective is asft and reference is 'cached', which has no distributions over the "
                "vocabulary: set reference to frozen (a second model in memory) or, with LoRA, "
                "adapter_off"
            )
        if not 0 <= eaft_alpha < math.inf:
            raise ValueError(f"eaft_alpha is {eaft_alpha}; it must be at least 0 and finite")
        if not 0 < psft_clip < math.inf:
            raise ValueError(f"psft_clip is {psft_clip}; it must be above 0 and finite")
        if objective == "psft" and q_decay is None:
            raise ValueError(
                "objective is psft and q_decay is null; the old policy is a moving average: set "
                "q_decay, such as 0.9"
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")
        if count is not None and not 0 < count < math.inf:
            raise ValueError(f"count is {count}; the loss is divided by it: set it above 0")
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
        self.asft_beta, self.eaft_alpha, self.psft_clip = asft_beta, eaft_alpha, psft_clip
        self.q_decay, self.label_smoothing = q_decay, label_smoothing
        self.reduction: Reduction = reduction
        self.count = count
        self.average: LanguageModel | None = None
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64))

    @property
    def needs(self) -> frozenset[str]:
        """Keys of the batch; with a cached reference, its log-probabilities too."""
        names = {"input_ids", "position_ids", "position", "target", "sequence", "weight"}
        if self.objective == "iw" and self.reference == "cached":
            names.add("ref_log_probs")
        return frozenset(f"batch.{name}" for name in names)

    remedies = {  # noqa: RUF012
        "batch.ref_log_probs": "add callbacks.ReferenceLogProbs, or set the model's reference to "
        "frozen (a second model in memory) or, with LoRA, adapter_off",
        "batch.target": "use lit_adaptive.data.DemonstrationsDataModule",
    }

    def _build_companions(self) -> list[LanguageModel]:
        """The frozen reference and the moving average, if they are used."""
        models: list[LanguageModel] = []
        if self.objective in ("iw", "asft") and self.reference == "frozen":
            models.append(self._build_frozen())
        if self.objective in ("iw", "psft") and self.q_decay is not None:
            self.average = self.build().requires_grad_(requires_grad=False)
            self.average.load_state_dict(self.policy.state_dict())  # adapters are random
            models.append(self.average)
        return models

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and update the moving average."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None and self.q_decay is not None:
            with torch.no_grad():
                pairs = zip(self.average.parameters(), self.policy.parameters(), strict=True)
                for average, current in pairs:
                    average.lerp_(current, 1 - self.q_decay)

    # The objective -------------------------------------------------------------------------------

    def token_log_probs(self, batch: Batch) -> Tensor:
        """Log-probability of each completion token: ``[K]``."""
        return self.policy.score_targets(batch)[0].log_prob

    def per_sample_loss(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of each sample's tokens: ``[B]``."""
        return segment_mean(-self.token_log_probs(batch), batch["sequence"], len(batch["index"]))

    def _reference(self, batch: Batch) -> Tensor | None:
        """The reference's log-probabilities ``[K]``; None until they are cached."""
        if self.reference == "cached":
            return batch.get("ref_log_probs")
        with self._reference_model(self.reference) as model:
            return model.score_targets(batch)[0].log_prob

    def _anchor(self, batch: Batch) -> Distributions | None:
        """The distributions whose divergence ``asft`` penalizes."""
        if self.objective != "asft":
            return None
        with self._reference_model(self.reference) as model:
            return model.distributions(batch)

    @torch.no_grad()
    def _weights(self, scores: TokenLogProbs, batch: Batch) -> TokenWeights | None:
        log_prob = scores.log_prob.detach()
        if self.objective == "nll":
            return None
        if self.objective in ("dft", "asft"):
            return dft_weights(log_prob)
        if self.objective == "eaft":
            assert scores.top_log_prob is not None
            return eaft_weights(scores.top_log_prob, self.eaft_alpha)
        if self.objective == "psft":
            assert self.average is not None
            old = self.average.eval().score_targets(batch)[0].log_prob
            return psft_weights(log_prob, old, self.psft_clip)
        reference = self._reference(batch)
        if reference is None:
            return None
        if self.average is not None:
            # module.train() of a callback would give the average dropout: eval() each time
            log_prob = self.average.eval().score_targets(batch)[0].log_prob
        elif self.policy.has_dropout:  # the reference has none, so neither has the ratio
            with evaluation_mode(self.policy):
                log_prob = self.policy.score_targets(batch)[0].log_prob
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

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The weighted loss, and the mean negative log-likelihood of each sample."""
        logging = self._logs_now()
        scores, mean = self.policy.score_targets(
            batch,
            top_k=self._top_tokens(logging),
            smoothing=self.label_smoothing > 0,
            reference=self._anchor(batch),
        )
        losses = label_smoothed_losses(scores.log_prob, mean, self.label_smoothing)
        weights = self._weights(scores, batch)
        size = len(batch["index"])
        tokens, samples = self._mean_over_ranks(len(losses), size)  # of this micro-batch
        if weights is not None:
            weight = weights.weight
            if self.normalize:
                total = self._mean_over_ranks(weight.sum())[0]
                weight = self_normalize(weight, total / tokens.clamp(min=1))
            weights = TokenWeights(weight, weights.clamped)
            losses = losses * weight
        if scores.divergence is not None:
            losses = losses + self.asft_beta * scores.divergence
        count = self.count
        if self.reduction != "fixed":
            terms = tokens if self.reduction == "token" else samples
            count = self._update_divisor(float(terms))
        loss = reduce_segments(
            losses,
            batch["sequence"],
            size,
            reduction=self.reduction,
            count=count,
            sample_weight=batch["weight"],
        )
        self.tokens += (tokens * self.trainer.world_size).round().long()  # type: ignore[operator]
        if logging:
            assert count is not None
            self._add_statistics(loss.detach() * count, scores, weights, batch)
        nll = segment_mean(-scores.log_prob.detach(), batch["sequence"], size)
        return {"loss": loss, "losses": nll}

    def _top_tokens(self, logging: bool) -> int:
        """Number of most likely tokens that are needed: for the accuracy, or an entropy."""
        if self.objective != "eaft":
            return int(logging)
        return min(EAFT_TOP, len(self.policy.existing_tokens()))

    def _add_statistics(
        self, total: Tensor, scores: TokenLogProbs, weights: TokenWeights | None, batch: Batch
    ) -> None:
        """Add a micro-batch's statistics.

        Args:
            total: sum of the losses.
            scores: log-probabilities and most likely tokens.
            weights: weights of the tokens, if any.
            batch: the micro-batch.
        """
        assert scores.top_token is not None
        terms = {"token": len(scores.log_prob), "sequence": len(batch["index"])}
        count = terms.get(self.reduction, self.count or 1.0)
        self.statistics.add_mean("train/loss", total, count)
        self.statistics.add_values("train/nll", -scores.log_prob)
        self.statistics.add_values(
            "train/token_accuracy", scores.top_token[:, 0] == batch["target"]
        )
        if scores.divergence is not None:
            self.statistics.add_values("train/kl", scores.divergence.detach())
        if weights is not None:
            self.statistics.add_values("iw/mean", weights.weight)
            self.statistics.add_ess("iw/ess", weights.weight)
            self.statistics.add_values("iw/clamped", weights.clamped)
            self.statistics.add_max("iw/max", weights.weight)

    def _finish_statistics(self, values: dict[str, float]) -> dict[str, float]:
        if "train/nll" in values:
            values["train/perplexity"] = math.exp(min(values["train/nll"], 700.0))
        return values | {"train/tokens": float(self.tokens)}  # type: ignore[arg-type]
