r"""From the losses of all tokens to one number, whatever micro-batches a step is cut into."""

import math
from typing import Literal

import torch
from torch import Tensor

from lit_adaptive.core.policy_ratios import check_tokens
from lit_adaptive.core.segments import segment_sum

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"]

LOSS_TYPES: tuple[LossType, ...] = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")


def aggregate(
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
    of ``policy_losses`` has taken out count: the mean is over the completion, as in the
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
