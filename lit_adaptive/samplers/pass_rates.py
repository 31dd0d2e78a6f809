"""Estimates of the pass rate of each prompt, from the run's own rollouts and a prediction.

    BetaPosterior      counts of successes and failures, beside the prediction      MoPPS
    MarkovForecast     which prompts are never, sometimes or always solved          DPS
    ArcsineKalman      a drifting normal belief about arcsin(sqrt(p))
    FixedDifficulty    1 - difficulty, as given                                     AdaRFT

``DifficultySampler`` holds one of them. A *visit* is a group of rollouts of a prompt; a *step* is
one call of ``observe``.
"""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.difficulty import (
    Gaussian,
    MarkovBelief,
    Target,
    kalman_update,
    markov_forecast,
    markov_observe,
)

_LEAST_PRIOR = 1e-3  # pseudo-counts of a prompt that is either solved or hopeless


class PassRateEstimator(ABC):
    """An estimate of the pass rate of each prompt; ``allocate`` comes before everything else."""

    state_names: tuple[str, ...] = ()  # attributes that are tensors and make up the state
    size = 0

    def allocate(self, size: int) -> None:
        """Start for ``size`` prompts of which nothing is known."""
        self.size = size

    def set_prediction(self, pass_rate: Tensor, variance: Tensor | None) -> None:  # noqa: B027
        """Take a predictor's beliefs about the pass rates; ignored by default.

        Args:
            pass_rate: ``[size]`` in [0, 1], means.
            variance: ``[size]``, variances; None: unknown.
        """

    @abstractmethod
    def observe(self, index: Tensor, pass_rate: Tensor, rollouts: int) -> None:
        """Learn from a step.

        Args:
            index: ``[K]`` int64, distinct prompts.
            pass_rate: ``[K]`` float64 in [0, 1], mean reward of each.
            rollouts: number of rollouts of each.
        """

    @abstractmethod
    def mean(self) -> Tensor:
        """Estimated pass rates: ``[size]`` float64 in [0, 1]."""

    def sample(self, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Pass rates ``[size]`` drawn from the belief.

        Raises:
            ValueError: if the estimator has no belief to draw from, the default.
        """
        raise ValueError(
            f"thompson is set, but {type(self).__name__} gives no distribution of pass rates: "
            "choose BetaPosterior or ArcsineKalman, or set thompson to false"
        )

    def expected_score(self, target: Target, group_size: int) -> Tensor | None:  # noqa: ARG002
        """Expectation ``[size]`` of a target's score; None: that of ``mean`` serves."""
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that later estimates depend on, copied."""
        return {name: getattr(self, name).clone() for name in self.state_names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: if it is of another estimator or number of prompts.
        """
        for name in self.state_names:
            if name not in state or state[name].shape != getattr(self, name).shape:
                raise ValueError(
                    f"the state has no {name} of {self.size} prompts: resume with the estimator "
                    "and prompts that were saved"
                )
        for name in self.state_names:
            setattr(self, name, state[name].clone())


class BetaPosterior(PassRateEstimator):
    r"""Beta distributions: the prediction as pseudo-counts, and each prompt's own counts.

    :math:`a = n_0 \hat p + S`, :math:`b = n_0 (1 - \hat p) + F`, with the decayed numbers S and F
    of successes and failures. So a prompt without visits has the predicted pass rate, and after a
    visit its own rollouts outweigh it. Where the predictor gives a variance v,
    :math:`n_0 = \hat p (1 - \hat p) / v - 1`, so that the prior has it: below 2, the prompt is
    rather solved or hopeless than of medium difficulty. Without a predictor :math:`\hat p` is 1/2.
    MoPPS (arXiv:2507.04632) is the case without a predictor and with ``thompson: true``.

    Args:
        prior_rollouts: number n_0 of pseudo-counts of the prediction, above 0; the most where the
            predictor gives a variance.
        forgetting: factor of a prompt's counts at each of its visits, in [0, 1]; MoPPS' lambda.
        decay: factor of all counts at each step, in [0, 1], because the policy changes.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    state_names = ("prediction", "prior", "successes", "failures")

    def __init__(
        self, prior_rollouts: float = 2.0, forgetting: float = 1.0, decay: float = 1.0
    ) -> None:
        if not 0 < prior_rollouts < math.inf:
            raise ValueError(f"prior_rollouts is {prior_rollouts}; it must be above 0 and finite")
        _check_shares(forgetting=forgetting, decay=decay)
        self.prior_rollouts, self.forgetting, self.decay = prior_rollouts, forgetting, decay

    def allocate(self, size: int) -> None:
        """Start for ``size`` prompts with a prediction of 1/2."""
        super().allocate(size)
        self.prediction = torch.full((size,), 0.5, dtype=torch.float64)
        self.prior = torch.full((size,), self.prior_rollouts, dtype=torch.float64)
        self.successes = torch.zeros(size, dtype=torch.float64)
        self.failures = torch.zeros(size, dtype=torch.float64)

    def set_prediction(self, pass_rate: Tensor, variance: Tensor | None = None) -> None:
        """Take predicted pass rates ``[size]`` and their variances; the counts stay."""
        self.prediction = pass_rate.double().clone()
        if variance is not None:
            spread = self.prediction * (1 - self.prediction)
            rollouts = spread / variance.double().clamp(min=1e-12) - 1
            self.prior = rollouts.clamp(_LEAST_PRIOR, max(self.prior_rollouts, _LEAST_PRIOR))

    def observe(self, index: Tensor, pass_rate: Tensor, rollouts: int) -> None:
        """Decay all counts, forget at the visited prompts, and add their successes and failures."""
        for counts, share in ((self.successes, pass_rate), (self.failures, 1 - pass_rate)):
            counts.mul_(self.decay)
            counts[index] = counts[index] * self.forgetting + share * rollouts

    def _parameters(self) -> tuple[Tensor, Tensor]:
        success = self.prior * self.prediction + self.successes
        return success, self.prior * (1 - self.prediction) + self.failures

    def mean(self) -> Tensor:
        """Mean of each posterior: ``[size]`` float64."""
        success, failure = self._parameters()
        return success / (success + failure)

    def sample(self, generator: torch.Generator) -> Tensor:
        """A draw from each posterior: ``[size]`` float64."""
        seed = int(torch.randint(2**62, (), generator=generator))
        success, failure = (parameter.clamp(min=1e-9).numpy() for parameter in self._parameters())
        return torch.from_numpy(np.random.default_rng(seed).beta(success, failure))

    def expected_score(self, target: Target, group_size: int) -> Tensor | None:
        """Expectations of p (1 - p), and of the probability that rewards of a group differ."""
        success, failure = self._parameters()
        total = success + failure
        if target == "learnability":
            return success * failure / (total * (total + 1))
        if target != "informative":
            return None
        same = torch.zeros_like(total)
        for count in (success, failure):  # beta-binomial probability of all or none
            product = torch.ones_like(total)
            for number in range(group_size):
                product *= (count + number) / (total + number)
            same += product
        return 1 - same


class MarkovForecast(PassRateEstimator):
    """A hidden Markov model of each prompt over the states never, sometimes and always solved.

    DPS (arXiv:2603.10887, ICLR 2026): a visit shows the state; at every step all prompts move by
    their own transition matrix, whose counts decay towards 1. Use it with ``target: informative``
    and ``selection: top_k``.

    Args:
        forgetting: weight of the counts so far against the prior, in [0, 1]; 0.7 on mathematics
            and 0.5 elsewhere in the paper.
    """

    state_names = ("state", "transition")

    def __init__(self, forgetting: float = 0.7) -> None:
        _check_shares(forgetting=forgetting)
        self.forgetting = forgetting

    def allocate(self, size: int) -> None:
        """Start for ``size`` prompts with equal probabilities and counts of 1."""
        super().allocate(size)
        self.state = torch.full((size, 3), 1 / 3, dtype=torch.float64)
        self.transition = torch.ones(size, 3, 3, dtype=torch.float64)

    def observe(self, index: Tensor, pass_rate: Tensor, rollouts: int) -> None:  # noqa: ARG002
        """Update the visited prompts, then move all prompts by one step."""
        belief = MarkovBelief(self.state[index], self.transition[index])
        outcome = torch.ones_like(index)
        outcome[pass_rate <= 0], outcome[pass_rate >= 1] = 0, 2
        updated = markov_observe(belief, outcome, forgetting=self.forgetting)
        self.state[index], self.transition[index] = updated
        self.state = markov_forecast(MarkovBelief(self.state, self.transition))

    def mean(self) -> Tensor:
        """Pass rates, taking 1/2 for prompts that are sometimes solved: ``[size]`` float64."""
        return self.state @ torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)

    def expected_score(self, target: Target, group_size: int) -> Tensor | None:  # noqa: ARG002
        """For ``informative`` the probability of being sometimes solved: ``[size]`` float64."""
        return self.state[:, 1].clone() if target == "informative" else None


class ArcsineKalman(PassRateEstimator):
    """A normal belief about arcsin(sqrt(p)) of each prompt, which widens at every step.

    Args:
        drift: variance that each step adds, at least 0.
        prior_variance: variance without visits, above 0; that of a uniform pass rate is about
            0.22. With a predictor, the variance of its error.
    """

    state_names = ("psi", "variance", "prediction", "visited")

    def __init__(self, drift: float = 1e-3, prior_variance: float = 0.22) -> None:
        if not 0 <= drift < math.inf:
            raise ValueError(f"drift is {drift}; it must be at least 0 and finite")
        if not 0 < prior_variance < math.inf:
            raise ValueError(f"prior_variance is {prior_variance}; it must be above 0 and finite")
        self.drift, self.prior_variance = drift, prior_variance

    def allocate(self, size: int) -> None:
        """Start for ``size`` prompts with a prediction of 1/2."""
        super().allocate(size)
        self.psi = torch.full((size,), math.pi / 4, dtype=torch.float64)
        self.variance = torch.full((size,), self.prior_variance, dtype=torch.float64)
        self.prediction = self.psi.clone()
        self.visited = torch.zeros(size, dtype=torch.bool)

    def set_prediction(self, pass_rate: Tensor, variance: Tensor | None = None) -> None:  # noqa: ARG002
        """Take predicted pass rates ``[size]`` as the belief about prompts without visits.

        Where there were visits, the prediction is one more observation with ``prior_variance``
        less whatever an earlier prediction gave: only the change of the prediction moves the mean.
        """
        psi = pass_rate.double().clamp(0, 1).sqrt().asin()
        gain = self.variance / (self.variance + self.prior_variance)
        moved = self.psi + gain * (psi - self.prediction)
        self.psi = torch.where(self.visited, moved.clamp(0, math.pi / 2), psi)
        self.prediction = psi

    def observe(self, index: Tensor, pass_rate: Tensor, rollouts: int) -> None:
        """Widen all beliefs, and update those of the visited prompts."""
        self.variance = (self.variance + self.drift).clamp(max=self.prior_variance)
        belief = Gaussian(self.psi[index], self.variance[index])
        count = torch.full((len(index),), float(rollouts), dtype=torch.float64)
        self.psi[index], self.variance[index] = kalman_update(belief, pass_rate.double(), count)
        self.visited[index] = True

    def mean(self) -> Tensor:
        """sin^2 of the mean: ``[size]`` float64."""
        return self.psi.sin().square()

    def sample(self, generator: torch.Generator) -> Tensor:
        """sin^2 of a draw from each belief: ``[size]`` float64."""
        noise = torch.randn(self.size, dtype=torch.float64, generator=generator)
        psi = self.psi + noise * self.variance.sqrt()
        return psi.clamp(0, math.pi / 2).sin().square()


class FixedDifficulty(PassRateEstimator):
    """1 - difficulty, from the datamodule's ``difficulty``; nothing is learnt.

    Difficulties outside [0, 1] are scaled to it by their minimum and maximum.
    """

    state_names = ("pass_rate",)

    def allocate(self, size: int) -> None:
        """Start for ``size`` prompts, whose difficulty is not known yet."""
        super().allocate(size)
        self.pass_rate = torch.full((size,), math.nan, dtype=torch.float64)

    def set_difficulty(self, difficulty: Tensor) -> None:
        """Set the difficulty ``[size]``, finite."""
        low, high = (float(bound) for bound in difficulty.aminmax())
        if low < 0 or high > 1:
            difficulty = (difficulty - low) / max(high - low, 1e-300)
        self.pass_rate = 1 - difficulty.double()

    def observe(self, index: Tensor, pass_rate: Tensor, rollouts: int) -> None:
        """Nothing."""

    def mean(self) -> Tensor:
        """1 - difficulty: ``[size]`` float64."""
        return self.pass_rate


def _check_shares(**options: float) -> None:
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must lie in [0, 1]")
