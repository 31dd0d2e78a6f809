"""A curriculum over any sampler: the support grows, and the inner sampler draws inside it."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lit_adaptive.core.curriculum import (
    competence,
    eligible_mask,
    self_paced_mask,
    self_paced_threshold,
    staged_competence,
)
from lit_adaptive.samplers._indices import check_indices
from lit_adaptive.samplers.base import AdaptiveSampler, Draw, SamplerFactory
from lit_adaptive.samplers.shuffled import ShuffledSampler


class CurriculumSampler(AdaptiveSampler):
    """Lets an inner sampler draw among the samples that the model is competent for.

    A product of two laws: the curriculum's is uniform over its support, so the inner sampler's
    probability over the support is that of the whole, exactly. Weights of full correction aim at
    the mean over the support; what is outside has no chance, and no weight brings it back (mix in
    a ``UniformSampler`` if it must have one).

    The support follows from how far training is (``callbacks.CurriculumProgress`` says so) and
    from one of three rules: competence (the default), stages, or self-pace.

    Args:
        size: number of samples, above 0.
        inner: what draws inside the support; one that learns is told the losses of what it drew.
        start: competence in (0, 1] at the beginning: the share of samples that may be drawn.
        power: shape of the competence curve, above 0; 2 is the square root, 1 a line.
        until: share of the training in (0, 1] after which all may be drawn.
        shares: competences of equally long stages, instead of the curve.
        thresholds: losses below which a sample may be drawn, at the start and at ``until``, instead
            of competence (self-paced learning). After ``until`` all may be drawn.
        by: what is hard: a given ``"difficulty"``, or the last ``"loss"`` seen of each sample.
            ``thresholds`` always go by the loss.
        hardest_first: begin with the hard samples.
        difficulty: ``[size]``, greater is harder; or given later by ``set_difficulty``.
        filled: True: all samples belong to it from the start; False: none.
        seed: of the inner sampler's generator.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    kind = "curriculum"

    def __init__(
        self,
        size: int,
        inner: SamplerFactory = ShuffledSampler,
        *,
        start: float = 0.2,
        power: float = 2.0,
        until: float = 0.5,
        shares: list[float] | None = None,
        thresholds: tuple[float, float] | None = None,
        by: Literal["difficulty", "loss"] = "difficulty",
        hardest_first: bool = False,
        difficulty: Tensor | None = None,
        filled: bool = True,
        seed: int = 0,
    ) -> None:
        self.inner = inner(size)
        super().__init__(size, seed=seed, device=self.inner.device)
        if not 0 < until <= 1:
            raise ValueError(f"until is {until}; the share of the training lies in (0, 1]")
        if by not in ("difficulty", "loss"):
            raise ValueError(f"by is {by!r}; it must be 'difficulty' or 'loss'")
        if shares is not None and thresholds is not None:
            raise ValueError("both shares and thresholds are given; a curriculum follows one rule")
        self.start, self.power, self.until = start, power, until
        self.shares, self.thresholds = shares, thresholds
        self.by: Literal["difficulty", "loss"] = "loss" if thresholds else by
        self.hardest_first = hardest_first
        self.progress = 0.0
        self._share(0.0)  # refuses a rule that is none
        self.inner.clear()
        self.inner.reseed(seed)
        self.generator = self.inner.generator
        self._member = torch.full((size,), filled)
        self._allowed = torch.zeros(size, dtype=torch.bool)
        self._difficulty: Tensor | None = None
        self._loss = torch.full((size if self.by == "loss" else 0,), -math.inf)
        if difficulty is not None:
            self.set_difficulty(difficulty)
        elif self.by == "loss":
            self._restrict()

    # What may be drawn ---------------------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """If the inner sampler does, or the support follows the losses."""
        return self.inner.learns or self.by == "loss"

    @property
    def follows_progress(self) -> bool:
        """It does."""
        return True

    @property
    def wants_difficulty(self) -> bool:
        """Until it is given, unless losses serve."""
        return self.by == "difficulty" and self._difficulty is None

    @property
    def wants_groups(self) -> bool:
        """If the inner sampler does."""
        return self.inner.wants_groups

    @property
    def wants_lengths(self) -> bool:
        """If the inner sampler does."""
        return self.inner.wants_lengths

    @property
    def learns_absent(self) -> bool:
        """It does: as losses to go by, or where the inner sampler does."""
        return True

    @property
    def weighs(self) -> bool:
        """If the inner sampler does."""
        return self.inner.weighs

    def reseed(self, seed: int) -> None:
        """Begin the stream of random numbers that belongs to ``seed``."""
        self.inner.reseed(seed)

    @property
    def competence(self) -> float:
        """The share of the samples that the rule allows now; 1 under ``thresholds``, see there."""
        return self._share(min(self.progress / self.until, 1.0))

    def _share(self, done: float) -> float:
        if self.thresholds is not None:
            self_paced_threshold(done, start=self.thresholds[0], end=self.thresholds[1])
            return 1.0
        if self.shares is not None:
            return staged_competence(done, shares=self.shares)
        return competence(done, start=self.start, power=self.power)

    def set_difficulty(self, difficulty: Tensor) -> None:
        """Say how hard each sample is: ``[size]``, finite, greater is harder.

        Raises:
            ValueError: if there is not one for each sample, or one is NaN or infinite (its index is
                named); nothing changes then.
        """
        difficulty = difficulty.detach().cpu().double()
        if difficulty.shape != (self.size,):
            raise ValueError(
                f"there are difficulties of shape {tuple(difficulty.shape)} for {self.size} "
                "samples: give one for each"
            )
        if bool((wrong := ~difficulty.isfinite()).any()):
            where = wrong.nonzero().flatten()[:8].tolist()
            raise ValueError(
                f"the difficulties of index {where} are {difficulty[where].tolist()}; they must be "
                "finite: fill them, or leave these samples out"
            )
        self.inner.set_difficulty(difficulty)
        if self.by == "difficulty":
            self._difficulty = difficulty
            self._restrict()

    def set_groups(self, groups: Tensor) -> None:
        """Tell the inner sampler."""
        self.inner.set_groups(groups)

    def set_lengths(self, lengths: Tensor) -> None:
        """Tell the inner sampler."""
        self.inner.set_lengths(lengths)

    def advance(self, progress: float) -> None:
        """Widen (or, going by losses, move) the support to what ``progress`` in [0, 1] allows.

        Raises:
            ValueError: if progress is outside [0, 1], or the threshold leaves no sample.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is {progress}; the share of the training is in [0, 1]")
        self.inner.advance(progress)
        self.progress = progress
        if not self.wants_difficulty:
            self._restrict()

    def _restrict(self) -> None:
        done = min(self.progress / self.until, 1.0)
        if not bool(self._member.any()) or done >= 1:
            allowed = self._member.clone()
        else:
            allowed = torch.zeros_like(self._member)
            score = self._difficulty if self._difficulty is not None else self._loss
            allowed[self._member] = self._judge(score[self._member], done)
        self.inner.remove((self._allowed & ~allowed).nonzero().flatten())
        self.inner.insert((allowed & ~self._allowed).nonzero().flatten())
        self._allowed = allowed

    def _judge(self, score: Tensor, done: float) -> Tensor:
        if self.thresholds is not None:
            threshold = self_paced_threshold(done, start=self.thresholds[0], end=self.thresholds[1])
            return self_paced_mask(score, threshold=threshold)
        return eligible_mask(score, self._share(done), hardest_first=self.hardest_first)

    @property
    def count(self) -> int:
        """How many indices can be drawn now: the size of the support."""
        return self.inner.count

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` members; drawable when the curriculum allows them."""
        self._member[check_indices(index, self.size)] = True
        if not self.wants_difficulty:
            self._restrict()

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again."""
        index = check_indices(index, self.size)
        self._member[index] = False
        self.inner.remove(index[self._allowed[index]])
        self._allowed[index] = False

    def clear(self) -> None:
        """Forget all members and losses; difficulties and the generator stay."""
        self._member.zero_()
        self._allowed.zero_()
        self._loss.fill_(-math.inf)
        self.inner.clear()

    # What is drawn, and learnt -------------------------------------------------------------------

    def draw(self, batch_size: int) -> Draw:
        """What the inner sampler draws inside the support.

        Raises:
            ValueError: if no difficulty was given, nothing can be drawn, or ``batch_size`` is not
                above 0.
        """
        if self.wants_difficulty:
            raise ValueError(
                "this curriculum has no difficulties: give the datamodule `difficulty` (a column "
                "of the dataset, or a file of scores), call set_difficulty, or go by losses "
                "(by: loss)"
            )
        return self.inner.draw(batch_size)

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Hand on what came of ``index`` ``[K]``.

        What left the support meanwhile is handed on only if the inner sampler takes it.

        Raises:
            ValueError: as the inner sampler's ``update``; or if a loss to go by is NaN.
        """
        here = check_indices(index, self.size)
        if self.inner.learns:
            assert isinstance(self.inner, AdaptiveSampler)
            if not self.inner.learns_absent:
                inside = self._allowed[here].to(index.device)
                index, priority = index[inside], priority[inside]
            self.inner.update(index, priority)
        if self.by == "loss":
            loss = priority.detach().cpu().float()
            if bool((wrong := loss.isnan()).any()):
                raise ValueError(
                    f"the losses of index {here[wrong][:8].tolist()} are NaN, which is neither "
                    "easy nor hard: look for NaN in the model"
                )
            self._loss[here] = loss

    def loss_weights(self, index: Tensor) -> Tensor | None:
        """Those of the inner sampler."""
        return self.inner.loss_weights(index)

    def probabilities(self) -> Tensor:
        """Those of the inner sampler over the support, 0 outside: ``[size]`` float64."""
        return self.inner.probabilities()

    def probability_of(self, index: Tensor) -> Tensor:
        """Chance of each ``index`` ``[K]`` at the next draw: ``[K]`` float64."""
        return self.inner.probability_of(index)

    def min_probability(self) -> float:
        """That of the inner sampler."""
        return self.inner.min_probability()

    def forget(self, share: float) -> None:
        """Let the inner sampler forget."""
        if isinstance(self.inner, AdaptiveSampler):
            self.inner.forget(share)
        else:
            super().forget(share)

    def scores(self) -> Tensor:
        """What the inner sampler learnt, or the last losses (0 where there is none)."""
        if self.inner.learns:
            assert isinstance(self.inner, AdaptiveSampler)
            return self.inner.scores()
        return self._loss.double().clamp_min(0)

    def set_scores(self, score: Tensor) -> None:
        """Begin with what an earlier run's inner sampler learnt, or with its losses."""
        if self.inner.learns:
            assert isinstance(self.inner, AdaptiveSampler)
            self.inner.set_scores(score)
        else:
            self._loss = self._checked_scores(score).cpu().float()
            self._restrict()

    def state_dict(self) -> dict[str, Any]:
        """The inner sampler's state, the support, progress and losses, copied."""
        return {
            "kind": self.kind,
            "size": self.size,
            "by": self.by,
            "inner": self.inner.state_dict(),
            "member": self._member.clone(),
            "allowed": self._allowed.clone(),
            "progress": self.progress,
            "loss": self._loss.clone(),
            "difficulty": None if self._difficulty is None else self._difficulty.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped.

        Raises:
            ValueError: if the state is another sampler's, of another size, or of other
                difficulties; nothing changes then.
        """
        self._refuse_state(state, kind=self.kind, by=self.by)
        known = state["difficulty"]
        if self._difficulty is not None and known is not None:
            differs = known != self._difficulty
            if bool(differs.any()):
                where = differs.nonzero().flatten()[:8].tolist()
                raise ValueError(
                    f"the difficulties of index {where} are not those of the state: resume with "
                    "the same difficulty column. Nothing was changed"
                )
        self.inner.load_state_dict(state["inner"])
        self._difficulty = None if known is None else known.clone()
        self._member = state["member"].clone()
        self._allowed = state["allowed"].clone()
        self._loss = state["loss"].clone()
        self.progress = float(state["progress"])
