"""The objective of GRPO and its kin as one set of options: advantages, and the loss of a batch.

The equations are in ``core.advantages``, ``core.grpo`` and ``core.entropy``. With replayed rollouts
the ratio's denominator is what the policy of then said (``behavior_log_probs``); for fresh ones
that is the policy at the start of the step, so that GRPO is the case without replay.
"""

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
    RatioLevel,
    importance_ratios,
    kl_estimates,
    mismatch_weights,
    off_policy_sequence_mask,
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
    """A batch's loss and what is told of it.

    Attributes:
        loss: scalar, with gradient; divided so that an update's micro-batches add up.
        policy: of each token.
        counted: ``[K]`` bool, tokens that the objective counts.
        kl: ``[K]`` to the reference, or None.
        shares: of tokens that something was done to, by name.
    """

    loss: Tensor
    policy: PolicyLoss
    counted: Tensor
    kl: Tensor | None
    shares: dict[str, Tensor]


@dataclass(frozen=True)
class PolicyObjective:
    """Options of the objective; the defaults are GRPO (Shao et al., 2024) without KL.

    Args:
        loss_type: ``grpo``, ``dr_grpo``, ``dapo``, ``bnpo``, ``gspo`` or ``cispo``.
        advantage: ``group``: less the group's mean; ``signs``: +1 for right answers, -1 for wrong
            ones, times the weights below (PSR, NSR, W-REINFORCE).
        scale: of ``group``: over the standard deviation of the ``group`` or ``batch``, or ``none``
            (Dr. GRPO, DOTS).
        leave_one_out: of ``group``: less the mean of the others (RLOO).
        positive_weight: of advantages above 0, at least 0.
        negative_weight: of those below, at least 0.
        clip_low: 1 - it is the ratio's least, in [0, 1].
        clip_high: 1 + it is the ratio's most, at least 0.
        clip_center: ``one`` (the paper of Rollout Replay), or ``old``: the clip is around the ratio
            at the start of the step (its code).
        dual_clip: most ratio where the advantage is below 0, above 1 + ``clip_high``.
        level: of the ratio: ``token`` or ``sequence``; by default the loss type's.
        kl_beta: weight of the KL to the reference, at least 0.
        kl_estimator: ``k1``, ``k2`` or ``k3``.
        entropy_bonus: weight of the mean entropy, which is made greater; at least 0.
        high_entropy: the policy gradient is taken on this share of tokens, those of the highest
            entropy, in (0, 1].
        high_entropy_over: tokens of a ``micro_batch`` (as in the paper's code) or of the ``step``.
        covariance: ``none``; ``clip``: Clip-Cov; ``kl``: KL-Cov.
        covariance_share: of tokens, in [0, 1].
        covariance_low: of Clip-Cov.
        covariance_high: of Clip-Cov.
        covariance_beta: of KL-Cov.
        mismatch: where engine and trainer disagree about fresh tokens: ``none``, ``truncate`` (TIS)
            or ``mask`` (IcePop).
        mismatch_level: ``token`` or ``sequence``.
        mismatch_low: of ``mask``.
        mismatch_high: of ``mask``; the cap of ``truncate``.
        drop_off_policy: bad sequences whose mean log ratio is below minus this are left out
            (DeepSeek-V3.2: 0.5).
        luffy_gamma: of demonstrations inside groups, above 0.

    Raises:
        ValueError: naming the option that is out of its range.
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
    level: RatioLevel | None = None
    kl_beta: float = 0.0
    kl_estimator: KLEstimator = "k3"
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
        for name in ("kl_beta", "entropy_bonus", "positive_weight", "negative_weight"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be at least 0 and finite")
        if not 0 < self.high_entropy <= 1:
            raise ValueError(
                f"high_entropy is {self.high_entropy}; it is a share of the tokens and lies in "
                "(0, 1] (the paper's is 0.2; 1: all)"
            )
        if not self.luffy_gamma > 0:
            raise ValueError(f"luffy_gamma is {self.luffy_gamma}; it must be above 0")
        none, one = torch.empty(0), torch.empty(0, dtype=torch.int64)
        center = none if self.clip_center == "old" else None
        self._policy_losses(none, none, none, one, 0, center, None)  # refuses what it must
        mismatch_weights(
            none,
            none,
            one,
            0,
            level=self.mismatch_level,
            low=self.mismatch_low,
            high=max(self.mismatch_high, self.mismatch_low),
            cap=self.mismatch_high,
        )

    # Before a step -------------------------------------------------------------------------------

    def advantages(self, reward: Tensor, group: Tensor, size: int) -> Tensor:
        """Of rewards ``[N]`` (NaN: none) in ``size`` groups: ``[N]`` float32."""
        if self.advantage == "signs":
            return psr_nsr_advantages(
                reward,
                positive_weight=self.positive_weight,
                negative_weight=self.negative_weight,
            )
        found = group_advantages(
            reward, group, size, scale=self.scale, leave_one_out=self.leave_one_out
        )
        return scale_by_sign(found, positive=self.positive_weight, negative=self.negative_weight)

    def required_prescores(self, updates: int) -> frozenset[str]:
        """What must be known of every token before a step of so many updates."""
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
        own = self.high_entropy < 1 and self.high_entropy_over == "micro_batch"
        return self.entropy_bonus > 0 or own

    # The loss ------------------------------------------------------------------------------------

    def loss(
        self,
        log_prob: Tensor,
        entropy: Tensor | None,
        reference: Tensor | None,
        batch: Batch,
        max_length: int,
    ) -> ObjectiveOutput:
        """Of a batch of rollouts, see ``data.rollout_batches``.

        Args:
            log_prob: ``[K]`` of the policy, with gradient.
            entropy: ``[K]``, with gradient if there is a bonus for it; None where not wanted.
            reference: ``[K]`` log-probabilities of the reference; None where there is no KL.
            batch: on one device.
            max_length: tokens that an answer may have.
        """
        sequence, size = batch["sequence"], len(batch["index"])
        advantage = batch["advantage"]
        old = batch.get("old_log_probs", log_prob.detach())
        behavior, matched = self._behavior(batch, old)
        keep = batch["trained"][sequence]
        counted, shares = keep, dict[str, Tensor]()
        if self.drop_off_policy is not None:
            kept = off_policy_sequence_mask(
                log_prob.detach(),
                behavior,
                advantage,
                sequence,
                size,
                threshold=self.drop_off_policy,
            )
            kept = kept | batch["off_policy"]
            shares["dropped_sequences"] = (~kept).float()
            keep = keep & kept[sequence]
        if self.high_entropy < 1:
            keep = keep & self._forking(entropy, batch, keep)
        chosen, penalty = None, None
        if self.covariance != "none":
            anchor = old
            if "old_log_probs" not in batch:  # one update: the policy that generated the tokens
                anchor = torch.where(
                    batch["off_policy"][sequence], old, batch["behavior_log_probs"]
                )
            chosen, penalty = self._covariance(log_prob, anchor, advantage[sequence], keep)
            shares["covariance_share"] = chosen.float()
            keep = keep & ~chosen if self.covariance == "clip" else keep
        weight = keep.float() * batch["weight"][sequence] * matched
        policy = self._policy_losses(
            log_prob, behavior, advantage, sequence, size, old, batch["off_policy"], weight
        )
        losses = policy.losses if penalty is None else policy.losses + penalty * weight
        divergence = None
        if reference is not None:
            ratio = importance_ratios(log_prob, behavior, sequence, size)
            divergence = kl_estimates(log_prob, reference, estimator=self.kl_estimator, ratio=ratio)
            losses = losses + self.kl_beta * divergence
        if self.entropy_bonus > 0:
            assert entropy is not None
            losses = losses - self.entropy_bonus * entropy
        if self.mismatch != "none":
            shares["mismatch_changed"] = (matched != 1).float()
        loss = self._aggregated(losses, counted, batch, max_length)
        return ObjectiveOutput(loss, policy, counted, divergence, shares)

    def _aggregated(self, losses: Tensor, counted: Tensor, batch: Batch, max_length: int) -> Tensor:
        """Divided by the count of the whole update."""
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
        old: Tensor | None,
        off_policy: Tensor | None,
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
            level=self.level,
            off_policy=off_policy,
            luffy_gamma=self.luffy_gamma,
            keep=keep,
        )

    def _behavior(self, batch: Batch, old: Tensor) -> tuple[Tensor, Tensor]:
        """The ratio's denominator ``[K]``, and weights for engines that disagree with the trainer.

        Of fresh tokens the denominator then is what the trainer says of the policy at the start of
        the step; of replayed ones it is what was stored.
        """
        behavior = batch["behavior_log_probs"]
        if self.mismatch == "none":
            return behavior, torch.ones_like(behavior)
        sequence = batch["sequence"]
        fresh = ((batch["age"] == 0) & ~batch["off_policy"])[sequence]
        weights = mismatch_weights(
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
        return torch.where(fresh, old, behavior), torch.where(fresh, weights.weight, 1.0)

    def _forking(self, entropy: Tensor | None, batch: Batch, keep: Tensor) -> Tensor:
        if self.high_entropy_over == "step":
            found: Tensor = batch["forking"] > 0
            return found
        assert entropy is not None
        return high_entropy_mask(entropy.detach(), self.high_entropy, keep)

    def _covariance(
        self, log_prob: Tensor, old: Tensor, advantage: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        cov = covariances(log_prob.detach(), advantage, keep)
        if self.covariance == "clip":
            uniform = torch.rand(len(cov)).to(cov.device)
            chosen = clip_cov(
                cov,
                share=self.covariance_share,
                low=self.covariance_low,
                high=self.covariance_high,
                keep=keep,
                uniform=uniform,
            )
            return chosen, None
        chosen = kl_cov(cov, share=self.covariance_share, keep=keep)
        return chosen, kl_cov_penalties(log_prob, old, chosen, coefficient=self.covariance_beta)

    def postprocess_prescores(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """What was prescored of a step's tokens ``[K]``, as batches carry it."""
        if "entropy" not in found:
            return found
        entropy = found.pop("entropy")
        return found | {"forking": high_entropy_mask(entropy, self.high_entropy).float()}
