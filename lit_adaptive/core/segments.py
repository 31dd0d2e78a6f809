"""From the values of all tokens of a batch to one for each sequence, or one for all."""

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["token", "sequence", "fixed"]


def sums(value: Tensor, sequence: Tensor, size: int) -> Tensor:
    """Sum of the values ``[K]`` of each sequence: ``[size]``; 0 for one without tokens."""
    return torch.zeros(size, dtype=value.dtype, device=value.device).index_add(0, sequence, value)


def means(value: Tensor, sequence: Tensor, size: int) -> Tensor:
    """Mean of the values ``[K]`` of each sequence: ``[size]``; 0 for one without tokens."""
    count = torch.bincount(sequence, minlength=size).clamp(min=1)
    return sums(value, sequence, size) / count


def reduced(
    losses: Tensor,
    sequence: Tensor,
    size: int,
    *,
    reduction: Reduction = "token",
    count: float | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """One number of the losses ``[K]`` of all tokens.

    Args:
        losses: ``[K]``, already multiplied by their weights.
        sequence: ``[K]`` int64 in ``[0, size)``.
        size: number of sequences.
        reduction: ``"token"``: divided by the number of tokens (long completions count more), or by
            ``count`` if it is given (the tokens of several ranks); ``"sequence"``: the mean over
            sequences of the mean over tokens; ``"fixed"``: the sum divided by ``count``, the same
            for every batch, so that accumulated micro-batches add up exactly.
        count: above 0; needed by ``"fixed"``.
        sample_weight: ``[size]``, of each sequence, such as a sampler's correction.

    Raises:
        ValueError: if ``count`` is missing or not above 0.
    """
    if sample_weight is not None:
        losses = losses * sample_weight.to(losses.dtype)[sequence]
    if reduction == "sequence":
        return means(losses, sequence, size).sum() / max(size, 1)
    if reduction == "fixed" and count is None:
        raise ValueError("reduction is 'fixed' without a count: give the number to divide by")
    if count is not None and not count > 0:
        raise ValueError(f"count is {count}; the sum is divided by it, so it must be above 0")
    return losses.sum() / (max(len(losses), 1) if count is None else count)
