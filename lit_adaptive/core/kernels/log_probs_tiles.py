"""The tiles behind ``logprobs``: some tokens times some of the vocabulary, one after the other."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Law(NamedTuple):
    """How logits become a law, what is asked of it, and the size of a tile."""

    scale: float
    temperature: float
    softcap: float | None
    entropy: bool
    top_k: int
    matmul: torch.dtype
    tokens: int
    entries: int
    keep: int

    @property
    def real(self) -> torch.dtype:
        """What everything but the matrix products is computed in."""
        return torch.float64 if self.matmul == torch.float64 else torch.float32


class Tiles:
    """Makes tiles of logits in buffers that are used again and again.

    Fresh memory for each tile would cost as much as the arithmetic on it: the system clears it.
    """

    def __init__(self, law: Law, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.law, self._weight, self._bias = law, weight, bias
        self.hidden = hidden.to(law.matmul)
        self._flat: dict[str, Tensor] = {}

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the vocabulary, each with its rows of the weight ``[E, D]``."""
        for start in range(0, len(self._weight), self.law.entries):
            place = slice(start, min(start + self.law.entries, len(self._weight)))
            yield place, self._weight[place].to(self.law.matmul)

    def rows(self) -> Iterator[slice]:
        """Parts of the tokens."""
        for start in range(0, len(self.hidden), self.law.tokens):
            yield slice(start, min(start + self.law.tokens, len(self.hidden)))

    def buffer(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory for a tile, with whatever was left in it."""
        if name not in self._flat:
            tokens = min(self.law.tokens, len(self.hidden))
            entries = min(self.law.entries, len(self._weight))
            self._flat[name] = self.hidden.new_empty(tokens * entries, dtype=dtype)
        return self._flat[name][: shape.numel()].view(shape)

    def logits(self, rows: slice, columns: slice, weight: Tensor, *, own: bool = False) -> Tensor:
        """The logits of a tile ``[C, E]``, float32; in memory of their ``own`` or a buffer."""
        law, same = self.law, self.law.matmul == self.law.real
        shape = torch.Size((rows.stop - rows.start, columns.stop - columns.start))
        if own:
            logit = self.hidden.new_empty(shape, dtype=law.real)
        else:
            logit = self.buffer("logit", shape, law.real)
        made = logit if same else self.buffer("product", shape, law.matmul)
        torch.mm(self.hidden[rows], weight.t(), out=made)
        if not same:
            logit.copy_(made)
        if self._bias is not None:
            logit.add_(self._bias[columns])
        if law.softcap is not None:
            logit.mul_(law.scale / law.softcap).tanh_().mul_(law.softcap / law.temperature)
        elif law.scale != law.temperature:
            logit.mul_(law.scale / law.temperature)
        return logit

    def slope(self, logit: Tensor) -> Tensor | None:
        """1 - tanh^2 of the softcap, ``[C, E]``; ``None`` without one."""
        if self.law.softcap is None:
            return None
        slope = self.buffer("slope", logit.shape, self.law.real)
        torch.mul(logit, self.law.temperature / self.law.softcap, out=slope)
        return slope.square_().neg_().add_(1)

    def for_product(self, values: Tensor) -> Tensor:
        """The values in the dtype of the matrix products."""
        if self.law.matmul == self.law.real:
            return values
        return self.buffer("product", values.shape, self.law.matmul).copy_(values)


def local(target: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Where in the tile each target stands ``[C, 1]`` (0 if it does not), and whether it does."""
    place = target[:, None] - columns.start
    inside = (place >= 0) & (place < columns.stop - columns.start)
    return place.where(inside, 0), inside


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``; the sum in float32 where the product is not."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right))
