r"""Rank-based prioritized draws (Schaul et al., 2016, arXiv:1511.05952, section 3.3).

An item's chance goes with :math:`1 / \mathrm{rank}(i)^\alpha`. As in appendix B.2.1 an array-based
binary heap stands for the sorted array, and is sorted now and then.

Where this departs from the paper, and why:
  1. A rank is an item's place in the heap's array: the true rank right after sorting, near it
     otherwise (the paper's approximation). The probability reported is exact for this place, so
     the importance weights are exact for the law that was drawn from.
  2. The paper approximates the cumulative law by segments that are piecewise linear; here its sums
     are tabulated (8 bytes a slot) and inverted exactly, so the number of items may change at will.
  3. It sorts after a number of updated items, not of environment steps, which a sampler knows
     nothing of.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.kernels import heap
from lit_adaptive.core.prioritized import check_alpha
from lit_adaptive.samplers._indices import check_indices
from lit_adaptive.samplers.base import AdaptiveSampler, Draw

KIND = "rank_prioritized"


class RankPrioritizedSampler(AdaptiveSampler):
    r"""Draws the item of rank r with probability :math:`r^{-\alpha} / \sum_k k^{-\alpha}`.

    An item of priority 0 has a rank too, and can be drawn.

    Args:
        size: number of slots or samples that can ever be drawn, above 0.
        alpha: how strongly to prioritize, in [0, 1]; 0 is uniform.
        filled: True: all indices can be drawn from the start (a dataset); False: none (a buffer).
        resort_every: updated items after which the heap is sorted, above 0.
        seed: of the sampler's own generator.
        device: where indices and probabilities are returned; the heap stays on the CPU.

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
        check_alpha(alpha)
        if resort_every <= 0:
            raise ValueError(f"resort_every is {resort_every}; it must be above 0")
        self.alpha = float(alpha)
        self.resort_every = resort_every
        ranks = torch.arange(1, size + 1, dtype=torch.float64)
        self._cumulative = ranks.pow(-self.alpha).cumsum(0)
        self._heap = torch.zeros(size, dtype=torch.float64)  # priorities, the greatest first
        self._item = torch.arange(size)  # which item stands at each place of the heap
        self._place = torch.full((size,), -1)  # where each item stands; -1: not inserted
        self._count = 0
        self._max_priority = 1.0
        self._since_sort = 0
        if filled:
            self.insert(torch.arange(size))

    @property
    def count(self) -> int:
        """How many indices can be drawn now, in ``[0, size]``."""
        return self._count

    @property
    def max_priority(self) -> float:
        """The running maximum of all priorities so far, at least 1; new items get it."""
        return self._max_priority

    def draw(self, batch_size: int) -> Draw:
        """Draw one rank from each of ``batch_size`` ranges of equal probability.

        Raises:
            ValueError: if nothing can be drawn, or ``batch_size`` is not above 0.
        """
        self._refuse_draw(batch_size)
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=self.generator)
        index = torch.empty(batch_size, dtype=torch.int64)
        probability = torch.empty(batch_size, dtype=torch.float64)
        heap.sample(
            self._cumulative.numpy(),
            self._item.numpy(),
            self._count,
            self.alpha,
            uniform.numpy(),
            index.numpy(),
            probability.numpy(),
        )
        return Draw(index.to(self.device), probability.to(self.device))

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Give each ``index`` ``[K]`` int64 its new ``priority`` ``[K]``, finite and not negative.

        Raises:
            ValueError: naming the offending indices, if one is out of range or not inserted, or
                its priority is NaN, infinite or negative; the sampler is unchanged then.
        """
        index = check_indices(index, self.size)
        if index.shape != priority.shape:
            raise ValueError(
                f"index has shape {tuple(index.shape)}, priority {tuple(priority.shape)}; "
                "both must be [K]"
            )
        priority = priority.detach().to("cpu", torch.float64).contiguous()
        wrong = ~((priority >= 0) & (priority < torch.inf))
        if bool(wrong.any()):
            raise ValueError(
                f"priority of index {index[wrong][:8].tolist()} is {priority[wrong][:8].tolist()}; "
                "priorities are finite and not negative: look for NaN or inf in the loss. "
                "Nothing was changed"
            )
        absent = self._place[index] < 0
        if bool(absent.any()):
            raise ValueError(
                f"index {index[absent][:8].tolist()} was not inserted: insert it first. "
                "Nothing was changed"
            )
        self._put(index, priority)
        if len(index):
            self._max_priority = max(self._max_priority, float(priority.amax()))
        self._since_sort += len(index)
        if self._since_sort >= self.resort_every:
            self.sort()

    def _put(self, index: Tensor, priority: Tensor) -> None:
        self._count = heap.put(*self._arrays(), self._count, index.numpy(), priority.numpy())

    def _arrays(self) -> tuple[heap.Floats, heap.Ints, heap.Ints]:
        return self._heap.numpy(), self._item.numpy(), self._place.numpy()

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, as new items: at the maximum priority so far.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        index = check_indices(index, self.size)
        self._put(index, torch.full((len(index),), self._max_priority, dtype=torch.float64))

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        index = check_indices(index, self.size)
        self._count = heap.remove(*self._arrays(), self._count, index.numpy())

    def sort(self) -> None:
        """Make each item's place its true rank; equal priorities stand in the order of indices."""
        items = self._item[: self._count].sort().values
        priority = self._heap[self._place[items]]
        order = torch.argsort(priority, descending=True, stable=True)
        self._heap[: self._count] = priority[order]
        self._item[: self._count] = items[order]
        self._place[items[order]] = torch.arange(self._count)
        self._since_sort = 0

    def clear(self) -> None:
        """Forget all items and priorities; the generator goes on."""
        self._place.fill_(-1)
        self._count = 0
        self._max_priority = 1.0
        self._since_sort = 0

    def probabilities(self) -> Tensor:
        """Chance of each index at the next draw: ``[size]`` float64, sums to 1.

        Raises:
            ValueError: if nothing can be drawn.
        """
        self._refuse_draw()
        rank = torch.arange(1, self._count + 1, dtype=torch.float64)
        chance = torch.zeros(self.size, dtype=torch.float64)
        law = rank.pow(-self.alpha) / self._cumulative[self._count - 1]
        chance[self._item[: self._count]] = law
        return chance.to(self.device)

    def scores(self) -> Tensor:
        """The priorities: ``[size]`` float64, 0 for what is not inserted."""
        score = torch.zeros(self.size, dtype=torch.float64)
        score[self._item[: self._count]] = self._heap[: self._count]
        return score

    def set_scores(self, score: Tensor) -> None:
        """Begin with the priorities ``score`` ``[size]``, in their true ranks.

        Raises:
            ValueError: naming offending indices; nothing changes then.
        """
        score = self._checked_scores(score).cpu()
        items = self._item[: self._count].clone()
        self._put(items, score[items])
        self._max_priority = max(self._max_priority, float(score.amax()))
        self.sort()

    def min_probability(self) -> float:
        """That of the last rank.

        Raises:
            ValueError: if nothing can be drawn.
        """
        self._refuse_draw()
        return float(np.power(float(self._count), -self.alpha) / self._cumulative[self._count - 1])

    def state_dict(self) -> dict[str, Any]:
        """The heap as it stands, the maximum priority and the generator, copied."""
        return {
            "kind": KIND,
            "size": self.size,
            "alpha": self.alpha,
            "heap": self._heap[: self._count].clone(),
            "item": self._item[: self._count].clone(),
            "max_priority": self._max_priority,
            "since_sort": self._since_sort,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped.

        Raises:
            ValueError: if the state is another sampler's, of another size or alpha, or damaged;
                nothing changes then.
        """
        self._refuse_state(state, kind=KIND, alpha=self.alpha)
        item = check_indices(state["item"], self.size)
        priority, highest = state["heap"], float(state["max_priority"])
        above = (torch.arange(1, len(item)) - 1) // 2
        if not (
            len(set(item.tolist())) == len(item) == len(priority)
            and bool(((priority >= 0) & (priority < torch.inf)).all())
            and bool((priority[above] >= priority[1:]).all())
            and 1 <= highest < math.inf
        ):
            raise ValueError("the state is no heap of distinct items and priorities: it is damaged")
        self.generator.set_state(state["generator"])
        self._count = len(item)
        self._heap[: self._count] = priority
        self._item[: self._count] = item
        self._place.fill_(-1)
        self._place[item] = torch.arange(self._count)
        self._max_priority = highest
        self._since_sort = int(state["since_sort"])
