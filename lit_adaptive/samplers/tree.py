"""Stratified draws in proportion to the masses in a sum tree."""

import torch
from torch import Tensor

from lit_adaptive.core.sum_tree import SumTree
from lit_adaptive.samplers.base import AdaptiveSampler, Draw


class TreeSampler(AdaptiveSampler):
    """Draws in proportion to masses in ``_tree``, which subclasses set; O(log size) per index.

    Args:
        size: number of leaves of the tree.
        seed: of the sampler's own generator.
        device: device of the tree and of the draws.
    """

    def __init__(self, size: int, *, seed: int = 0, device: str | torch.device = "cpu") -> None:
        super().__init__(size, seed=seed, device=device)
        self._tree = SumTree(size, device=self.device)

    def draw(self, batch_size: int) -> Draw:
        """Draw one index from each of ``batch_size`` ranges of equal probability."""
        self._check_draw(batch_size)
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=self.generator)
        return Draw(*self._tree.sample_(uniform, probability=True))

    def _total(self) -> float:
        self._check_draw()
        total = self._tree.total_priority
        if not total > 0:
            raise ValueError(
                "the total priority is 0, so there is nothing to draw: "
                "insert items or give one a priority above 0"
            )
        return total

    def probabilities(self) -> Tensor:
        """Probability of each index at the next draw: ``[size]`` float64, sums to 1."""
        total = self._total()
        return self._tree.masses / total

    def probability_of(self, index: Tensor) -> Tensor:
        """Probability of each ``index`` ``[K]`` at the next draw: ``[K]`` float64."""
        total = self._total()
        return self._tree.masses[index] / total

    def min_probability(self) -> float:
        """Smallest probability of a drawable index."""
        total = self._total()
        return max(self._tree.min_mass / total, torch.finfo(torch.float64).tiny)
