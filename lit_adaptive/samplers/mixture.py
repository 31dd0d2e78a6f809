"""A mixture of samplers: each draws its share, with the probabilities of the mixture."""

import math
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.samplers.base import Draw, SamplerFactory
from lit_adaptive.samplers.wrapper import WrapperSampler


class MixtureSampler(WrapperSampler):
    r"""Draws from each component with its share: :math:`P(i) = \sum_k \lambda_k P_k(i)`.

    The probability of an index is that of the mixture, whichever component drew it; so a share of
    0.1 for a ``UniformSampler`` keeps every sample reachable and limits every weight to 10.
    Shares are stratified: of a batch of B, component k draws :math:`B \lambda_k` indices, give or
    take fewer than two.

    Args:
        size: number of samples, above 0.
        samplers: the components; every component that learns is updated with every draw.
        shares: fraction of the draws from each component, above 0; they sum to 1. By default
            equal.
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the generator that assigns draws to components; theirs are derived from it.

    Raises:
        ValueError: if there is no component, the shares do not fit, a component has loss weights
            (which would have to apply to the draws of the others), or does not state the
            probabilities of its next draw (``InfoBatchSampler``, ``BucketedSampler``).
    """

    def __init__(
        self,
        size: int,
        samplers: list[SamplerFactory],
        shares: list[float] | None = None,
        *,
        filled: bool = True,
        seed: int = 0,
    ) -> None:
        if not samplers:
            raise ValueError("samplers is empty; a mixture needs at least one")
        given = shares is not None
        shares = [1.0] * len(samplers) if shares is None else shares
        if len(shares) != len(samplers):
            raise ValueError(
                f"{len(shares)} shares for {len(samplers)} samplers; give one per sampler"
            )
        if not all(0 < share < math.inf for share in shares):
            raise ValueError(f"shares are {shares}; each must be above 0 and finite")
        total = math.fsum(shares)
        if given and not math.isclose(total, 1, rel_tol=1e-6):
            raise ValueError(
                f"shares are {shares}, which sum to {total:g}; they must sum to 1: divide each by "
                "the sum"
            )
        super().__init__(size, samplers, seed=seed)
        self._reject_standalone("mixture")
        for sampler in self.samplers:
            if sampler.without_replacement:
                raise ValueError(
                    f"{type(sampler).__name__} draws without replacement, so that a mixture cannot "
                    "state its probabilities: set its uniform_share instead of mixing it"
                )
            if sampler.has_loss_weights:
                raise ValueError(
                    f"{type(sampler).__name__} weights losses, which a mixture cannot: "
                    "mix samplers that draw, such as AdaptiveBatchSampler"
                )
        self.shares = torch.tensor(shares, dtype=torch.float64)
        self.shares /= self.shares.sum()
        self._bounds = self.shares.cumsum(0)
        if not filled:
            self.clear()

    @property
    def count(self) -> int:
        """Number of indices that a component can draw, in ``[0, size]``."""
        counts = [sampler.count for sampler in self.samplers]
        if self.size in counts or len(counts) == 1 or not any(counts):
            return max(counts)
        return int((self.probabilities() > 0).sum())

    def draw(self, batch_size: int) -> Draw:
        """Each component's draws, one after another, with the mixture's probabilities.

        Raises:
            ValueError: if a component cannot draw, or ``batch_size`` is not above 0.
        """
        self._check_draw(batch_size)
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=self.generator)
        point = (torch.arange(batch_size) + uniform) / batch_size
        source = torch.searchsorted(self._bounds[:-1], point, right=True)
        counts = torch.bincount(source, minlength=len(self.samplers)).tolist()
        index = torch.cat(
            [
                sampler.draw(count).index.to(self.device)
                for sampler, count in zip(self.samplers, counts, strict=True)
                if count
            ]
        )
        return Draw(index, self.probability_of(index))

    def probability_of(self, index: Tensor) -> Tensor:
        """Probability of each ``index`` ``[K]`` at the next draw: ``[K]`` float64."""
        total = torch.zeros(len(index), dtype=torch.float64, device=self.device)
        for share, sampler in zip(self.shares.tolist(), self.samplers, strict=True):
            total += share * sampler.probability_of(index).to(self.device)
        return total

    def probabilities(self) -> Tensor:
        """Probability of each index at the next draw: ``[size]`` float64."""
        total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        for share, sampler in zip(self.shares.tolist(), self.samplers, strict=True):
            total += share * sampler.probabilities().to(self.device)
        return total

    def min_probability(self) -> float:
        """Smallest probability of a drawable index. O(size)."""
        probability = self.probabilities()
        return float(probability[probability > 0].min())

    def state_dict(self) -> dict[str, Any]:
        """Shares, generator and each component's state, copied."""
        return {**super().state_dict(), "shares": self.shares.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; components, shares and size must be those of the state."""
        self._check_state(state)
        if not torch.equal(state["shares"], self.shares):
            raise ValueError(
                f"the state's shares are {state['shares'].tolist()}, this mixture's are "
                f"{self.shares.tolist()}; resume with the mixture that was saved"
            )
        super().load_state_dict(state)
