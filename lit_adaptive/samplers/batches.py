"""Batches of draws, for a ``DataLoader`` or a plain PyTorch loop; each rank takes its share."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.samplers.base import Draw, IndexSampler


class BatchDraw(NamedTuple):
    """A batch's draw, global or of one rank, and what its importance weights depend on.

    Attributes:
        index: ``[B]`` int64.
        probability: ``[B]`` float64, in (0, 1], of each index at the draw.
        min_probability: smallest probability of the global batch, or of the whole buffer.
        drawable: number of indices that could be drawn.
        staleness: number of batches served between this draw and its use; 0 without workers.
        number: serial number of the draw, from 0, over all epochs; seeds what is random about the
            batch.
    """

    index: Tensor  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    probability: Tensor
    min_probability: float
    drawable: int
    staleness: int
    number: int


def rank_share(draw: Draw, rank: int, world_size: int) -> Draw:
    """Every ``world_size``-th item of a global draw, starting at ``rank``.

    The shares of all ranks are disjoint in position and together make up the global draw. Since
    stratified draws ascend in index, each share covers the whole distribution.

    Raises:
        ValueError: unless ``0 <= rank < world_size``.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} of world_size {world_size}; ranks lie in [0, world_size)")
    return Draw(draw.index[rank::world_size], draw.probability[rank::world_size])


class DrawBatches(Sampler[BatchDraw]):
    """The draws of an epoch, on demand: ``DataLoader(..., sampler=this, batch_size=None)``.

    Each batch is drawn as one global batch, the same on every rank, of which this rank yields its
    share. A ``DataLoader`` with workers requests draws ahead of their use; so each draw is kept
    until ``acknowledge()`` reports that it was consumed, and a resumed run serves the kept draws
    again. Without ``acknowledge()``, all draws of an epoch are kept until the next epoch begins.

    Args:
        sampler: makes the draws; all ranks must hold it in the same state.
        batch_size: items per batch and rank, above 0.
        batches_per_epoch: batches per epoch, above 0.
        rank: of this process, in ``[0, world_size)``.
        world_size: number of processes, above 0.
        normalize: ``"batch"``: ``min_probability`` is that of the global batch; ``"buffer"``: that
            of all drawable indices; ``"none"``: as ``"batch"``, for weights that do not need it.

    Attributes:
        number: serial number of the next draw, over all epochs.

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
        check_at_least(
            batch_size=(batch_size, 1),
            batches_per_epoch=(batches_per_epoch, 1),
            world_size=(world_size, 1),
        )
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
        self._in_flight: deque[BatchDraw] = deque()  # global, the oldest first
        self._resumed = False

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self.batches_per_epoch

    @property
    def position(self) -> int:
        """Number of batches of this epoch that were acknowledged."""
        return self._position

    def __iter__(self) -> Iterator[BatchDraw]:
        """The rest of a restored epoch, or else a new epoch.

        Decided when the first batch is requested: a ``DataLoader`` with workers makes two iterators
        and uses only the second.
        """
        if not self._resumed:
            self._position = 0
            self._in_flight.clear()
        self._resumed = False
        for batch in list(self._in_flight):
            yield self._share(batch)
        while self._position + len(self._in_flight) < self.batches_per_epoch:
            batch = self._draw()
            self._in_flight.append(batch)
            yield self._share(batch)

    def _draw(self) -> BatchDraw:
        drawable = self.sampler.count
        draw = self.sampler.draw(self.batch_size * self.world_size)
        if self.normalize == "buffer":
            least = self.sampler.min_probability()
        else:
            least = float(draw.probability.amin())
        self.number += 1
        return BatchDraw(*draw, least, drawable, len(self._in_flight), self.number - 1)

    def _share(self, batch: BatchDraw) -> BatchDraw:
        draw = Draw(batch.index, batch.probability)
        return batch._replace(**rank_share(draw, self.rank, self.world_size)._asdict())

    def acknowledge(self) -> None:
        """Report that the oldest batch in flight was consumed.

        Raises:
            ValueError: if none is in flight.
        """
        if not self._in_flight:
            raise ValueError("no batch is in flight: acknowledge() once for each batch taken")
        self._in_flight.popleft()
        self._position += 1

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch and the global draws in flight, copied.

        The sampler's state is not included; save it at the same moment.
        """
        batches = self._in_flight
        empty = torch.empty(0, self.batch_size * self.world_size)
        return {
            "position": self._position,
            "global_batch": self.batch_size * self.world_size,
            "index": torch.stack([b.index.cpu() for b in batches]) if batches else empty.long(),
            "probability": (
                torch.stack([b.probability.cpu() for b in batches]) if batches else empty.double()
            ),
            "min_probability": torch.tensor(
                [batch.min_probability for batch in batches], dtype=torch.float64
            ),
            "drawable": [batch.drawable for batch in batches],
            "staleness": [batch.staleness for batch in batches],
            "number": self.number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration continue the saved epoch (after a finished one a new one begins).

        Raises:
            ValueError: if draws are in flight and the global batch has another size, or the saved
                position is beyond the end of this epoch; nothing changes.
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
        batches = zip(
            index.clone().to(device),
            state["probability"].clone().to(device),
            state["min_probability"].tolist(),
            state["drawable"],
            state["staleness"],
            range(int(state["number"]) - len(index), int(state["number"])),
            strict=True,
        )
        self._in_flight = deque(BatchDraw(*batch) for batch in batches)
        self.number = int(state["number"])
        self._position = position
        self._resumed = position < self.batches_per_epoch
