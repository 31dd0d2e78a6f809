"""Draws by reward: reward-weighted regression, filters, ranks, and SFT(Q).

Departures from the sources cited in ``core.reward_weighted``:
  1. They weight or copy the samples; here samples are drawn from the same distribution, and the
     probability of each draw is known, so that any part of the bias can be corrected (``beta``).
  2. They know all rewards; here some may be unknown yet. Such a sample counts as ``initial``, or as
     the mean of the known rewards. While no sample of known reward can be drawn (all are 0, or
     below the threshold), those of unknown reward are drawn uniformly.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lit_adaptive.core import reward_weighted
from lit_adaptive.samplers.base import check_indices
from lit_adaptive.samplers.tree import TreeSampler

Scheme = Literal["exponential", "rank", "threshold", "top", "proportional", "nested"]

_LEAST_TOTAL = math.exp(-200.0)  # with a smaller total mass, the masses are computed anew


@dataclass(frozen=True)
class RewardWeighting:
    """The masses of rewards; ``RewardWeightedSampler`` documents the settings.

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
        schemes = get_args(Scheme)
        if self.scheme not in schemes:
            raise ValueError(f"scheme is {self.scheme!r}; it must be one of {', '.join(schemes)}")
        reward_weighted.check_temperature(self.temperature)
        self._check_scheme_settings()
        reward_weighted.check_shares(self._best_shares)
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
                "about half of all normalized rewards are negative, which the scheme proportional "
                "cannot draw by: choose exponential or rank, or balance_groups"
            )

    def _check_scheme_settings(self) -> None:
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
    def needs_groups(self) -> bool:
        """Whether masses depend on the groups of the samples."""
        return self.normalize_groups or self.balance_groups

    @property
    def pointwise(self) -> bool:
        """Whether the mass of a sample depends on its own reward only, once all are known."""
        return self.scheme in ("exponential", "threshold", "proportional") and not self.needs_groups

    @property
    def may_fail(self) -> bool:
        """Whether rewards can be such that no sample can be drawn."""
        return self.scheme in ("threshold", "proportional")

    @property
    def _best_shares(self) -> list[float]:
        if self.share is not None:
            return [self.share]
        return list(reward_weighted.NESTED) if self.shares is None else self.shares

    def check_rewards(self, index: Tensor, reward: Tensor) -> None:
        """Check the rewards ``[K]`` of ``index`` ``[K]``.

        Raises:
            ValueError: naming the indices whose reward is NaN, infinite, or (under the scheme
                proportional) negative.
        """
        reward_weighted.check_rewards(
            reward, index=index, nonnegative=self.scheme == "proportional"
        )

    def fill_unknown(self, reward: Tensor) -> Tensor:
        """Replace NaN in ``reward`` by ``initial``, or else by the mean of the known rewards."""
        unknown = reward.isnan()
        if not bool(unknown.any()):
            return reward
        initial = self.initial
        if initial is None:
            initial = 0.0 if bool(unknown.all()) else float(reward[~unknown].mean())
        return torch.where(unknown, initial, reward)

    def masses(self, reward: Tensor, group: Tensor | None) -> tuple[Tensor, float]:
        """Masses of the rewards ``[M]`` of all members, and their greatest (normalized) reward.

        Args:
            reward: ``[M]``, NaN where unknown.
            group: ``[M]`` integers, or None.

        Raises:
            ValueError: if no sample could be drawn, saying why.
        """
        value = self._values(reward, group)
        greatest = float(value.amax())
        group = group if self.balance_groups else None
        if self._drawable(greatest) or not bool((unknown := reward.isnan()).any()):
            mass = self._scheme_masses(value, group)
        else:
            mass = unknown.double()
        return (mass if group is None else reward_weighted.balance_groups(mass, group)), greatest

    def pointwise_masses(self, reward: Tensor, greatest: float) -> Tensor:
        """Masses of the known rewards ``[K]`` of some members, given the greatest of all."""
        reference = greatest if self._drawable(greatest) else self.threshold or 1.0
        value = torch.cat([reward, reward.new_tensor([reference])])
        return self._scheme_masses(value, None)[:-1]

    def _drawable(self, greatest: float) -> bool:
        """Whether a reward, the greatest of all, has mass."""
        if self.scheme == "proportional":
            return greatest > 0
        return self.threshold is None or greatest >= self.threshold

    def _values(self, reward: Tensor, group: Tensor | None) -> Tensor:
        """The rewards, without unknown ones and, if set, normalized within their groups."""
        if group is None or not self.normalize_groups:
            return self.fill_unknown(reward)
        if self.initial is not None:
            return reward_weighted.standardize_rewards(self.fill_unknown(reward), group)
        known = ~reward.isnan()
        value = torch.zeros_like(reward)  # 0 is the mean of every group
        value[known] = reward_weighted.standardize_rewards(reward[known], group[known])
        return value

    def _scheme_masses(self, value: Tensor, group: Tensor | None) -> Tensor:
        if self.scheme == "exponential":
            return reward_weighted.exponential_masses(
                value, temperature=self.temperature, group=group
            )
        if self.scheme == "rank":
            return reward_weighted.rank_masses(value, temperature=self.temperature, group=group)
        if self.scheme == "proportional":
            return reward_weighted.proportional_masses(value)
        if self.threshold is not None:
            return reward_weighted.threshold_masses(value, threshold=self.threshold)
        return reward_weighted.nested_masses(value, shares=self._best_shares, group=group)


class RewardWeightedSampler(TreeSampler):
    """Draws samples of greater reward more often, in O(log N) per index.

    Rewards are set at once (``set_scores``; a column or file given as the datamodule's ``scores``)
    or when they become known (``update``, ``callbacks.RewardRefresh``); before, all samples are
    equally likely. An update costs O(log N) where a mass depends on its own reward only
    (exponential, unless the reward is the greatest so far; threshold; proportional; each without
    groups), otherwise all masses are computed anew at the next draw. A removed sample keeps its
    reward until it is inserted again; ranks and best shares are those among the inserted samples.
    A reward more than 500 temperatures below the greatest may have no mass at all.

    Args:
        size: number of samples, above 0.
        scheme: masses of the rewards, see ``core.reward_weighted``: ``"exponential"``, ``"rank"``,
            ``"threshold"``, ``"top"``, ``"proportional"`` or ``"nested"``.
        temperature: tau of ``exponential`` (in the unit of the rewards) and ``rank``, above 0.
        threshold: smallest reward that is drawn; required by ``threshold``.
        share: best share of the samples that is drawn, in (0, 1]; required by ``top``.
        shares: the best shares of ``nested``; by default 0.1, 0.05 and 0.02.
        normalize_groups: subtract from each reward its group's mean and divide by its group's
            standard deviation; a threshold is then in these units. Not for ``proportional``.
        balance_groups: draw all groups equally often (except those without mass, such as groups
            all below the threshold) and apply the scheme within each.
        initial: reward of samples whose reward is unknown; by default the mean of the known ones.
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the sampler's own generator.
        device: device of the tree and of the draws; rewards stay on the CPU.

    Raises:
        ValueError: naming the argument that is out of its range or does not fit the scheme.
    """

    def __init__(
        self,
        size: int,
        *,
        scheme: Scheme = "exponential",
        temperature: float = 1.0,
        threshold: float | None = None,
        share: float | None = None,
        shares: list[float] | None = None,
        normalize_groups: bool = False,
        balance_groups: bool = False,
        initial: float | None = None,
        filled: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(size, seed=seed, device=device)
        self.weighting = RewardWeighting(
            scheme=scheme,
            temperature=temperature,
            threshold=threshold,
            share=share,
            shares=shares,
            normalize_groups=normalize_groups,
            balance_groups=balance_groups,
            initial=initial,
        )
        self._reward = torch.full((size,), math.nan, dtype=torch.float64)  # NaN: unknown
        self._inserted = torch.full((size,), filled)
        self._unknown = size if filled else 0  # number of inserted samples of unknown reward
        self._groups: Tensor | None = None
        self._greatest = 0.0  # greatest inserted reward when all masses were computed
        self._stale = filled  # whether masses must be computed anew before the next draw
        if filled and self._pointwise:
            self._rebuild()

    @property
    def needs_groups(self) -> bool:
        """True until they are set, if groups are normalized or balanced."""
        return self.weighting.needs_groups and self._groups is None

    def set_groups(self, groups: Tensor) -> None:
        """Set the group of each sample, such as its prompt: ``[size]`` integers.

        Raises:
            ValueError: if there is not one integer per sample; nothing changes.
        """
        if groups.shape != (self.size,) or groups.is_floating_point() or groups.is_complex():
            raise ValueError(
                f"groups are {groups.dtype} of shape {tuple(groups.shape)}; there must be an "
                f"integer for each of the {self.size} samples"
            )
        if self.weighting.needs_groups:
            self._groups = torch.unique(groups.detach().cpu().long(), return_inverse=True)[1]
            self._stale = True

    # Masses --------------------------------------------------------------------------------------

    @property
    def _exponential(self) -> bool:
        return self.weighting.scheme == "exponential"

    @property
    def _pointwise(self) -> bool:
        """Whether the mass of a sample depends on its own reward only."""
        fixed = not self._unknown or (self.weighting.initial is not None and self._exponential)
        return fixed and self.weighting.pointwise

    def _rebuild(self) -> None:
        """Compute all masses.

        Raises:
            ValueError: if none of the inserted samples can be drawn, saying why; nothing changes.
        """
        if self.needs_groups:
            raise ValueError(
                "this sampler has no groups: give the datamodule a dataset with `groups`, call "
                "set_groups, or leave normalize_groups and balance_groups out"
            )
        member = self._inserted.nonzero().flatten()
        mass, greatest = torch.zeros(self.size, dtype=torch.float64), 0.0
        if len(member):
            group = None if self._groups is None else self._groups[member]
            mass[member], greatest = self.weighting.masses(self._reward[member], group)
        self._tree.assign(mass)
        self._greatest = greatest
        self._stale = False

    def _refresh(self) -> None:
        if self._stale:
            self._rebuild()

    def _update_masses(self, index: Tensor, *, was_pointwise: bool) -> None:
        """Update the masses of ``index`` ``[K]``, or note that all must be computed anew."""
        if not (self._pointwise and was_pointwise and not self._stale):
            self._stale = True
        elif not self._set_pointwise(index):
            self._stale = True  # computing them anew raises if no sample can be drawn
        if self._stale and self._pointwise and self._exponential:
            self._rebuild()  # at once, so that masses do not depend on when they are read

    def _set_pointwise(self, index: Tensor) -> bool:
        """Set the masses of ``index`` ``[K]``; False if all must be computed anew."""
        inserted, reward = self._inserted[index], self._reward[index]
        filled = self.weighting.fill_unknown(reward[inserted])
        if self._exponential and bool((filled > self._greatest).any()):
            return False
        mass = torch.zeros_like(reward)
        mass[inserted] = self.weighting.pointwise_masses(filled, self._greatest)
        self._tree.update(index.to(self.device), mass.to(self.device))
        return self._tree.total_priority > (_LEAST_TOTAL if self._exponential else 0.0)

    # Which samples can be drawn ------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Number of samples with mass, in ``[0, size]``.

        Raises:
            ValueError: if samples are inserted and none of them can be drawn, saying why.
        """
        self._refresh()
        return len(self._tree)

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, with the rewards they had, if any."""
        self._set_inserted(index, inserted=True)

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again; its reward is kept."""
        self._set_inserted(index, inserted=False)

    def _set_inserted(self, index: Tensor, *, inserted: bool) -> None:
        index = torch.unique(check_indices(index, self.size))
        index = index[self._inserted[index] != inserted]
        if not len(index):
            return
        was_pointwise = self._pointwise
        self._inserted[index] = inserted
        change = int(self._reward[index].isnan().sum())
        self._unknown += change if inserted else -change
        self._update_masses(index, was_pointwise=was_pointwise)

    def clear(self) -> None:
        """Remove all samples and forget their rewards; groups and generator are not reset."""
        self._tree.clear()
        self._reward.fill_(math.nan)
        self._inserted.zero_()
        self._unknown, self._greatest, self._stale = 0, 0.0, False

    # Rewards -------------------------------------------------------------------------------------

    @property
    def accepts_absent(self) -> bool:
        """True: the reward of a sample that is not inserted is kept until it is."""
        return True

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Set the rewards ``priority`` ``[K]``, finite, of any sign, of ``index`` ``[K]`` int64.

        If an index occurs twice, the last reward counts.

        Raises:
            ValueError: naming the offending indices, if one is out of range or its reward is NaN,
                infinite, or (under the scheme proportional) negative; or if no sample could be
                drawn; nothing changes.
        """
        index, reward = self._check_update(index, priority, name="rewards")
        self.weighting.check_rewards(index, reward)
        if not len(index):
            return
        was_pointwise, before = self._pointwise, self._reward[index]
        self._reward.numpy()[index.numpy()] = reward.numpy()  # NumPy keeps the last of duplicates
        new = torch.unique(index[before.isnan()])
        new_inserted = int(self._inserted[new].sum())
        self._unknown -= new_inserted
        try:
            self._update_masses(index, was_pointwise=was_pointwise)
            self._check_drawable()
        except ValueError:
            self._reward[index] = before
            self._unknown += new_inserted
            self._stale = True
            raise

    def _check_drawable(self) -> None:
        """Raise ValueError if no sample can be drawn."""
        if self.weighting.may_fail and not self.needs_groups:
            self._refresh()

    def scores(self) -> Tensor:
        """The rewards: ``[size]`` float64; ``initial`` or the mean where unknown (1 if all are)."""
        if bool(self._reward.isnan().all()) and self.weighting.initial is None:
            return torch.ones(self.size, dtype=torch.float64)
        return self.weighting.fill_unknown(self._reward.clone())

    def set_scores(self, score: Tensor) -> None:
        """Set all rewards at once: ``[size]``, finite, of any sign.

        Raises:
            ValueError: naming the offending indices, for another shape, or if no sample could be
                drawn; nothing changes.
        """
        reward = self._check_scores(score, name="rewards", negative=True)
        self.weighting.check_rewards(torch.arange(self.size), reward)
        before, unknown = self._reward, self._unknown
        self._reward, self._unknown, self._stale = reward.clone(), 0, True
        try:
            if self._pointwise and self._exponential:
                self._rebuild()
            self._check_drawable()
        except ValueError:
            self._reward, self._unknown = before, unknown
            raise

    def state_dict(self) -> dict[str, Any]:
        """The settings, rewards, masses, groups and the generator, copied."""
        return {
            **super().state_dict(),
            **asdict(self.weighting),
            "reward": self._reward.clone(),
            "inserted": self._inserted.clone(),
            "groups": None if self._groups is None else self._groups.clone(),
            "mass": self._tree.masses.cpu().clone(),
            "greatest": self._greatest,
            "stale": self._stale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; size, settings and groups must be those of the state."""
        self._check_state(state, **asdict(self.weighting))
        groups: Tensor | None = state["groups"]
        if groups is not None and self._groups is not None and not groups.equal(self._groups):
            where = (groups != self._groups).nonzero().flatten()[:8].tolist()
            raise ValueError(
                f"the groups of index {where} are not those of the state: resume with the same "
                "dataset. Nothing was changed"
            )
        reward, inserted, mass = state["reward"], state["inserted"], state["mass"]
        stale = bool(state["stale"])  # then the masses do not count
        shapes = {tuple(tensor.shape) for tensor in (reward, inserted, mass)}
        if shapes != {(self.size,)} or bool(
            reward.isinf().any() | (~inserted & (mass != 0) & (not stale)).any()
        ):
            raise ValueError(
                "the state does not have one finite reward and one mass per sample, or gives mass "
                "to samples that are not inserted: it is damaged"
            )
        self._tree.load_state_dict({"capacity": self.size, "mass": mass, "next": 0})
        self._reward, self._inserted = reward.clone(), inserted.clone()
        self._unknown = int((reward.isnan() & inserted).sum())
        self._groups = self._groups if groups is None else groups.clone()
        self._greatest, self._stale = float(state["greatest"]), stale
        super().load_state_dict(state)
