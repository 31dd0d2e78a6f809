r"""Weights that undo the bias of a selection, and the estimator for which each is exact.

Let f_i be the quantity whose mean over all N samples is to be estimated: a loss, or a gradient.

    with replacement, item i with probability P(i) at each draw
        (1/B) sum over draws of w_i f_i,  w_i = 1 / (N P(i)), is unbiased (Hansen and Hurwitz,
        1943): ``inverse_probability_weights`` at ``beta=1``
    each of B candidates kept or not, with its own probability pi_i
        (1/B) sum over the kept of w_i f_i,  w_i = 1 / pi_i, is unbiased (Horvitz and Thompson,
        1952): ``inclusion_weights``
    the k largest (OHEM), or a support that excludes samples (curriculum)
        no weight corrects the bias, as excluded samples are in no sum. Within a support the first
        case holds, with N the size of the support.

``importance_sampling_weights`` (PER) divides by the largest weight of each batch or buffer. That
only shrinks steps, but by a factor that differs between batches, so it is no longer unbiased.
"""

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.kernels import weights as loops


def inverse_probability_weights(probability: Tensor, *, size: int, beta: float = 1.0) -> Tensor:
    r"""Weights :math:`(N P(i))^{-\beta}` of draws with replacement, not normalised.

    Args:
        probability: ``[B]`` in (0, 1]: probability of each drawn item at the time of the draw.
        size: number N of items that can be drawn, above 0.
        beta: strength of the bias correction, in [0, 1]; 1 is unbiased, and 0 gives ones.

    Returns:
        Weights ``[B]`` float64, above 0; at ``beta=1`` their expectation over draws is 1.

    Raises:
        ValueError: naming the argument that is out of its range.
    """
    check_beta(beta)
    check_at_least(size=(size, 1))
    return ratio_powers(1 / size, probability, beta)[0]


def ratio_powers(numerator: float, probability: Tensor, beta: float) -> tuple[Tensor, float]:
    r"""Weights :math:`(\mathrm{numerator} / P(i))^\beta`.

    Args:
        numerator: not negative; 0 stands for the smallest probability.
        probability: ``[B]`` in (0, 1].
        beta: in [0, 1].

    Returns:
        Weights ``[B]`` float64, and the smallest probability, 1 if there is none.

    Raises:
        ValueError: if a probability is outside (0, 1].
    """
    if probability.requires_grad or probability.dtype is not torch.float64:
        probability = probability.detach().to(torch.float64)
    if not probability.is_cpu:
        return _ratio_powers_torch(numerator, probability, beta)
    points = probability.contiguous().numpy()
    weight = np.empty_like(points)
    least = loops.ratio_powers(float(numerator), points, float(beta), weight)
    if least == 0:
        check_probabilities(probability)
    return torch.from_numpy(weight), least


def _ratio_powers_torch(numerator: float, probability: Tensor, beta: float) -> tuple[Tensor, float]:
    least = check_probabilities(probability)
    return torch.full_like(probability, numerator or least).div_(probability).pow_(beta), least


def inclusion_weights(inclusion: Tensor) -> Tensor:
    r"""Weights :math:`1 / \pi_i` of items that were each kept with their own probability.

    Args:
        inclusion: ``[K]`` in (0, 1]: probability with which each kept item was kept.

    Returns:
        Weights ``[K]`` float64, at least 1.

    Raises:
        ValueError: if a probability is outside (0, 1].
    """
    inclusion = inclusion.detach().to(torch.float64)
    check_probabilities(inclusion)
    return inclusion.reciprocal()


def check_beta(beta: float) -> None:
    """Raise ValueError unless ``beta`` is in [0, 1]."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}; it must lie in [0, 1] (0: no correction, 1: unbiased)")


def check_probabilities(probability: Tensor) -> float:
    """The smallest ``probability`` of ``[B]``, 1 if there is none.

    Raises:
        ValueError: if one is outside (0, 1].
    """
    if not len(probability):
        return 1.0
    least, greatest = (float(bound) for bound in torch.aminmax(probability))
    if not (least > 0 and greatest <= 1):
        raise ValueError(
            f"probabilities range from {least} to {greatest}; they must lie in (0, 1]: "
            "pass the probabilities that came with the draw"
        )
    return least
