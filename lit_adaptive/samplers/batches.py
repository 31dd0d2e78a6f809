"""Batches of draws for a plain PyTorch loop: one law for all ranks, to each its share."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lit_adaptive.samplers.base import Draw, IndexSampler


class BatchDraw(NamedTuple):
    """One rank's share of a global draw, and the probability that its weights are divided by.

    Attributes:
        index: ``[B]`` int64.
        probability: ``[B]`` float64, in (0, 1], of each index at the draw.
        min_probability: least probability of the global batch, or of the whole buffer.
        drawable: how many indices could be drawn.
        staleness: batches that are served between this draw and its own use: 0 without workers.
        number: of the draw, from 0, over all epochs; what is random about a batch follows from it.
    """

    index: Tensor  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    probability: Tensor
    min_probability: float
    drawable: int
    staleness: int
    number: int


class _Global(NamedTuple):
    """A draw of all ranks' indices, and what goes with it."""

    draw: Draw
    min_probability: float
    drawable: int
    staleness: int
    number: int


def rank_share(draw: Draw, rank: int, world_size: int) -> Draw:
    """Every ``world_size``-th item of a global draw, beginning at ``rank``.

    The shares of all ranks are disjoint in position, and together the global draw. As stratified
    draws ascend in index, each share is spread over the whole of the distribution.

    Raises:
        ValueError: unless ``0 <= rank < world_size``.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} of world_size {world_size}; ranks lie in [0, world_size)")
    return Draw(draw.index[rank::world_size], draw.probability[rank::world_size])


class DrawBatches(Sampler[BatchDraw]):
    """An epoch of draws, made when asked for; ``DataLoader(..., sampler=this, batch_size=None)``.

    Each batch is drawn as one global batch, the same on every rank, of which this rank yields its
    share. A ``DataLoader`` with workers asks for draws ahead of their use; so each draw is kept
    until ``acknowledge()`` says it was consumed, and a resumed run serves the kept ones again.
    Whoever never acknowledges keeps an epoch's draws in memory, until the next epoch begins.

    Attributes:
        number: of the next draw, counted over all epochs.

    Args:
        sampler: makes the draws; all ranks must hold it in the same state.
        batch_size: items per batch and rank, above 0.
        batches_per_epoch: batches after which iteration ends, above 0.
        rank: of this process, in ``[0, world_size)``.
        world_size: number of processes, above 0.
        normalize: ``min_probability`` is that of the global ``"batch"`` or the whole ``"buffer"``;
            ``"none"`` is as ``"batch"``, for weights that need no minimum.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(
        self,
        sampler: IndexSampler,
        batch_size: int,
        batches_per_epoch: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        normalize: Literal["none", "batch", "buffer"] = "batch",
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("batches_per_epoch", batches_per_epoch),
            ("world_size", world_size),
        ):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it must lie in [0, {world_size}), the world_size")
        if normalize not in ("none", "batch", "buffer"):
            raise ValueError(f"normalize is {normalize!r}; it must be 'none', 'batch' or 'buffer'")
        self.sampler = sampler
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.rank = rank
        self.world_size = world_size
        self.normalize = normalize
        self._position = 0
        self.number = 0
        self._in_flight: deque[_Global] = deque()
        self._resumed = False

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.batches_per_epoch

    @property
    def position(self) -> int:
        """Batches of this epoch that were acknowledged."""
        return self._position

    def __iter__(self) -> Iterator[BatchDraw]:
        """The rest of a restored epoch, or else a fresh one.

        Which of them is decided when the first batch is asked for: a
        ``DataLoader`` with workers makes two iterators and uses only the second.
        """
        if not self._resumed:
            self._position = 0
            self._in_flight.clear()
        self._resumed = False
        yield from self._serve(list(self._in_flight), self._position)

    def _serve(self, again: list[_Global], position: int) -> Iterator[BatchDraw]:
        for drawn in again:
            yield self._share(drawn)
        for _ in range(position + len(again), self.batches_per_epoch):
            drawn = self._draw()
            self._in_flight.append(drawn)
            yield self._share(drawn)

    def _draw(self) -> _Global:
        drawable = self.sampler.count
        draw = self.sampler.draw(self.batch_size * self.world_size)
        if self.normalize == "buffer":
            least = self.sampler.min_probability()
        else:
            least = float(draw.probability.amin())
        self.number += 1
        return _Global(draw, least, drawable, len(self._in_flight), self.number - 1)

    def _share(self, drawn: _Global) -> BatchDraw:
        mine = rank_share(drawn.draw, self.rank, self.world_size)
        _, least, drawable, staleness, number = drawn
        return BatchDraw(*mine, least, drawable, staleness, number)

    def acknowledge(self) -> None:
        """The oldest batch in flight was consumed.

        Raises:
            ValueError: if none is in flight.
        """
        if not self._in_flight:
            raise ValueError("no batch is in flight: acknowledge() once for each batch taken")
        self._in_flight.popleft()
        self._position += 1

    def state_dict(self) -> dict[str, Any]:
        """How far the epoch has come, and the global draws in flight, copied.

        The sampler's own state is not in here; save it at the same moment.
        """
        draws = [drawn.draw for drawn in self._in_flight]
        empty = torch.empty(0, self.batch_size * self.world_size)
        return {
            "position": self._position,
            "global_batch": self.batch_size * self.world_size,
            "index": torch.stack([d.index.cpu() for d in draws]) if draws else empty.long(),
            "probability": (
                torch.stack([d.probability.cpu() for d in draws]) if draws else empty.double()
            ),
            "min_probability": torch.tensor(
                [drawn.min_probability for drawn in self._in_flight], dtype=torch.float64
            ),
            "drawable": [drawn.drawable for drawn in self._in_flight],
            "staleness": [drawn.staleness for drawn in self._in_flight],
            "number": self.number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on with the saved epoch (a finished one begins anew).

        Raises:
            ValueError: if draws are in flight and the global batch has another size, or the saved
                epoch is further than this one is long; nothing changes then.
        """
        position, index, size = int(state["position"]), state["index"], int(state["global_batch"])
        if len(index) and size != self.batch_size * self.world_size:
            raise ValueError(
                f"the state holds {len(index)} global batches of {size} in flight; here "
                f"batch_size * world_size is {self.batch_size} * {self.world_size}: resume with "
                "the same product, or save when no batch is in flight"
            )
        if position + len(index) > self.batches_per_epoch:
            raise ValueError(
                f"the state is {position + len(index)} batches into its epoch, which here has "
                f"{self.batches_per_epoch}: resume with the same batches_per_epoch"
            )
        device = self.sampler.device
        draws = zip(
            index,
            state["probability"],
            state["min_probability"].tolist(),
            state["drawable"],
            state["staleness"],
            range(int(state["number"]) - len(index), int(state["number"])),
            strict=True,
        )
        self._in_flight = deque(
            _Global(Draw(i.clone().to(device), p.clone().to(device)), *rest)
            for i, p, *rest in draws
        )
        self.number = int(state["number"])
        self._position = position
        self._resumed = position < self.batches_per_epoch
