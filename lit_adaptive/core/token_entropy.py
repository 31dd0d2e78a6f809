r"""Which tokens to train on, by entropy and by how advantage and log-probability go together.

    entropy     [K]  of the policy at each completion token, in nats
    covariance  [K]  (A - mean A) (log pi - mean log pi), whose mean drives the fall of entropy
    keep        [K]  bool: the tokens that take part, or None for all

Draws and cuts take an exact number of tokens. Equal values are taken in the order of the tokens.
"""

import math

import torch
from torch import Tensor

from lit_adaptive.core.policy_ratios import at_least_float32


@torch.no_grad()
def high_entropy_mask(entropy: Tensor, quantile: float = 0.2, keep: Tensor | None = None) -> Tensor:
    """The ``ceil(quantile * K)`` tokens of the highest entropy: ``[K]`` bool.

    Wang et al. (2025, arXiv:2506.01939), "Beyond the 80/20 rule": policy gradients on a fifth of
    the tokens, those where the policy forks. K is of the micro-batch, as in their code,
    or of the step: what is passed decides.

    Args:
        entropy: ``[K]``, not NaN where ``keep``.
        quantile: rho, the share of the kept tokens that is taken, in (0, 1]; the paper's 0.2.
        keep: ``[K]`` bool.

    Raises:
        ValueError: if ``quantile`` is out of its range or an entropy is NaN.
    """
    if not 0 < quantile <= 1:
        raise ValueError(
            f"quantile is {quantile}; it is the share of tokens trained on and must lie in (0, 1] "
            "(1: all)"
        )
    kept = _kept(entropy, keep)
    _refuse_nan("entropy", entropy, kept)
    # The allowance: 0.07 * 100 is a little above 7, and means 7.
    wanted = math.ceil(quantile * int(kept.sum()) - 1e-9)
    return kept & (_ranks(entropy, kept) < wanted)


@torch.no_grad()
def covariances(log_prob: Tensor, advantage: Tensor, keep: Tensor | None = None) -> Tensor:
    r""":math:`(A_t - \bar A)(\log\pi_t - \overline{\log\pi})` of each token: ``[K]``.

    Cui et al. (2025, arXiv:2505.22617), token-wise centred cross-product; means over the kept.

    Args:
        log_prob: ``[K]``.
        advantage: ``[K]`` of each token: ``advantage[sequence]``.
        keep: ``[K]`` bool; the others have 0.

    Raises:
        ValueError: if shapes differ.
    """
    if log_prob.shape != advantage.shape:
        raise ValueError(
            f"log_prob has shape {list(log_prob.shape)} and advantage {list(advantage.shape)}; "
            "both must be [K]: pass advantage[sequence]"
        )
    kept = _kept(log_prob, keep)
    count = kept.sum().clamp(min=1)
    gain = torch.where(kept, at_least_float32(advantage), 0.0)
    level = torch.where(kept, at_least_float32(log_prob), 0.0)
    cov = (gain - gain.sum() / count) * (level - level.sum() / count)
    return torch.where(kept, cov, 0.0)


@torch.no_grad()
def clip_cov(
    cov: Tensor,
    *,
    share: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    keep: Tensor | None = None,
    generator: torch.Generator | None = None,
    uniform: Tensor | None = None,
) -> Tensor:
    """Clip-Cov: tokens whose gradient is dropped: ``[K]`` bool.

    Cui et al. (2025, arXiv:2505.22617) and their code: ``max(1, floor(share * K))`` tokens, drawn
    at random among those with ``low < cov < high``, or all of these if there are fewer.

    Args:
        cov: ``[K]`` of ``covariances``. Give -inf to a token that is clipped already, as their code
            does, and it is never drawn.
        share: of the kept tokens, in [0, 1]; 0 drops none.
        low: lower end, not included.
        high: upper end, not included.
        keep: ``[K]`` bool.
        generator: of the draw, on the device of ``cov``; None: torch's own.
        uniform: ``[K]`` in [0, 1) to draw by, instead of a generator: the least are taken.

    Raises:
        ValueError: if ``share`` is out of its range, ``low >= high`` or shapes differ.
    """
    _check_share(share)
    if not low < high:
        raise ValueError(f"low is {low} and high {high}; tokens lie between them: low < high")
    kept = _kept(cov, keep)
    if uniform is None:
        uniform = torch.rand(len(cov), generator=generator, device=cov.device)
    elif uniform.shape != cov.shape:
        raise ValueError(
            f"uniform has shape {list(uniform.shape)} and cov {list(cov.shape)}; both must be [K]"
        )
    band = kept & (cov > low) & (cov < high)
    return band & (_ranks(-uniform, band) < _number(share, kept))


@torch.no_grad()
def kl_cov(cov: Tensor, *, share: float = 2e-3, keep: Tensor | None = None) -> Tensor:
    """KL-Cov: the tokens of the highest covariance, which get a penalty: ``[K]`` bool.

    Cui et al. (2025, arXiv:2505.22617) and their code: the greatest ``max(1, floor(share * K))``;
    share is 2e-3 with 7B parameters, 2e-4 with 32B.

    Args:
        cov: ``[K]`` of ``covariances``, not NaN where ``keep``.
        share: of the kept tokens, in [0, 1]; 0 takes none.
        keep: ``[K]`` bool.

    Raises:
        ValueError: if ``share`` is out of its range, or a covariance is NaN.
    """
    _check_share(share)
    kept = _kept(cov, keep)
    _refuse_nan("cov", cov, kept)
    return kept & (_ranks(cov, kept) < _number(share, kept))


def kl_cov_penalties(
    log_prob: Tensor, old: Tensor, chosen: Tensor, *, coefficient: float = 1.0
) -> Tensor:
    """What KL-Cov adds to the losses: ``coefficient * |log pi - log old|`` where ``chosen``.

    The code of Cui et al. (2025, arXiv:2505.22617) takes the absolute log ratio for the KL; its
    beta is 1. At log pi = log old the gradient is 0.

    Args:
        log_prob: ``[K]``, differentiable.
        old: ``[K]``, of the policy that wrote the tokens or that began the step.
        chosen: ``[K]`` bool of ``kl_cov``.
        coefficient: beta.
    """
    difference = at_least_float32(log_prob) - old.detach()
    return coefficient * torch.where(chosen, difference, 0.0).abs()


def _kept(value: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return torch.ones_like(value, dtype=torch.bool)
    if keep.shape != value.shape:
        raise ValueError(
            f"keep has shape {list(keep.shape)} for values of {list(value.shape)}; both must be [K]"
        )
    return keep.bool()


def _ranks(value: Tensor, kept: Tensor) -> Tensor:
    """0 for the greatest of the kept, 1 for the next; equal ones in order; the others after."""
    ranked = torch.where(kept, value, -math.inf)
    order = torch.argsort(ranked, descending=True, stable=True)
    return torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))


def _number(share: float, kept: Tensor) -> int:
    return max(1 if share > 0 else 0, math.floor(share * int(kept.sum()) + 1e-9))


def _refuse_nan(name: str, value: Tensor, kept: Tensor) -> None:
    if bool((wrong := value.isnan() & kept).any()):
        index = wrong.nonzero().flatten()[:8].tolist()
        raise ValueError(
            f"{name} is NaN at index {index}; the model gives NaN there: look for it in the logits"
        )


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it is a share of the tokens and must lie in [0, 1]")
