"""Samplers that draw through other samplers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.samplers.base import AdaptiveSampler, IndexSampler, SamplerFactory


class WrapperSampler(AdaptiveSampler):
    """Forwards everything but ``draw`` to its inner samplers.

    What can be drawn, and with which probability, is that of the first inner sampler; a wrapper of
    several overrides it.

    Args:
        size: number of samples, above 0.
        samplers: factories of the inner samplers, at least one.
        seed: of the wrapper's generator; the seeds of the inner samplers are derived from it.

    Attributes:
        samplers: the inner samplers.
    """

    def __init__(self, size: int, samplers: Sequence[SamplerFactory], *, seed: int = 0) -> None:
        self.samplers: list[IndexSampler] = [factory(size) for factory in samplers]
        super().__init__(size, seed=seed, device=self.inner.device)
        self.reseed(seed)

    @property
    def inner(self) -> IndexSampler:
        """The first inner sampler."""
        return self.samplers[0]

    def _learners(self) -> list[AdaptiveSampler]:
        return [s for s in self.samplers if s.learns and isinstance(s, AdaptiveSampler)]

    def _require_learners(self, method: str) -> list[AdaptiveSampler]:
        learners = self._learners()
        if not learners:
            names = " and ".join(type(sampler).__name__ for sampler in self.samplers)
            raise ValueError(
                f"{names} learns nothing, so {method} has no effect: choose an inner sampler that "
                "learns, such as AdaptiveBatchSampler"
            )
        return learners

    @property
    def learns(self) -> bool:
        """Whether an inner sampler does."""
        return bool(self._learners())

    @property
    def accepts_absent(self) -> bool:
        """Whether all inner samplers that learn do."""
        learners = self._learners()
        return bool(learners) and all(sampler.accepts_absent for sampler in learners)

    @property
    def follows_progress(self) -> bool:
        """Whether an inner sampler does."""
        return any(sampler.follows_progress for sampler in self.samplers)

    @property
    def has_loss_weights(self) -> bool:
        """Whether the first inner sampler does."""
        return self.inner.has_loss_weights

    @property
    def needs_difficulty(self) -> bool:
        """Whether an inner sampler does."""
        return any(sampler.needs_difficulty for sampler in self.samplers)

    @property
    def needs_groups(self) -> bool:
        """Whether an inner sampler does."""
        return any(sampler.needs_groups for sampler in self.samplers)

    @property
    def needs_lengths(self) -> bool:
        """Whether an inner sampler does."""
        return any(sampler.needs_lengths for sampler in self.samplers)

    @property
    def standalone_reason(self) -> str | None:
        """The first reason of an inner sampler."""
        reasons = (sampler.standalone_reason for sampler in self.samplers)
        return next((reason for reason in reasons if reason), None)

    @property
    def takes_pass_rates(self) -> bool:
        """Whether an inner sampler does."""
        return any(sampler.takes_pass_rates for sampler in self._learners())

    @property
    def without_replacement(self) -> bool:
        """Whether an inner sampler's draws are."""
        return any(sampler.without_replacement for sampler in self.samplers)

    def _reject_standalone(self, whole: str) -> None:
        """Raise ValueError if an inner sampler cannot be part of this ``whole``."""
        for sampler in self.samplers:
            if reason := sampler.standalone_reason:
                raise ValueError(f"{type(sampler).__name__} cannot be part of a {whole}: {reason}")

    def reseed(self, seed: int) -> None:
        """Restart all random numbers from ``seed``, a different stream for each inner sampler."""
        self.generator.manual_seed(seed)
        for place, sampler in enumerate(self.samplers):
            sampler.reseed((seed + 1 + place) * 1_000_003 % 2**31)

    def advance(self, progress: float) -> None:
        """Forward to the inner samplers."""
        for sampler in self.samplers:
            sampler.advance(progress)

    def set_difficulty(self, difficulty: Tensor) -> None:
        """Forward to the inner samplers."""
        for sampler in self.samplers:
            sampler.set_difficulty(difficulty)

    def set_groups(self, groups: Tensor) -> None:
        """Forward to the inner samplers."""
        for sampler in self.samplers:
            sampler.set_groups(groups)

    def set_lengths(self, lengths: Tensor) -> None:
        """Forward to the inner samplers."""
        for sampler in self.samplers:
            sampler.set_lengths(lengths)

    def loss_weights(self, index: Tensor) -> Tensor | None:
        """The weights of the first inner sampler."""
        return self.inner.loss_weights(index)

    @property
    def count(self) -> int:
        """Number of indices that the first inner sampler can draw."""
        return self.inner.count

    def insert(self, index: Tensor) -> None:
        """Forward to the inner samplers."""
        for sampler in self.samplers:
            sampler.insert(index)

    def remove(self, index: Tensor) -> None:
        """Forward to the inner samplers."""
        for sampler in self.samplers:
            sampler.remove(index)

    def clear(self) -> None:
        """Forward to the inner samplers."""
        for sampler in self.samplers:
            sampler.clear()

    def probabilities(self) -> Tensor:
        """Probabilities of the first inner sampler's next draw: ``[size]`` float64."""
        return self.inner.probabilities()

    def probability_of(self, index: Tensor) -> Tensor:
        """Probability of each ``index`` ``[K]`` at the first inner sampler's next draw."""
        return self.inner.probability_of(index)

    def min_probability(self) -> float:
        """Smallest probability of the first inner sampler."""
        return self.inner.min_probability()

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Forward to the inner samplers that learn.

        Raises:
            ValueError: as their ``update`` (those before the failing one have changed); or if no
                inner sampler learns.
        """
        for sampler in self._require_learners("update"):
            sampler.update(index, priority)

    def forget(self, fraction: float) -> None:
        """Forward to the inner samplers that learn."""
        for sampler in self._require_learners("forget"):
            sampler.forget(fraction)

    def scores(self) -> Tensor:
        """Scores of the first inner sampler that learns; ones if none does."""
        for sampler in self._learners():
            return sampler.scores()
        return torch.ones(self.size, dtype=torch.float64)

    def set_scores(self, score: Tensor) -> None:
        """Forward to the first inner sampler that learns."""
        self._require_learners("set_scores")[0].set_scores(score)

    def state_dict(self) -> dict[str, Any]:
        """The states of the inner samplers, and the generator, copied."""
        return {
            **super().state_dict(),
            "samplers": [sampler.state_dict() for sampler in self.samplers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; the state must be of the same inner samplers and the same size."""
        self._check_state(state)
        before = [sampler.state_dict() for sampler in self.samplers]
        try:
            for sampler, inner_state in zip(self.samplers, state["samplers"], strict=True):
                sampler.load_state_dict(inner_state)
        except ValueError:
            for sampler, inner_state in zip(self.samplers, before, strict=True):
                sampler.load_state_dict(inner_state)
            raise
        super().load_state_dict(state)
