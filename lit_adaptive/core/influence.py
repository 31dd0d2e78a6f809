r"""Off-policy influence of prompts on validation: gradients, scores, fusion and selection.

CROPI (arXiv:2510.26491) scores a training prompt by how far its policy gradient, estimated from
stored rollouts of a behavior policy, points where validation prompts need it:

    log_prob     [K]     log-probability of each token under pi_theta, at the sampling temperature
    behavior     [K]     the same under the policy beta that generated the tokens, stored
    coefficient  [K]     factor c_t of the gradient of each token's log-probability
    gradient     [P, d]  :math:`\hat g_\beta = \sum_t c_t \nabla\log\pi_\theta(a_t)`, projected
    score        [P]     of a gradient and a mean validation gradient: inner product, cosine, cosine
                         times 4 p (1 - p) of the pass rate p, or influence function
    fused score  [P]     of several validation sets

The estimate of a prompt with K rollouts is

.. math:: \hat g_\beta = \frac1K \sum_k \frac1{|\tau_k|} \sum_t
          \rho_{k,t} \hat A_k \nabla\log\pi_\theta(a_{k,t}), \qquad \rho = \pi_\theta / \beta

with the advantages of beta's group; for the ratio of a token, the summand is the gradient of
:math:`\rho_{k,t} \hat A_k`. It points uphill: a step along it raises the reward.

Where this departs from the paper's code, and why:
  1. One mean over a prompt's rollouts. The code adds means of micro-batches, in which the rollouts
     of small micro-batches weigh more.
  2. The ratio is one of probabilities at the temperature that the rollouts were sampled at. The
     code computes both at temperature 1.
  3. Prompts without gradient have the score NaN and are never selected; they count in the pool
     whose share is selected.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from lit_adaptive.core.advantages import group_advantages
from lit_adaptive.core.bounds import check_choices
from lit_adaptive.core.difficulty import selection_scores
from lit_adaptive.core.policy_ratios import check_tokens, limited_exp
from lit_adaptive.core.segments import segment_count, segment_mean, segment_sum
from lit_adaptive.core.shares import share_count

InfluenceRatio = Literal["token", "prefix", "sequence"]
InfluenceMetric = Literal["cosine", "inner_product", "learnable_cosine", "influence_function"]


@torch.no_grad()
def off_policy_coefficients(
    log_prob: Tensor,
    behavior: Tensor,
    sequence: Tensor,
    reward: Tensor,
    group: Tensor,
    size: int,
    *,
    ratio: InfluenceRatio = "token",
    clip: float | None = None,
    self_normalize: bool = False,
    reweight_advantages: bool = False,
    epsilon: float = 1e-4,
) -> Tensor:
    r"""Factor of each token's :math:`\nabla\log\pi_\theta` in the gradient of its prompt.

    Args:
        log_prob: ``[K]``.
        behavior: ``[K]``.
        sequence: ``[K]`` int64 in [0, N), ascending: the rollout of each token, in order.
        reward: ``[N]``; NaN where no reward applies, which is advantage 0.
        group: ``[N]`` int64 in [0, P): the prompt of each rollout.
        size: number of prompts P.
        ratio: importance ratio of a token. ``"token"``: its own (CROPI), which leaves the mismatch
            of the tokens before it uncorrected; ``"prefix"``: the product up to it;
            ``"sequence"``: the product over the rollout.
        clip: as in PPO, a token has factor 0 if its ratio is above 1 + ``clip`` and its advantage
            positive, or below 1 - ``clip`` and negative; above 0. None: no clipping (CROPI).
        self_normalize: divide the ratios by the prompt's mean ratio, the mean over its rollouts
            with tokens of the mean over tokens; biased, with less variance.
        reweight_advantages: mean and standard deviation of the rewards under pi_theta, estimated
            with the rollouts' weights :math:`\exp(\mathrm{mean}_t \log\rho_t)` (an option of
            CROPI's code).
        epsilon: added to the standard deviation of the rewards, at least 0.

    Returns:
        ``[K]`` float32; all 0 for a prompt whose rewards are equal.

    Raises:
        ValueError: if shapes differ, ``sequence`` does not ascend, a log-probability is not finite
            (naming the prompts), a group has one rollout, or an option is out of its range.
    """
    _check_coefficients(log_prob, behavior, sequence, group, ratio, clip)
    count = len(reward)
    difference = (log_prob - behavior).double()
    if reweight_advantages:
        weight = limited_exp(segment_mean(difference, sequence, count))
        advantage = _weighted_advantages(reward, weight, group, size, epsilon)
    else:
        advantage = group_advantages(reward, group, size, epsilon=epsilon).double()
    tokens = segment_count(sequence, count)
    weight = limited_exp(_log_ratios(difference, sequence, count, ratio))
    value = advantage[sequence]
    factor = weight * value
    if clip is not None:
        high, low = (value > 0) & (weight > 1 + clip), (value < 0) & (weight < 1 - clip)
        factor = factor.masked_fill(high | low, 0.0)
    if self_normalize:
        mean, full = segment_mean(weight, sequence, count), tokens > 0  # empty ones have no ratio
        factor = factor / segment_mean(mean[full], group[full], size)[group][sequence]
    rollouts = segment_count(group, size)
    return (factor / (tokens * rollouts[group])[sequence]).float()


def _check_coefficients(
    log_prob: Tensor,
    behavior: Tensor,
    sequence: Tensor,
    group: Tensor,
    ratio: str,
    clip: float | None,
) -> None:
    check_tokens(log_prob, sequence, behavior=behavior)
    if ratio not in get_args(InfluenceRatio):
        raise ValueError(f"ratio is {ratio!r}; it must be one of {list(get_args(InfluenceRatio))}")
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip is {clip}; it must be above 0 and finite, or null for no clipping")
    if bool((sequence[1:] < sequence[:-1]).any()):
        raise ValueError("sequence must ascend: the tokens of a rollout follow each other in order")
    for name, values in (("log_prob", log_prob), ("behavior", behavior)):
        invalid = ~values.isfinite()
        if bool(invalid.any()):
            prompts = torch.unique(group[sequence[invalid]])[:8].tolist()
            raise ValueError(
                f"{name} of tokens of the groups {prompts} is NaN or infinite: the weights of the "
                "model or the stored log-probabilities are damaged"
            )


def _log_ratios(difference: Tensor, sequence: Tensor, count: int, ratio: InfluenceRatio) -> Tensor:
    """Logarithm of each token's importance ratio ``[K]``, from the differences of its own."""
    if ratio == "token":
        return difference
    total = segment_sum(difference, sequence, count)
    if ratio == "sequence":
        return total[sequence]
    return difference.cumsum(0) - (total.cumsum(0) - total)[sequence]


def _weighted_advantages(
    reward: Tensor, weight: Tensor, group: Tensor, size: int, epsilon: float
) -> Tensor:
    """Rewards minus their weighted mean, divided by their weighted standard deviation: ``[N]``."""
    known = ~reward.isnan()
    spread = group_advantages(reward, group, size, epsilon=epsilon).ne(0)
    weight = weight.where(known, 0.0)
    value = reward.double().where(known, 0.0)
    total = segment_sum(weight, group, size).clamp(min=torch.finfo(torch.float64).tiny)
    mean = segment_sum(weight * value, group, size) / total
    centered = value - mean[group]
    variance = segment_sum(weight * centered.square(), group, size) / total
    has_spread = segment_sum(spread.double(), group, size) > 0
    advantage = centered / (variance.sqrt() + epsilon)[group]
    return advantage.where(known & has_spread[group], 0.0)


def mean_validation_gradient(gradient: Tensor) -> Tensor:
    """Mean of the gradients of a validation set: ``[d]`` float32.

    Args:
        gradient: ``[M, d]``; rows of 0, of prompts without gradient, are left out.

    Raises:
        ValueError: if a gradient is not finite, or no prompt has one.
    """
    check_gradients(gradient)
    nonzero = gradient.ne(0).any(1)
    if not bool(nonzero.any()):
        raise ValueError(
            f"none of the {len(gradient)} validation prompts has a gradient, because the rewards "
            "of each are all equal: sample more rollouts per prompt, or choose prompts that the "
            "policy solves sometimes"
        )
    return gradient[nonzero].mean(0)


def influence_scores(
    gradient: Tensor,
    validation: Tensor,
    *,
    metric: InfluenceMetric = "cosine",
    pass_rate: Tensor | None = None,
) -> Tensor:
    r"""How well a step along each prompt's gradient serves validation: ``[P]`` float32.

    Args:
        gradient: ``[P, d]``.
        validation: ``[d]``, a mean gradient.
        metric: ``"cosine"`` (CROPI's code), in [-1, 1]; ``"inner_product"``, the first-order change
            of the validation objective, which favors prompts with large gradients;
            ``"learnable_cosine"``, the cosine times 4 p (1 - p) (LearnAlign, arXiv:2506.11480); or
            ``"influence_function"``, of which ``gradient`` must be the whole pool.
        pass_rate: p ``[P]`` in [0, 1], for ``"learnable_cosine"``.

    The influence function (TRAK, arXiv:2303.14186; LoGra, arXiv:2405.13954) is

    .. math:: s = U (U^\top U + I)^{-1} \frac{v}{|v|}

    with the pool's gradients, scaled to length 1, as the rows of U: the cosine without the
    directions that most gradients have, which do not tell prompts apart. It is also the ridge
    regression of v on the rows of U, with the penalty 1.

    Returns:
        ``[P]``; NaN for a prompt without gradient.

    Raises:
        ValueError: if a gradient is not finite, ``metric`` is unknown, or it needs ``pass_rate``
            and there is none.
    """
    check_choices(metric=(metric, get_args(InfluenceMetric)))
    check_gradients(gradient)
    norm = gradient.norm(dim=1)
    tiny = torch.finfo(torch.float32).tiny
    if metric == "influence_function":
        unit = gradient / norm[:, None].clamp(min=tiny)
        product = _ridge_regression(unit, validation / validation.norm().clamp(min=tiny))
        return product.masked_fill(norm == 0, math.nan)
    product = gradient @ validation
    if metric != "inner_product":
        product = product / (norm * validation.norm()).clamp(min=tiny)
    if metric == "learnable_cosine":
        if pass_rate is None:
            raise ValueError("metric is 'learnable_cosine', which needs the prompts' pass rates")
        product = product * 4 * selection_scores(pass_rate, "learnability").to(product)
    return product.masked_fill(norm == 0, math.nan)


def _ridge_regression(rows: Tensor, target: Tensor) -> Tensor:
    """Coefficients ``[P]`` of the rows ``[P, d]`` for a target ``[d]``, with the penalty 1."""
    count, size = rows.shape
    if count <= size:
        gram = rows @ rows.T
        gram.diagonal().add_(1)
        coefficients: Tensor = torch.linalg.solve(gram, rows @ target)
        return coefficients
    covariance = rows.T @ rows
    covariance.diagonal().add_(1)
    solution: Tensor = torch.linalg.solve(covariance, target)
    return rows @ solution


def check_gradients(gradient: Tensor) -> None:
    """Raise ValueError naming the rows of ``gradient`` ``[P, d]`` that are not finite."""
    invalid = (~gradient.isfinite()).any(1).nonzero().flatten()
    if len(invalid):
        raise ValueError(
            f"the gradients of prompts {invalid[:8].tolist()} are NaN or infinite: the training "
            "diverged, or the precision overflows; use bfloat16 or float32, not float16"
        )


def reciprocal_rank_fusion(
    score: Tensor, *, constant: float = 0.0, top_k: int | None = None
) -> Tensor:
    """Sum over validation sets of 1 / (constant + rank): ``[P]`` float64.

    Cormack et al. (2009), with the constant 60; CROPI's code has 0, with which the best prompt of a
    set outweighs many good places. Equal scores share the better rank.

    Args:
        score: ``[S, P]``, of each validation set; NaN has no rank.
        constant: at least 0.
        top_k: only the ranks 1 to ``top_k`` count (CROPI: as many as are selected); None: all.

    Returns:
        ``[P]``; 0 for prompts without a rank that counts, NaN for those without any rank.

    Raises:
        ValueError: if ``constant`` is negative or ``top_k`` below 1.
    """
    if not 0 <= constant < math.inf:
        raise ValueError(f"constant is {constant}; it is added to a rank and must be at least 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1, or null for all ranks")
    known = ~score.isnan()
    descending = (-score).masked_fill(~known, math.inf)
    rank = torch.searchsorted(descending.sort(1).values, descending) + 1
    counted = known if top_k is None else known & (rank <= top_k)
    fused = (1 / (constant + rank.double())).where(counted, 0.0).sum(0)
    return fused.masked_fill(~known.any(0), math.nan)


def max_fusion(score: Tensor) -> Tensor:
    """Largest score of each prompt over the validation sets: ``[P]``; NaN without any.

    Args:
        score: ``[S, P]``; NaN where a prompt has no score.
    """
    known = ~score.isnan()
    largest = score.masked_fill(~known, -math.inf).amax(0)
    return largest.masked_fill(~known.any(0), math.nan)


def select_top(score: Tensor, fraction: float) -> Tensor:
    """The prompts with the largest scores: ``[k]`` int64, best first.

    Args:
        score: ``[P]``, of all prompts of the pool; NaN for those that cannot be selected. Of equal
            scores the earlier prompt comes first.
        fraction: share of the pool to select, in (0, 1]; rounded up. Fewer are selected where fewer
            have a score.

    Raises:
        ValueError: if ``fraction`` is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            f"fraction is {fraction}; it is the share of the pool to select and must lie in (0, 1]"
        )
    order = score.masked_fill(score.isnan(), -math.inf).argsort(descending=True, stable=True)
    known = int((~score.isnan()).sum())
    return order[: min(share_count(fraction, len(score)), known)]


def selection_overlap(first: Tensor, second: Tensor, fraction: float) -> float:
    """Share of the best prompts by one score that are among the best by another.

    Args:
        first: ``[P]``; NaN for prompts that cannot be selected.
        second: ``[P]``, likewise.
        fraction: share of the prompts that is best, in (0, 1]; rounded up.

    Returns:
        In [0, 1]; about ``fraction`` for unrelated scores, 0 if one has no score at all.

    Raises:
        ValueError: if ``fraction`` is outside (0, 1].
    """
    common = torch.isin(select_top(first, fraction), select_top(second, fraction))
    return float(common.sum()) / share_count(fraction, len(first)) if len(first) else 0.0
