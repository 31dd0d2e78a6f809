r"""Importance-weighted supervised fine-tuning (Qin & Springenberg, 2025, arXiv:2507.12856).

Fine-tuning on data filtered by reward maximises a lower bound of an RL objective; weights tighten
the bound. Inputs are the log-probabilities of the completion tokens of B samples:

    log_prob    [K]  log pi_theta of each token, differentiable
    reference   [K]  log pi_ref of each token: of the policy that made the data, or the initial one
    sequence    [K]  int64 in [0, B): the sample of each token, ascending
    weight      [K]  factor of the token's -log pi_theta; never differentiated

There are two ratios with opposite effects:

    policy_over_ref   exp((log pi_theta - log pi_ref) / T): the paper's. Completions that the policy
                      has come to prefer count more, so it follows the reward to its maximum. On the
                      50/50 bandit of the paper's figure 1, SFT ends at (1/3, 2/3), this at (0, 1).
    ref_over_policy   exp((log pi_ref - log pi_theta) / T): the specification's. Completions that
                      have become less likely count more, which keeps the policy near the reference:
                      the bandit ends at pi ~ (data * reference)^(1/2) = (0.414, 0.586).

Departures from the sources:
  1. ``temperature`` divides in both, as in the specification. The authors' code multiplies: its
     ``temp`` of 10 on control tasks is a temperature of 0.1 here.
  2. Weights are computed and clamped in log space, so none overflows; without a clamp log weights
     are limited to +-80, the range of float32, and counted as clamped.
  3. The specification's ``epsilon`` is unused in the authors' code, which has it from Hugging
     Face's label smoother. Here it is the smoothing of that class, with ``label_smoothing=True``
     only, so that the specification's call gives the specification's loss.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lit_adaptive.core.bounds import check_choices
from lit_adaptive.core.policy_ratios import RatioLevel
from lit_adaptive.core.segments import Reduction, reduce_segments, segment_mean

LogitObjective = Literal["iw", "dft", "nll"]
Objective = Literal["iw", "dft", "asft", "eaft", "psft", "nll"]
Ratio = Literal["ref_over_policy", "policy_over_ref"]
Clamp = tuple[float, float] | Literal["default"] | None

MAX_LOG_WEIGHT = 80.0
"""Limit of the absolute log weight: exp(80) and its reciprocal fit in float32."""

DEFAULT_CLAMPS: dict[tuple[str, str], tuple[float, float] | None] = {
    ("policy_over_ref", "sequence"): (0.0, 16.0),
    ("policy_over_ref", "token"): (0.2, 1.8),
    ("ref_over_policy", "sequence"): None,
    ("ref_over_policy", "token"): None,
}
"""Those of the authors' code for the paper's ratio; the specification clamps nothing."""


EAFT_TOP = 20
"""Number of most likely tokens whose entropy EAFT takes."""


class TokenWeights(NamedTuple):
    """Factors of the tokens' losses, without gradient.

    Attributes:
        weight: ``[K]`` float32.
        clamped: ``[K]`` bool, tokens whose weight was clamped to a bound.
    """

    weight: Tensor
    clamped: Tensor


def resolve_clamp(clamp: Clamp, ratio: str, level: str) -> tuple[float, float] | None:
    """The bounds of ``clamp``, with the default replaced by that of ``ratio`` and ``level``.

    Raises:
        ValueError: unless ``0 <= low <= 1 <= high``.
    """
    if clamp == "default":
        return DEFAULT_CLAMPS[ratio, level]
    if clamp is not None and not 0 <= clamp[0] <= 1 <= clamp[1]:
        raise ValueError(
            f"clamp is {list(clamp)}; it must be [low, high] with 0 <= low <= 1 <= high, so that a "
            "policy that equals its reference has weight 1"
        )
    return clamp


@torch.no_grad()
def iw_sft_weights(
    log_prob: Tensor,
    reference: Tensor,
    sequence: Tensor,
    size: int,
    *,
    ratio: Ratio = "policy_over_ref",
    level: RatioLevel = "sequence",
    temperature: float = 1.0,
    clamp: Clamp = "default",
) -> TokenWeights:
    r"""Weights of iw-SFT, without gradient.

    The log ratio of a sequence is the *mean* over its tokens (the authors' code), so that long
    completions do not reach the clamp by their length.

    Args:
        log_prob: ``[K]`` of the policy, or of another policy q such as its moving average.
        reference: ``[K]``.
        sequence: ``[K]`` int64 in ``[0, size)``.
        size: number of sequences.
        ratio: see the module's docstring.
        level: one ratio for each token, or one for each sequence, shared by its tokens.
        temperature: T above 0; larger values bring the weights closer to 1.
        clamp: bounds of the weights, or None; ``"default"``: [0, 16] per sequence and [0.2, 1.8]
            per token for the paper's ratio, none for the specification's.

    Raises:
        ValueError: if shapes differ, ``temperature`` or ``clamp`` is out of its range, or the
            reference is NaN.
    """
    _check_temperature(temperature)
    if log_prob.shape != reference.shape or log_prob.shape != sequence.shape:
        raise ValueError(
            f"log_prob has shape {list(log_prob.shape)}, reference {list(reference.shape)} and "
            f"sequence {list(sequence.shape)}; all must be [K], one for each token: score the "
            "reference with the same dataset and tokenizer"
        )
    difference = (log_prob - reference).float()
    if ratio == "ref_over_policy":
        difference = -difference
    if level == "sequence":
        difference = segment_mean(difference, sequence, size)
    if bool(difference.isnan().any()):
        raise ValueError(
            "log pi_theta - log pi_ref is NaN: look for NaN in the model, or score the reference "
            "again"
        )
    bounds = resolve_clamp(clamp, ratio, level)
    low, high = -MAX_LOG_WEIGHT, MAX_LOG_WEIGHT
    if bounds is not None:
        low = math.log(bounds[0]) if bounds[0] > 0 else -torch.inf
        high = min(math.log(bounds[1]), MAX_LOG_WEIGHT)
    scaled = difference / temperature
    limited = scaled.clamp(low, high)
    weight, clamped = limited.exp(), limited != scaled
    if level == "sequence":
        weight, clamped = weight[sequence], clamped[sequence]
    return TokenWeights(weight, clamped)


@torch.no_grad()
def dft_weights(log_prob: Tensor) -> TokenWeights:
    """Dynamic fine-tuning (Wu et al., 2025, arXiv:2508.05629): the probability of each token.

    Args:
        log_prob: ``[K]``.
    """
    return TokenWeights(log_prob.float().exp(), torch.zeros_like(log_prob, dtype=torch.bool))


@torch.no_grad()
def eaft_weights(top_log_prob: Tensor, alpha: float = 1.0) -> TokenWeights:
    r"""Entropy-adaptive fine-tuning (Diao et al., 2026, arXiv:2601.02151): :math:`(H/3)^\alpha`.

    H is the entropy in nats of the ``EAFT_TOP`` most likely tokens, with probabilities divided
    by their sum; its maximum is log 20 = 2.996. So a token on which the policy is certain counts
    little, whether it agrees or not.

    Args:
        top_log_prob: ``[K, k]`` log-probabilities of the k most likely tokens.
        alpha: at least 0; 0 is plain SFT.
    """
    log_share = top_log_prob.float().log_softmax(-1)
    entropy = -(log_share.exp() * log_share).sum(-1)
    return TokenWeights((entropy / 3) ** alpha, torch.zeros_like(entropy, dtype=torch.bool))


@torch.no_grad()
def psft_weights(log_prob: Tensor, old: Tensor, epsilon: float = 0.2) -> TokenWeights:
    r"""Proximal SFT (Zhu et al., 2025, arXiv:2508.17784), as weights of :math:`-\log\pi`.

    :math:`-\min(r, \mathrm{clip}(r, 1-\epsilon, 1+\epsilon))` with :math:`r = \pi/\pi_{old}` has
    the gradient of :math:`-r \log\pi` up to :math:`1+\epsilon`, and none beyond.

    Args:
        log_prob: ``[K]`` of the policy.
        old: ``[K]`` of an earlier policy.
        epsilon: above 0.
    """
    ratio = (log_prob - old).float().clamp(max=MAX_LOG_WEIGHT).exp()
    clipped = ratio > 1 + epsilon
    return TokenWeights(ratio.masked_fill(clipped, 0.0), clipped)


def self_normalize(weight: Tensor, mean: Tensor | None = None) -> Tensor:
    """Weights ``[K]`` divided by their mean over tokens, or by ``mean``, such as that of all ranks.

    Otherwise the mean weight, and with it the step size, grows during training.
    """
    return weight / (weight.mean() if mean is None else mean).clamp(min=1e-30)


def label_smoothed_losses(log_prob: Tensor, mean_log_prob: Tensor | None, epsilon: float) -> Tensor:
    r"""Cross-entropy of each token with labels smoothed by ``epsilon``: ``[K]``.

    :math:`-(1-\epsilon) \log\pi(y) - \epsilon\,\frac1V\sum_v \log\pi(v)`.

    Args:
        log_prob: ``[K]`` of the labels.
        mean_log_prob: ``[K]`` mean log-probability over the vocabulary; None: no smoothing.
        epsilon: in [0, 1).
    """
    if mean_log_prob is None:
        return -log_prob
    return -(1 - epsilon) * log_prob - epsilon * mean_log_prob


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < torch.inf:
        raise ValueError(
            f"temperature is {temperature}; log ratios are divided by it, so it must be above 0 "
            "and finite (for weights of 1 choose objective nll)"
        )


def check_iw_sft_options(
    objective: str,
    ratio: str,
    level: str,
    *,
    temperature: float,
    clamp: Clamp,
    reduction: str,
    count: float | None,
    objectives: Any = LogitObjective,
) -> None:
    """Check the options of ``ImportanceWeightedSFTLoss`` that ``modules.IWSFT`` shares.

    Raises:
        ValueError: naming the option, its value and its valid values.
    """
    check_choices(
        objective=(objective, get_args(objectives)),
        ratio=(ratio, ("ref_over_policy", "policy_over_ref")),
        level=(level, ("token", "sequence")),
        reduction=(reduction, ("token", "sequence", "fixed")),
    )
    if reduction == "fixed" and (count is None or not count > 0):
        raise ValueError(f"reduction is 'fixed' and count is {count}; give a count above 0")
    _check_temperature(temperature)
    resolve_clamp(clamp, ratio, level)


class ImportanceWeightedSFTLoss(nn.Module):
    """The loss of iw-SFT, DFT or plain SFT from logits, with the specification's call and defaults.

    ``lit_adaptive.modules.IWSFT`` computes the same loss without ever holding the logits.

    Args:
        epsilon: label smoothing, in [0, 1), applied if ``label_smoothing``.
        temperature: T above 0.
        ratio: the specification's (default) or the paper's; see the module's docstring.
        level: one weight for each token (default), or for each sequence.
        objective: ``"iw"``; ``"dft"`` or ``"nll"``, which need no reference.
        clamp: bounds of the weights; see ``iw_sft_weights``.
        normalize: divide the weights by their mean over the batch.
        label_smoothing: smooth labels by ``epsilon``.
        ignore_index: label of tokens that are not trained on.
        reduction: see ``reduce_segments``.
        count: see ``reduce_segments``.
        shift: logits at position t predict the label at t + 1, as in a causal model; labels are
            then the ``input_ids``, and ``ref_log_probs[:, t]`` belongs to label t.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(
        self,
        epsilon: float = 0.1,
        temperature: float = 1.0,
        *,
        ratio: Ratio = "ref_over_policy",
        level: RatioLevel = "token",
        objective: LogitObjective = "iw",
        clamp: Clamp = "default",
        normalize: bool = False,
        label_smoothing: bool = False,
        ignore_index: int = -100,
        reduction: Reduction = "token",
        count: float | None = None,
        shift: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon is {epsilon}; a share of smoothing lies in [0, 1)")
        check_iw_sft_options(
            objective,
            ratio,
            level,
            temperature=temperature,
            clamp=clamp,
            reduction=reduction,
            count=count,
        )
        self.epsilon, self.temperature = epsilon, temperature
        self.ratio: Ratio = ratio
        self.level: RatioLevel = level
        self.objective: LogitObjective = objective
        self.clamp: Clamp = clamp
        self.normalize, self.label_smoothing = normalize, label_smoothing
        self.ignore_index, self.shift = ignore_index, shift
        self.reduction: Reduction = reduction
        self.count = count

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        ref_log_probs: Tensor | None = None,
        q_log_probs: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: ``[B, T, V]``.
            labels: ``[B, T]`` int64, ``ignore_index`` at tokens that are not trained on.
            ref_log_probs: ``[B, T]`` of the labels under the reference, or its logits
                ``[B, T, V]``; None: all weights are 1, as in the specification.
            q_log_probs: ``[B, T]`` of the labels under a policy that replaces the current one in
                the ratio, such as its moving average.
            sample_weight: ``[B]`` factor of each sample.

        Raises:
            ValueError: naming shapes that do not match.
        """
        if logits.dim() != 3 or labels.shape != logits.shape[:2]:
            raise ValueError(
                f"logits have shape {list(logits.shape)} and labels {list(labels.shape)}; they "
                "must be [B, T, V] and [B, T]"
            )
        if self.shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        kept = labels != self.ignore_index
        sequence = kept.nonzero()[:, 0]
        target = labels[kept]
        log_probs = logits[kept].float().log_softmax(-1)
        log_prob = log_probs.gather(-1, target[:, None])[:, 0]
        smooth = self.label_smoothing and self.epsilon > 0
        losses = label_smoothed_losses(
            log_prob, log_probs.mean(-1) if smooth else None, self.epsilon if smooth else 0.0
        )
        reference = self._label_log_probs(ref_log_probs, kept, target, "ref_log_probs")
        q = self._label_log_probs(q_log_probs, kept, target, "q_log_probs")
        weights = self._weights(log_prob if q is None else q, reference, sequence, len(labels))
        if weights is not None:
            losses = losses * weights
        return reduce_segments(
            losses,
            sequence,
            len(labels),
            reduction=self.reduction,
            count=self.count,
            sample_weight=sample_weight,
        )

    def _weights(
        self, log_prob: Tensor, reference: Tensor | None, sequence: Tensor, size: int
    ) -> Tensor | None:
        if self.objective == "dft":
            weight = dft_weights(log_prob).weight
        elif self.objective == "nll" or reference is None:
            return None
        else:
            weight = iw_sft_weights(
                log_prob,
                reference,
                sequence,
                size,
                ratio=self.ratio,
                level=self.level,
                temperature=self.temperature,
                clamp=self.clamp,
            ).weight
        return self_normalize(weight) if self.normalize else weight

    def _label_log_probs(
        self, values: Tensor | None, kept: Tensor, target: Tensor, name: str
    ) -> Tensor | None:
        """Log-probabilities of the trained labels ``[K]``, from those of all or from logits."""
        if values is None:
            return None
        if self.shift:
            values = values[:, 1:] if values.dim() == 2 else values[:, :-1]
        if values.shape[:2] == kept.shape and values.dim() == 3:
            log_probs = values[kept].detach().float().log_softmax(-1)
            return log_probs.gather(-1, target[:, None])[:, 0]
        if values.shape != kept.shape:
            raise ValueError(
                f"{name} has shape {list(values.shape)} for labels of {list(kept.shape)}; pass the "
                "log-probability of each label, or the logits"
            )
        return values[kept].detach()
