r"""Importance ratios of tokens or sequences, KL estimates, and corrections of engine mismatch.

    log_prob   [K]  log-probability of each token under pi_theta, differentiable
    behavior   [K]  the same under the policy that generated the tokens, stored
    old        [K]  the same under the trainer's policy at the start of the step
    reference  [K]  the same under the reference policy of the KL term
    sequence   [K]  int64 in [0, N): the completion of each token
    advantage  [N]  advantage of each completion

Departures from the sources:
  1. Log ratios are limited to 20 from above (verl: +-20): e^20 is beyond any clip, and its products
     fit in float32. Below, exp tends to 0.
  2. k3 continues linearly where log(reference / policy) is above 20, so that its gradient still
     points to the reference.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_adaptive.core.segments import segment_mean, segment_sum

RatioLevel = Literal["token", "sequence"]
KLEstimator = Literal["k1", "k2", "k3"]
Mismatch = Literal["none", "truncate", "mask"]

MAX_LOG_RATIO = 20.0
"""Upper limit of log ratios."""


class MismatchWeights(NamedTuple):
    """Factors of the losses where engine and trainer disagree; without gradient.

    Attributes:
        weight: ``[K]`` float32, at least 0.
        changed: ``[K]`` bool, tokens whose weight was truncated or masked.
    """

    weight: Tensor
    changed: Tensor


def log_importance_ratios(
    log_prob: Tensor, behavior: Tensor, sequence: Tensor, size: int, *, level: RatioLevel = "token"
) -> Tensor:
    r"""Log of pi_theta / behavior of each token: ``[K]``, differentiable.

    ``level="sequence"``: the mean over the sequence, whose exponential is GSPO's
    :math:`s_i = (\pi_\theta(o_i) / \pi_{old}(o_i))^{1/|o_i|}` (Zheng et al., 2025,
    arXiv:2507.18071, equation 7). Each token has this value with its own gradient (equation 14,
    GSPO-token); averaged over the tokens, the gradient is that of :math:`s_i`.

    Args:
        log_prob: ``[K]``.
        behavior: ``[K]``.
        sequence: ``[K]``.
        size: number of sequences N.
        level: one ratio for each token, or one for each sequence.

    Raises:
        ValueError: if shapes differ or ``level`` is unknown.
    """
    check_tokens(log_prob, sequence, behavior=behavior)
    if level not in ("token", "sequence"):
        raise ValueError(f"level is {level!r}; it must be one of ['token', 'sequence']")
    log_prob = at_least_float32(log_prob)
    difference = log_prob - behavior.detach()
    if level == "token":
        return difference
    mean = segment_mean(difference.detach(), sequence, size)
    return mean[sequence] + (log_prob - log_prob.detach())


def kl_estimates(
    log_prob: Tensor,
    reference: Tensor,
    *,
    estimator: KLEstimator = "k3",
    ratio: Tensor | None = None,
) -> Tensor:
    r"""Estimates of KL(pi_theta || reference) at each token: ``[K]``, differentiable.

    Schulman (2020), "Approximating KL divergence". With d = log reference - log pi_theta: k1 is -d,
    k2 is d^2 / 2, k3 is e^d - d - 1. The expectation of k1 and k3 over tokens of pi_theta is the
    KL. As losses, the expected gradient over tokens of the behavior policy is that of:

    ========= ============================ ================================
    estimator without ``ratio``            with ``ratio``
    ========= ============================ ================================
    k1        0 where behavior is policy   KL(pi_theta || reference)
    k2        KL(pi_theta || reference)    KL(pi_theta || reference)
    k3        KL(reference || pi_theta)    KL(pi_theta || reference)
    ========= ============================ ================================

    Without the ratio this holds only where the behavior policy is pi_theta itself. With it, it
    holds for replayed tokens too, as far as the ratio is not capped. k3 with the ratio is that of
    DeepSeek-V3.2 (2025, arXiv:2512.02556, equation 7); k3 without it that of GRPO (equation 4). The
    ratio multiplies k1 and k3 with its gradient; of k2 the value alone has the right gradient, so
    that its ratio is a constant weight.

    Args:
        log_prob: ``[K]``.
        reference: ``[K]``.
        estimator: k1, k2 or k3.
        ratio: ``[K]``, see ``truncated_ratios``; None: 1.

    Raises:
        ValueError: if shapes differ or ``estimator`` is unknown.
    """
    if log_prob.shape != reference.shape or (ratio is not None and ratio.shape != log_prob.shape):
        raise ValueError(
            f"log_prob has shape {list(log_prob.shape)}, reference {list(reference.shape)}"
            f"{'' if ratio is None else f' and ratio {list(ratio.shape)}'}; all must be [K]"
        )
    d = reference.detach() - at_least_float32(log_prob)
    if estimator == "k1":
        value = -d
    elif estimator == "k2":
        value = d.square() / 2
        ratio = None if ratio is None else ratio.detach()
    elif estimator == "k3":
        limited = d.clamp(max=MAX_LOG_RATIO)
        value = limited.exp() * (1 + (d - limited)) - d - 1
    else:
        raise ValueError(f"estimator is {estimator!r}; it must be one of ['k1', 'k2', 'k3']")
    return value if ratio is None else value * ratio


def truncated_ratios(log_prob: Tensor, behavior: Tensor, *, cap: float) -> Tensor:
    r"""min(pi_theta / behavior, ``cap``) of each token, as a weight: ``[K]``, differentiable.

    Truncated importance sampling (Ionides, 2008) of a whole gradient: above the cap the gradient
    is that of the capped ratio times :math:`\nabla \log\pi_\theta`, not 0, so that a capped term
    still points where the uncapped one does.

    Args:
        log_prob: ``[K]``.
        behavior: ``[K]``.
        cap: above 0.

    Raises:
        ValueError: if ``cap`` is not above 0.
    """
    if not cap > 0:
        raise ValueError(f"cap is {cap}; it bounds importance ratios and must be above 0")
    log_prob = at_least_float32(log_prob)
    value = limited_exp((log_prob - behavior).detach()).clamp(max=cap)
    return value * (1 + log_prob - log_prob.detach())


@torch.no_grad()
def mismatch_weights(
    old: Tensor,
    behavior: Tensor,
    sequence: Tensor,
    size: int,
    *,
    mode: Mismatch = "truncate",
    level: RatioLevel = "token",
    low: float = 0.5,
    high: float = 5.0,
    cap: float = 2.0,
) -> MismatchWeights:
    r"""Weights old / behavior, which correct differences between engine and trainer.

    They multiply losses whose ratio is pi_theta / old. Losses that divide by ``behavior`` already,
    such as those of replayed rollouts, would be corrected twice.

    Args:
        old: ``[K]``.
        behavior: ``[K]``.
        sequence: ``[K]``.
        size: number of sequences N.
        mode: ``"truncate"``: min(old / behavior, ``cap``), truncated importance sampling (Yao et
            al., 2025, "Your efficient RL framework secretly brings you off-policy RL training").
            ``"mask"``: the ratio, but 0 outside [``low``, ``high``]: IcePop (Ring-1T, 2025,
            arXiv:2510.18855). ``"none"``: 1.
        level: ``"sequence"``: one weight, the product over the sequence's tokens (as in TRL).
        low: in [0, 1].
        high: at least 1.
        cap: above 0.

    Raises:
        ValueError: if shapes differ or an option is out of its range.
    """
    check_tokens(old, sequence, behavior=behavior)
    if mode not in ("none", "truncate", "mask") or level not in ("token", "sequence"):
        raise ValueError(
            f"mode is {mode!r} and level {level!r}; they must be of ['none', 'truncate', 'mask'] "
            "and ['token', 'sequence']"
        )
    if not (0 <= low <= 1 <= high and cap > 0):
        raise ValueError(
            f"low is {low}, high {high} and cap {cap}; they must satisfy 0 <= low <= 1 <= high and "
            "0 < cap, so that equal policies have weight 1, or the cap"
        )
    if mode == "none":
        return MismatchWeights(
            torch.ones_like(old).float(), torch.zeros_like(old, dtype=torch.bool)
        )
    difference = (old - behavior).float()
    if level == "sequence":
        difference = segment_sum(difference, sequence, size)[sequence]
    ratio = limited_exp(difference)
    if mode == "truncate":
        return MismatchWeights(ratio.clamp(max=cap), ratio > cap)
    outside = (ratio < low) | (ratio > high)
    return MismatchWeights(ratio.masked_fill(outside, 0.0), outside)


@torch.no_grad()
def off_policy_sequence_mask(
    log_prob: Tensor,
    behavior: Tensor,
    advantage: Tensor,
    sequence: Tensor,
    size: int,
    *,
    threshold: float = 0.5,
) -> Tensor:
    r"""Sequences to keep: ``[N]`` bool.

    DeepSeek-V3.2 (2025, arXiv:2512.02556), section 3.1: a sequence is dropped if its advantage is
    below 0 and the mean over its tokens of log(behavior / pi_theta) is above ``threshold``. Such
    samples, which the policy would no longer generate, destabilise the training.

    Args:
        log_prob: ``[K]``.
        behavior: ``[K]``.
        advantage: ``[N]``.
        sequence: ``[K]``.
        size: number of sequences N.
        threshold: delta, in nats, at least 0.

    Raises:
        ValueError: if shapes differ or ``threshold`` is negative.
    """
    check_tokens(log_prob, sequence, behavior=behavior)
    if not threshold >= 0:
        raise ValueError(
            f"threshold is {threshold}; it is a mean log ratio in nats and must be at least 0"
        )
    drift = segment_mean((behavior - log_prob).float(), sequence, size)
    return (advantage >= 0) | (drift <= threshold)


def limited_exp(log_ratio: Tensor) -> Tensor:
    """Ratios of the log ratios ``log_ratio``, at most ``exp(MAX_LOG_RATIO)``."""
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def at_least_float32(value: Tensor) -> Tensor:
    """``value`` in float32, or unchanged if float64."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def check_tokens(log_prob: Tensor, sequence: Tensor, **columns: Tensor | None) -> None:
    """Raise ValueError unless all tensors have the shape ``[K]`` of ``log_prob``."""
    tensors = {"log_prob": log_prob, "sequence": sequence, **columns}
    shapes = {name: list(value.shape) for name, value in tensors.items() if value is not None}
    if log_prob.dim() != 1 or any(shape != shapes["log_prob"] for shape in shapes.values()):
        raise ValueError(f"shapes are {shapes}; all must be [K], one for each completion token")
