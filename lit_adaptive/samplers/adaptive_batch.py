"""AdaBoost-like samplers: draw the hard ones more often, or weigh their losses more."""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.corrections import inverse_probability_weights
from lit_adaptive.samplers.base import Draw
from lit_adaptive.samplers.boosted import BoostedSampler
from lit_adaptive.samplers.shuffled import ShuffledSampler


class AdaptiveBatchSampler(BoostedSampler):
    """Draws in proportion to weights that rise with the loss, in O(log N) for each index.

    In a plain loop, as the specification has it::

        sampler = AdaptiveBatchSampler(dataset_size=1000, learning_rate=0.1)
        indices, importance_weights = sampler.sample(batch_size=32)
        sampler.update_weights(indices, losses)

    Args:
        dataset_size: see ``BoostedSampler``, as for all the others.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    kind = "adaptive"

    def draw(self, batch_size: int) -> Draw:
        """Draw one index from each of ``batch_size`` ranges of equal probability.

        Raises:
            ValueError: if nothing can be drawn, or ``batch_size`` is not above 0.
        """
        self._refuse_draw(batch_size)
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=self.generator)
        return Draw(*self._tree.sample_(uniform, probability=True))

    def sample(self, batch_size: int = 32) -> tuple[Tensor, Tensor]:
        """Indices ``[B]`` and importance weights ``[B]`` float64, ``(N P(i))^-beta``.

        At ``beta=1`` the mean of weight times loss over the batch is an unbiased estimate of the
        mean loss over the dataset; at 0 the weights are ones, and hard samples count for more.
        """
        draw = self.draw(batch_size)
        weight = inverse_probability_weights(draw.probability, size=self.count, beta=self.beta)
        return draw.index, weight

    def probabilities(self) -> Tensor:
        """Chance of each index at the next draw: ``[size]`` float64, sums to 1.

        Raises:
            ValueError: if nothing can be drawn.
        """
        return self._law()

    def probability_of(self, index: Tensor) -> Tensor:
        """Chance of each ``index`` ``[K]`` at the next draw: ``[K]`` float64.

        Raises:
            ValueError: if nothing can be drawn.
        """
        return self._law(index)

    def min_probability(self) -> float:
        """Smallest probability among the drawable; it carries the largest importance weight.

        Raises:
            ValueError: if nothing can be drawn.
        """
        self._refuse_draw()
        return self._tree.min_priority / self._tree.total_priority


class AdaptiveDataWeighter(BoostedSampler):
    """Serves every sample equally often, and weighs its loss by what the sampler above draws by.

    A step has the same expectation as one of ``AdaptiveBatchSampler`` without correction
    (``beta=0``); its variance is higher where weights differ much, but no sample is seen less.

    Args:
        dataset_size: see ``BoostedSampler``, as for all the others; ``beta`` has no effect here.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    kind = "weighter"

    def __init__(self, dataset_size: int, learning_rate: float = 0.1, **options: Any) -> None:
        super().__init__(dataset_size, learning_rate, **options)
        self._shuffled = ShuffledSampler(dataset_size, filled=False, device=self.device)
        self._shuffled.generator = self.generator
        if self.count:
            self._shuffled.insert(torch.arange(dataset_size))

    def draw(self, batch_size: int) -> Draw:
        """The next ``batch_size`` of a shuffled pass over the samples.

        Raises:
            ValueError: if nothing can be drawn, or ``batch_size`` is not above 0.
        """
        return self._shuffled.draw(batch_size)

    def sample(self, batch_size: int = 32) -> tuple[Tensor, Tensor]:
        """Indices ``[B]`` and loss weights ``[B]`` float64, of mean 1 over all samples."""
        index = self.draw(batch_size).index
        return index, self.loss_weights(index)

    @property
    def weighs(self) -> bool:
        """It does."""
        return True

    def loss_weights(self, index: Tensor) -> Tensor:
        """``count * weight / sum of weights`` of ``index`` ``[K]``: ``[K]`` float64, mean 1."""
        return self._law(index.to(self.device)) * self.count

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, with the weights they had, at first 1."""
        super().insert(index)
        self._shuffled.insert(index)

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again; its weight is kept."""
        super().remove(index)
        self._shuffled.remove(index)

    def clear(self) -> None:
        """Forget all samples and weights; the generator goes on."""
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
        """The weights, the pass under way and the generator, copied."""
        return {**super().state_dict(), "shuffled": self._shuffled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped.

        Raises:
            ValueError: as ``BoostedSampler.load_state_dict``; nothing changes then.
        """
        self._refuse_state(state, kind=self.kind)
        before = self._shuffled.state_dict()
        self._shuffled.load_state_dict(state["shuffled"])
        try:
            super().load_state_dict(state)
        except ValueError:
            self._shuffled.load_state_dict(before)
            raise
