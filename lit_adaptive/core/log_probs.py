r"""Log-probabilities of tokens without ever holding the logits of all of them.

    logit         z_v   softcap(scale * (h W^T + b)_v) / temperature         [K, V], in tiles
    log_prob            z_target - log sum_v exp z_v                         [K], at most 0
    entropy             -sum_v p_v log p_v                                   [K], in [0, log V]
    divergence          sum_v p_v (log p_v - log q_v) to a reference q       [K], at least 0

The logits of 4096 tokens over a vocabulary of 49,152 take 805 MB in float32, and a log-softmax with
its gradient holds three such tensors. Here they are computed in tiles (some tokens times some
vocabulary entries) that fit the cache, and the sums over the vocabulary grow from tile to tile by
the online softmax (Milakov and Gimelshein, 2018, 1805.02867, algorithm 3). Only ``[K]`` vectors are
kept.

The backward pass recomputes each tile, except those that fit into ``keep`` bytes: up to four matrix
products instead of the three of the full path, paid for by less memory traffic. Where weight and
bias are frozen (LoRA), nothing is recomputed: the gradient of ``log_prob`` with respect to
``hidden``, ``scale / T * (W[target] - p W)``, is computed in the forward pass, with two products in
all.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lit_adaptive.core.kernels.tiled_log_probs import LogitsConfig, TiledLogProbs

# Tokens and vocabulary entries of a tile: 8 MB in float32, which fits a CPU's cache; a GPU needs
# fewer and larger kernels (256 MB).
_CPU_TILE = (1024, 2048)
_GPU_TILE = (4096, 16384)


class TokenLogProbs(NamedTuple):
    """Result of ``token_log_probs``; values are float32, or float64 if the inputs are.

    Attributes:
        log_prob: ``[K]`` log-probability of each target, at most 0.
        entropy: ``[K]`` entropy of the distribution at each token, in nats; None unless requested.
        top_log_prob: ``[K, k]`` log-probabilities of the k most probable tokens, descending,
            without gradient; None unless requested.
        top_token: ``[K, k]`` int64, these tokens.
        divergence: ``[K]`` KL divergence to a reference, in nats; None unless requested.
    """

    log_prob: Tensor
    entropy: Tensor | None
    top_log_prob: Tensor | None
    top_token: Tensor | None
    divergence: Tensor | None = None


class Distributions(NamedTuple):
    """Distributions over the vocabulary at K tokens, as what their logits are computed from.

    Attributes:
        hidden: ``[K, D]``.
        weight: ``[V, D]``.
        bias: ``[V]``, or None.
        softcap: see ``token_log_probs``.
        scale: see ``token_log_probs``.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def log_probs(self) -> Tensor:
        """``[K, V]`` float32, or float64 if the hidden states are."""
        logits = functional.linear(self.hidden, self.weight, self.bias)
        logits = self.scale * logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.softcap is not None:
            logits = self.softcap * (logits / self.softcap).tanh()
        return logits.log_softmax(-1).clamp(min=-1e30)  # 0 * -inf would be NaN


def kl_divergence(policy: Distributions, reference: Distributions, *, chunk: int = 256) -> Tensor:
    r"""KL divergence :math:`\sum_v p_v (\log p_v - \log q_v)` of each token: ``[K]``, in nats.

    Chunk by chunk, each computed again in the backward pass, so that the log-probabilities of one
    chunk are in memory at a time.

    Args:
        policy: p.
        reference: q, of the same vocabulary; without gradient.
        chunk: tokens at a time, above 0.
    """

    def divergence(start: int) -> Tensor:
        rows = slice(start, start + chunk)
        p = policy._replace(hidden=policy.hidden[rows]).log_probs()
        with torch.no_grad():
            q = reference._replace(hidden=reference.hidden[rows]).log_probs()
        return functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)

    starts = range(0, max(len(policy.hidden), 1), chunk)
    return torch.cat([checkpoint(divergence, start, use_reentrant=False) for start in starts])


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
    tile: int | None = None,
    keep: int = 2**28,
    entropy: bool = False,
    top_k: int = 0,
) -> TokenLogProbs:
    """Log-probability of each target token, with gradients of hidden, weight and bias.

    The matrix products run in the dtype of ``hidden`` and ``weight`` (under autocast: in its
    dtype), everything else in float32. A logit of minus infinity, as from a bias that forbids a
    token, has probability 0. Gradients cannot be differentiated again.

    Args:
        hidden: ``[K, D]``, the last hidden states, which predict the targets.
        weight: ``[V, D]``, the output embedding.
        target: ``[K]`` int64 in [0, V).
        bias: ``[V]``.
        temperature: divisor of the logits, applied last; above 0.
        softcap: c in ``c * tanh(z / c)``, above 0 (Gemma 2, 2408.00118, section 2).
        scale: the model's factor of its logits, applied before the softcap.
        chunk: tokens in a tile; None: chosen for the device.
        tile: vocabulary entries in a tile; None: chosen for the device.
        keep: bytes for probabilities saved for the backward pass, at least 0; used only where
            weight or bias are trained, without softcap and entropy. Results do not depend on it.
        entropy: also compute entropies, with gradients.
        top_k: number of most probable tokens to return, with their log-probabilities.

    Raises:
        ValueError: naming the argument that is invalid, or targets outside [0, V).
    """
    _check_inputs(hidden, weight, target, bias)
    device = hidden.device.type
    matmul = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and matmul != torch.float64:
        matmul = torch.get_autocast_dtype(device)
    tokens, entries = _CPU_TILE if device == "cpu" else _GPU_TILE
    tokens, entries = chunk or tokens, tile or entries
    if tokens < 1 or entries < 1:
        raise ValueError(f"chunk and tile are {chunk} and {tile}; they must be above 0, or None")
    config = LogitsConfig(
        scale=scale,
        temperature=temperature,
        softcap=softcap,
        entropy=entropy,
        top_k=top_k,
        matmul_dtype=matmul,
        tile_tokens=tokens,
        tile_entries=entries,
        saved_bytes=keep,
    )
    _check_options(config, len(weight))
    return TokenLogProbs(*cast("Any", TiledLogProbs).apply(hidden, weight, bias, target, config))


@torch.no_grad()
def logit_gradients(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    log_prob: Tensor,
    log_prob_grad: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    tile: int = 2048,
) -> Iterator[tuple[slice, Tensor]]:
    r"""Gradients with respect to :math:`h W^T + b`, some vocabulary entries at a time.

    With :math:`p_v = \exp(z_v - z_{target} + \mathrm{log\_prob})` it is ``log_prob_grad`` times
    :math:`(1[v = target] - p_v)`, times the derivative of :math:`z_v`. Each token's outer product
    with ``hidden`` is its part of the gradient of ``weight``.

    Args:
        hidden: ``[K, D]``.
        weight: ``[V, D]``.
        target: ``[K]`` int64 in [0, V).
        log_prob: ``[K]``, of ``token_log_probs``.
        log_prob_grad: ``[K]``, gradient of a loss with respect to ``log_prob``.
        bias: ``[V]``.
        temperature: see ``token_log_probs``.
        softcap: see ``token_log_probs``.
        scale: see ``token_log_probs``.
        tile: vocabulary entries at a time, above 0.

    Yields:
        A range of entries, and the gradient ``[K, E]`` float32.
    """

    def logits(product: Tensor) -> tuple[Tensor, Tensor | float]:
        """Logits z of products, and their derivative."""
        if softcap is None:
            return product * (scale / temperature), scale / temperature
        capped = (product * (scale / softcap)).tanh()
        return capped * (softcap / temperature), (1 - capped.square()) * (scale / temperature)

    hidden = hidden.float()
    own = (hidden * weight[target].float()).sum(1)
    normalizer = logits(own if bias is None else own + bias[target])[0] - log_prob
    for first in range(0, len(weight), tile):
        columns = slice(first, min(first + tile, len(weight)))
        product = hidden @ weight[columns].float().t()
        if bias is not None:
            product = product + bias[columns]
        value, slope = logits(product)
        gradient = (value - normalizer[:, None]).exp_().mul_(-log_prob_grad[:, None])
        inside = ((target >= first) & (target < columns.stop)).nonzero().flatten()
        gradient[inside, target[inside] - first] += log_prob_grad[inside]
        yield columns, gradient * slope


def _check_options(config: LogitsConfig, size: int) -> None:
    if not config.temperature > 0:
        raise ValueError(
            f"temperature is {config.temperature}; it must be above 0 (greedy: use top_k=1)"
        )
    if config.softcap is not None and not config.softcap > 0:
        raise ValueError(f"softcap is {config.softcap}; it must be above 0, or None: no cap")
    if not 0 <= config.top_k <= size:
        raise ValueError(
            f"top_k is {config.top_k}; it must lie in [0, {size}], the vocabulary's size"
        )
    if config.saved_bytes < 0:
        raise ValueError(
            f"keep is {config.saved_bytes}; it is a number of bytes and must be at least 0"
        )


def _check_inputs(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden is {list(hidden.shape)} and weight {list(weight.shape)}; they must be [K, D] "
            "and [V, D]: select the trained tokens first, as in hidden.flatten(0, 1)[position]"
        )
    if target.shape != hidden.shape[:1] or target.dtype != torch.int64:
        raise ValueError(
            f"target is {list(target.shape)} {target.dtype}; it must be int64, one per row of "
            f"hidden: [{len(hidden)}]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {list(bias.shape)}; it must be [{len(weight)}], as weight has")
    outside = (target < 0) | (target >= len(weight))
    if bool(outside.any()):
        index = outside.nonzero().flatten()[:8]
        raise ValueError(
            f"the targets at {index.tolist()} are {target[index].tolist()}; they must lie in "
            f"[0, {len(weight)}): leave out ignored tokens, and check that tokenizer and model "
            "share a vocabulary"
        )
