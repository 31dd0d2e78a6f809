"""Proportional prioritized draws (Schaul et al., 2016, arXiv:1511.05952, section 3.3).

Where this departs from the paper, and why:
  1. Draws are stratified over the whole batch, as in the paper's appendix B.2.1; the probability
     that comes with them is that of one single draw, which the weights of section 3.4 are made of.
  2. "Maximal priority" for new items is the running maximum of all priorities ever given, starting
     at 1 (p_1 of algorithm 1), not the maximum of those now stored: it needs no search and never
     falls, so a new item is never behind one that was inserted before it.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.prioritized import check_alpha, priority_masses
from lit_adaptive.core.sum_tree import SumTree
from lit_adaptive.samplers._indices import check_indices
from lit_adaptive.samplers.base import AdaptiveSampler, Draw

KIND = "prioritized"


class PrioritizedSampler(AdaptiveSampler):
    r"""Draws item i with probability :math:`p_i^\alpha / \sum_k p_k^\alpha`, stratified.

    Args:
        size: number of slots or samples that can ever be drawn, above 0.
        alpha: how strongly to prioritize, in [0, 1]; 0 is uniform (but for items of priority 0,
            which are never drawn).
        filled: True: all indices can be drawn from the start (a dataset); False: none (a buffer).
        seed: of the sampler's own generator.
        device: where the tree lives and indices and probabilities are returned.

    Raises:
        ValueError: if ``size`` is not above 0 or ``alpha`` is outside [0, 1].
    """

    def __init__(
        self,
        size: int,
        *,
        alpha: float = 0.6,
        filled: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(size, seed=seed, device=device)
        check_alpha(alpha)
        self.alpha = float(alpha)
        self._tree = SumTree(size, device=self.device)
        self._inserted = torch.zeros(size, dtype=torch.bool, device=self.device)
        self._count = 0
        self._max_priority = 1.0
        if filled:
            self.insert(torch.arange(size))

    @property
    def count(self) -> int:
        """How many indices are inserted, in ``[0, size]``; those of priority 0 count too."""
        return self._count

    @property
    def max_priority(self) -> float:
        """The running maximum of all priorities so far, at least 1; new items get it."""
        return self._max_priority

    @property
    def masses(self) -> Tensor:
        """``[size]`` float64: priority ** alpha of each item; a view to be read, not written."""
        return self._tree.priorities

    @property
    def nbytes(self) -> int:
        """Bytes that priorities and accounts take: 9.6 a slot."""
        return self._tree.nbytes + self._inserted.nbytes

    def draw(self, batch_size: int) -> Draw:
        """Draw one index from each of ``batch_size`` ranges of equal probability.

        Raises:
            ValueError: if nothing can be drawn, or ``batch_size`` is not above 0.
        """
        self._refuse_draw(batch_size)
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=self.generator)
        return Draw(*self._tree.sample_(uniform, probability=True))

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Give each ``index`` ``[K]`` int64 its new ``priority`` ``[K]``, finite and not negative.

        Of an index given twice the last counts. Priority 0: never drawn until updated again.

        Raises:
            ValueError: naming the offending indices, if one is out of range or not inserted, or
                its priority is NaN, infinite or negative; the sampler is unchanged then.
        """
        greatest = self._tree.update(index, priority, exponent=self.alpha, member=self._inserted)
        self._max_priority = max(self._max_priority, greatest)

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, as new items: at the maximum priority so far.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        index = check_indices(index, self.size).to(self.device)
        priority = torch.full((len(index),), self._max_priority, dtype=torch.float64)
        self._tree.update(index, priority, exponent=self.alpha)
        self._mark(index, inserted=True)

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        index = check_indices(index, self.size).to(self.device)
        self._tree.update(index, torch.zeros(len(index), dtype=torch.float64))
        self._mark(index, inserted=False)

    def _mark(self, index: Tensor, *, inserted: bool) -> None:
        distinct = torch.unique(index)
        before = int(self._inserted[distinct].sum())
        self._inserted[distinct] = inserted
        self._count += (len(distinct) if inserted else 0) - before

    def clear(self) -> None:
        """Forget all items and priorities; the generator goes on."""
        self._tree.clear()
        self._inserted.zero_()
        self._count = 0
        self._max_priority = 1.0

    def probabilities(self) -> Tensor:
        """Chance of each index at the next draw: ``[size]`` float64, sums to 1.

        Raises:
            ValueError: if nothing can be drawn.
        """
        return self.masses / self._total()

    def probability_of(self, index: Tensor) -> Tensor:
        """Chance of each ``index`` ``[K]`` at the next draw: ``[K]`` float64.

        Raises:
            ValueError: if nothing can be drawn.
        """
        return self.masses[index] / self._total()

    def scores(self) -> Tensor:
        """The priorities: ``[size]`` float64 (at ``alpha=0``, which forgets them, 1 or 0)."""
        return self.masses.cpu().pow(1 / self.alpha if self.alpha else 1)

    def set_scores(self, score: Tensor) -> None:
        """Begin with the priorities ``score`` ``[size]``; 0: never drawn until updated.

        Raises:
            ValueError: naming offending indices, or if all are 0; nothing changes then.
        """
        score = self._checked_scores(score) * self._inserted
        if not bool((score > 0).any()):
            raise ValueError("no score is above 0, so nothing could be drawn: add a small epsilon")
        self._tree.assign(priority_masses(score, alpha=self.alpha))
        self._max_priority = max(self._max_priority, float(score.amax()))

    def min_probability(self) -> float:
        """Smallest probability among the drawable; it carries the largest importance weight.

        Raises:
            ValueError: if nothing can be drawn.
        """
        return max(self._tree.min_priority / self._total(), torch.finfo(torch.float64).tiny)

    def _total(self) -> float:
        total = self._tree.total_priority
        if not total > 0:
            raise ValueError(
                "the total priority is 0, so there is nothing to draw: "
                "insert items or give one a priority above 0"
            )
        return total

    def state_dict(self) -> dict[str, Any]:
        """Masses, who is inserted, the maximum priority and the generator, copied."""
        return {
            "kind": KIND,
            "size": self.size,
            "alpha": self.alpha,
            "mass": self.masses.cpu().clone(),
            "inserted": self._inserted.cpu().clone(),
            "max_priority": self._max_priority,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped.

        Raises:
            ValueError: if the state is another sampler's, of another size or alpha, or damaged;
                nothing changes then.
        """
        self._refuse_state(state, kind=KIND, alpha=self.alpha)
        inserted: Tensor = state["inserted"]
        mass: Tensor = state["mass"]
        highest = float(state["max_priority"])
        if len(inserted) != self.size or bool((mass[~inserted] != 0).any()):
            raise ValueError("the state gives mass to items that are not inserted: it is damaged")
        if not 1 <= highest < math.inf:
            raise ValueError(f"the state's max_priority is {highest}: it is damaged")
        self._tree.load_state_dict({"capacity": self.size, "mass": mass, "next": 0})
        self._inserted.copy_(inserted)
        self._count = int(inserted.sum())
        self._max_priority = highest
        self.generator.set_state(state["generator"])
