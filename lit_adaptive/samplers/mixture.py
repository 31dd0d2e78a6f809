"""A mixture of samplers: each draws its share, and the probability is that of the whole."""

import math
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.samplers.base import AdaptiveSampler, Draw, IndexSampler, SamplerFactory


class MixtureSampler(AdaptiveSampler):
    r"""Draws from each component with its share: :math:`P(i) = \sum_k \lambda_k P_k(i)`.

    Whichever component an index came from, its probability is that of the mixture; so a share of
    0.1 for a ``UniformSampler`` keeps every sample reachable and bounds every weight by 10.
    Shares are stratified: of a batch of B, component k draws about :math:`B \lambda_k`, never a
    whole draw more or less than its neighbours' rounding demands.

    Args:
        size: number of samples, above 0.
        samplers: the components; those that learn are all told what came of every draw.
        shares: how often each is drawn from, above 0; scaled to sum to 1. By default equal.
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the generator that assigns draws; the components' derive from it.

    Raises:
        ValueError: if there is no component, the shares do not fit, or a component weighs losses
            (its weights would have to reach the draws of the others).
    """

    kind = "mixture"

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
            raise ValueError("a mixture needs at least one sampler")
        shares = [1.0] * len(samplers) if shares is None else shares
        if len(shares) != len(samplers):
            raise ValueError(f"{len(shares)} shares for {len(samplers)} samplers; give one each")
        if not all(0 < share < math.inf for share in shares):
            raise ValueError(f"shares are {shares}; each must be above 0 and finite")
        self.samplers: list[IndexSampler] = [factory(size) for factory in samplers]
        super().__init__(size, seed=seed, device=self.samplers[0].device)
        for sampler in self.samplers:
            if sampler.weighs:
                raise ValueError(
                    f"{type(sampler).__name__} weighs losses, which a mixture cannot: "
                    "mix samplers that draw, such as AdaptiveBatchSampler"
                )
        self.shares = torch.tensor(shares, dtype=torch.float64)
        self.shares /= self.shares.sum()
        self._bounds = self.shares.cumsum(0)
        self.reseed(seed)
        self._union: int | None = None
        if not filled:
            self.clear()

    @property
    def learns(self) -> bool:
        """If a component does."""
        return any(sampler.learns for sampler in self.samplers)

    @property
    def follows_progress(self) -> bool:
        """If a component does."""
        return any(sampler.follows_progress for sampler in self.samplers)

    @property
    def wants_difficulty(self) -> bool:
        """If a component does."""
        return any(sampler.wants_difficulty for sampler in self.samplers)

    @property
    def wants_groups(self) -> bool:
        """If a component does."""
        return any(sampler.wants_groups for sampler in self.samplers)

    @property
    def wants_lengths(self) -> bool:
        """If a component does."""
        return any(sampler.wants_lengths for sampler in self.samplers)

    @property
    def learns_absent(self) -> bool:
        """If all components that learn do."""
        return all(sampler.learns_absent for sampler in self._learners())

    def reseed(self, seed: int) -> None:
        """Begin the streams of random numbers that belong to ``seed``, a different one for each."""
        self.generator.manual_seed(seed)
        for place, sampler in enumerate(self.samplers):
            sampler.reseed((seed + 1 + place) * 1_000_003 % 2**31)

    def advance(self, progress: float) -> None:
        """Tell each component."""
        self._union = None
        for sampler in self.samplers:
            sampler.advance(progress)

    def set_difficulty(self, difficulty: Tensor) -> None:
        """Tell each component."""
        self._union = None
        for sampler in self.samplers:
            sampler.set_difficulty(difficulty)

    def set_groups(self, groups: Tensor) -> None:
        """Tell each component."""
        self._union = None
        for sampler in self.samplers:
            sampler.set_groups(groups)

    def set_lengths(self, lengths: Tensor) -> None:
        """Tell each component."""
        for sampler in self.samplers:
            sampler.set_lengths(lengths)

    @property
    def count(self) -> int:
        """How many indices some component can draw, in ``[0, size]``."""
        counts = [sampler.count for sampler in self.samplers]
        if self.size in counts or len(counts) == 1 or not any(counts):
            return max(counts)
        if self._union is None:
            self._union = int((self.probabilities() > 0).sum())
        return self._union

    def draw(self, batch_size: int) -> Draw:
        """Each component's draws, one after another, with the mixture's probabilities.

        Raises:
            ValueError: if a component can draw nothing, or ``batch_size`` is not above 0.
        """
        self._refuse_draw(batch_size)
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=self.generator)
        point = (torch.arange(batch_size) + uniform) / batch_size
        source = torch.searchsorted(self._bounds[:-1], point, right=True)
        wanted = torch.bincount(source, minlength=len(self.samplers)).tolist()
        drawn = [
            sampler.draw(number).index.to(self.device)
            for sampler, number in zip(self.samplers, wanted, strict=True)
            if number
        ]
        index = torch.cat(drawn)
        return Draw(index, self.probability_of(index))

    def probability_of(self, index: Tensor) -> Tensor:
        """Chance of each ``index`` ``[K]`` at the next draw: ``[K]`` float64."""
        total = torch.zeros(len(index), dtype=torch.float64, device=self.device)
        for share, sampler in zip(self.shares.tolist(), self.samplers, strict=True):
            total += share * sampler.probability_of(index).to(self.device)
        return total

    def probabilities(self) -> Tensor:
        """Chance of each index at the next draw: ``[size]`` float64."""
        parts = zip(self.shares.tolist(), self.samplers, strict=True)
        return torch.stack(
            [share * sampler.probabilities().to(self.device) for share, sampler in parts]
        ).sum(0)

    def min_probability(self) -> float:
        """Smallest probability among the drawable. O(size)."""
        law = self.probabilities()
        return float(law[law > 0].min())

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Tell each component that learns.

        Raises:
            ValueError: as theirs; components before the one that refuses have changed then.
        """
        self._union = None
        for sampler in self._learners():
            sampler.update(index, priority)

    def _learners(self) -> list[AdaptiveSampler]:
        return [
            sampler
            for sampler in self.samplers
            if sampler.learns and isinstance(sampler, AdaptiveSampler)
        ]

    def insert(self, index: Tensor) -> None:
        """Tell each component."""
        self._union = None
        for sampler in self.samplers:
            sampler.insert(index)

    def remove(self, index: Tensor) -> None:
        """Tell each component."""
        self._union = None
        for sampler in self.samplers:
            sampler.remove(index)

    def clear(self) -> None:
        """Tell each component."""
        self._union = None
        for sampler in self.samplers:
            sampler.clear()

    def forget(self, share: float) -> None:
        """Tell each component that learns."""
        for sampler in self._learners():
            sampler.forget(share)

    def scores(self) -> Tensor:
        """Those of the first component that learns; 1 for each sample if none does."""
        for sampler in self._learners():
            return sampler.scores()
        return torch.ones(self.size, dtype=torch.float64)

    def set_scores(self, score: Tensor) -> None:
        """Tell the first component that learns."""
        self._union = None
        for sampler in self._learners()[:1]:
            sampler.set_scores(score)

    def state_dict(self) -> dict[str, Any]:
        """Shares, generator and each component's state, copied."""
        return {
            "kind": self.kind,
            "size": self.size,
            "shares": self.shares.clone(),
            "samplers": [sampler.state_dict() for sampler in self.samplers],
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped.

        Raises:
            ValueError: if the state is of other components or shares, or another size; nothing
                changes then.
        """
        self._refuse_state(state, kind=self.kind)
        if not torch.equal(state["shares"], self.shares):
            raise ValueError(
                f"the state's shares are {state['shares'].tolist()}, this mixture's are "
                f"{self.shares.tolist()}; resume with the mixture that was saved"
            )
        before = [sampler.state_dict() for sampler in self.samplers]
        try:
            for sampler, its in zip(self.samplers, state["samplers"], strict=True):
                sampler.load_state_dict(its)
        except ValueError:
            for sampler, its in zip(self.samplers, before, strict=True):
                sampler.load_state_dict(its)
            raise
        self._union = None
        self.generator.set_state(state["generator"])
