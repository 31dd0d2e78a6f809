r"""Rank-based prioritized draws (Schaul et al., 2016, arXiv:1511.05952, section 3.3).

The probability of an item is proportional to :math:`1 / \mathrm{rank}(i)^\alpha`. As in the paper's
appendix B.2.1, an array-based binary heap approximates the sorted array and is sorted periodically.

Departures from the paper:
  1. An item's rank is its place in the heap's array: the true rank right after sorting, close to it
     otherwise (the paper's approximation). The probability returned is exact for this place, so the
     importance weights are exact for the distribution that was drawn from.
  2. The paper approximates the cumulative distribution by piecewise linear segments; here its sums
     are tabulated (16 bytes per slot) and inverted exactly, so the number of items may change.
  3. The heap is sorted after a number of updated items, not of environment steps, which a sampler
     does not know.
"""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.kernels import heap
from lit_adaptive.core.prioritized import priority_masses, rank_priorities
from lit_adaptive.samplers.base import (
    AdaptiveSampler,
    Draw,
    check_indices,
    check_inserted,
    check_max_priority,
)


class RankPrioritizedSampler(AdaptiveSampler):
    r"""Draws the item of rank r with probability :math:`r^{-\alpha} / \sum_k k^{-\alpha}`.

    An item of priority 0 has a rank too, and can be drawn.

    Args:
        size: number of slots or samples, above 0.
        alpha: strength of the prioritization, in [0, 1]; 0 is uniform.
        filled: True: all indices can be drawn from the start (a dataset); False: none (a buffer).
        resort_every: number of updated items after which the heap is sorted, above 0.
        seed: of the sampler's own generator.
        device: device of the draws; the heap is on the CPU.

    Raises:
        ValueError: if ``size`` or ``resort_every`` is not above 0, or ``alpha`` outside [0, 1].
    """

    def __init__(
        self,
        size: int,
        *,
        alpha: float = 0.7,
        filled: bool = True,
        resort_every: int = 1_000_000,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(size, seed=seed, device=device)
        check_at_least(resort_every=(resort_every, 1))
        self.alpha = float(alpha)
        self.resort_every = resort_every
        self._mass = priority_masses(rank_priorities(torch.arange(size, 0, -1)), alpha=self.alpha)
        self._cumulative = self._mass.cumsum(0)
        self._heap = torch.zeros(size, dtype=torch.float64)  # priorities, the greatest first
        self._item = torch.arange(size)  # the item at each place of the heap
        self._place = torch.full((size,), -1)  # the place of each item; -1: not inserted
        self._count = 0
        self._max_priority = 1.0
        self._since_sort = 0
        if filled:
            self.insert(torch.arange(size))

    @property
    def count(self) -> int:
        """Number of inserted indices, in ``[0, size]``."""
        return self._count

    @property
    def max_priority(self) -> float:
        """Running maximum of all priorities, at least 1; the priority of new items."""
        return self._max_priority

    def draw(self, batch_size: int) -> Draw:
        """Draw one rank from each of ``batch_size`` ranges of equal probability."""
        self._check_draw(batch_size)
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=self.generator)
        cumulative = self._cumulative[: self._count]
        point = (torch.arange(batch_size) + uniform) / batch_size * cumulative[-1]
        place = torch.searchsorted(cumulative, point, right=True).clamp_(max=self._count - 1)
        probability = self._mass[place] / cumulative[-1]
        return Draw(self._item[place].to(self.device), probability.to(self.device))

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Set the priority ``[K]``, finite and not negative, of each ``index`` ``[K]`` int64."""
        index, priority = self._check_update(index, priority, name="priorities", negative=False)
        check_inserted(index, self._place[index] >= 0)
        self._put(index, priority)
        if len(index):
            self._max_priority = max(self._max_priority, float(priority.amax()))
        self._since_sort += len(index)
        if self._since_sort >= self.resort_every:
            self.sort()

    def _put(self, index: Tensor, priority: Tensor) -> None:
        priority = priority.contiguous()
        self._count = heap.put(*self._arrays(), self._count, index.numpy(), priority.numpy())

    def _arrays(self) -> tuple[heap.Floats, heap.Ints, heap.Ints]:
        return self._heap.numpy(), self._item.numpy(), self._place.numpy()

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, at the maximum priority so far."""
        index = check_indices(index, self.size)
        self._put(index, torch.full((len(index),), self._max_priority, dtype=torch.float64))

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again."""
        index = check_indices(index, self.size)
        self._count = heap.remove(*self._arrays(), self._count, index.numpy())

    def sort(self) -> None:
        """Make each item's place its true rank; equal priorities rank in the order of indices."""
        items = self._item[: self._count].sort().values
        priority = self._heap[self._place[items]]
        order = torch.argsort(priority, descending=True, stable=True)
        self._heap[: self._count] = priority[order]
        self._item[: self._count] = items[order]
        self._place[items[order]] = torch.arange(self._count)
        self._since_sort = 0

    def clear(self) -> None:
        """Remove all indices and forget their priorities; the generator is not reset."""
        self._place.fill_(-1)
        self._count = 0
        self._max_priority = 1.0
        self._since_sort = 0

    def probabilities(self) -> Tensor:
        """Probability of each index at the next draw: ``[size]`` float64, sums to 1."""
        self._check_draw()
        probability = torch.zeros(self.size, dtype=torch.float64)
        total = self._cumulative[self._count - 1]
        probability[self._item[: self._count]] = self._mass[: self._count] / total
        return probability.to(self.device)

    def min_probability(self) -> float:
        """The probability of the last rank."""
        self._check_draw()
        return float(self._mass[self._count - 1] / self._cumulative[self._count - 1])

    def scores(self) -> Tensor:
        """The priorities: ``[size]`` float64, 0 where not inserted."""
        score = torch.zeros(self.size, dtype=torch.float64)
        score[self._item[: self._count]] = self._heap[: self._count]
        return score

    def set_scores(self, score: Tensor) -> None:
        """Start from the priorities ``score`` ``[size]``, in their true ranks."""
        score = self._check_scores(score, name="priorities")
        items = self._item[: self._count].clone()
        self._put(items, score[items])
        self._max_priority = max(self._max_priority, float(score.amax()))
        self.sort()

    def state_dict(self) -> dict[str, Any]:
        """Heap, maximum priority, updates since the last sort and generator, copied."""
        return {
            **super().state_dict(),
            "alpha": self.alpha,
            "heap": self._heap[: self._count].clone(),
            "item": self._item[: self._count].clone(),
            "max_priority": self._max_priority,
            "since_sort": self._since_sort,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; the state must be of the same size and alpha."""
        self._check_state(state, alpha=self.alpha)
        item = check_indices(state["item"], self.size)
        priority, highest = state["heap"], check_max_priority(state)
        parent = (torch.arange(1, len(item)) - 1) // 2
        if not (
            len(set(item.tolist())) == len(item) == len(priority)
            and bool(((priority >= 0) & (priority < torch.inf)).all())
            and bool((priority[parent] >= priority[1:]).all())
        ):
            raise ValueError(
                "the state is not a heap of distinct items and priorities: it is damaged"
            )
        self._count = len(item)
        self._heap[: self._count] = priority
        self._item[: self._count] = item
        self._place.fill_(-1)
        self._place[item] = torch.arange(self._count)
        self._max_priority = highest
        self._since_sort = int(state["since_sort"])
        super().load_state_dict(state)
