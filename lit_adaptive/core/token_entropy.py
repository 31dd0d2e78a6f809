r"""Selection of tokens by entropy, and by the covariance of advantage and log-probability.

    entropy     [K]  entropy of the policy at each completion token, in nats
    covariance  [K]  (A - mean A) (log pi - mean log pi); its mean drives the collapse of entropy
    keep        [K]  bool, the tokens to select from; None: all

Selections have an exact number of tokens; ties are resolved in the order of the tokens.
"""

import math

import torch
from torch import Tensor

from lit_adaptive.core.policy_ratios import at_least_float32
from lit_adaptive.core.shares import share_count


@torch.no_grad()
def high_entropy_mask(entropy: Tensor, quantile: float = 0.2, keep: Tensor | None = None) -> Tensor:
    """The ``ceil(quantile * K)`` tokens of the highest entropy: ``[K]`` bool.

    Wang et al. (2025, arXiv:2506.01939), "Beyond the 80/20 rule": policy gradients only on the
    fifth of the tokens with the highest entropy. The caller decides whether K is that of a
    micro-batch, as in the paper's code, or of a step.

    Args:
        entropy: ``[K]``, not NaN where ``keep``.
        quantile: rho, selected share of the tokens in ``keep``, in (0, 1]; 0.2 in the paper.
        keep: ``[K]`` bool.

    Raises:
        ValueError: if ``quantile`` is out of its range or an entropy is NaN.
    """
    if not 0 < quantile <= 1:
        raise ValueError(
            f"quantile is {quantile}; it is the share of tokens to train on and must lie in (0, 1] "
            "(1: all)"
        )
    kept = _keep_mask(entropy, keep)
    _check_not_nan("entropy", entropy, kept)
    count = share_count(quantile, int(kept.sum()))
    return kept & (_ranks(entropy, kept) < count)


@torch.no_grad()
def covariances(log_prob: Tensor, advantage: Tensor, keep: Tensor | None = None) -> Tensor:
    r""":math:`(A_t - \bar A)(\log\pi_t - \overline{\log\pi})` of each token: ``[K]``.

    Cui et al. (2025, arXiv:2505.22617), token-wise centred cross-product; means over ``keep``.

    Args:
        log_prob: ``[K]``.
        advantage: ``[K]`` advantage of each token, ``advantage[sequence]``.
        keep: ``[K]`` bool; other tokens have covariance 0.

    Raises:
        ValueError: if shapes differ.
    """
    if log_prob.shape != advantage.shape:
        raise ValueError(
            f"log_prob has shape {list(log_prob.shape)} and advantage {list(advantage.shape)}; "
            "both must be [K]: pass advantage[sequence]"
        )
    kept = _keep_mask(log_prob, keep)
    count = kept.sum().clamp(min=1)
    advantage = torch.where(kept, at_least_float32(advantage), 0.0)
    log_prob = torch.where(kept, at_least_float32(log_prob), 0.0)
    cov = (advantage - advantage.sum() / count) * (log_prob - log_prob.sum() / count)
    return torch.where(kept, cov, 0.0)


@torch.no_grad()
def clip_cov(
    cov: Tensor,
    *,
    share: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    uniform: Tensor,
    keep: Tensor | None = None,
) -> Tensor:
    """Clip-Cov: tokens whose gradient is dropped: ``[K]`` bool.

    Cui et al. (2025, arXiv:2505.22617) and their code: ``max(1, floor(share * K))`` random tokens
    among those with ``low < cov < high``, or all of these if there are fewer.

    Args:
        cov: ``[K]``, see ``covariances``; -inf excludes a token, as their code does for tokens that
            are clipped already.
        share: share of the tokens in ``keep``, in [0, 1]; 0 drops none.
        low: lower bound, exclusive.
        high: upper bound, exclusive.
        uniform: ``[K]`` random numbers in [0, 1); the tokens with the smallest are selected.
        keep: ``[K]`` bool.

    Raises:
        ValueError: if ``share`` is out of its range, ``low >= high`` or shapes differ.
    """
    _check_share(share)
    if not low < high:
        raise ValueError(f"low is {low} and high {high}; they must satisfy low < high")
    kept = _keep_mask(cov, keep)
    if uniform.shape != cov.shape:
        raise ValueError(
            f"uniform has shape {list(uniform.shape)} and cov {list(cov.shape)}; both must be [K]"
        )
    band = kept & (cov > low) & (cov < high)
    return band & (_ranks(-uniform, band) < _count(share, kept))


@torch.no_grad()
def kl_cov(cov: Tensor, *, share: float = 2e-3, keep: Tensor | None = None) -> Tensor:
    """KL-Cov: the tokens of the highest covariance, which get a penalty: ``[K]`` bool.

    Cui et al. (2025, arXiv:2505.22617) and their code: ``max(1, floor(share * K))`` tokens; share
    is 2e-3 with 7B parameters, 2e-4 with 32B.

    Args:
        cov: ``[K]``, see ``covariances``; not NaN where ``keep``.
        share: share of the tokens in ``keep``, in [0, 1]; 0 selects none.
        keep: ``[K]`` bool.

    Raises:
        ValueError: if ``share`` is out of its range, or a covariance is NaN.
    """
    _check_share(share)
    kept = _keep_mask(cov, keep)
    _check_not_nan("cov", cov, kept)
    return kept & (_ranks(cov, kept) < _count(share, kept))


def kl_cov_penalties(
    log_prob: Tensor, old: Tensor, mask: Tensor, *, coefficient: float = 1.0
) -> Tensor:
    """KL-Cov's addition to the losses: ``coefficient * |log pi - log old|`` where ``mask``.

    The code of Cui et al. (2025, arXiv:2505.22617) uses the absolute log ratio as the KL, with
    beta 1. At log pi = log old the gradient is 0.

    Args:
        log_prob: ``[K]``, differentiable.
        old: ``[K]`` log-probabilities under the policy that generated the tokens, or under that at
            the start of the step.
        mask: ``[K]`` bool, see ``kl_cov``.
        coefficient: beta.
    """
    difference = at_least_float32(log_prob) - old.detach()
    return coefficient * torch.where(mask, difference, 0.0).abs()


def _keep_mask(value: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return torch.ones_like(value, dtype=torch.bool)
    if keep.shape != value.shape:
        raise ValueError(
            f"keep has shape {list(keep.shape)} for values of {list(value.shape)}; both must be [K]"
        )
    return keep.bool()


def _ranks(value: Tensor, kept: Tensor) -> Tensor:
    """Rank from 0 by descending value, ties in order of the tokens; tokens not kept rank last."""
    ranked = torch.where(kept, value, -math.inf)
    order = torch.argsort(ranked, descending=True, stable=True)
    return torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))


def _count(share: float, kept: Tensor) -> int:
    selected = share_count(share, int(kept.sum()), rounding=math.floor)
    return max(1 if share > 0 else 0, selected)


def _check_not_nan(name: str, value: Tensor, kept: Tensor) -> None:
    if bool((missing := value.isnan() & kept).any()):
        index = missing.nonzero().flatten()[:8].tolist()
        raise ValueError(f"{name} is NaN at index {index}: look for NaN in the model's logits")


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it is a share of the tokens and must lie in [0, 1]")
