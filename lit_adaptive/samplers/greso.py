"""GRESO (Zheng et al., 2025, arXiv:2506.02177): skip prompts whose groups have had no spread.

Departures from the paper:
  1. A prompt is skipped when an epoch begins (``EpochSampler``), not when its batch is formed.
  2. The bases start at 0.5.
"""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.difficulty import skip_probabilities
from lit_adaptive.samplers.base import AdaptiveSampler
from lit_adaptive.samplers.shuffled import EpochSampler

_STEP = 0.01  # change of a base after each update
_EASY_SHARE = 1 / 3  # of the target, for groups that are all right


class GRESOSampler(EpochSampler, AdaptiveSampler):
    r"""Leaves out of each epoch, at random, prompts whose latest groups had no spread.

    A prompt with z groups in a row that were all right or all wrong is left out with probability
    :math:`1 - \max(b^z, 0.01)`. The base b, one for prompts that were all right and one for those
    that were all wrong, moves by 0.01 after each update so that ``flat_share`` of the groups has no
    spread: 1/3 of it all right, 2/3 all wrong.

    The probability of a draw is that of being part of the epoch, divided by N.

    Args:
        size: number of prompts, above 0.
        flat_share: share of groups without spread that is aimed at, in (0, 1).
        filled: True: all prompts can be drawn from the start; False: none.
        seed: of the sampler's own generator.

    Raises:
        ValueError: if ``flat_share`` is outside (0, 1), or ``size`` is not above 0.
    """

    def __init__(
        self, size: int, *, flat_share: float = 0.25, filled: bool = True, seed: int = 0
    ) -> None:
        super().__init__(size, filled=filled, seed=seed)
        if not 0 < flat_share < 1:
            raise ValueError(f"flat_share is {flat_share}; it must lie in (0, 1)")
        self.flat_share = flat_share
        self.bases = torch.full((2,), 0.5, dtype=torch.float64)  # all wrong, all right
        self._streak = torch.zeros(size, dtype=torch.int64)
        self._right = torch.zeros(size, dtype=torch.int64)  # 1 where the latest group was all right
        self._inclusion = torch.ones(size, dtype=torch.float64)

    @property
    def takes_pass_rates(self) -> bool:
        """True."""
        return True

    @property
    def standalone_reason(self) -> str | None:
        """Probabilities are those of an epoch."""
        return (
            "its probabilities are those of a whole epoch and sum to less than 1, so no single "
            "draw is unbiased: use it alone, or choose DifficultySampler"
        )

    def _choose(self, candidates: Tensor) -> Tensor:
        base = self.bases[self._right[candidates]]
        keep = 1 - skip_probabilities(self._streak[candidates], base)
        self._inclusion[candidates] = keep
        kept = torch.rand(len(candidates), dtype=torch.float64, generator=self.generator) < keep
        return candidates[kept]

    def _epoch_probability(self, index: Tensor) -> Tensor:
        return self._inclusion[index] / self._count

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Learn the pass rates ``[K]`` in [0, 1] of the groups of ``index`` ``[K]`` int64.

        Raises:
            ValueError: naming the offending indices; nothing changes.
        """
        index, rate = self._check_pass_rates(index, priority)
        flat, right = (rate <= 0) | (rate >= 1), rate >= 1
        self._streak[index] = torch.where(flat, self._streak[index] + 1, 0)
        self._right[index] = right.long()
        if len(index):
            shares = torch.stack([flat & ~right, right]).double().mean(1)
            aims = self.flat_share * torch.tensor([1 - _EASY_SHARE, _EASY_SHARE])
            change = torch.where(shares >= aims, -_STEP, _STEP)
            self.bases = (self.bases + change).clamp(0, 1)

    def clear(self) -> None:
        """Remove all prompts and forget their groups; the generator is not reset."""
        super().clear()
        self._streak.zero_()
        self._inclusion.fill_(1)

    def state_dict(self) -> dict[str, Any]:
        """The current epoch, the latest groups, the bases and the generator, copied."""
        return {
            **super().state_dict(),
            "streak": self._streak.clone(),
            "right": self._right.clone(),
            "inclusion": self._inclusion.clone(),
            "bases": self.bases.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; the state must be of the same size."""
        super().load_state_dict(state)
        self._streak, self._right = state["streak"].clone(), state["right"].clone()
        self._inclusion, self.bases = state["inclusion"].clone(), state["bases"].clone()
