r"""GRPO and its kin on the tokens of many completions; with replay, GRPO-RR.

    log_prob   [K]  log pi_theta of each completion token, differentiable
    behavior   [K]  log-prob stored at generation: the denominator of the ratio
    old        [K]  the policy at the start of the step, or None
    sequence   [K]  int64 in [0, N): whose token
    advantage  [N]  of each completion

The ratio rho = pi_theta / behavior is right for fresh and for replayed tokens alike. What it is
clipped around is a choice (``clip_center``):

    one   [1 - e, 1 + e]                   Sun et al. (2025, arXiv:2506.05316), section 4
    old   [r (1 - e), r (1 + e)]           their code, with r = old / behavior: tokens that have
                                           drifted out of 1 +- e may still move by e in this step

Where this departs from the sources, and why:
  1. Ratios are clipped as logarithms, so a log ratio of 100 gives neither inf nor NaN; see
     ``grpo_ratios`` for the limit that holds without a clip.
  2. CISPO's cap is 1 + ``clip_high``, as in its paper; TRL's ``epsilon_high`` is the cap itself:
     its 5 is 4 here.
  3. ``dual_clip`` c (Ye et al., 2020, arXiv:1912.09729: advantages below 0 have no ratio above
     c) and TRL's ``delta`` (INTELLECT-2, 2025, arXiv:2505.07291, two-sided clipping) are the same
     function for c > 1 + ``clip_high``: where the advantage is above 0 the upper clip is lower
     yet. With centre ``old`` c too is times r.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_adaptive.core.policy_ratios import (
    MAX_LOG_RATIO,
    RatioLevel,
    at_least_float32,
    check_tokens,
    log_importance_ratios,
)
from lit_adaptive.core.segments import segment_sum

ClipCenter = Literal["one", "old"]
LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"]

LOSS_TYPES: tuple[LossType, ...] = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")

PAPER_CLIPS: dict[LossType, tuple[float, float]] = {
    "grpo": (0.2, 0.2),
    "dr_grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "bnpo": (0.2, 0.2),
    "gspo": (3e-4, 4e-4),
    "cispo": (1.0, 4.0),
}
"""``clip_low`` and ``clip_high`` of each: DAPO section 3.1, GSPO section 5.1, CISPO as in TRL."""


class PolicyLoss(NamedTuple):
    """Losses of all tokens, and how the ratio went; all but ``losses`` without gradient.

    Attributes:
        losses: ``[K]`` to be minimised, before ``aggregate_losses``.
        ratio: ``[K]`` pi_theta / behavior before any clip, of the token or its sequence.
        clipped_low: ``[K]`` bool: advantage below 0 and the ratio under its clip: no gradient.
        clipped_high: ``[K]`` bool: advantage above 0 and the ratio over its clip: no gradient. With
            CISPO both are of the ratio alone, whatever the advantage, and the gradient stays.
        capped: ``[K]`` bool: advantage below 0 and the ratio over ``dual_clip``: no gradient.
        weight: ``[K]`` w in the gradient -w A grad log pi of ``losses``; 0 where there is none.
    """

    losses: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    capped: Tensor
    weight: Tensor


def policy_gradient_losses(
    log_prob: Tensor,
    behavior: Tensor,
    advantage: Tensor,
    sequence: Tensor,
    size: int,
    *,
    loss_type: LossType = "grpo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_center: ClipCenter = "one",
    old: Tensor | None = None,
    dual_clip: float | None = None,
    level: RatioLevel | None = None,
    cispo_low: float | None = None,
    off_policy: Tensor | None = None,
    luffy_gamma: float = 0.1,
    keep: Tensor | None = None,
) -> PolicyLoss:
    r"""The loss of each token.

    :math:`-\min(\rho A, \mathrm{clip}(\rho) A)` (Shao et al., 2024, arXiv:2402.03300, equation 3);
    CISPO (MiniMax, 2025, arXiv:2506.13585, equation 4):
    :math:`-\mathrm{sg}(\min(\rho, 1 + \epsilon)) A \log\pi_\theta`. ``grpo``, ``dr_grpo``, ``dapo``
    and ``bnpo`` differ in ``aggregate_losses`` only. Values are not looked at, which would wait for
    the device: NaN in ``behavior`` makes NaN of the loss, but for demonstrations.

    Args:
        log_prob: ``[K]``.
        behavior: ``[K]``; what it holds where ``off_policy`` is read by nothing.
        advantage: ``[N]``.
        sequence: ``[K]``.
        size: number of sequences N.
        loss_type: ``"gspo"`` has a ratio for each sequence, ``"cispo"`` its own loss.
        clip_low: in [0, 1]; 1 is no clip. CISPO does not read it.
        clip_high: at least 0; inf is no clip.
        clip_center: see the head of this file; ``"old"`` needs ``old``.
        old: ``[K]``.
        dual_clip: c above 1 + ``clip_high``, or None for none; 3 in verl, 4 in INTELLECT-2.
        level: None: ``"sequence"`` for GSPO, else ``"token"``.
        cispo_low: least ratio 1 - ``cispo_low`` of CISPO, or None for none, as in its paper.
        off_policy: ``[N]`` bool: demonstrations, whose tokens have the probability pi_theta
            shaped by x / (x + ``luffy_gamma``) for a ratio, and no clip (LUFFY, Yan et al., 2025,
            arXiv:2504.14945).
        luffy_gamma: above 0.
        keep: ``[K]`` factors of the losses, such as a mask of tokens. It does not change the ratio
            of a sequence; nor, in ``aggregate_losses``, what counts.

    Raises:
        ValueError: if shapes differ, or an option is out of its range.
    """
    check_tokens(log_prob, sequence, behavior=behavior, old=old, keep=keep)
    _check_rollouts(size, advantage=advantage, off_policy=off_policy)
    _check_clips(loss_type, clip_low, clip_high, dual_clip, cispo_low)
    if level is None:
        level = "sequence" if loss_type == "gspo" else "token"
    if loss_type == "gspo" and level == "token":
        raise ValueError("loss_type is 'gspo' with level 'token': that is loss_type 'grpo'")
    log_prob, behavior = at_least_float32(log_prob), behavior.detach()
    gain = advantage.detach().to(log_prob.dtype)[sequence]
    demonstrated = None if off_policy is None else off_policy[sequence]
    if demonstrated is not None:  # a ratio of 1: NaN there must not reach the gradient
        behavior = torch.where(demonstrated, log_prob.detach(), behavior)
    log_ratio = log_importance_ratios(log_prob, behavior, sequence, size, level=level)
    center = torch.zeros((), dtype=log_prob.dtype, device=log_prob.device)
    if clip_center == "old":
        center = _center(old, behavior, sequence, size, level, demonstrated)
    elif clip_center != "one":
        raise ValueError(f"clip_center is {clip_center!r}; it must be one of ['one', 'old']")
    if loss_type == "cispo":
        found = _cispo(log_prob, log_ratio, gain, center, clip_high, cispo_low)
    else:
        found = _clipped(log_ratio, gain, center, clip_low, clip_high, dual_clip)
    if demonstrated is not None:
        found = _with_demonstrations(found, log_prob, gain, demonstrated, luffy_gamma)
    if keep is None:
        return found
    factor = keep.to(log_prob.dtype)
    return found._replace(losses=found.losses * factor, weight=found.weight * factor)


def _clipped(
    log_ratio: Tensor,
    gain: Tensor,
    center: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> PolicyLoss:
    """min(rho A, clip(rho) A): above 0 the upper clip alone holds, below 0 the lower (and c)."""
    above, below = gain > 0, gain < 0
    high = center + (math.log1p(clip_high) if clip_high < math.inf else math.inf)
    low = center + (math.log1p(-clip_low) if clip_low < 1 else -math.inf)
    cap = center + (math.inf if dual_clip is None else math.log(dual_clip))
    high = torch.where(above, high, cap).clamp(max=MAX_LOG_RATIO)
    low = torch.minimum(torch.where(below, low, -math.inf), high)
    over, under = log_ratio.detach() > high, log_ratio.detach() < low
    held = torch.where(over, high, torch.where(under, low, log_ratio))
    ratio = log_ratio.detach().clamp(max=MAX_LOG_RATIO).exp()
    return PolicyLoss(
        losses=-gain * held.exp(),
        ratio=ratio,
        clipped_low=under,
        clipped_high=over & above,
        capped=over & below,
        weight=ratio.masked_fill(over | under, 0.0),
    )


def _cispo(
    log_prob: Tensor,
    log_ratio: Tensor,
    gain: Tensor,
    center: Tensor,
    clip_high: float,
    cispo_low: float | None,
) -> PolicyLoss:
    log_ratio = log_ratio.detach()
    high = center + (math.log1p(clip_high) if clip_high < math.inf else math.inf)
    bare = cispo_low is None or cispo_low == 1
    low = center + (-math.inf if bare else math.log1p(-(cispo_low or 0.0)))
    high = high.clamp(max=MAX_LOG_RATIO)
    weight = torch.minimum(torch.maximum(log_ratio, low), high).exp()
    return PolicyLoss(
        losses=-weight * gain * log_prob,
        ratio=log_ratio.clamp(max=MAX_LOG_RATIO).exp(),
        clipped_low=log_ratio < low,
        clipped_high=log_ratio > high,
        capped=torch.zeros_like(log_ratio, dtype=torch.bool),
        weight=weight,
    )


def luffy_shaping(log_prob: Tensor, *, gamma: float = 0.1) -> Tensor:
    r"""LUFFY's policy shaping of demonstration tokens: :math:`f(\pi) = \pi / (\pi + \gamma)`.

    Yan et al. (2025, arXiv:2504.14945), section 3.2. It takes the place of the ratio, whose
    denominator is unknown for text that no policy generated. The gradient of the loss -A f is that
    of :math:`-w A \log\pi` with :math:`w = f (1 - f)`, largest at :math:`\pi = \gamma`.

    Args:
        log_prob: ``[K]``, differentiable.
        gamma: above 0; the paper's 0.1.

    Raises:
        ValueError: if ``gamma`` is not above 0.
    """
    if not 0 < gamma < math.inf:
        raise ValueError(f"luffy_gamma is {gamma}; x / (x + gamma) needs it above 0")
    return torch.sigmoid(log_prob - math.log(gamma))


def _with_demonstrations(
    policy: PolicyLoss, log_prob: Tensor, advantage: Tensor, demonstration: Tensor, gamma: float
) -> PolicyLoss:
    """Replace the losses of demonstration tokens. Their ratio is 1, so they are never clipped."""
    shaped = luffy_shaping(log_prob, gamma=gamma)
    slope = (shaped * (1 - shaped)).detach()
    return policy._replace(
        losses=torch.where(demonstration, -advantage * shaped, policy.losses),
        ratio=torch.where(demonstration, log_prob.detach().exp(), policy.ratio),
        weight=torch.where(demonstration, slope, policy.weight),
    )


def _center(
    old: Tensor | None,
    behavior: Tensor,
    sequence: Tensor,
    size: int,
    level: RatioLevel,
    demonstrated: Tensor | None,
) -> Tensor:
    """Log of old / behavior: ``[K]``."""
    if old is None:
        raise ValueError(
            "clip_center is 'old' without `old`: give the log-probs of the policy at the start of "
            "the step, or choose clip_center 'one'"
        )
    old = old.detach()
    if demonstrated is not None:
        old = torch.where(demonstrated, behavior, old)
    return log_importance_ratios(old, behavior, sequence, size, level=level)


def _check_rollouts(size: int, *, advantage: Tensor, off_policy: Tensor | None) -> None:
    for name, value in (("advantage", advantage), ("off_policy", off_policy)):
        if value is not None and value.shape != (size,):
            raise ValueError(
                f"{name} has shape {list(value.shape)} for {size} sequences; it must be [{size}], "
                "one for each"
            )


def _check_clips(
    loss_type: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    cispo_low: float | None,
) -> None:
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}; it must be one of {list(LOSS_TYPES)}")
    if not 0 <= clip_low <= 1 or (cispo_low is not None and not 0 <= cispo_low <= 1):
        raise ValueError(
            f"clip_low is {clip_low} and cispo_low {cispo_low}; ratios are held at 1 less it, so "
            "it must lie in [0, 1] (1: no clip)"
        )
    if not clip_high >= 0:
        raise ValueError(f"clip_high is {clip_high}; ratios are held at 1 + clip_high: at least 0")
    if dual_clip is not None and not dual_clip > 1 + clip_high:
        raise ValueError(
            f"dual_clip is {dual_clip}; it must be above 1 + clip_high = {1 + clip_high:g}: below "
            "it would be the clip of all negative advantages (3 is common)"
        )


def aggregate_losses(
    losses: Tensor,
    sequence: Tensor,
    size: int,
    *,
    loss_type: LossType = "grpo",
    count: float | None = None,
    max_length: int | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    r"""One number of the losses of all tokens.

    ``count`` belongs to the whole optimizer step, so that the sum over its micro-batches does not
    depend on how they were cut:

    ========== =============================================== =========================
    loss_type  sum over                                        divided by
    ========== =============================================== =========================
    grpo, gspo sequences, of the mean over their tokens        ``count`` sequences
    dr_grpo    tokens                                          ``count * max_length``
    dapo,cispo tokens                                          ``count`` tokens
    bnpo       tokens                                          tokens of this micro-batch
    ========== =============================================== =========================

    Shao et al. (2024), equation 3; Liu et al. (2025, arXiv:2503.20783); Yu et al.
    (2025, arXiv:2503.14476), section 3.3; ``bnpo`` as TRL names verl's token mean of a micro-batch.

    A sequence without tokens gives 0, and is still one of ``count`` sequences. Tokens that ``keep``
    of ``policy_gradient_losses`` has taken out count: the mean is over the completion, as in the
    papers of those masks and in TRL. For tokens that are no part of the completion (a tool's
    words), leave them out of all ``[K]``, or give ``counted``.

    Args:
        losses: ``[K]``.
        sequence: ``[K]`` int64 in ``[0, size)``.
        size: number of sequences in this micro-batch.
        loss_type: see above.
        count: above 0; None: of these sequences or tokens. ``"bnpo"`` does not read it.
        max_length: greatest length of a completion, for ``"dr_grpo"``.
        counted: ``[K]`` bool: tokens that count, or None for all; others give no loss.

    Raises:
        ValueError: if ``count`` or ``max_length`` is missing or not above 0.
    """
    check_tokens(losses, sequence, counted=counted)
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}; it must be one of {list(LOSS_TYPES)}")
    if count is not None and not 0 < count < math.inf:
        raise ValueError(
            f"count is {count}; losses are divided by it, so it must be above 0: the sequences or "
            "tokens of the whole optimizer step"
        )
    number = torch.ones_like(losses) if counted is None else counted.to(losses.dtype)
    if counted is not None:
        losses = torch.where(counted.bool(), losses, 0.0)
    if loss_type in ("grpo", "gspo"):
        lengths = segment_sum(number, sequence, size).clamp(min=1)
        return (segment_sum(losses, sequence, size) / lengths).sum() / (count or max(size, 1))
    if loss_type == "dr_grpo":
        if max_length is None or not max_length > 0:
            raise ValueError(
                f"max_length is {max_length} for loss_type 'dr_grpo', which divides by it: give "
                "the greatest length of a completion"
            )
        return losses.sum() / ((count or max(size, 1)) * max_length)
    if loss_type == "bnpo" or count is None:
        return losses.sum() / number.sum().clamp(min=1)
    return losses.sum() / count
