"""What ``RewardWeightedSampler`` draws by: the settings of a law, and the masses it gives."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_adaptive.core import reward_weighted as core

Scheme = Literal["exponential", "rank", "threshold", "top", "proportional", "nested"]

SCHEMES = ("exponential", "rank", "threshold", "top", "proportional", "nested")


@dataclass(frozen=True)
class RewardLaw:
    """See ``RewardWeightedSampler`` for the settings.

    Raises:
        ValueError: naming the setting that is out of its range or does not fit the scheme.
    """

    scheme: Scheme
    temperature: float
    threshold: float | None
    share: float | None
    shares: list[float] | None
    normalize_groups: bool
    balance_groups: bool
    initial: float | None

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme is {self.scheme!r}; it must be one of {', '.join(SCHEMES)}")
        core.check_temperature(self.temperature)
        self._refuse_strangers()
        core.check_shares(self._best_shares)
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold is {self.threshold}; it must be finite")
        least = 0.0 if self.scheme == "proportional" else -math.inf
        if self.initial is not None and not least <= self.initial < math.inf > -self.initial:
            raise ValueError(
                f"initial is {self.initial}; it must be a finite reward (and under the scheme "
                "proportional not negative)"
            )
        if self.normalize_groups and self.scheme == "proportional":
            raise ValueError(
                "normalised rewards are negative for about half of the samples, which the scheme "
                "proportional cannot draw by: choose exponential or rank, or balance_groups"
            )

    def _refuse_strangers(self) -> None:
        """Settings of other schemes, and a scheme without its own."""
        for name, owner in (("threshold", "threshold"), ("share", "top"), ("shares", "nested")):
            value = getattr(self, name)
            if value is not None and self.scheme != owner:
                raise ValueError(
                    f"{name} is {value}, but the scheme is {self.scheme!r}; {name} belongs to the "
                    f"scheme {owner!r}: choose that, or leave {name} out"
                )
            if value is None and self.scheme == owner and name != "shares":
                raise ValueError(f"the scheme {owner!r} needs {name}: give it a number")

    @property
    def settings(self) -> dict[str, Any]:
        """All of them by name, as primitives."""
        return asdict(self)

    @property
    def grouped(self) -> bool:
        """Whether groups are needed."""
        return self.normalize_groups or self.balance_groups

    @property
    def pointwise(self) -> bool:
        """Whether a mass follows from its own reward alone, once all are told."""
        return self.scheme in ("exponential", "threshold", "proportional") and not self.grouped

    @property
    def may_fail(self) -> bool:
        """Whether rewards can be such that none can be drawn."""
        return self.scheme in ("threshold", "proportional")

    @property
    def _best_shares(self) -> list[float]:
        if self.share is not None:
            return [self.share]
        return list(core.NESTED) if self.shares is None else self.shares

    def check(self, index: Tensor, reward: Tensor) -> Tensor:
        """``reward`` ``[K]`` of ``index`` ``[K]`` as float64 on the CPU.

        Raises:
            ValueError: naming the indices whose reward is NaN, infinite, or (under the scheme
                proportional) negative.
        """
        reward = reward.detach().to("cpu", torch.float64)
        said = ""
        if bool((wrong := ~reward.isfinite()).any()):
            said = core.not_finite(index[wrong], reward[wrong])
        elif self.scheme == "proportional" and bool((wrong := reward < 0).any()):
            said = core.negative_reward(index[wrong], reward[wrong])
        if said:
            raise ValueError(f"{said}. Nothing was changed")
        return reward

    def filled_in(self, reward: Tensor) -> Tensor:
        """``reward`` with ``initial``, or else the mean of what is there, where it is NaN."""
        untold = reward.isnan()
        if not bool(untold.any()):
            return reward
        initial = self.initial
        if initial is None:
            initial = 0.0 if bool(untold.all()) else float(reward[~untold].mean())
        return torch.where(untold, initial, reward)

    def own_masses(self, reward: Tensor, offset: float) -> Tensor:
        """Masses of some rewards ``[K]`` under a pointwise law; ``offset`` has mass 1.

        Only the exponential law has an offset; a mass may overflow to infinity.
        """
        reward = self.filled_in(reward)
        if self.scheme == "exponential":
            return ((reward - offset) / self.temperature).exp()
        if self.threshold is not None:
            return (reward >= self.threshold).double()
        return reward

    def masses(self, reward: Tensor, group: Tensor | None) -> tuple[Tensor, float]:
        """Masses of all members' rewards ``[M]``, NaN where untold, and the offset they have.

        Raises:
            ValueError: if none could be drawn, saying why.
        """
        value = self._values(reward, group)
        greatest = float(value.amax())
        hopeless = self.scheme == "proportional" and greatest == 0
        if self.threshold is not None:
            hopeless = greatest < self.threshold
        group = group if self.balance_groups else None
        if hopeless and bool((untold := reward.isnan()).any()):
            mass = untold.double()
        else:
            mass = self._told_masses(value, group)
        return (mass if group is None else core.balance_groups(mass, group)), greatest

    def _values(self, reward: Tensor, group: Tensor | None) -> Tensor:
        """What the law goes by: rewards, filled in, and normalised within groups if wanted."""
        if group is None or not self.normalize_groups:
            return self.filled_in(reward)
        if self.initial is not None:
            return core.standardize_rewards(self.filled_in(reward), group)
        told = ~reward.isnan()
        value = torch.zeros_like(reward)  # the mean of any group
        value[told] = core.standardize_rewards(reward[told], group[told])
        return value

    def _told_masses(self, value: Tensor, group: Tensor | None) -> Tensor:
        if self.scheme == "exponential":
            return core.exponential_masses(value, temperature=self.temperature, group=group)
        if self.scheme == "rank":
            return core.rank_masses(value, temperature=self.temperature, group=group)
        if self.scheme == "proportional":
            return core.proportional_masses(value)
        if self.threshold is not None:
            return core.threshold_masses(value, threshold=self.threshold)
        return core.nested_masses(value, shares=self._best_shares, group=group)
