"""Forward and backward pass of ``token_log_probs`` over tiles of tokens times vocabulary entries.

``core.log_probs`` has the equations; its tests compare this with the formula on all logits at once.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MIN_LOG_PROB = -1e30  # of log-probabilities in products: 0 * -inf would be NaN

# Tiles of exp(z - maximum) with the maximum of each token, by first token and first entry.
_SavedTiles = dict[tuple[int, int], tuple[Tensor, Tensor]]


class LogitsConfig(NamedTuple):
    """Options of ``token_log_probs``.

    Attributes:
        scale: factor of the logits, before the softcap.
        temperature: divisor of the logits, after the softcap.
        softcap: c in ``c * tanh(z / c)``, or None.
        entropy: whether to compute entropies.
        top_k: number of most probable tokens to return.
        matmul_dtype: dtype of the matrix products.
        tile_tokens: tokens in a tile.
        tile_entries: vocabulary entries in a tile.
        saved_bytes: bytes of probabilities that may be saved for the backward pass.
    """

    scale: float
    temperature: float
    softcap: float | None
    entropy: bool
    top_k: int
    matmul_dtype: torch.dtype
    tile_tokens: int
    tile_entries: int
    saved_bytes: int

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of everything but the matrix products."""
        return torch.float64 if self.matmul_dtype == torch.float64 else torch.float32


class _Tiles:
    """Computes tiles of logits in reused buffers.

    Fresh memory for each tile would cost as much as the arithmetic, as the system clears it.
    """

    def __init__(
        self, config: LogitsConfig, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> None:
        self.config, self._weight, self._bias = config, weight, bias
        self.hidden = hidden.to(config.matmul_dtype)
        self._buffers: dict[str, Tensor] = {}

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Ranges of vocabulary entries, each with its rows of the weight ``[E, D]``."""
        for start in range(0, len(self._weight), self.config.tile_entries):
            columns = slice(start, min(start + self.config.tile_entries, len(self._weight)))
            yield columns, self._weight[columns].to(self.config.matmul_dtype)

    def rows(self) -> Iterator[slice]:
        """Ranges of tokens."""
        for start in range(0, len(self.hidden), self.config.tile_tokens):
            yield slice(start, min(start + self.config.tile_tokens, len(self.hidden)))

    def buffer(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory for a tile, uninitialised."""
        if name not in self._buffers:
            tokens = min(self.config.tile_tokens, len(self.hidden))
            entries = min(self.config.tile_entries, len(self._weight))
            self._buffers[name] = self.hidden.new_empty(tokens * entries, dtype=dtype)
        return self._buffers[name][: shape.numel()].view(shape)

    def logits(
        self, rows: slice, columns: slice, weight: Tensor, *, new_memory: bool = False
    ) -> Tensor:
        """Logits of a tile ``[C, E]``, in a buffer or in new memory."""
        config = self.config
        same_dtype = config.matmul_dtype == config.dtype
        shape = torch.Size((rows.stop - rows.start, columns.stop - columns.start))
        if new_memory:
            logit = self.hidden.new_empty(shape, dtype=config.dtype)
        else:
            logit = self.buffer("logit", shape, config.dtype)
        product = logit if same_dtype else self.buffer("product", shape, config.matmul_dtype)
        torch.mm(self.hidden[rows], weight.t(), out=product)
        if not same_dtype:
            logit.copy_(product)
        if self._bias is not None:
            logit.add_(self._bias[columns])
        if config.softcap is not None:
            logit.mul_(config.scale / config.softcap).tanh_()
            logit.mul_(config.softcap / config.temperature)
        elif config.scale != config.temperature:
            logit.mul_(config.scale / config.temperature)
        return logit

    def softcap_slope(self, logit: Tensor) -> Tensor | None:
        """Derivative of the softcap, 1 - tanh^2, ``[C, E]``; None without a softcap."""
        if self.config.softcap is None:
            return None
        slope = self.buffer("slope", logit.shape, self.config.dtype)
        torch.mul(logit, self.config.temperature / self.config.softcap, out=slope)
        return slope.square_().neg_().add_(1)

    def as_matmul_dtype(self, value: Tensor) -> Tensor:
        """``value`` in the dtype of the matrix products."""
        if self.config.matmul_dtype == self.config.dtype:
            return value
        return self.buffer("product", value.shape, self.config.matmul_dtype).copy_(value)


def _target_in_tile(target: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Column of each target in the tile ``[C, 1]`` (0 if outside), and whether it is inside."""
    column = target[:, None] - columns.start
    inside = (column >= 0) & (column < columns.stop - columns.start)
    return column.where(inside, 0), inside


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, accumulated in the dtype of ``total``."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right))


class _OnlineSoftmax:
    """Sums over the vocabulary that grow from tile to tile.

    Attributes:
        maximum: ``[K]`` largest logit so far.
        total: ``[K]`` sum of exp(z - maximum).
        moment: ``[K]`` sum of (z - maximum) exp(z - maximum), or None.
        target_logit: ``[K]``.
        weighted_rows: ``[K, D]`` sum of exp(z - maximum) * slope * W over all but the target, or
            None.
        saved: some tiles of exp(z - maximum), each with the maximum at its time.
        top_logit: ``[K, k]`` largest logits so far, descending.
        top_token: ``[K, k]`` their tokens.
    """

    def __init__(
        self, tiles: _Tiles, target: Tensor, *, sum_weight_rows: bool, saved_bytes: int
    ) -> None:
        self._tiles, self._config, self._target = tiles, tiles.config, target
        dtype = self._config.dtype
        self.total = tiles.hidden.new_zeros(len(target), dtype=dtype)
        self.target_logit = torch.zeros_like(self.total)
        # The most negative number, not minus infinity, whose differences would be NaN.
        self.maximum = torch.full_like(self.total, torch.finfo(dtype).min)
        self.moment = torch.zeros_like(self.total) if self._config.entropy else None
        self.weighted_rows = (
            torch.zeros_like(tiles.hidden, dtype=dtype) if sum_weight_rows else None
        )
        self.saved: _SavedTiles = {}
        self._values_to_save = saved_bytes // self.total.element_size()
        shape = (len(target), 0 if len(target) else self._config.top_k)
        self.top_logit = tiles.hidden.new_empty(shape, dtype=dtype)
        self.top_token = target.new_empty(shape)

    def run(self) -> None:
        """Process all tiles."""
        for columns, weight in self._tiles.columns():
            tops: list[tuple[Tensor, Tensor]] = []
            for rows in self._tiles.rows():
                self._values_to_save -= (rows.stop - rows.start) * (columns.stop - columns.start)
                save = self._values_to_save >= 0
                logit = self._tiles.logits(rows, columns, weight, new_memory=save)
                if self._config.top_k:
                    top = logit.topk(min(self._config.top_k, logit.shape[1]), dim=1)
                    tops.append((top.values, top.indices + columns.start))
                self._add_tile(rows, columns, weight, logit)
                if save:
                    self.saved[rows.start, columns.start] = logit, self.maximum[rows].clone()
            if tops:
                self._merge_tops(*(torch.cat(part) for part in zip(*tops, strict=True)))

    def _merge_tops(self, logit: Tensor, token: Tensor) -> None:
        logit = torch.cat([self.top_logit, logit], 1)
        top = logit.topk(min(self._config.top_k, logit.shape[1]), dim=1)
        self.top_logit = top.values
        self.top_token = torch.cat([self.top_token, token], 1).gather(1, top.indices)

    def _add_tile(self, rows: slice, columns: slice, weight: Tensor, logit: Tensor) -> None:
        """Add a tile; ``logit`` is overwritten by exp(logit - maximum)."""
        column, inside = _target_in_tile(self._target[rows], columns)
        target_logit = logit.gather(1, column)
        self.target_logit[rows] = target_logit.where(inside, self.target_logit[rows, None]).squeeze(
            1
        )
        slope = None if self.weighted_rows is None else self._tiles.softcap_slope(logit)
        maximum = torch.maximum(self.maximum[rows], logit.amax(1))
        shift = self.maximum[rows] - maximum
        rescale = shift.exp()
        logit.sub_(maximum[:, None])
        distance = None
        if self.moment is not None:
            distance = self._tiles.buffer("distance", logit.shape, logit.dtype).copy_(logit)
            distance.clamp_min_(_MIN_LOG_PROB)
        mass = logit.exp_()
        if self.moment is not None and distance is not None:
            moment = (self.moment[rows] + self.total[rows] * shift) * rescale
            self.moment[rows] = moment + distance.mul_(mass).sum(1)
        self.total[rows] = self.total[rows] * rescale + mass.sum(1)
        self.maximum[rows] = maximum
        if self.weighted_rows is None:
            return
        mass.scatter_add_(1, column, mass.gather(1, column).neg_().where(inside, 0))
        if slope is not None:
            mass.mul_(slope)
        weighted_rows = self.weighted_rows[rows].mul_(rescale[:, None])
        _add_product(weighted_rows, self._tiles.as_matmul_dtype(mass), weight)


def _hidden_gradient(
    softmax: _OnlineSoftmax, config: LogitsConfig, weight: Tensor, target: Tensor, log_prob: Tensor
) -> Tensor:
    """``scale / T * (slope W[target] - sum_v p_v slope_v W_v)``: ``[K, D]``.

    Overwrites ``softmax.weighted_rows``. The target is not in that sum, since near p = 1 the
    difference would cancel.
    """
    assert softmax.weighted_rows is not None
    factor = config.scale / config.temperature
    target_factor = torch.expm1(log_prob).mul_(-factor)
    if config.softcap is not None:
        tanh = softmax.target_logit * (config.temperature / config.softcap)
        target_factor.mul_(1 - tanh.square())
    softmax.weighted_rows.mul_((-factor / softmax.total)[:, None])
    row = weight[target].to(target_factor.dtype)
    return softmax.weighted_rows.addcmul_(row, target_factor[:, None])


class _Gradients:
    """The backward pass: recompute each tile's logits, their gradient, and its products.

    Saved tiles are overwritten, so a second backward pass recomputes them too.
    """

    def __init__(
        self,
        config: LogitsConfig,
        tensors: tuple[Any, ...],
        saved: _SavedTiles,
        needs: tuple[bool, ...],
    ) -> None:
        self._saved = saved
        hidden, weight, bias, self._target, self._normalizer, self._entropy = tensors
        self._config, self._tiles = config, _Tiles(config, hidden, weight, bias)
        self.hidden = torch.zeros_like(hidden, dtype=config.dtype) if needs[0] else None
        self.weight = torch.empty_like(weight) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=config.dtype) if needs[2] else None

    def run(self, log_prob_grad: Tensor | None, entropy_grad: Tensor | None) -> None:
        """Process all tiles.

        Args:
            log_prob_grad: ``[K]`` gradient of the loss with respect to the log-probabilities.
            entropy_grad: ``[K]`` gradient of the loss with respect to the entropies.
        """
        factor = self._config.scale / self._config.temperature
        no_grad = torch.zeros_like(self._normalizer)
        g = no_grad if log_prob_grad is None else log_prob_grad * factor
        h = None if entropy_grad is None else entropy_grad * factor
        for columns, weight in self._tiles.columns():
            weight_grad = None
            if self.weight is not None:
                weight_grad = self.weight[columns].zero_()
                if weight_grad.dtype != self._config.dtype:
                    weight_grad = torch.zeros_like(weight_grad, dtype=self._config.dtype)
            for rows in self._tiles.rows():
                grad = self._logit_gradient(rows, columns, weight, g, h)
                if self.bias is not None:
                    self.bias[columns] += grad.sum(0)
                grad = self._tiles.as_matmul_dtype(grad)
                if self.hidden is not None:
                    _add_product(self.hidden[rows], grad, weight)
                if weight_grad is not None:
                    _add_product(weight_grad, grad.t(), self._tiles.hidden[rows])
            if (
                self.weight is not None
                and weight_grad is not None
                and weight_grad.dtype != self.weight.dtype
            ):
                self.weight[columns] = weight_grad

    def _logit_gradient(
        self, rows: slice, columns: slice, weight: Tensor, g: Tensor, h: Tensor | None
    ) -> Tensor:
        """Gradient of a tile: g (1[target] - p) - h p (log p + H), times the softcap's slope.

        g and h are the incoming gradients of log-probability and entropy, times scale / T.
        """
        column, inside = _target_in_tile(self._target[rows], columns)
        if tile := self._saved.pop((rows.start, columns.start), None):
            mass, maximum = tile
            rescale = (maximum - self._normalizer[rows]).exp()
            grad = mass.mul_((rescale * -g[rows])[:, None])
            return grad.scatter_add_(1, column, g[rows, None].where(inside, 0))
        tiles = self._tiles
        logit = tiles.logits(rows, columns, weight)
        slope = tiles.softcap_slope(logit)
        log_prob = logit.sub_(self._normalizer[rows, None])
        if h is None:
            grad = log_prob.exp_().mul_(-g[rows, None])
        else:
            probability = torch.exp(
                log_prob, out=tiles.buffer("distance", logit.shape, logit.dtype)
            )
            log_prob.clamp_min_(_MIN_LOG_PROB)
            offset = g[rows] + h[rows] * self._entropy[rows]
            grad = log_prob.mul_(-h[rows, None]).sub_(offset[:, None]).mul_(probability)
        grad.scatter_add_(1, column, g[rows, None].where(inside, 0))
        return grad if slope is None else grad.mul_(slope)


class TiledLogProbs(torch.autograd.Function):
    """Maps hidden, weight, bias, target, config to log_prob, entropy, top_log_prob, top_token."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        config: LogitsConfig,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """One matrix product per tile; a second where only ``hidden`` needs a gradient."""
        ctx.set_materialize_grads(False)
        ctx.config = config
        hidden_grad, weight_grad, bias_grad = ctx.needs_input_grad[:3]
        ctx.gradient_ready = hidden_grad and not (weight_grad or bias_grad or config.entropy)
        recompute = not ctx.gradient_ready and any(ctx.needs_input_grad)
        save = recompute and not config.entropy and config.softcap is None
        softmax = _OnlineSoftmax(
            _Tiles(config, hidden, weight, bias),
            target,
            sum_weight_rows=ctx.gradient_ready,
            saved_bytes=config.saved_bytes if save else 0,
        )
        softmax.run()
        ctx.saved_tiles = softmax.saved
        log_total = softmax.total.log()
        normalizer = softmax.maximum + log_total
        log_prob = (softmax.target_logit - normalizer).clamp_max_(0)
        entropy = None
        if softmax.moment is not None:
            entropy = (log_total - softmax.moment / softmax.total).clamp_min_(0)
        if ctx.gradient_ready:
            ctx.save_for_backward(_hidden_gradient(softmax, config, weight, target, log_prob))
        elif recompute:
            ctx.save_for_backward(hidden, weight, bias, target, normalizer, entropy)
        if not config.top_k:
            return log_prob, entropy, None, None
        tops = softmax.top_logit - normalizer[:, None], softmax.top_token
        ctx.mark_non_differentiable(*tops)
        return log_prob, entropy, *tops

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of hidden, weight and bias."""
        log_prob, entropy = grads[:2]
        no_gradients = (None,) * 5
        if log_prob is None and entropy is None:
            return no_gradients
        tensors = ctx.saved_tensors
        if ctx.gradient_ready:
            assert log_prob is not None
            return (tensors[0] * log_prob[:, None], *no_gradients[1:])
        with torch.autocast(tensors[0].device.type, enabled=False):
            gradients = _Gradients(ctx.config, tensors, ctx.saved_tiles, ctx.needs_input_grad)
            gradients.run(log_prob, entropy)
        # Autograd casts each gradient to the dtype of its tensor.
        return gradients.hidden, gradients.weight, gradients.bias, None, None
