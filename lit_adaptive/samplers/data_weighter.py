"""AdaBoost-like loss weights over shuffled epochs."""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.samplers.adaptive_batch import AdaptiveBatchSampler
from lit_adaptive.samplers.base import Draw
from lit_adaptive.samplers.shuffled import ShuffledSampler


class AdaptiveDataWeighter(AdaptiveBatchSampler):
    """Draws every sample equally often, and multiplies its loss by its AdaBoost-like weight.

    A step has the same expectation as one of ``AdaptiveBatchSampler`` without correction
    (``beta=0``); its variance is higher where weights differ much, but every sample is drawn.

    Args:
        dataset_size: number of samples, above 0.
        learning_rate: eta, at least 0; 0 weights all samples equally.
        options: keyword arguments of ``AdaptiveBatchSampler``; ``beta`` has no effect.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(self, dataset_size: int, learning_rate: float = 0.1, **options: Any) -> None:
        super().__init__(dataset_size, learning_rate, **options)
        self._shuffled = ShuffledSampler(dataset_size, filled=False, device=self.device)
        self._shuffled.generator = self.generator
        if self.count:
            self._shuffled.insert(torch.arange(dataset_size))

    def draw(self, batch_size: int) -> Draw:
        """The next ``batch_size`` samples of a shuffled epoch."""
        return self._shuffled.draw(batch_size)

    def sample(self, batch_size: int = 32) -> tuple[Tensor, Tensor]:
        """Indices ``[B]`` and loss weights ``[B]`` float64, of mean 1 over all samples."""
        index = self.draw(batch_size).index
        return index, self.loss_weights(index)

    @property
    def has_loss_weights(self) -> bool:
        """True."""
        return True

    def loss_weights(self, index: Tensor) -> Tensor:
        """``count * weight / sum of weights`` of ``index`` ``[K]``: ``[K]`` float64."""
        return super().probability_of(index.to(self.device)) * self.count

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, with the weights they had, at first 1."""
        super().insert(index)
        self._shuffled.insert(index)

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again; its weight is kept."""
        super().remove(index)
        self._shuffled.remove(index)

    def clear(self) -> None:
        """Remove all samples and forget their weights; the generator is not reset."""
        super().clear()
        self._shuffled.clear()

    def probabilities(self) -> Tensor:
        """1 / count for each drawable index: ``[size]`` float64."""
        return self._shuffled.probabilities()

    def probability_of(self, index: Tensor) -> Tensor:
        """1 / count for each drawable ``index`` ``[K]``: ``[K]`` float64."""
        return self._shuffled.probability_of(index)

    def min_probability(self) -> float:
        """1 / count."""
        return self._shuffled.min_probability()

    def state_dict(self) -> dict[str, Any]:
        """The weights, the current epoch and the generator, copied."""
        return {**super().state_dict(), "shuffled": self._shuffled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; size, use of momentum and bounds must be those of the state."""
        self._check_state(state)
        before = self._shuffled.state_dict()
        self._shuffled.load_state_dict(state["shuffled"])
        try:
            super().load_state_dict(state)
        except ValueError:
            self._shuffled.load_state_dict(before)
            raise
