"""The objective of GRPO and its variants as one set of options: advantages and the loss of a batch.

The equations are in ``core.advantages``, ``core.policy_losses``, ``core.policy_ratios`` and
``core.token_entropy``. The denominator of a replayed token's ratio is its probability under the
policy that generated it (``behavior_log_probs``); for fresh tokens that is the policy at the start
of the step, so GRPO is the case without replay.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lit_adaptive.core.advantages import (
    Scale,
    group_advantages,
    psr_nsr_advantages,
    scale_by_sign,
)
from lit_adaptive.core.policy_losses import (
    ClipCenter,
    LossType,
    PolicyLoss,
    aggregate_losses,
    policy_gradient_losses,
)
from lit_adaptive.core.policy_ratios import (
    KLEstimator,
    MismatchWeights,
    RatioLevel,
    kl_estimates,
    mismatch_weights,
    off_policy_sequence_mask,
    truncated_ratios,
)
from lit_adaptive.core.token_entropy import (
    clip_cov,
    covariances,
    high_entropy_mask,
    kl_cov,
    kl_cov_penalties,
)

Batch = dict[str, Any]


class ObjectiveOutput(NamedTuple):
    """Loss of a batch, and what is logged about it.

    Attributes:
        loss: scalar with gradient; divided so that the micro-batches of an update add up.
        policy: losses, ratios and clipping per token.
        kl: ``[K]``, KL to the reference; None without one.
        shares: mask of affected tokens or sequences, by name; the mean is the fraction affected.
    """

    loss: Tensor
    policy: PolicyLoss
    kl: Tensor | None
    shares: dict[str, Tensor]


@dataclass(frozen=True)
class PolicyObjective:
    """Options of the objective; the defaults are GRPO (Shao et al., 2024) without KL.

    Args:
        loss_type: ``grpo``, ``dr_grpo``, ``dapo``, ``bnpo``, ``gspo`` or ``cispo``.
        advantage: ``group``: reward minus the group's mean; ``signs``: +1 for correct completions
            and -1 for wrong ones, times the weights below (PSR, NSR, W-REINFORCE).
        scale: divisor of ``group`` advantages: the standard deviation over the ``group`` or the
            ``batch``, or ``none`` (Dr. GRPO, DOTS).
        leave_one_out: the baseline of ``group`` is the mean of the group's other rewards (RLOO).
        positive_weight: factor of advantages above 0, at least 0.
        negative_weight: factor of advantages below 0, at least 0.
        clip_low: lower clip range; the ratio is clipped below 1 - ``clip_low``, in [0, 1].
        clip_high: upper clip range; the ratio is clipped above 1 + ``clip_high``, at least 0.
        clip_center: ``one``: clip around 1 (the paper of Rollout Replay); ``old``: clip around the
            ratio at the start of the step (its code).
        dual_clip: upper bound of the ratio where the advantage is negative, above
            1 + ``clip_high``.
        ratio_level: one ratio per ``token`` or per ``sequence``; by default the loss type's.
        kl_beta: weight of the KL to the reference, at least 0.
        kl_estimator: ``k1``, ``k2`` or ``k3``; ``core.policy_ratios.kl_estimates`` says which
            gradient each has.
        use_bias_correction_kl: multiply the estimate of each token by its ratio to the behavior
            policy, so that its gradient is that of KL(policy || reference) for fresh and replayed
            tokens; ``false`` for GRPO's original term.
        kl_ratio_cap: upper bound of that ratio, above 0; a replayed token has no more weight.
        entropy_bonus: weight of the mean entropy, which is maximized; at least 0.
        high_entropy: fraction of tokens, those with the highest entropy, that the policy gradient
            is restricted to, in (0, 1].
        high_entropy_over: tokens among which that fraction is taken: those of a ``micro_batch`` (as
            in the paper's code) or of the ``step``.
        covariance: ``none``, ``clip`` (Clip-Cov) or ``kl`` (KL-Cov).
        covariance_share: fraction of tokens that Clip-Cov or KL-Cov selects, in [0, 1].
        covariance_low: lower bound of the covariances that Clip-Cov selects from.
        covariance_high: upper bound of the covariances that Clip-Cov selects from.
        covariance_beta: weight of KL-Cov's penalty. It is the divergence from the policy at the
            start of the step if a step has several updates, else from the policy that generated
            the tokens.
        mismatch: correction of fresh tokens where engine and trainer differ: ``none``, ``truncate``
            (TIS) or ``mask`` (IcePop).
        mismatch_level: one mismatch ratio per ``token`` or per ``sequence``.
        mismatch_low: lower bound of the mismatch ratios that ``mask`` keeps.
        mismatch_high: upper bound of the mismatch ratios that ``mask`` keeps; the cap of
            ``truncate``.
        drop_off_policy: drop sequences with a negative advantage whose mean log ratio is below
            minus this (DeepSeek-V3.2: 0.5).
        luffy_gamma: LUFFY's shaping constant of demonstrations in groups, above 0.

    Raises:
        ValueError: if an option is out of range.
    """

    loss_type: LossType = "grpo"
    advantage: Literal["group", "signs"] = "group"
    scale: Scale = "group"
    leave_one_out: bool = False
    positive_weight: float = 1.0
    negative_weight: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_center: ClipCenter = "one"
    dual_clip: float | None = None
    ratio_level: RatioLevel | None = None
    kl_beta: float = 0.0
    kl_estimator: KLEstimator = "k3"
    use_bias_correction_kl: bool = True
    kl_ratio_cap: float = 10.0
    entropy_bonus: float = 0.0
    high_entropy: float = 1.0
    high_entropy_over: Literal["micro_batch", "step"] = "micro_batch"
    covariance: Literal["none", "clip", "kl"] = "none"
    covariance_share: float = 2e-4
    covariance_low: float = 1.0
    covariance_high: float = 5.0
    covariance_beta: float = 1.0
    mismatch: Literal["none", "truncate", "mask"] = "none"
    mismatch_level: RatioLevel = "token"
    mismatch_low: float = 0.5
    mismatch_high: float = 2.0
    drop_off_policy: float | None = None
    luffy_gamma: float = 0.1

    def __post_init__(self) -> None:
        signs = ("positive_weight", "negative_weight")
        for name in ("kl_beta", "entropy_bonus", "covariance_beta", *signs):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} is {value}; it must be at least 0 and finite")
        low, high, drop = self.covariance_low, self.covariance_high, self.drop_off_policy
        fraction = "it is a fraction of the tokens and must lie in"
        for name, valid, rule in (
            ("high_entropy", 0 < self.high_entropy <= 1, f"{fraction} (0, 1] (the paper's is 0.2)"),
            ("covariance_share", 0 <= self.covariance_share <= 1, f"{fraction} [0, 1]"),
            ("covariance_low", low < high, f"it must be below covariance_high, which is {high}"),
            ("luffy_gamma", 0 < self.luffy_gamma < math.inf, "it must be above 0 and finite"),
            ("kl_ratio_cap", self.kl_ratio_cap > 0, "it must be above 0"),
            ("mismatch_low", 0 <= self.mismatch_low <= 1, "it must lie in [0, 1]"),
            ("mismatch_high", self.mismatch_high >= 1, "it must be at least 1"),
            (
                "drop_off_policy",
                drop is None or drop >= 0,
                "it is a mean log ratio in nats and must be at least 0, or null",
            ),
        ):
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)}; {rule}")
        if self.kl_estimator == "k1" and not self.use_bias_correction_kl:
            raise ValueError(
                "kl_estimator is 'k1' and use_bias_correction_kl is false: the expected gradient "
                "of that loss is 0; choose k2 or k3, or set use_bias_correction_kl to true"
            )
        # The core functions validate the remaining options, here on no tokens.
        empty, sequence = torch.empty(0), torch.empty(0, dtype=torch.int64)
        kl_estimates(empty, empty, estimator=self.kl_estimator)
        self._policy_losses(empty, empty, empty, sequence, 0, old=empty)

    # Before a step -------------------------------------------------------------------------------

    def advantages(self, reward: Tensor, group: Tensor, size: int) -> Tensor:
        """Advantages ``[N]`` float32.

        Args:
            reward: ``[N]``; NaN where no reward applies.
            group: ``[N]`` int64 in ``[0, size)``.
            size: number of groups.
        """
        if self.advantage == "signs":
            return psr_nsr_advantages(
                reward,
                positive_weight=self.positive_weight,
                negative_weight=self.negative_weight,
            )
        advantage = group_advantages(
            reward, group, size, scale=self.scale, leave_one_out=self.leave_one_out
        )
        return scale_by_sign(
            advantage, positive=self.positive_weight, negative=self.negative_weight
        )

    def required_prescores(self, updates: int) -> frozenset[str]:
        """Per-token values to compute before the first of a step's ``updates`` updates."""
        names: set[str] = set()
        compares_with_start = (
            self.clip_center == "old" or self.mismatch != "none" or self.covariance == "kl"
        )
        if updates > 1 and compares_with_start:
            names.add("old_log_probs")
        if self.high_entropy < 1 and self.high_entropy_over == "step":
            names.add("entropy")
        return frozenset(names)

    @property
    def needs_entropy(self) -> bool:
        """Whether the loss needs the entropy of each token."""
        masked = self.high_entropy < 1 and self.high_entropy_over == "micro_batch"
        return self.entropy_bonus > 0 or masked

    # The loss ------------------------------------------------------------------------------------

    def loss(
        self,
        log_prob: Tensor,
        entropy: Tensor | None,
        reference: Tensor | None,
        batch: Batch,
        max_length: int,
    ) -> ObjectiveOutput:
        """Loss of a batch of rollouts.

        Args:
            log_prob: ``[K]``, log-probabilities of the policy, with gradient.
            entropy: ``[K]``, with gradient if there is an entropy bonus; None if not needed.
            reference: ``[K]``, log-probabilities of the reference; None if there is no KL.
            batch: see ``data.rollouts.minibatches.MicroBatchBuilder``.
            max_length: maximum length of a completion, in tokens.
        """
        sequence, size, shares = batch["sequence"], len(batch["index"]), dict[str, Tensor]()
        old = batch.get("old_log_probs", log_prob.detach())
        behavior, mismatch = self._behavior(batch, old)
        if self.mismatch != "none":
            shares["mismatch_changed"] = mismatch.changed.float()
        keep = counted = batch["trained"][sequence]
        if self.drop_off_policy is not None:
            kept = self._on_policy(log_prob.detach(), behavior, batch)
            shares["dropped_sequences"] = (~kept).float()
            keep = keep & kept[sequence]
        if self.high_entropy < 1:
            keep = keep & self._high_entropy(entropy, batch, keep)
        weight = keep.float() * batch["weight"][sequence] * mismatch.weight
        policy = self._policy_losses(
            log_prob,
            behavior,
            batch["advantage"],
            sequence,
            size,
            old=old,
            off_policy=batch["off_policy"],
            keep=weight,
        )
        losses, divergence = policy.losses, None
        if self.covariance != "none":
            losses, selected = self._with_covariance(policy, log_prob, old, batch, keep, weight)
            shares["covariance_share"] = selected.float()
        if reference is not None:
            divergence = self._divergence(log_prob, behavior, reference)
            losses = losses + self.kl_beta * divergence
        if self.entropy_bonus > 0:
            assert entropy is not None
            losses = losses - self.entropy_bonus * entropy
        loss = self._aggregate(losses, counted, batch, max_length)
        return ObjectiveOutput(loss, policy, divergence, shares)

    def _aggregate(self, losses: Tensor, counted: Tensor, batch: Batch, max_length: int) -> Tensor:
        """Reduce token losses, divided by the count of the whole update."""
        of_sequences = self.loss_type in ("grpo", "gspo", "dr_grpo")
        count = batch["sequence_count" if of_sequences else "token_count"]
        return aggregate_losses(
            losses,
            batch["sequence"],
            len(batch["index"]),
            loss_type=self.loss_type,
            count=max(float(count), 1e-9),
            max_length=max_length,
            counted=counted,
        )

    def _policy_losses(
        self,
        log_prob: Tensor,
        behavior: Tensor,
        advantage: Tensor,
        sequence: Tensor,
        size: int,
        *,
        old: Tensor,
        off_policy: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> PolicyLoss:
        return policy_gradient_losses(
            log_prob,
            behavior,
            advantage,
            sequence,
            size,
            loss_type=self.loss_type,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            clip_center=self.clip_center,
            old=old if self.clip_center == "old" else None,
            dual_clip=self.dual_clip,
            level=self.ratio_level,
            off_policy=off_policy,
            luffy_gamma=self.luffy_gamma,
            keep=keep,
        )

    def _behavior(self, batch: Batch, old: Tensor) -> tuple[Tensor, MismatchWeights]:
        """The ratio's denominator ``[K]``, and the mismatch weights of engine and trainer.

        With a mismatch correction, the denominator of fresh tokens is the trainer's probability at
        the start of the step; that of replayed tokens is the stored one.
        """
        behavior, sequence = batch["behavior_log_probs"], batch["sequence"]
        if self.mismatch == "none":
            return behavior, MismatchWeights(
                torch.ones_like(behavior), torch.zeros_like(behavior, dtype=torch.bool)
            )
        weight, changed = mismatch_weights(
            old,
            behavior,
            sequence,
            len(batch["index"]),
            mode=self.mismatch,
            level=self.mismatch_level,
            low=self.mismatch_low,
            high=self.mismatch_high,
            cap=self.mismatch_high,
        )
        fresh = ((batch["age"] == 0) & ~batch["off_policy"])[sequence]
        weights = MismatchWeights(torch.where(fresh, weight, 1.0), fresh & changed)
        return torch.where(fresh, old, behavior), weights

    def _on_policy(self, log_prob: Tensor, behavior: Tensor, batch: Batch) -> Tensor:
        """Sequences ``[N]`` bool that ``drop_off_policy`` keeps; all demonstrations."""
        assert self.drop_off_policy is not None
        kept = off_policy_sequence_mask(
            log_prob,
            behavior,
            batch["advantage"],
            batch["sequence"],
            len(batch["index"]),
            threshold=self.drop_off_policy,
        )
        demonstrated: Tensor = batch["off_policy"]
        return kept | demonstrated

    def _divergence(self, log_prob: Tensor, behavior: Tensor, reference: Tensor) -> Tensor:
        ratio = None
        if self.use_bias_correction_kl:
            ratio = truncated_ratios(log_prob, behavior, cap=self.kl_ratio_cap)
        return kl_estimates(log_prob, reference, estimator=self.kl_estimator, ratio=ratio)

    def _high_entropy(self, entropy: Tensor | None, batch: Batch, keep: Tensor) -> Tensor:
        if self.high_entropy_over == "step":
            mask: Tensor = batch["forking"] > 0
            return mask
        assert entropy is not None
        return high_entropy_mask(entropy.detach(), self.high_entropy, keep)

    def _with_covariance(
        self,
        policy: PolicyLoss,
        log_prob: Tensor,
        old: Tensor,
        batch: Batch,
        keep: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The policy's losses ``[K]`` with Clip-Cov or KL-Cov, and the tokens ``[K]`` it selects.

        Clip-Cov selects among the tokens whose gradient the PPO clip has not dropped.
        """
        cov = covariances(log_prob.detach(), batch["advantage"][batch["sequence"]], keep)
        if self.covariance == "clip":
            selected = clip_cov(
                cov.masked_fill(policy.weight == 0, -math.inf),
                share=self.covariance_share,
                low=self.covariance_low,
                high=self.covariance_high,
                keep=keep,
                uniform=torch.rand(len(cov)).to(cov.device),
            )
            return policy.losses * ~selected, selected
        selected = kl_cov(cov, share=self.covariance_share, keep=keep)
        start = self._start_log_probs(batch, old)
        penalty = kl_cov_penalties(log_prob, start, selected, coefficient=self.covariance_beta)
        return policy.losses + penalty * weight, selected

    @staticmethod
    def _start_log_probs(batch: Batch, old: Tensor) -> Tensor:
        """Log-probabilities ``[K]`` that KL-Cov holds the policy to."""
        if "old_log_probs" in batch:
            return old
        demonstrated = batch["off_policy"][batch["sequence"]]  # they have no behavior policy
        return torch.where(demonstrated, old, batch["behavior_log_probs"])

    def postprocess_prescores(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn the prescores ``[K]`` of a step into the per-token values of its batches."""
        if "entropy" not in values:
            return values
        entropy = values.pop("entropy")
        return values | {"forking": high_entropy_mask(entropy, self.high_entropy).float()}
