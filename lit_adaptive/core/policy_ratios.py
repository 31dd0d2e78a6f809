r"""Ratios of policies, token by token or of whole sequences, and what corrects by them.

    log_prob   [K]  log pi_theta, differentiable          sequence  [K]  int64 in [0, N)
    behavior   [K]  of the policy that wrote the tokens   old       [K]  of the trainer's policy at
                    (the sampler), stored                                the start of the step
    reference  [K]  of the policy to stay near            advantage [N]

Where this departs from the sources, and why:
  1. A log ratio is held at 20 from above (verl holds at +-20): e^20 is beyond any clip, and its
     products stay in float32. Below, exp goes to 0 by itself.
  2. k3 goes on in a line where log(reference / policy) is above 20, so its gradient still points
     back to the reference.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_adaptive.core.segments import segment_mean, segment_sum

RatioLevel = Literal["token", "sequence"]
KLEstimator = Literal["k1", "k2", "k3"]
Mismatch = Literal["none", "truncate", "mask"]

MAX_LOG_RATIO = 20.0
"""Greatest log ratio."""


class MismatchWeights(NamedTuple):
    """What losses are multiplied by where sampler and trainer differ; without gradient.

    Attributes:
        weight: ``[K]`` float32, at least 0.
        changed: ``[K]`` bool: whether it was cut or masked.
    """

    weight: Tensor
    changed: Tensor


def log_importance_ratios(
    log_prob: Tensor, behavior: Tensor, sequence: Tensor, size: int, *, level: RatioLevel = "token"
) -> Tensor:
    r"""Log of pi_theta / behavior of each token: ``[K]``, differentiable.

    ``"sequence"``: the mean over the sequence, so that its exponential is GSPO's
    :math:`s_i = (\pi_\theta(o_i) / \pi_{old}(o_i))^{1/|o_i|}` (Zheng et al., 2025,
    arXiv:2507.18071, equation 7), given to each token with that token's own gradient: equation 14,
    GSPO-token. Averaged over the tokens, the gradient is that of :math:`s_i` itself.

    Args:
        log_prob: ``[K]``.
        behavior: ``[K]``.
        sequence: ``[K]``.
        size: number of sequences N.
        level: one ratio for each token, or one for the sequence.

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


def importance_ratios(
    log_prob: Tensor, behavior: Tensor, sequence: Tensor, size: int, *, level: RatioLevel = "token"
) -> Tensor:
    """``log_importance_ratios``, held at ``MAX_LOG_RATIO``, as ratios: ``[K]``, differentiable.

    Args:
        log_prob: ``[K]``.
        behavior: ``[K]``.
        sequence: ``[K]``.
        size: number of sequences N.
        level: one ratio for each token, or one for the sequence.
    """
    return (
        log_importance_ratios(log_prob, behavior, sequence, size, level=level)
        .clamp(max=MAX_LOG_RATIO)
        .exp()
    )


def kl_estimates(
    log_prob: Tensor,
    reference: Tensor,
    *,
    estimator: KLEstimator = "k3",
    ratio: Tensor | None = None,
) -> Tensor:
    r"""Estimates of KL(pi_theta || reference) at each token: ``[K]``, differentiable.

    Schulman (2020), "Approximating KL divergence". With d = log reference - log pi_theta: k1 is -d,
    k2 is d^2 / 2, k3 is e^d - d - 1. Tokens must come from pi_theta: k1 and k3 then have the mean
    KL. As a *loss* their gradients differ from its gradient: of k1 it is 0 in the mean, of k2 it
    is right, of k3 (GRPO's, equation 4) it is that of KL(reference || pi_theta). With ``ratio`` of
    the policy to what wrote the tokens, gradient included, value and gradient of k1 and k3 are
    right on policy and on replay (DeepSeek-V3.2, 2025, arXiv:2512.02556, equation 7, for k3).

    Args:
        log_prob: ``[K]``.
        reference: ``[K]``.
        estimator: k1, k2 or k3.
        ratio: ``[K]`` of ``importance_ratios``, or None for 1.

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
    elif estimator == "k3":
        held = d.clamp(max=MAX_LOG_RATIO)
        value = held.exp() * (1 + (d - held)) - d - 1
    else:
        raise ValueError(f"estimator is {estimator!r}; it must be one of ['k1', 'k2', 'k3']")
    return value if ratio is None else value * ratio


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
    r"""Weights old / behavior, where an engine's numbers are not the trainer's.

    ``"truncate"``: min(old / behavior, ``cap``), truncated importance sampling (Yao et al., 2025,
    "Your efficient RL framework secretly brings you off-policy RL training"). ``"mask"``: 0
    outside [``low``, ``high``], else the ratio: IcePop (Ring-1T, 2025, arXiv:2510.18855).

    These multiply losses whose own ratio is pi_theta / old. Losses that already divide by
    ``behavior``, as GRPO-RR's, would be corrected twice.

    Args:
        old: ``[K]``.
        behavior: ``[K]``.
        sequence: ``[K]``.
        size: number of sequences N.
        mode: ``"none"`` gives ones.
        level: ``"sequence"``: one weight, of the product over the sequence's tokens (as TRL).
        low: in [0, 1].
        high: at least 1.
        cap: above 0; at 1 nothing counts more than itself.

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
            f"low is {low}, high {high} and cap {cap}; they must keep 0 <= low <= 1 <= high and "
            "0 < cap, so that equal policies have weight 1 or a capped one"
        )
    if mode == "none":
        return MismatchWeights(
            torch.ones_like(old).float(), torch.zeros_like(old, dtype=torch.bool)
        )
    difference = (old - behavior).float()
    if level == "sequence":
        difference = segment_sum(difference, sequence, size)[sequence]
    ratio = difference.clamp(max=MAX_LOG_RATIO).exp()
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
    r"""Whether a sequence is kept: ``[N]`` bool.

    DeepSeek-V3.2 (2025, arXiv:2512.02556), section 3.1: dropped if its advantage is below 0 and
    the mean over its tokens of log(behavior / pi_theta) is above ``threshold``: bad samples that
    the policy would no longer write teach nothing and destabilise.

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
        raise ValueError(f"threshold is {threshold}; a mean log ratio in nats, at least 0")
    drift = segment_mean((behavior - log_prob).float(), sequence, size)
    return (advantage >= 0) | (drift <= threshold)


def at_least_float32(value: Tensor) -> Tensor:
    """``value`` in float32, or in float64 if it is."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def check_tokens(log_prob: Tensor, sequence: Tensor, **others: Tensor | None) -> None:
    """Refuse tensors that are not all ``[K]``.

    Raises:
        ValueError: naming the shapes.
    """
    given = {"log_prob": log_prob, "sequence": sequence, **others}
    shapes = {name: list(each.shape) for name, each in given.items() if each is not None}
    if log_prob.dim() != 1 or any(shape != shapes["log_prob"] for shape in shapes.values()):
        raise ValueError(
            f"shapes are {shapes}; all must be [K], one for each completion token, sequence after "
            "sequence"
        )
