"""Uniform draws with replacement from the inserted indices, O(1) per index."""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.samplers.base import Draw, IndexSampler, check_indices


class UniformSampler(IndexSampler):
    """Every inserted index is equally likely.

    All indices stand in one array, the inserted ones in front; inserting and removing swap entries.

    Args:
        size: number of slots or samples, above 0.
        filled: True: all indices can be drawn from the start (a dataset); False: none (a buffer).
        seed: of the sampler's own generator.
        device: device of the draws.

    Raises:
        ValueError: if ``size`` is not above 0.
    """

    def __init__(
        self,
        size: int,
        *,
        filled: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(size, seed=seed, device=device)
        self._item = torch.arange(size)  # a permutation: the inserted indices, then the others
        self._place = torch.arange(size)  # its inverse
        self._count = size if filled else 0

    @property
    def count(self) -> int:
        """Number of inserted indices, in ``[0, size]``."""
        return self._count

    def draw(self, batch_size: int) -> Draw:
        """Draw ``batch_size`` indices with replacement, all equally likely."""
        self._check_draw(batch_size)
        place = torch.randint(self._count, (batch_size,), generator=self.generator)
        probability = torch.full((batch_size,), 1 / self._count, dtype=torch.float64)
        return Draw(self._item[place].to(self.device), probability.to(self.device))

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable."""
        index = check_indices(index, self.size)
        new = torch.unique(index[self._place[index] >= self._count])
        self._move(new, self._count)
        self._count += len(new)

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again."""
        index = check_indices(index, self.size)
        old = torch.unique(index[self._place[index] < self._count])
        self._count -= len(old)
        self._move(old, self._count)

    def _move(self, index: Tensor, start: int) -> None:
        """Swap the distinct ``index`` ``[K]`` into the places ``start`` to ``start + K``."""
        if not len(index):
            return
        source = self._place[index]
        there = (source >= start) & (source < start + len(index))
        free = torch.ones(len(index), dtype=torch.bool)
        free[source[there] - start] = False
        target = start + free.nonzero().flatten()
        index, source = index[~there], source[~there]
        self._item[source] = self._item[target]
        self._item[target] = index
        self._place[self._item[source]] = source
        self._place[index] = target

    def clear(self) -> None:
        """Remove all indices; the generator is not reset."""
        self._item = torch.arange(self.size)
        self._place = torch.arange(self.size)
        self._count = 0

    def probabilities(self) -> Tensor:
        """``[size]`` float64: 1 / count for each inserted index, else 0."""
        probability = torch.zeros(self.size, dtype=torch.float64)
        probability[self._item[: self._count]] = self.min_probability()
        return probability.to(self.device)

    def probability_of(self, index: Tensor) -> Tensor:
        """1 / count for each inserted ``index`` ``[K]``, else 0: ``[K]`` float64."""
        inserted = self._place[index.cpu()] < self._count
        return (inserted.double() * self.min_probability()).to(self.device)

    def min_probability(self) -> float:
        """1 / count."""
        self._check_draw()
        return 1 / self._count

    def state_dict(self) -> dict[str, Any]:
        """The inserted indices in their order, and the generator, copied."""
        return {**super().state_dict(), "count": self._count, "item": self._item.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; the state must be of the same size."""
        self._check_state(state)
        item: Tensor = state["item"]
        count = int(state["count"])
        is_permutation = item.sort().values.equal(torch.arange(self.size))
        if not (is_permutation and 0 <= count <= self.size):
            raise ValueError("the state's items are not a permutation of all: it is damaged")
        self._item = item.clone()
        self._place = torch.empty_like(item)
        self._place[item] = torch.arange(self.size)
        self._count = count
        super().load_state_dict(state)
