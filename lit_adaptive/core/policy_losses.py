r"""Policy-gradient losses of GRPO and its variants, for fresh and replayed completions.

    log_prob   [K]  log pi_theta of each completion token, differentiable
    behavior   [K]  log-probability stored at generation: the denominator of the ratio
    old        [K]  log-probability under the policy at the start of the step, or None
    sequence   [K]  int64 in [0, N): the completion of each token
    advantage  [N]  advantage of each completion

The ratio rho = pi_theta / behavior is the same for fresh and for replayed tokens. It is clipped to
an interval around ``clip_center``:

    one   [1 - e, 1 + e]                   Sun et al. (2025, arXiv:2506.05316), section 4
    old   [r (1 - e), r (1 + e)]           their code, with r = old / behavior: tokens that have
                                           drifted out of 1 +- e may still move by e in this step

Departures from the sources:
  1. Ratios are clipped as logarithms, so a log ratio of 100 gives neither inf nor NaN; see
     ``policy_ratios`` for the limit without a clip.
  2. CISPO's cap is 1 + ``clip_high``, as in its paper; TRL's ``epsilon_high`` is the cap itself:
     its 5 is 4 here.
  3. ``dual_clip`` c (Ye et al., 2020, arXiv:1912.09729: ratios are capped at c where the advantage
     is below 0) and TRL's ``delta`` (INTELLECT-2, 2025, arXiv:2505.07291, two-sided clipping) are
     the same function for c > 1 + ``clip_high``. With ``clip_center="old"``, c is multiplied by r.
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
    limited_exp,
    log_importance_ratios,
)
from lit_adaptive.core.segments import segment_sum

ClipCenter = Literal["one", "old"]
LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"]

LOSS_TYPES: tuple[LossType, ...] = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")


class PolicyLoss(NamedTuple):
    """Losses of all tokens and statistics of their ratios; only ``losses`` has a gradient.

    Attributes:
        losses: ``[K]`` to be minimised, before ``aggregate_losses``.
        ratio: ``[K]`` unclipped pi_theta / behavior of the token, or of its sequence.
        clipped_low: ``[K]`` bool, tokens without gradient because their advantage is below 0 and
            their ratio below the clip range.
        clipped_high: ``[K]`` bool, tokens without gradient because their advantage is above 0 and
            their ratio above the clip range. For CISPO whatever the advantage, and the gradient
            remains.
        capped: ``[K]`` bool, tokens without gradient because their advantage is below 0 and their
            ratio above ``dual_clip``.
        weight: ``[K]`` factor w in the gradient -w A grad log pi of ``losses``; 0 without gradient.
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
    off_policy: Tensor | None = None,
    luffy_gamma: float = 0.1,
    keep: Tensor | None = None,
) -> PolicyLoss:
    r"""The loss of each token.

    :math:`-\min(\rho A, \mathrm{clip}(\rho) A)` (Shao et al., 2024, arXiv:2402.03300, equation 3);
    CISPO (MiniMax, 2025, arXiv:2506.13585, equation 4):
    :math:`-\mathrm{sg}(\min(\rho, 1 + \epsilon)) A \log\pi_\theta`. ``grpo``, ``dr_grpo``, ``dapo``
    and ``bnpo`` differ in ``aggregate_losses`` only. Values are not checked, which would
    synchronise with the device; NaN in ``behavior`` gives a NaN loss.

    Args:
        log_prob: ``[K]``.
        behavior: ``[K]``; ignored for demonstrations.
        advantage: ``[N]``.
        sequence: ``[K]``.
        size: number of sequences N.
        loss_type: ``"gspo"`` uses one ratio for each sequence, ``"cispo"`` its own loss.
        clip_low: the ratio is clipped at 1 - ``clip_low``; in [0, 1]; 1: no clip. Not for CISPO.
        clip_high: the ratio is clipped at 1 + ``clip_high``; at least 0; inf: no clip.
        clip_center: see the module's docstring; ``"old"`` requires ``old``.
        old: ``[K]``.
        dual_clip: cap c of the ratio for advantages below 0, above 1 + ``clip_high``; None: no cap;
            3 in verl, 4 in INTELLECT-2.
        level: one ratio for each ``"token"`` or ``"sequence"``; None: the loss type's.
        off_policy: ``[N]`` bool, demonstrations: their ratio is replaced by ``luffy_shaping``.
        luffy_gamma: gamma of ``luffy_shaping``, above 0.
        keep: ``[K]`` factors of the losses, such as a mask of tokens. They do not change sequence
            ratios, nor the counts in ``aggregate_losses``.

    Raises:
        ValueError: if shapes differ, or an option is out of its range.
    """
    check_tokens(log_prob, sequence, behavior=behavior, old=old, keep=keep)
    _check_rollouts(size, advantage=advantage, off_policy=off_policy)
    _check_clips(loss_type, clip_low, clip_high, clip_center, dual_clip)
    level = level or ("sequence" if loss_type == "gspo" else "token")
    if loss_type == "gspo" and level == "token":
        raise ValueError("loss_type is 'gspo' with level 'token': that is loss_type 'grpo'")
    log_prob, behavior = at_least_float32(log_prob), behavior.detach()
    token_advantage = advantage.detach().to(log_prob.dtype)[sequence]
    demonstration = None if off_policy is None else off_policy[sequence]
    if demonstration is not None:  # a ratio of 1, so that NaN there cannot reach the gradient
        behavior = torch.where(demonstration, log_prob.detach(), behavior)
    log_ratio = log_importance_ratios(log_prob, behavior, sequence, size, level=level)
    center = torch.zeros((), dtype=log_prob.dtype, device=log_prob.device)
    if clip_center == "old":
        center = _log_center(old, behavior, sequence, size, level, demonstration)
    if loss_type == "cispo":
        policy = _cispo_loss(log_prob, log_ratio, token_advantage, center, clip_high)
    else:
        policy = _clipped_loss(log_ratio, token_advantage, center, clip_low, clip_high, dual_clip)
    if demonstration is not None:
        policy = _with_demonstrations(policy, log_prob, token_advantage, demonstration, luffy_gamma)
    if keep is None:
        return policy
    factor = keep.to(log_prob.dtype)
    return policy._replace(losses=policy.losses * factor, weight=policy.weight * factor)


def _clipped_loss(
    log_ratio: Tensor,
    advantage: Tensor,
    center: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> PolicyLoss:
    """min(rho A, clip(rho) A): only the upper clip applies for A > 0, only the lower for A < 0."""
    positive, negative = advantage > 0, advantage < 0
    high = center + (math.log1p(clip_high) if clip_high < math.inf else math.inf)
    low = center + (math.log1p(-clip_low) if clip_low < 1 else -math.inf)
    cap = center + (math.inf if dual_clip is None else math.log(dual_clip))
    high = torch.where(positive, high, cap).clamp(max=MAX_LOG_RATIO)
    low = torch.minimum(torch.where(negative, low, -math.inf), high)
    above, below = log_ratio.detach() > high, log_ratio.detach() < low
    clipped = torch.where(above, high, torch.where(below, low, log_ratio))
    ratio = limited_exp(log_ratio.detach())
    return PolicyLoss(
        losses=-advantage * clipped.exp(),
        ratio=ratio,
        clipped_low=below,
        clipped_high=above & positive,
        capped=above & negative,
        weight=ratio.masked_fill(above | below, 0.0),
    )


def _cispo_loss(
    log_prob: Tensor,
    log_ratio: Tensor,
    advantage: Tensor,
    center: Tensor,
    clip_high: float,
) -> PolicyLoss:
    """-sg(min(rho, 1 + clip_high)) A log pi; as in the paper there is no lower clip."""
    log_ratio = log_ratio.detach()
    high = center + (math.log1p(clip_high) if clip_high < math.inf else math.inf)
    high = high.clamp(max=MAX_LOG_RATIO)
    weight = torch.minimum(log_ratio, high).exp()
    nothing = torch.zeros_like(log_ratio, dtype=torch.bool)
    return PolicyLoss(
        losses=-weight * advantage * log_prob,
        ratio=limited_exp(log_ratio),
        clipped_low=nothing,
        clipped_high=log_ratio > high,
        capped=nothing,
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


def _log_center(
    old: Tensor | None,
    behavior: Tensor,
    sequence: Tensor,
    size: int,
    level: RatioLevel,
    demonstration: Tensor | None,
) -> Tensor:
    """Log of old / behavior: ``[K]``."""
    if old is None:
        raise ValueError(
            "clip_center is 'old' but `old` is None: pass the log-probabilities under the policy "
            "at the start of the step, or choose clip_center 'one'"
        )
    old = old.detach()
    if demonstration is not None:
        old = torch.where(demonstration, behavior, old)
    return log_importance_ratios(old, behavior, sequence, size, level=level)


def _check_rollouts(size: int, *, advantage: Tensor, off_policy: Tensor | None) -> None:
    for name, value in (("advantage", advantage), ("off_policy", off_policy)):
        if value is not None and value.shape != (size,):
            raise ValueError(
                f"{name} has shape {list(value.shape)} for {size} sequences; it must be [{size}], "
                "one for each sequence"
            )


def _check_loss_type(loss_type: str) -> None:
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}; it must be one of {list(LOSS_TYPES)}")


def _check_clips(
    loss_type: str, clip_low: float, clip_high: float, clip_center: str, dual_clip: float | None
) -> None:
    _check_loss_type(loss_type)
    if clip_center not in ("one", "old"):
        raise ValueError(f"clip_center is {clip_center!r}; it must be one of ['one', 'old']")
    if not 0 <= clip_low <= 1:
        raise ValueError(
            f"clip_low is {clip_low}; ratios are clipped at 1 - clip_low, so it must lie in [0, 1] "
            "(1: no clip)"
        )
    if not clip_high >= 0:
        raise ValueError(
            f"clip_high is {clip_high}; ratios are clipped at 1 + clip_high, so it must be at "
            "least 0"
        )
    if dual_clip is not None and not dual_clip > 1 + clip_high:
        raise ValueError(
            f"dual_clip is {dual_clip}; it must be above 1 + clip_high = {1 + clip_high:g}, or it "
            "would clip all negative advantages (3 is common)"
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
    r"""Reduce the losses of all tokens to a scalar, as each loss type does.

    ``count`` is that of the whole optimizer step, so that the sum over its micro-batches does not
    depend on how the step was split:

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

    A sequence without tokens has loss 0, and is one of ``count`` sequences. Tokens masked by
    ``keep`` of ``policy_gradient_losses`` count: the mean is over the completion, as in the papers
    of those masks and in TRL. Tokens that are not part of the completion, such as a tool's output,
    must be excluded from all ``[K]``, or by ``counted``.

    Args:
        losses: ``[K]``.
        sequence: ``[K]`` int64 in ``[0, size)``.
        size: number of sequences in this micro-batch.
        loss_type: see above.
        count: sequences or tokens of the optimizer step, above 0; None: those of this micro-batch.
            Ignored for ``"bnpo"``.
        max_length: maximum length of a completion, for ``"dr_grpo"``.
        counted: ``[K]`` bool, tokens that count and contribute to the loss; None: all.

    Raises:
        ValueError: if ``count`` or ``max_length`` is missing or not above 0.
    """
    check_tokens(losses, sequence, counted=counted)
    _check_divisors(loss_type, count, max_length)
    number = torch.ones_like(losses) if counted is None else counted.to(losses.dtype)
    if counted is not None:
        losses = torch.where(counted.bool(), losses, 0.0)
    sequences = count or max(size, 1)
    if loss_type in ("grpo", "gspo"):
        lengths = segment_sum(number, sequence, size).clamp(min=1)
        return (segment_sum(losses, sequence, size) / lengths).sum() / sequences
    if loss_type == "dr_grpo":
        assert max_length is not None
        return losses.sum() / (sequences * max_length)
    if loss_type == "bnpo" or count is None:
        return losses.sum() / number.sum().clamp(min=1)
    return losses.sum() / count


def _check_divisors(loss_type: str, count: float | None, max_length: int | None) -> None:
    _check_loss_type(loss_type)
    if count is not None and not 0 < count < math.inf:
        raise ValueError(
            f"count is {count}; losses are divided by it, so it must be above 0: pass the number "
            "of sequences or tokens of the whole optimizer step"
        )
    if loss_type == "dr_grpo" and (max_length is None or not max_length > 0):
        raise ValueError(
            f"max_length is {max_length} for loss_type 'dr_grpo', which divides by it: pass the "
            "maximum length of a completion"
        )
