"""Statistics of draws and weights."""

import math

import torch
from torch import Tensor


def effective_sample_size(weight: Tensor) -> Tensor:
    r"""Kish's :math:`(\sum w)^2 / \sum w^2`: number of equal weights of the same variance.

    Args:
        weight: ``[B]``, not negative, not all 0; of any scale.

    Returns:
        A float64 scalar in [1, B].

    Raises:
        ValueError: if there is no weight above 0, or one is negative, NaN or infinite.
    """
    weight = weight.double()
    greatest = weight.max() if weight.numel() else torch.tensor(0.0)
    if not (greatest > 0 and greatest < torch.inf and weight.min() >= 0):
        raise ValueError(
            "weights must be finite, not negative and not all 0 to have an effective sample size"
        )
    scaled = weight / greatest  # squares of tiny or huge weights would leave the range
    return scaled.sum().square() / scaled.square().sum()


def sampling_entropy(probability: Tensor, *, normalized: bool = False) -> Tensor:
    r"""Shannon entropy :math:`-\sum P \log P`, in nats; 0 log 0 is 0.

    Args:
        probability: ``[N]``, sums to 1.
        normalized: divide by log N, so that 1 is uniform.

    Returns:
        A scalar in [0, log N], or in [0, 1].
    """
    entropy: Tensor = torch.special.entr(probability).sum()
    if not normalized:
        return entropy
    return entropy / math.log(len(probability)) if len(probability) > 1 else torch.ones(())


def coverage(counts: Tensor) -> float:
    """Fraction of the items that were drawn at least once.

    Args:
        counts: ``[N]`` number of draws of each item.
    """
    return float((counts > 0).double().mean()) if counts.numel() else 0.0
