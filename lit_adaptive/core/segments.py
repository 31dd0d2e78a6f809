"""Statistics of segments: of the tokens of each sequence, or of the rollouts of each group.

    value  [K]  float, the values of all segments in one flat tensor
    index  [K]  int64 in [0, size): the segment of each value, in any order
    size        number of segments; a segment may be empty

All functions stay on the device of ``value`` and wait for nothing. NaN is a value like any other:
select the known values first where NaN means "does not apply".
"""

import math
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["token", "sequence", "fixed"]


def segment_count(index: Tensor, size: int) -> Tensor:
    """Number of values in each segment: ``[size]`` int64."""
    # torch.bincount would synchronise with the device.
    return index.new_zeros(size).index_add(0, index, torch.ones_like(index))


def segment_sum(value: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum of each segment: ``[size]``, of the dtype of ``value``; 0 if empty."""
    return value.new_zeros(size).index_add(0, index, value)


def segment_mean(value: Tensor, index: Tensor, size: int) -> Tensor:
    """Mean of each segment: ``[size]``; 0 if empty."""
    return segment_sum(value, index, size) / segment_count(index, size).clamp(min=1)


def segment_max(value: Tensor, index: Tensor, size: int) -> Tensor:
    """Maximum of each segment: ``[size]``; ``-inf`` if empty."""
    return value.new_full((size,), -math.inf).scatter_reduce(0, index, value, "amax")


def center_segments(value: Tensor, index: Tensor, size: int) -> Tensor:
    """Each value minus the mean of its segment: ``[K]``.

    Exactly 0 in a segment of equal values, where subtracting a rounded mean could leave a residue.
    """
    below = value - segment_max(value, index, size)[index]
    return below - segment_mean(below, index, size)[index]


def segment_std(value: Tensor, index: Tensor, size: int, *, correction: int = 1) -> Tensor:
    """Standard deviation of each segment: ``[size]``; exactly 0 if all its values are equal.

    Args:
        value: ``[K]``, finite.
        index: ``[K]``.
        size: number of segments.
        correction: subtracted from the count in the divisor, as in ``torch.std``; 0 for the
            population's. A segment with at most ``correction`` values has 0.
    """
    square = center_segments(value, index, size).square()
    divisor = (segment_count(index, size) - correction).clamp(min=1)
    return (segment_sum(square, index, size) / divisor).sqrt()


def reduce_segments(
    losses: Tensor,
    sequence: Tensor,
    size: int,
    *,
    reduction: Reduction = "token",
    count: float | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Reduce the losses of all tokens to a scalar.

    Args:
        losses: ``[K]``, already multiplied by their weights.
        sequence: ``[K]`` int64 in ``[0, size)``.
        size: number of sequences.
        reduction: ``"token"``: the sum divided by the number of tokens, or by ``count`` (such as
            the tokens of all ranks); ``"sequence"``: the sum over sequences of the mean over
            tokens, divided by the number of sequences, or by ``count``; ``"fixed"``: the sum
            divided by ``count``, the same for every batch.
        count: above 0; required by ``"fixed"``.
        sample_weight: ``[size]``, factor of each sequence, such as a sampler's correction.

    Raises:
        ValueError: if ``count`` is missing or not above 0.
    """
    if sample_weight is not None:
        losses = losses * sample_weight.to(losses.dtype)[sequence]
    if count is not None and not count > 0:
        raise ValueError(f"count is {count}; the sum is divided by it, so it must be above 0")
    if reduction == "sequence":
        means = segment_mean(losses, sequence, size)
        return means.sum() / (max(size, 1) if count is None else count)
    if reduction == "fixed" and count is None:
        raise ValueError("reduction is 'fixed' without a count: give the number to divide by")
    return losses.sum() / (max(len(losses), 1) if count is None else count)
