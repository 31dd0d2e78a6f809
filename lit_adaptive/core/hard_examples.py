r"""Selection of the samples of a batch that get a backward pass, and losses that favour hard ones.

    OHEM                the k largest losses                   Shrivastava et al., 2016, 1604.03540
    selective backprop  each with probability CDF(loss)^beta   Jiang et al., 2019, 1910.00762
    InfoBatch           easy samples with probability 1 - r    Qin et al., 2024, 2303.04947
    reducible loss      loss minus that of a holdout model     Mindermann et al., 2022, 2206.07137
    focal loss          -alpha (1 - p)^gamma log p             Lin et al., 2017, 1708.02002

Departures from the papers:
  1. OHEM's non-maximum suppression is for overlapping boxes; samples do not overlap.
  2. Focal loss uses a softmax with one alpha, the paper a sigmoid per class.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from lit_adaptive.core.shares import share_count


def kept_count(batch: int, keep: float) -> int:
    """Number of samples kept from ``batch``: ``keep`` if above 1, else that share, rounded up.

    Raises:
        ValueError: if ``keep`` is not above 0, above 1 and not whole, or above ``batch``.
    """
    if not keep > 0:
        raise ValueError(
            f"keep is {keep}; it must be above 0: a share up to 1, or a number of samples"
        )
    if keep <= 1:
        return share_count(keep, batch)
    if not math.isfinite(keep) or keep != int(keep):
        raise ValueError(f"keep is {keep}; above 1 it is a number of samples and must be whole")
    if keep > batch:
        raise ValueError(
            f"keep is {keep}, but the batch has {batch} samples: give a number up to {batch}, "
            "or a share up to 1"
        )
    return int(keep)


def hardest_indices(score: Tensor, *, keep: float) -> Tensor:
    """Positions of the largest scores, in the order of the batch. OHEM, with the loss as score.

    Of equal scores the first are taken. No weight can make this selection unbiased.

    Args:
        score: ``[B]``: a loss, or a reducible loss.
        keep: a share in (0, 1], rounded up, or a whole number of samples above 1.

    Returns:
        ``[K]`` int64, ascending.

    Raises:
        ValueError: if a score is NaN, or as ``kept_count``.
    """
    count = kept_count(len(score), keep)
    if bool((missing := score.isnan()).any()):
        raise ValueError(
            f"the scores at {missing.nonzero().flatten()[:8].tolist()} are NaN and cannot be "
            "ranked: look for NaN in the loss"
        )
    order = torch.argsort(score.detach(), descending=True, stable=True)
    return order[:count].sort().values


def loss_cdf(loss: Tensor, history: Tensor) -> Tensor:
    """Fraction of the recent losses that do not exceed each loss: ``[B]`` float64 in [0, 1].

    Args:
        loss: ``[B]``.
        history: ``[H]`` recent losses, in any order, including those of the batch.

    Raises:
        ValueError: if the history is empty.
    """
    if not len(history):
        raise ValueError("the history of losses is empty: add the losses of the batch to it")
    position = torch.searchsorted(history.detach().sort().values, loss.detach(), right=True)
    return position.double() / len(history)


def selective_backprop_probabilities(loss: Tensor, history: Tensor, *, beta: float = 1.0) -> Tensor:
    r"""Probability of a backward pass: :math:`\mathrm{CDF}(loss)^\beta`, ``[B]`` float64.

    Jiang et al. (2019), section 3.2. ``inclusion_weights`` of the result undo the bias.

    Args:
        loss: ``[B]``.
        history: ``[H]`` recent losses, including those of the batch.
        beta: selectivity, at least 0; 0 keeps all, larger values keep fewer.

    Raises:
        ValueError: if ``beta`` is negative, or the history is empty.
    """
    if not beta >= 0:
        raise ValueError(f"beta is {beta}; the selectivity must not be negative (0 keeps all)")
    return loss_cdf(loss, history).pow(beta)


def infobatch_keep_probabilities(loss: Tensor, *, prune: float = 0.5) -> Tensor:
    """Probability of each sample to be in the next epoch: 1 - ``prune`` if below the mean loss.

    Qin et al. (2024), equations 3 and 4. Kept easy samples are weighted by 1 / (1 - prune), which
    preserves the expected sum over an epoch. Samples without a loss yet are kept.

    Args:
        loss: ``[N]``, last loss of each sample; ``inf`` where there is none yet.
        prune: r, in [0, 1).

    Returns:
        ``[N]`` float64 in (0, 1].

    Raises:
        ValueError: if ``prune`` is outside [0, 1).
    """
    if not 0 <= prune < 1:
        raise ValueError(f"prune is {prune}; it must lie in [0, 1), or easy samples never return")
    known = loss[loss.isfinite()].double()
    probability = torch.ones(len(loss), dtype=torch.float64, device=loss.device)
    if len(known):
        probability[loss < known.mean()] = 1 - prune
    return probability


def reducible_loss(loss: Tensor, irreducible: Tensor) -> Tensor:
    """Part of each loss that more training could remove: ``[B]``, of any sign.

    Mindermann et al. (2022), equation 3: the loss minus that of a model trained on held-out data.
    Samples that even that model cannot predict, such as wrong labels, score low.

    Args:
        loss: ``[B]`` of the model in training.
        irreducible: ``[B]`` of the holdout model.
    """
    return loss.detach() - irreducible


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 1.0) -> Tensor:
    r"""Per-sample :math:`-\alpha (1 - p)^\gamma \log p`, where p is the target's probability.

    Lin et al. (2017), equation 5; RetinaNet uses gamma 2 and alpha 0.25. At gamma 0 and alpha 1 it
    is the cross-entropy.

    Args:
        logits: ``[B, C]``.
        target: ``[B]`` int64 in [0, C).
        gamma: at least 0.
        alpha: above 0; a factor of the whole loss.

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
    # expm1 is exact also where p is near 1. Where p rounds to 1, loss and gradient are 0; without
    # the bound a gamma below 1 would make the gradient 0 times infinity.
    complement = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -alpha * complement.pow(gamma) * log_p
