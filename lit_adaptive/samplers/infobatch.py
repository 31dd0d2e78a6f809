"""InfoBatch (Qin et al., 2024, arXiv:2303.04947): epochs without a part of the easy samples.

Departure from the paper: epochs are those of ``EpochSampler``. They end when their samples end, not
when an epoch of the trainer does.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.hard_examples import infobatch_keep_probabilities
from lit_adaptive.core.shares import share_count
from lit_adaptive.samplers.base import AdaptiveSampler, check_inserted
from lit_adaptive.samplers.shuffled import EpochSampler


class InfoBatchSampler(EpochSampler, AdaptiveSampler):
    r"""Leaves out of each epoch, at random, a part of the samples whose loss is below the mean.

    The probability of a draw is :math:`\pi_i / N`, where :math:`\pi_i`, the probability that i is
    part of the epoch, is 1 - ``prune`` or 1. So the weight of full correction, 1 / (N P), is
    1 / (1 - r) or 1 as in the paper, and the weighted sum over an epoch is unbiased. These
    probabilities sum to less than 1: to the epoch's expected length divided by N.

    Args:
        size: number of samples, above 0.
        prune: r, the probability of leaving out an easy sample, in [0, 1); 0.5 in the paper.
        anneal: final fraction of the training in which no sample is left out, in [0, 1]; 0.125 in
            the paper. ``callbacks.CurriculumProgress`` reports the progress.
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the sampler's own generator.
        device: device of the draws.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(
        self,
        size: int,
        *,
        prune: float = 0.5,
        anneal: float = 0.125,
        filled: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(size, filled=filled, seed=seed, device=device)
        if not 0 <= prune < 1:
            raise ValueError(f"prune is {prune}; it must lie in [0, 1)")
        if not 0 <= anneal <= 1:
            raise ValueError(f"anneal is {anneal}; it must lie in [0, 1]")
        self.prune = prune
        self.anneal = anneal
        self._loss = torch.full((size,), math.inf)
        self._inclusion = torch.ones(size)
        self._annealing = False

    @property
    def standalone_reason(self) -> str | None:
        """Probabilities are those of an epoch."""
        return (
            "its probabilities are those of a whole epoch and sum to less than 1, so no single "
            "draw is unbiased: use it alone, or choose a sampler such as AdaptiveBatchSampler"
        )

    @property
    def follows_progress(self) -> bool:
        """Whether the final epochs are complete."""
        return self.anneal > 0

    def advance(self, progress: float) -> None:
        """From ``1 - anneal`` on, epochs that begin leave no sample out."""
        reached = share_count(progress + self.anneal, 1, rounding=math.floor) >= 1
        self._annealing = self.anneal > 0 and reached

    def _choose(self, candidates: Tensor) -> Tensor:
        prune = 0.0 if self._annealing else self.prune
        inclusion = infobatch_keep_probabilities(self._loss[candidates], prune=prune)
        self._inclusion[candidates] = inclusion.float()
        return candidates[torch.rand(len(candidates), generator=self.generator) < inclusion]

    def _epoch_probability(self, index: Tensor) -> Tensor:
        return self._inclusion[index].double() / self._count

    def min_probability(self) -> float:
        """Smallest probability of an inserted sample."""
        self._check_draw()
        return float(self._inclusion[self._inserted].min()) / self._count

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Set the losses ``priority`` ``[K]``, finite, of any sign, of ``index`` ``[K]``."""
        index, loss = self._check_update(index, priority, name="losses")
        check_inserted(index, self._inserted[index])
        self._loss[index] = loss.float()

    def clear(self) -> None:
        """Remove all samples and forget their losses; the generator is not reset."""
        super().clear()
        self._loss.fill_(math.inf)
        self._inclusion.fill_(1)

    def scores(self) -> Tensor:
        """The last losses: ``[size]`` float64; the greatest loss where none is known."""
        known = self._loss[self._loss.isfinite()]
        return self._loss.clamp_max(float(known.max()) if len(known) else 0.0).double()

    def set_scores(self, score: Tensor) -> None:
        """Start from the losses ``score`` ``[size]``, finite and not negative."""
        self._loss = self._check_scores(score, name="losses").float()

    def state_dict(self) -> dict[str, Any]:
        """The current epoch, losses, inclusion probabilities and the generator, copied."""
        return {
            **super().state_dict(),
            "loss": self._loss.clone(),
            "inclusion": self._inclusion.clone(),
            "annealing": self._annealing,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; the state must be of the same size."""
        super().load_state_dict(state)
        self._loss = state["loss"].clone()
        self._inclusion = state["inclusion"].clone()
        self._annealing = bool(state["annealing"])
