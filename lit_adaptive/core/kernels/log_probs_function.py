"""Forward and backward pass of ``logprobs`` over its tiles."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_adaptive.core.kernels.log_probs_tiles import Law, Tiles, add_product, local

_LEAST = -1e30  # of log-probabilities where they are multiplied: 0 * -inf would be NaN

Kept = dict[tuple[int, int], tuple[Tensor, Tensor]]


class _Sums:
    """What grows from tile to tile, all ``[K]``: the online softmax.

    ``greatest`` is the greatest logit so far, ``total`` the sum of exp(z - greatest), ``moment``
    the sum of (z - greatest) exp(z - greatest), ``target`` the target's logit, and ``pull`` the sum
    of exp(z - greatest) * slope * W over all but the target, ``[K, D]``. ``kept`` has some tiles of
    exp(z - greatest), and the ``greatest`` of their time, by their first token and entry.
    """

    def __init__(self, tiles: Tiles, target: Tensor, *, pull: bool, keep: int) -> None:
        self._tiles, self._law, self._place = tiles, tiles.law, target
        real = tiles.law.real
        self.total = tiles.hidden.new_zeros(len(target), dtype=real)
        self.target = torch.zeros_like(self.total)
        # The least number, not minus infinity, whose differences would be NaN.
        self.greatest = torch.full_like(self.total, torch.finfo(real).min)
        self.moment = torch.zeros_like(self.total) if self._law.entropy else None
        self.pull = torch.zeros_like(tiles.hidden, dtype=real) if pull else None
        self.kept: Kept = {}
        self._left = keep // self.total.element_size()
        shape = (len(target), 0 if len(target) else self._law.top_k)
        self.top_logit = tiles.hidden.new_empty(shape, dtype=real)
        self.top_token = target.new_empty(shape)

    def run(self) -> None:
        """All tiles."""
        for columns, weight in self._tiles.columns():
            tops: list[tuple[Tensor, Tensor]] = []
            for rows in self._tiles.rows():
                self._left -= (rows.stop - rows.start) * (columns.stop - columns.start)
                keep = self._left >= 0
                logit = self._tiles.logits(rows, columns, weight, own=keep)
                if self._law.top_k:
                    best = logit.topk(min(self._law.top_k, logit.shape[1]), dim=1)
                    tops.append((best.values, best.indices + columns.start))
                self._add(rows, columns, weight, logit)
                if keep:
                    place = rows.start, columns.start
                    self.kept[place] = logit, self.greatest[rows].clone()
            if tops:
                self._add_tops(*(torch.cat(part) for part in zip(*tops, strict=True)))

    def _add_tops(self, logit: Tensor, token: Tensor) -> None:
        logit = torch.cat([self.top_logit, logit], 1)
        best = logit.topk(min(self._law.top_k, logit.shape[1]), dim=1)
        self.top_logit = best.values
        self.top_token = torch.cat([self.top_token, token], 1).gather(1, best.indices)

    def _add(self, rows: slice, columns: slice, weight: Tensor, logit: Tensor) -> None:
        """Add a tile, whose logits become their exponentials."""
        place, inside = local(self._place[rows], columns)
        own = logit.gather(1, place)
        self.target[rows] = own.where(inside, self.target[rows, None]).squeeze(1)
        slope = None if self.pull is None else self._tiles.slope(logit)
        greatest = torch.maximum(self.greatest[rows], logit.amax(1))
        shift = self.greatest[rows] - greatest
        fade = shift.exp()
        logit.sub_(greatest[:, None])
        distance = None
        if self.moment is not None:
            distance = self._tiles.buffer("distance", logit.shape, logit.dtype).copy_(logit)
            distance.clamp_min_(_LEAST)
        mass = logit.exp_()
        if self.moment is not None and distance is not None:
            moved = (self.moment[rows] + self.total[rows] * shift) * fade
            self.moment[rows] = moved + distance.mul_(mass).sum(1)
        self.total[rows] = self.total[rows] * fade + mass.sum(1)
        self.greatest[rows] = greatest
        if self.pull is None:
            return
        mass.scatter_add_(1, place, mass.gather(1, place).neg_().where(inside, 0))
        if slope is not None:
            mass.mul_(slope)
        pull = self.pull[rows].mul_(fade[:, None])
        add_product(pull, self._tiles.for_product(mass), weight)


def _hidden_gradient(sums: _Sums, law: Law, weight: Tensor, target: Tensor, lp: Tensor) -> Tensor:
    """``scale / T * (slope W[target] - sum_v p_v slope_v W_v)``, ``[K, D]``; uses ``pull`` up.

    The target stands outside the sum: near p = 1 the difference would lose its digits.
    """
    assert sums.pull is not None
    factor = law.scale / law.temperature
    rate = torch.expm1(lp).mul_(-factor)
    if law.softcap is not None:
        rate.mul_(1 - (sums.target * (law.temperature / law.softcap)).square())
    sums.pull.mul_((-factor / sums.total)[:, None])
    return sums.pull.addcmul_(weight[target].to(rate.dtype), rate[:, None])


class _Gradients:
    """The backward pass: each tile's logits anew, its gradient, and the products with it.

    Tiles that were kept are used up: a second backward pass makes them anew too.
    """

    def __init__(
        self, law: Law, saved: tuple[Any, ...], kept: Kept, needs: tuple[bool, ...]
    ) -> None:
        self._kept = kept
        hidden, weight, bias, self._target, self._normalizer, self._entropy = saved
        self._law, self._tiles = law, Tiles(law, hidden, weight, bias)
        real, empty = law.real, torch.empty_like
        self.hidden = torch.zeros_like(hidden, dtype=real) if needs[0] else None
        self.weight = empty(weight) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=real) if needs[2] else None

    def run(self, of_log_prob: Tensor | None, of_entropy: Tensor | None) -> None:
        """All tiles."""
        factor = self._law.scale / self._law.temperature
        rise = torch.zeros_like(self._normalizer) if of_log_prob is None else of_log_prob * factor
        spread = None if of_entropy is None else of_entropy * factor
        for columns, weight in self._tiles.columns():
            share = None
            if self.weight is not None:
                share = self.weight[columns].zero_()
                if share.dtype != self._law.real:
                    share = torch.zeros_like(share, dtype=self._law.real)
            for rows in self._tiles.rows():
                grad = self._of_logits(rows, columns, weight, rise, spread)
                if self.bias is not None:
                    self.bias[columns] += grad.sum(0)
                grad = self._tiles.for_product(grad)
                if self.hidden is not None:
                    add_product(self.hidden[rows], grad, weight)
                if share is not None:
                    add_product(share, grad.t(), self._tiles.hidden[rows])
            if self.weight is not None and share is not None and share.dtype != self.weight.dtype:
                self.weight[columns] = share

    def _of_logits(
        self, rows: slice, columns: slice, weight: Tensor, rise: Tensor, spread: Tensor | None
    ) -> Tensor:
        """Of a tile: g (1[target] - p) - h p (log p + H), times the slope of the softcap.

        g and h are the gradients that come in, of log_prob and of entropy, times scale / T.
        """
        place, inside = local(self._target[rows], columns)
        if kept := self._kept.pop((rows.start, columns.start), None):
            mass, greatest = kept
            fade = (greatest - self._normalizer[rows]).exp()
            grad = mass.mul_((fade * -rise[rows])[:, None])
            return grad.scatter_add_(1, place, rise[rows, None].where(inside, 0))
        tiles = self._tiles
        logit = tiles.logits(rows, columns, weight)
        slope = tiles.slope(logit)
        logit.sub_(self._normalizer[rows, None])
        if spread is None:
            grad = logit.exp_().mul_(-rise[rows, None])
        else:
            mass = torch.exp(logit, out=tiles.buffer("distance", logit.shape, logit.dtype))
            logit.clamp_min_(_LEAST)
            offset = rise[rows] + spread[rows] * self._entropy[rows]
            grad = logit.mul_(-spread[rows, None]).sub_(offset[:, None]).mul_(mass)
        grad.scatter_add_(1, place, rise[rows, None].where(inside, 0))
        return grad if slope is None else grad.mul_(slope)


class TiledLogProbs(torch.autograd.Function):
    """``hidden, weight, bias, target, law`` to log_prob, entropy, top_log_prob, top_token."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, law: Law
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """One product for each tile; a second one where only ``hidden`` wants a gradient."""
        ctx.set_materialize_grads(False)
        ctx.law = law
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        ctx.pulled = wants_hidden and not (wants_weight or wants_bias or law.entropy)
        recomputes = not ctx.pulled and any(ctx.needs_input_grad)
        keep = law.keep if recomputes and not law.entropy and law.softcap is None else 0
        sums = _Sums(Tiles(law, hidden, weight, bias), target, pull=ctx.pulled, keep=keep)
        sums.run()
        ctx.kept = sums.kept
        spread = sums.total.log()
        normalizer = sums.greatest + spread
        log_prob = (sums.target - normalizer).clamp_max_(0)
        entropy = None
        if sums.moment is not None:
            entropy = (spread - sums.moment / sums.total).clamp_min_(0)
        if ctx.pulled:
            ctx.save_for_backward(_hidden_gradient(sums, law, weight, target, log_prob))
        elif recomputes:
            ctx.save_for_backward(hidden, weight, bias, target, normalizer, entropy)
        if not law.top_k:
            return log_prob, entropy, None, None
        tops = sums.top_logit - normalizer[:, None], sums.top_token
        ctx.mark_non_differentiable(*tops)
        return log_prob, entropy, *tops

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The gradients of hidden, weight and bias."""
        log_prob, entropy = grads[:2]
        nothing = (None,) * 5
        if log_prob is None and entropy is None:
            return nothing
        saved = ctx.saved_tensors
        if ctx.pulled:
            assert log_prob is not None
            return (saved[0] * log_prob[:, None], *nothing[1:])
        with torch.autocast(saved[0].device.type, enabled=False):
            gradients = _Gradients(ctx.law, saved, ctx.kept, ctx.needs_input_grad)
            gradients.run(log_prob, entropy)
        # Autograd casts each to the dtype of what it is the gradient of.
        return gradients.hidden, gradients.weight, gradients.bias, None, None
