r"""Which samples of a batch are worth a backward pass, and losses that favour the hard ones.

    OHEM                  the k of greatest loss               Shrivastava et al., 2016, 1604.03540
    selective backprop    each with chance CDF(loss)^beta      Jiang et al., 2019, 1910.00762
    InfoBatch             easy ones with chance 1 - r          Qin et al., 2024, 2303.04947
    reducible loss        loss less that of a holdout model    Mindermann et al., 2022, 2206.07137
    focal loss            -alpha (1 - p)^gamma log p           Lin et al., 2017, 1708.02002

Where this departs from the papers, and why:
  1. OHEM's non-maximum suppression belongs to overlapping boxes; samples do not overlap.
  2. Focal loss is taken over a softmax with one alpha, the paper's over a sigmoid per class.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def kept_count(batch: int, keep: float) -> int:
    """How many of ``batch`` are kept: ``keep`` itself if above 1, else that share, rounded up.

    Raises:
        ValueError: if ``keep`` is not above 0, no whole number above 1, or more than ``batch``.
    """
    if not keep > 0:
        raise ValueError(f"keep is {keep}; it must be above 0: a share up to 1, or a number")
    if keep <= 1:
        return math.ceil(keep * batch)
    if keep != int(keep):
        raise ValueError(f"keep is {keep}; above 1 it is a number of samples, and whole")
    if keep > batch:
        raise ValueError(
            f"keep is {keep}, the batch has {batch} samples: give a number up to {batch}, "
            "or a share up to 1"
        )
    return int(keep)


def hardest_indices(score: Tensor, *, keep: float) -> Tensor:
    """Where the greatest scores stand, in the batch's order. OHEM, with the loss as the score.

    Of equal scores the first are taken. What is chosen cannot be made unbiased by any weight.

    Args:
        score: ``[B]``; a loss, or a reducible loss.
        keep: a share in (0, 1], rounded up, or a whole number of samples above 1.

    Returns:
        ``[K]`` int64, ascending.

    Raises:
        ValueError: if a score is NaN (its place is named), or see ``kept_count``.
    """
    count = kept_count(len(score), keep)
    if bool((missing := score.isnan()).any()):
        raise ValueError(
            f"the scores at {missing.nonzero().flatten()[:8].tolist()} are NaN, so there is no "
            "hardest: look for NaN in the loss"
        )
    order = torch.argsort(score.detach(), descending=True, stable=True)
    return order[:count].sort().values


def loss_cdf(loss: Tensor, history: Tensor) -> Tensor:
    """Share of the remembered losses that each loss is not below: ``[B]`` float64 in [0, 1].

    Args:
        loss: ``[B]``.
        history: ``[H]`` recent losses, in any order; with the batch's own the greatest has 1.

    Raises:
        ValueError: if the history is empty.
    """
    if not len(history):
        raise ValueError("the history of losses is empty: put the batch's own losses into it")
    place = torch.searchsorted(history.detach().sort().values, loss.detach(), right=True)
    return place.double() / len(history)


def selective_backprop_probabilities(loss: Tensor, history: Tensor, *, beta: float = 1.0) -> Tensor:
    r"""Chance of a backward pass: :math:`\mathrm{CDF}(loss)^\beta`, ``[B]`` float64 in [0, 1].

    Jiang et al. (2019), section 3.2. ``corrections.inclusion_weights`` of it undoes the bias.

    Args:
        loss: ``[B]``.
        history: ``[H]`` recent losses.
        beta: selectivity, at least 0; 0 keeps all, greater keeps fewer.

    Raises:
        ValueError: if ``beta`` is negative, or the history is empty.
    """
    if not beta >= 0:
        raise ValueError(f"beta is {beta}; the selectivity must not be negative (0 keeps all)")
    return loss_cdf(loss, history).pow(beta)


def infobatch_keep_probabilities(loss: Tensor, *, prune: float = 0.5) -> Tensor:
    """Chance that each sample is in the next pass: 1 - ``prune`` if its loss is below the mean.

    Qin et al. (2024), equations 3 and 4; kept easy ones are weighted by 1 / (1 - prune), which
    leaves the expected sum over a pass as it was. Samples never seen (infinite loss) are kept.

    Args:
        loss: ``[N]``, the last one of each sample; ``inf`` where there is none yet.
        prune: r in [0, 1).

    Returns:
        ``[N]`` float64 in (0, 1].

    Raises:
        ValueError: if ``prune`` is outside [0, 1).
    """
    if not 0 <= prune < 1:
        raise ValueError(f"prune is {prune}; it must lie in [0, 1), or easy samples never return")
    seen = loss[loss.isfinite()].double()
    chance = torch.ones(len(loss), dtype=torch.float64, device=loss.device)
    if len(seen):
        chance[loss < seen.mean()] = 1 - prune
    return chance


def reducible_loss(loss: Tensor, irreducible: Tensor) -> Tensor:
    """What more training could take off each loss: ``[B]``, of any sign.

    Mindermann et al. (2022), equation 3: the loss less that of a model trained on held-out data.
    What even that model cannot predict, such as a wrong label, scores low.

    Args:
        loss: ``[B]`` of the model in training.
        irreducible: ``[B]`` of the holdout model.
    """
    return loss.detach() - irreducible


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 1.0) -> Tensor:
    r"""Per-sample :math:`-\alpha (1 - p)^\gamma \log p`, p being the target class's probability.

    Lin et al. (2017), equation 5; RetinaNet has gamma 2, alpha 0.25. At gamma 0 and alpha 1 it is
    the cross-entropy.

    Args:
        logits: ``[B, C]``.
        target: ``[B]`` int64 in [0, C).
        gamma: at least 0.
        alpha: above 0; a factor on the whole loss.

    Returns:
        ``[B]``, not negative, with gradients.

    Raises:
        ValueError: if ``gamma`` is negative or ``alpha`` not above 0.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma is {gamma}; it must not be negative (0 is the cross-entropy)")
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; it must be above 0")
    log_p = log_softmax(logits, dim=-1).gather(-1, target[:, None]).squeeze(-1)
    # 1 - p by expm1: exact also where p is near 1. Where p rounds to 1 the loss is 0, and so is its
    # gradient; without the bound a gamma below 1 would make it 0 times infinity.
    missed = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -alpha * missed.pow(gamma) * log_p
