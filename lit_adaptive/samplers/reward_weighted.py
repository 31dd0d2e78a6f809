"""Draws by reward: reward-weighted regression, filters, ranks, and SFT(Q).

Where this departs from the sources that ``core.reward_weighted`` names, and why:
  1. They weigh or copy the samples; here they are drawn by the same law, and the probability of
     each draw is known, so that any share of the bias can be corrected (``beta``).
  2. They know all rewards; here some may not be told yet. Such a sample counts as ``initial``, or
     as the mean of those told. While no told sample could be drawn (all are 0, or below the
     threshold), the untold are drawn uniformly.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.sum_tree import SumTree
from lit_adaptive.samplers._indices import check_indices
from lit_adaptive.samplers._reward_law import RewardLaw, Scheme
from lit_adaptive.samplers.base import AdaptiveSampler, Draw

_WIDEST = 200.0  # exponents beyond this call for another offset


class RewardWeightedSampler(AdaptiveSampler):
    """Draws a sample the more often the greater its reward, in O(log N) for each index.

    Rewards come at once (``set_scores``, a column or file as the datamodule's ``scores``), or as
    they are found (``update``, ``callbacks.RewardRefresh``); until then all are drawn alike. An
    update costs O(log N) where a mass follows from its own reward (exponential, threshold and
    proportional, without groups), else the law is rebuilt at the next draw. Removing a sample keeps
    its reward, and inserting it gives it back; ranks and best shares are those among the inserted.
    What lies more than 500 temperatures below the best may have no chance at all.

    Args:
        size: number of samples, above 0.
        scheme: the law, see ``core.reward_weighted``: ``"exponential"``, ``"rank"``,
            ``"threshold"``, ``"top"``, ``"proportional"`` or ``"nested"``.
        temperature: tau of ``exponential`` (in the unit of the rewards) and ``rank``, above 0.
        threshold: least reward that is drawn; ``threshold`` needs it.
        share: best share in (0, 1] that is drawn; ``top`` needs it.
        shares: the best shares of ``nested``; by default 0.1, 0.05 and 0.02.
        normalize_groups: take each reward less its group's mean, over its group's standard
            deviation; a threshold is then in these units. Not for ``proportional``.
        balance_groups: draw all groups equally often (but those without mass, such as groups all
            below the threshold) and apply the law within each.
        initial: reward of samples that were told none; by default the mean of those told.
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the sampler's own generator.
        device: where the tree lives and draws are returned; rewards stay on the CPU.

    Raises:
        ValueError: naming the argument that is out of its range or does not fit the scheme.
    """

    kind = "reward_weighted"

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
        self.law = RewardLaw(
            scheme=scheme,
            temperature=temperature,
            threshold=threshold,
            share=share,
            shares=shares,
            normalize_groups=normalize_groups,
            balance_groups=balance_groups,
            initial=initial,
        )
        self._tree = SumTree(size, device=self.device)
        self._reward = torch.full((size,), math.nan, dtype=torch.float64)  # NaN: not told
        self._inserted = torch.full((size,), filled)
        self._untold = size if filled else 0  # how many of the inserted
        self._groups: Tensor | None = None
        self._offset = 0.0  # the reward whose mass is 1, under the exponential law
        self._stale = filled  # whether the tree is behind
        if filled and self._direct:
            self._rebuild()

    # Groups --------------------------------------------------------------------------------------

    @property
    def wants_groups(self) -> bool:
        """Until they are given, if groups are normalised or balanced."""
        return self.law.grouped and self._groups is None

    def set_groups(self, groups: Tensor) -> None:
        """Say which samples belong together, such as answers to one prompt: ``[size]`` integers.

        Raises:
            ValueError: if there is not one integer for each sample; nothing changes then.
        """
        if groups.shape != (self.size,) or groups.is_floating_point() or groups.is_complex():
            raise ValueError(
                f"groups are {groups.dtype} of shape {tuple(groups.shape)}; there must be an "
                f"integer for each of the {self.size} samples"
            )
        if self.law.grouped:
            self._groups = torch.unique(groups.detach().cpu().long(), return_inverse=True)[1]
            self._stale = True

    # The law -------------------------------------------------------------------------------------

    @property
    def _exponential(self) -> bool:
        return self.law.scheme == "exponential"

    @property
    def _direct(self) -> bool:
        """Whether a mass can be set by its own reward alone."""
        known = not self._untold or (self.law.initial is not None and self._exponential)
        return known and self.law.pointwise

    def _rebuild(self) -> None:
        """Make all masses anew.

        Raises:
            ValueError: if none of the inserted can be drawn, saying why; nothing changes then.
        """
        if self.wants_groups:
            raise ValueError(
                "this sampler has no groups: give the datamodule a dataset with `groups`, call "
                "set_groups, or leave normalize_groups and balance_groups out"
            )
        member = self._inserted.nonzero().flatten()
        mass, offset = torch.zeros(self.size, dtype=torch.float64), 0.0
        if len(member):
            group = None if self._groups is None else self._groups[member]
            mass[member], offset = self.law.masses(self._reward[member], group)
        self._tree.assign(mass)
        self._offset = offset
        self._stale = False

    def _refresh(self) -> None:
        if self._stale:
            self._rebuild()

    def _follow(self, index: Tensor, *, was_direct: bool) -> None:
        """Bring the tree up to what was changed at ``index`` ``[K]``, or note that it is behind."""
        if not (self._direct and was_direct and not self._stale):
            self._stale = True
            if self._direct and self._exponential:
                self._rebuild()  # at once, so that the offset does not depend on who looks when
            return
        total = self._set_own(index)
        if self._exponential:
            if not math.exp(-_WIDEST) < total < math.exp(_WIDEST):
                self._rebuild()
        elif total == 0:
            self._stale = True  # the rebuilding will say why nothing can be drawn

    def _set_own(self, index: Tensor) -> float:
        """Set the masses of ``index`` ``[K]``; the total, or inf if a mass would overflow."""
        mass = self.law.own_masses(self._reward[index], self._offset)
        mass = torch.where(self._inserted[index], mass, 0.0)
        if self._exponential and not bool((mass < math.exp(_WIDEST)).all()):
            return math.inf
        self._tree.update(index.to(self.device), mass.to(self.device))
        return self._tree.total_priority

    # What can be drawn ---------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many samples have a chance now, in ``[0, size]``.

        Raises:
            ValueError: if samples are inserted and none of them can be drawn, saying why.
        """
        self._refresh()
        return len(self._tree)

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, with the rewards they had, if any.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        self._mark(index, inserted=True)

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again; its reward is kept.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        self._mark(index, inserted=False)

    def _mark(self, index: Tensor, *, inserted: bool) -> None:
        index = torch.unique(check_indices(index, self.size))
        index = index[self._inserted[index] != inserted]
        if not len(index):
            return
        was_direct = self._direct
        self._inserted[index] = inserted
        change = int(self._reward[index].isnan().sum())
        self._untold += change if inserted else -change
        self._follow(index, was_direct=was_direct)

    def clear(self) -> None:
        """Forget all samples and rewards; groups and the generator stay."""
        self._tree.clear()
        self._reward.fill_(math.nan)
        self._inserted.zero_()
        self._untold, self._offset, self._stale = 0, 0.0, False

    # What is learnt ------------------------------------------------------------------------------

    @property
    def learns_absent(self) -> bool:
        """It does: rewards of what is not inserted are kept until it is."""
        return True

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Give each ``index`` ``[K]`` int64 its reward ``priority`` ``[K]``, finite, of any sign.

        Of an index given twice the last counts. What is not inserted keeps its reward until it is.

        Raises:
            ValueError: naming the offending indices, if one is out of range or its reward is NaN,
                infinite, or (under the scheme proportional) negative; or if no sample could be
                drawn then. The law is unchanged then.
        """
        index = check_indices(index, self.size)
        if index.shape != priority.shape:
            raise ValueError(
                f"index has shape {tuple(index.shape)}, the rewards {tuple(priority.shape)}; "
                "both must be [K]"
            )
        reward = self.law.check(index, priority)
        if not len(index):
            return
        was_direct, before = self._direct, self._reward[index]
        self._reward.numpy()[index.numpy()] = reward.numpy()  # of duplicates the last
        fresh = torch.unique(index[before.isnan()])
        learnt = int(self._inserted[fresh].sum())
        self._untold -= learnt
        try:
            self._follow(index, was_direct=was_direct)
            self._refuse_nothing()
        except ValueError:
            self._reward[index] = before
            self._untold += learnt
            self._stale = True
            raise

    def _refuse_nothing(self) -> None:
        """Under a law that may leave nothing to draw, see at once whether it does."""
        if self.law.may_fail and not self.wants_groups:
            self._refresh()

    def scores(self) -> Tensor:
        """The rewards: ``[size]`` float64; for the untold ``initial``, or the mean (1 if none)."""
        if bool(self._reward.isnan().all()) and self.law.initial is None:
            return torch.ones(self.size, dtype=torch.float64)
        return self.law.filled_in(self._reward.clone())

    def set_scores(self, score: Tensor) -> None:
        """Tell all rewards at once: ``[size]``, finite, of any sign.

        Raises:
            ValueError: naming offending indices, if there is another number of them, or if no
                sample could be drawn then; nothing changes then.
        """
        if score.shape != (self.size,):
            raise ValueError(
                f"there are rewards of shape {tuple(score.shape)} for {self.size} samples: "
                "give one for each"
            )
        reward = self.law.check(torch.arange(self.size), score)
        before, untold = self._reward, self._untold
        self._reward, self._untold, self._stale = reward.clone(), 0, True
        try:
            if self._direct and self._exponential:
                self._rebuild()
            self._refuse_nothing()
        except ValueError:
            self._reward, self._untold = before, untold
            raise

    # What is drawn -------------------------------------------------------------------------------

    def draw(self, batch_size: int) -> Draw:
        """Draw one index from each of ``batch_size`` ranges of equal probability.

        Raises:
            ValueError: if nothing can be drawn, or ``batch_size`` is not above 0.
        """
        self._refuse_draw(batch_size)
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=self.generator)
        return Draw(*self._tree.sample_(uniform, probability=True))

    def probabilities(self) -> Tensor:
        """Chance of each index at the next draw: ``[size]`` float64, sums to 1.

        Raises:
            ValueError: if nothing can be drawn.
        """
        self._refuse_draw()
        return self._tree.priorities / self._tree.total_priority

    def probability_of(self, index: Tensor) -> Tensor:
        """Chance of each ``index`` ``[K]`` at the next draw: ``[K]`` float64.

        Raises:
            ValueError: if nothing can be drawn.
        """
        self._refuse_draw()
        return self._tree.priorities[index] / self._tree.total_priority

    def min_probability(self) -> float:
        """Smallest probability among the drawable; it carries the largest importance weight.

        Raises:
            ValueError: if nothing can be drawn.
        """
        self._refuse_draw()
        least = self._tree.min_priority / self._tree.total_priority
        return max(least, torch.finfo(torch.float64).tiny)

    # Resuming ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The law's settings, rewards, masses as they stand, groups and the generator, copied."""
        return {
            "kind": self.kind,
            "size": self.size,
            **self.law.settings,
            "reward": self._reward.clone(),
            "inserted": self._inserted.clone(),
            "groups": None if self._groups is None else self._groups.clone(),
            "mass": self._tree.priorities.cpu().clone(),
            "offset": self._offset,
            "stale": self._stale,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped.

        Raises:
            ValueError: if the state is another sampler's, of another size, law or grouping, or
                damaged; nothing changes then.
        """
        self._refuse_state(state, kind=self.kind, **self.law.settings)
        groups: Tensor | None = state["groups"]
        if groups is not None and self._groups is not None and not groups.equal(self._groups):
            where = (groups != self._groups).nonzero().flatten()[:8].tolist()
            raise ValueError(
                f"the groups of index {where} are not those of the state: resume with the same "
                "dataset. Nothing was changed"
            )
        reward, inserted, mass = state["reward"], state["inserted"], state["mass"]
        stale = bool(state["stale"])  # then the masses are to be made anew anyway
        shapes = {tuple(each.shape) for each in (reward, inserted, mass)}
        if shapes != {(self.size,)} or bool(
            reward.isinf().any() | (~inserted & (mass != 0) & (not stale)).any()
        ):
            raise ValueError(
                "the state has not one reward and one mass for each sample, or gives mass to some "
                "that are not inserted: it is damaged"
            )
        self._tree.load_state_dict({"capacity": self.size, "mass": mass, "next": 0})
        self._reward, self._inserted = reward.clone(), inserted.clone()
        self._untold = int((reward.isnan() & inserted).sum())
        self._groups = self._groups if groups is None else groups.clone()
        self._offset, self._stale = float(state["offset"]), stale
        self.generator.set_state(state["generator"])
