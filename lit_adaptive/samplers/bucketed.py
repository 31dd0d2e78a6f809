"""Batches of samples of similar length, drawn by any sampler."""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.samplers.base import Draw, SamplerFactory, check_indices
from lit_adaptive.samplers.shuffled import ShuffledSampler
from lit_adaptive.samplers.wrapper import WrapperSampler


class BucketedSampler(WrapperSampler):
    """Draws several batches at once from an inner sampler and splits them by length.

    The draws are sorted by length (equal lengths in random order) and returned batch by batch, in
    random order. Which samples are drawn, how often, and their probabilities are those of the inner
    sampler at its draw; what it learns meanwhile takes effect after at most ``batches - 1``
    batches. ``count`` and ``min_probability`` are of that draw too, since weights depend on them.

    When the batch size changes, the pending draws are split anew; less than a batch of them is
    lost.

    Args:
        size: number of samples, above 0.
        inner: factory of the sampler that draws.
        batches: number of (global) batches drawn at once, above 0; more waste less padding.
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the generator that orders batches; the inner sampler's is derived from it.

    Raises:
        ValueError: if ``batches`` is not above 0.
    """

    def __init__(
        self,
        size: int,
        inner: SamplerFactory = ShuffledSampler,
        *,
        batches: int = 16,
        filled: bool = True,
        seed: int = 0,
    ) -> None:
        check_at_least(batches=(batches, 1))
        self.batches = batches
        self._lengths: Tensor | None = None
        super().__init__(size, [inner], seed=seed)
        if not filled:
            self.clear()

    def _discard(self) -> None:
        """Discard the pending draws and what is known of past ones."""
        self._index = torch.empty(0, dtype=torch.int64)
        self._probability = torch.empty(0, dtype=torch.float64)
        self._split_size = 0  # the batch size that the pending draws are split for
        self._drawable = 0  # number of drawable indices at the draw of what is pending
        self._least: float | None = None  # smallest probability at the draw of the last batch

    @property
    def needs_lengths(self) -> bool:
        """True until they are set."""
        return self._lengths is None

    @property
    def standalone_reason(self) -> str | None:
        """Draws are made ahead."""
        return (
            "it draws several batches ahead, with the probabilities of that time: make it the "
            "outermost sampler (BucketedSampler over the mixture or curriculum)"
        )

    def reseed(self, seed: int) -> None:
        """Restart all random numbers from ``seed`` and discard the pending draws."""
        super().reseed(seed)
        self._discard()

    def set_lengths(self, lengths: Tensor) -> None:
        """Set the length ``[size]``, finite and not negative, of all samples, such as tokens.

        Raises:
            ValueError: naming the indices whose length is NaN, infinite or negative, or for another
                shape; nothing changes.
        """
        lengths = self._check_scores(lengths, name="lengths")
        super().set_lengths(lengths)
        self._lengths = lengths

    @property
    def count(self) -> int:
        """Number of drawable indices at the draw of the next batch; see the class."""
        return self._drawable if len(self._index) else self.inner.count

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable, removing it from the pending draws too."""
        removed = torch.zeros(self.size, dtype=torch.bool)
        removed[check_indices(index, self.size)] = True
        super().remove(index)
        if len(self._index) and bool(removed[self._index].any()):
            kept = ~removed[self._index]
            self._index, self._probability = self._index[kept], self._probability[kept]
            self._split(self._split_size)

    def clear(self) -> None:
        """Remove all samples and pending draws; lengths and generators are not reset."""
        super().clear()
        self._discard()

    def draw(self, batch_size: int) -> Draw:
        """The next batch of samples of similar length.

        Raises:
            ValueError: if lengths were not set, nothing can be drawn, or ``batch_size`` is not
                above 0.
        """
        if self._lengths is None:
            raise ValueError(
                "this sampler has no lengths to sort by: give the datamodule a dataset with "
                "`lengths`, or call set_lengths"
            )
        self._check_draw(batch_size)
        if batch_size != self._split_size:
            self._split(batch_size)
        if not len(self._index):
            self._draw_ahead(batch_size)
        index, self._index = self._index[:batch_size], self._index[batch_size:]
        probability, self._probability = (
            self._probability[:batch_size],
            self._probability[batch_size:],
        )
        return Draw(index.to(self.device), probability.to(self.device))

    def _draw_ahead(self, batch_size: int) -> None:
        drawable = self.inner.count
        draw = self.inner.draw(batch_size * self.batches)
        self._drawable, self._least = drawable, self.inner.min_probability()
        self._index, self._probability = draw.index.cpu(), draw.probability.cpu()
        self._split(batch_size)

    def _split(self, batch_size: int) -> None:
        """Sort the pending draws by length and put their batches in random order."""
        self._split_size = batch_size
        batches = len(self._index) // batch_size
        if not batches:
            self._index, self._probability = self._index[:0], self._probability[:0]
            return
        assert self._lengths is not None
        # Shuffled first: a stable sort would keep the draw's order, which may ascend in index.
        order = torch.randperm(len(self._index), generator=self.generator)[: batches * batch_size]
        order = order[torch.argsort(self._lengths[self._index[order]], stable=True)]
        turn = torch.randperm(batches, generator=self.generator)
        order = order.view(batches, batch_size)[turn].flatten()
        self._index, self._probability = self._index[order], self._probability[order]

    def min_probability(self) -> float:
        """Smallest probability at the draw of the last batch; see the class."""
        return self.inner.min_probability() if self._least is None else self._least

    def state_dict(self) -> dict[str, Any]:
        """The inner sampler's state, the pending draws, and the generator, copied."""
        return {
            **super().state_dict(),
            "batches": self.batches,
            "index": self._index.clone(),
            "probability": self._probability.clone(),
            "split_size": self._split_size,
            "drawable": self._drawable,
            "least": self._least,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; inner sampler, size and number of batches must be those of the state."""
        self._check_state(state, batches=self.batches)
        index, probability, size = state["index"], state["probability"], int(state["split_size"])
        if index.shape != probability.shape or (len(index) and (size <= 0 or len(index) % size)):
            raise ValueError(
                f"the state holds {len(index)} draws and {len(probability)} probabilities, split "
                f"into batches of {size}: it is damaged"
            )
        check_indices(index, self.size)
        super().load_state_dict(state)
        self._index, self._probability = index.clone(), probability.clone()
        self._split_size, self._drawable = size, int(state["drawable"])
        self._least = None if state["least"] is None else float(state["least"])
