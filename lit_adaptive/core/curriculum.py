r"""Curricula: the samples that may be drawn so far, by competence, stages or self-paced learning.

    progress     t / T        completed fraction of the training                   in [0, 1]
    difficulty   d_i          any number; larger is harder                         [N]
    CDF          CDF(d_i)     fraction of samples that are not harder than i       [N], in (0, 1]
    competence   c(t)         fraction of the samples that may be drawn            in (0, 1]

A sample may be drawn at time t if CDF(d_i) <= c(t) (Platanios et al., 2019, 1903.09848, section 3).

Departures from the papers:
  1. The easiest samples can always be drawn, however small c(t): an empty support trains nothing.
  2. Self-paced learning (Kumar et al., 2010) solves for all v at once; here each v_i follows from
     the last known loss of its sample. Samples without a loss count as easy.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_adaptive.core.shares import share_count


def _check_progress(progress: float) -> None:
    if not 0 <= progress <= 1:
        raise ValueError(
            f"progress is {progress}; the completed fraction of the training lies in [0, 1]"
        )


def competence(progress: float, *, start: float = 0.01, power: float = 2.0) -> float:
    r""":math:`c(t) = \min(1, (t/T (1 - c_0^p) + c_0^p)^{1/p})`. Platanios et al. (2019), eq. 8.

    Args:
        progress: t / T, in [0, 1].
        start: c_0, in (0, 1]; 0.01 in the paper.
        power: p, above 0; 2 is the paper's square root, 1 its linear curve.

    Returns:
        Competence in [``start``, 1].

    Raises:
        ValueError: naming the argument that is out of its range.
    """
    _check_progress(progress)
    if not 0 < start <= 1:
        raise ValueError(f"start is {start}; the first competence lies in (0, 1]")
    if not 0 < power < math.inf:
        raise ValueError(f"power is {power}; it must be above 0 (2: square root, 1: linear)")
    first = start**power
    rising = (progress * (1 - first) + first) ** (1 / power)
    return float(min(1.0, max(start, rising)))  # `first` of a great power is rounded to 0


def staged_competence(progress: float, *, shares: Sequence[float]) -> float:
    """Competence that rises in stages of equal length: ``shares[floor(progress * len(shares))]``.

    Args:
        progress: in [0, 1].
        shares: competence of each stage, in (0, 1], such as ``[0.3, 0.6, 1.0]``.

    Raises:
        ValueError: if there is no stage, or a share is outside (0, 1].
    """
    _check_progress(progress)
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(
            f"shares is {list(shares)}; give one share of the samples in (0, 1] for each stage"
        )
    stage = share_count(progress, len(shares), rounding=math.floor)
    return float(shares[min(stage, len(shares) - 1)])


def difficulty_cdf(difficulty: Tensor) -> Tensor:
    """CDF(d_i): fraction of samples that are not harder than sample i.

    Args:
        difficulty: ``[N]``, not NaN.

    Returns:
        ``[N]`` float64 in (0, 1]; equal for equal difficulties.

    Raises:
        ValueError: naming the samples whose difficulty is NaN.
    """
    if bool((missing := difficulty.isnan()).any()):
        raise ValueError(
            f"the difficulties of samples {missing.nonzero().flatten()[:8].tolist()} are NaN; "
            "give every sample a number, larger for harder samples"
        )
    ordered = difficulty.sort().values
    return torch.searchsorted(ordered, difficulty, right=True).double() / len(difficulty)


def eligible_mask(difficulty: Tensor, share: float, *, hardest_first: bool = False) -> Tensor:
    """Samples that may be drawn at a competence: ``[N]`` bool, at least one of them True.

    Args:
        difficulty: ``[N]``, not NaN.
        share: competence, in (0, 1].
        hardest_first: start with the hardest samples and add easier ones.

    Raises:
        ValueError: if ``share`` is outside (0, 1], there is no sample, or a difficulty is NaN.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the competence is {share}; it must lie in (0, 1]")
    if not len(difficulty):
        raise ValueError("there are no difficulties; a curriculum needs one for each sample")
    cdf = difficulty_cdf(-difficulty if hardest_first else difficulty)
    # As counts: k / N as computed may exceed a share that is meant as k / N.
    eligible = (cdf * len(cdf)).round() <= share_count(share, len(cdf), rounding=math.floor)
    return eligible if bool(eligible.any()) else cdf == cdf.min()


def self_paced_mask(loss: Tensor, *, threshold: float) -> Tensor:
    """v_i = 1[loss_i < threshold]: ``[N]`` bool. Kumar et al. (2010), with threshold = 1 / K.

    Args:
        loss: ``[N]`` last losses; ``-inf`` where there is none yet.
        threshold: above 0.

    Raises:
        ValueError: if the threshold is not above 0, or no loss is below it.
    """
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}; it must be above 0, in the unit of the loss")
    eligible = loss < threshold
    if not bool(eligible.any()):
        raise ValueError(
            f"no loss is below the threshold {threshold}; the smallest is {float(loss.min())}: "
            "start with a larger threshold"
        )
    return eligible


def self_paced_threshold(progress: float, *, start: float, end: float) -> float:
    """The threshold 1 / K, growing geometrically from ``start`` to ``end``.

    Kumar et al. (2010): K shrinks by a constant factor after each round.

    Args:
        progress: in [0, 1].
        start: above 0.
        end: at least ``start``.

    Raises:
        ValueError: if a bound is not above 0, or ``end`` is below ``start``.
    """
    _check_progress(progress)
    if not 0 < start <= end < math.inf:
        raise ValueError(
            f"start is {start} and end {end}; they must satisfy 0 < start <= end, so that the "
            "threshold grows"
        )
    return float(start ** (1 - progress) * end**progress)
