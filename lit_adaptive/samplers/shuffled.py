"""Draws without replacement, epoch by epoch."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.samplers.base import Draw, IndexSampler, check_indices


class EpochSampler(IndexSampler):
    """Draws without replacement until its epoch ends, then begins another.

    These epochs follow one another in a stream: a batch may hold the end of one and the start of
    the next, so batches are always full. They need not coincide with the trainer's epochs.

    Args:
        size: number of samples, above 0.
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the sampler's own generator.
        device: device of the draws.
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
        self._inserted = torch.full((size,), filled)
        self._count = size if filled else 0
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    @abstractmethod
    def _choose(self, candidates: Tensor) -> Tensor:
        """The samples of the next epoch, out of ``candidates`` ``[M]``; may be empty."""

    @abstractmethod
    def _epoch_probability(self, index: Tensor) -> Tensor:
        """Probability ``[K]`` float64 of each ``index`` ``[K]`` in the current epoch."""

    @property
    def count(self) -> int:
        """Number of inserted samples, in ``[0, size]``."""
        return self._count

    def draw(self, batch_size: int) -> Draw:
        """The next ``batch_size`` samples of the epoch and, if it ends, of those that follow."""
        self._check_draw(batch_size)
        parts = [self._next(batch_size)]
        missing = batch_size - len(parts[0].index)
        while missing:
            self._begin_epoch()
            parts.append(self._next(missing))
            missing -= len(parts[-1].index)
        index = torch.cat([part.index for part in parts])
        probability = torch.cat([part.probability for part in parts])
        return Draw(index.to(self.device), probability.to(self.device))

    def _next(self, number: int) -> Draw:
        """Up to ``number`` of the remaining samples of the epoch."""
        index = self._order[self._position : self._position + number]
        self._position += len(index)
        return Draw(index, self._epoch_probability(index))

    def _begin_epoch(self) -> None:
        candidates = self._inserted.nonzero().flatten()
        chosen = self._choose(candidates)
        while not len(chosen):  # all were pruned
            chosen = self._choose(candidates)
        self._order = chosen[torch.randperm(len(chosen), generator=self.generator)]
        self._position = 0

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable; if one of them is new, a new epoch begins.

        Shuffled into the rest of the epoch, new samples would be drawn more often than the others.
        """
        index = torch.unique(check_indices(index, self.size))
        new = index[~self._inserted[index]]
        self._inserted[new] = True
        self._count += len(new)
        if len(new):
            self._order, self._position = self._order[:0], 0

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again."""
        index = check_indices(index, self.size)
        self._inserted[index] = False
        self._count = int(self._inserted.sum())
        rest = self._order[self._position :]
        self._order, self._position = rest[self._inserted[rest]], 0

    def clear(self) -> None:
        """Remove all samples; the generator is not reset."""
        self._inserted.zero_()
        self._count = 0
        self._order, self._position = self._order[:0], 0

    def probabilities(self) -> Tensor:
        """Probability of each index: ``[size]`` float64."""
        return self.probability_of(torch.arange(self.size))

    def probability_of(self, index: Tensor) -> Tensor:
        """Probability of each ``index`` ``[K]``, 0 where not inserted: ``[K]`` float64."""
        self._check_draw()
        index = index.cpu()
        return (self._epoch_probability(index) * self._inserted[index]).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Inserted samples, the rest of the epoch, and the generator, copied."""
        return {
            **super().state_dict(),
            "inserted": self._inserted.clone(),
            "rest": self._order[self._position :].clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; the state must be of the same size."""
        self._check_state(state)
        inserted, rest = state["inserted"], check_indices(state["rest"], self.size)
        if len(inserted) != self.size or not bool(inserted[rest].all()):
            raise ValueError("the state's epoch has samples that are not inserted: it is damaged")
        self._inserted = inserted.clone()
        self._count = int(inserted.sum())
        self._order, self._position = rest.clone(), 0
        super().load_state_dict(state)


class ShuffledSampler(EpochSampler):
    """Every sample once per epoch, in random order, as a ``DataLoader`` with ``shuffle``.

    The probability of a draw is ``1 / count``: that of a random position in the epoch.

    Raises:
        ValueError: if ``size`` is not above 0.
    """

    def _choose(self, candidates: Tensor) -> Tensor:
        return candidates

    def _epoch_probability(self, index: Tensor) -> Tensor:
        return torch.full((len(index),), 1 / self._count, dtype=torch.float64)

    def min_probability(self) -> float:
        """1 / count."""
        self._check_draw()
        return 1 / self._count
