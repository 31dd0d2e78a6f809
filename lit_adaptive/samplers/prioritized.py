"""Proportional prioritized draws (Schaul et al., 2016, arXiv:1511.05952, section 3.3).

Departures from the paper:
  1. Draws are stratified over the whole batch, as in the paper's appendix B.2.1; the probability
     returned is that of a single draw, as in the weights of section 3.4.
  2. The "maximal priority" of new items is the running maximum of all priorities ever set, starting
     at 1 (p_1 of algorithm 1), not the maximum of those stored now: it needs no search and never
     falls, so a new item never has less priority than one inserted before it.
"""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.prioritized import check_alpha, priority_masses
from lit_adaptive.samplers.base import check_indices, check_max_priority
from lit_adaptive.samplers.tree import TreeSampler


class PrioritizedSampler(TreeSampler):
    r"""Draws item i with probability :math:`p_i^\alpha / \sum_k p_k^\alpha`, stratified.

    Args:
        size: number of slots or samples, above 0.
        alpha: strength of the prioritization, in [0, 1]; 0 is uniform (except for items of
            priority 0, which are never drawn).
        filled: True: all indices can be drawn from the start (a dataset); False: none (a buffer).
        seed: of the sampler's own generator.
        device: device of the tree and of the draws.

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
        self._inserted = torch.zeros(size, dtype=torch.bool, device=self.device)
        self._count = 0
        self._max_priority = 1.0
        if filled:
            self.insert(torch.arange(size))

    @property
    def count(self) -> int:
        """Number of inserted indices, in ``[0, size]``; those of priority 0 included."""
        return self._count

    @property
    def max_priority(self) -> float:
        """Running maximum of all priorities, at least 1; the priority of new items."""
        return self._max_priority

    @property
    def nbytes(self) -> int:
        """Bytes of the tree and the membership flags: 9.6 per slot."""
        return self._tree.nbytes + self._inserted.nbytes

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Set the priority ``[K]``, finite and not negative, of each ``index`` ``[K]`` int64.

        An item of priority 0 is not drawn until its next update.
        """
        greatest = self._tree.update(index, priority, exponent=self.alpha, member=self._inserted)
        self._max_priority = max(self._max_priority, greatest)

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, at the maximum priority so far."""
        index = check_indices(index, self.size).to(self.device)
        priority = torch.full((len(index),), self._max_priority, dtype=torch.float64)
        self._tree.update(index, priority, exponent=self.alpha)
        self._set_inserted(index, inserted=True)

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again."""
        index = check_indices(index, self.size).to(self.device)
        self._tree.update(index, torch.zeros(len(index), dtype=torch.float64))
        self._set_inserted(index, inserted=False)

    def _set_inserted(self, index: Tensor, *, inserted: bool) -> None:
        distinct = torch.unique(index)
        before = int(self._inserted[distinct].sum())
        self._inserted[distinct] = inserted
        self._count += (len(distinct) if inserted else 0) - before

    def clear(self) -> None:
        """Remove all indices and forget their priorities; the generator is not reset."""
        self._tree.clear()
        self._inserted.zero_()
        self._count = 0
        self._max_priority = 1.0

    def scores(self) -> Tensor:
        """The priorities: ``[size]`` float64 (at ``alpha=0``, which does not keep them, 1 or 0)."""
        return self._tree.masses.cpu().pow(1 / self.alpha if self.alpha else 1)

    def set_scores(self, score: Tensor) -> None:
        """Start from the priorities ``score`` ``[size]``, finite and not negative.

        Raises:
            ValueError: naming the offending indices, or if all are 0; nothing changes.
        """
        score = self._check_scores(score, name="priorities").to(self.device) * self._inserted
        if not bool((score > 0).any()):
            raise ValueError("no score is above 0, so nothing could be drawn: add a small epsilon")
        self._tree.assign(priority_masses(score, alpha=self.alpha))
        self._max_priority = max(self._max_priority, float(score.amax()))

    def state_dict(self) -> dict[str, Any]:
        """Masses, inserted indices, maximum priority and generator, copied."""
        return {
            **super().state_dict(),
            "alpha": self.alpha,
            "mass": self._tree.masses.cpu().clone(),
            "inserted": self._inserted.cpu().clone(),
            "max_priority": self._max_priority,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; the state must be of the same size and alpha."""
        self._check_state(state, alpha=self.alpha)
        inserted: Tensor = state["inserted"]
        mass: Tensor = state["mass"]
        highest = check_max_priority(state)
        if len(inserted) != self.size or bool((mass[~inserted] != 0).any()):
            raise ValueError("the state gives mass to items that are not inserted: it is damaged")
        self._tree.load_state_dict({"capacity": self.size, "mass": mass, "next": 0})
        self._inserted.copy_(inserted)
        self._count = int(inserted.sum())
        self._max_priority = highest
        super().load_state_dict(state)
