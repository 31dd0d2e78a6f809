r"""What undoes the bias of a choice, and of which estimator that is exactly true.

Let f_i be what one wants the mean of over all N samples: a loss, a gradient.

    drawn with replacement, P(i) each time:  (1/B) sum over draws of w_i f_i,  w_i = 1 / (N P(i))
        unbiased (Hansen and Hurwitz, 1943); ``inverse_probability_weights`` at ``beta=1``
    kept or not, each with its own chance pi_i:  (1/B) sum over the kept of w_i f_i,  w_i = 1 / pi_i
        unbiased (Horvitz and Thompson, 1952); ``inclusion_weights``; B counts all candidates
    the k greatest (OHEM), or a support that leaves samples out (curriculum):
        no weight can correct it: what has no chance at all is in no sum. Within the support the
        first line holds, with N the size of the support.

Weights divided by the greatest of their batch (``importance_sampling_weights``, as in PER) only
shrink
steps, but by a factor that differs from batch to batch: no longer unbiased.
"""

import torch
from torch import Tensor

from lit_adaptive.core.kernels.weights import inverse_weights


def inverse_probability_weights(probability: Tensor, *, size: int, beta: float = 1.0) -> Tensor:
    r"""Weights :math:`(N P(i))^{-\beta}` of draws with replacement, not normalised.

    Args:
        probability: ``[B]`` in (0, 1]: of each drawn item, at its draw.
        size: number of items N that could be drawn, above 0.
        beta: how much of the bias to correct, in [0, 1]; 1 is unbiased, and 0 gives ones.

    Returns:
        Weights ``[B]`` float64, above 0; their mean over the law is 1 at ``beta=1``.

    Raises:
        ValueError: naming what is out of its range.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}; it must lie in [0, 1] (0: no correction, 1: unbiased)")
    if size <= 0:
        raise ValueError(f"size is {size}; the number of items that could be drawn is above 0")
    if probability.requires_grad or probability.dtype is not torch.float64:
        probability = probability.detach().to(torch.float64)
    if beta == 0:  # without the compiled code, whose loading costs 30 MB
        _refuse_improbable(probability)
        return torch.ones_like(probability)
    if not probability.is_cpu:
        _refuse_improbable(probability)
        return (probability * size).pow(-beta)
    weight = torch.empty_like(probability)
    chance = probability.contiguous().numpy()
    if not inverse_weights(chance, float(size), float(beta), weight.numpy()):
        _refuse_improbable(probability)
    return weight


def inclusion_weights(inclusion: Tensor) -> Tensor:
    r"""Weights :math:`1 / \pi_i` of items that were each kept with their own chance.

    Args:
        inclusion: ``[K]`` in (0, 1]: the chance that each kept item had.

    Returns:
        Weights ``[K]`` float64, at least 1.

    Raises:
        ValueError: if a chance is outside (0, 1].
    """
    inclusion = inclusion.detach().to(torch.float64)
    _refuse_improbable(inclusion)
    return inclusion.reciprocal()


def _refuse_improbable(probability: Tensor) -> None:
    if len(probability) and not bool(((probability > 0) & (probability <= 1)).all()):
        least, greatest = (float(bound) for bound in torch.aminmax(probability))
        raise ValueError(
            f"probabilities range from {least} to {greatest}; they must lie in (0, 1]: "
            "pass the probabilities that came with the draw"
        )
