"""A curriculum over any sampler: the set of eligible samples changes during training."""

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
from lit_adaptive.samplers.base import Draw, SamplerFactory, check_indices
from lit_adaptive.samplers.shuffled import ShuffledSampler
from lit_adaptive.samplers.wrapper import WrapperSampler


class CurriculumSampler(WrapperSampler):
    """Lets an inner sampler draw from the samples that the model is competent for.

    The inner sampler's distribution over the eligible samples is the distribution of the draws,
    exactly. Weights of full correction estimate the mean over the eligible samples; a sample that
    is not eligible has probability 0, which no weight can correct (mix in a ``UniformSampler`` to
    keep all samples reachable).

    Which samples are eligible depends on the progress of the training
    (``callbacks.CurriculumProgress`` reports it) and on one of three rules: competence (the
    default), stages, or self-paced learning.

    Args:
        size: number of samples, above 0.
        inner: factory of the sampler that draws from the eligible samples. If it learns, it is
            updated with the losses of its draws.
        start: initial competence, in (0, 1]: the fraction of the samples that is eligible.
        power: shape of the competence curve, above 0; 2 is the square root, 1 a line.
        until: fraction of the training, in (0, 1], after which all samples are eligible.
        stages: competences of equally long stages, each in (0, 1], instead of the curve.
        thresholds: losses below which a sample is eligible, at the start and at ``until``, instead
            of competence (self-paced learning). After ``until`` all samples are eligible.
        by: measure of difficulty: the ``"difficulty"`` of each sample, or its last ``"loss"``.
            ``thresholds`` always compare losses.
        hardest_first: begin with the hard samples.
        difficulty: ``[size]``, greater is harder; may be set later by ``set_difficulty``.
        filled: True: all samples are members from the start; False: none.
        seed: of the inner sampler's generator.

    Raises:
        ValueError: naming the argument that is out of its range; or if the inner sampler does not
            state the probabilities of its next draw (``InfoBatchSampler``, ``BucketedSampler``).
    """

    def __init__(
        self,
        size: int,
        inner: SamplerFactory = ShuffledSampler,
        *,
        start: float = 0.2,
        power: float = 2.0,
        until: float = 0.5,
        stages: list[float] | None = None,
        thresholds: tuple[float, float] | None = None,
        by: Literal["difficulty", "loss"] = "difficulty",
        hardest_first: bool = False,
        difficulty: Tensor | None = None,
        filled: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(size, [inner], seed=seed)
        self._reject_standalone("curriculum")
        if not 0 < until <= 1:
            raise ValueError(f"until is {until}; a fraction of the training lies in (0, 1]")
        if by not in ("difficulty", "loss"):
            raise ValueError(f"by is {by!r}; it must be 'difficulty' or 'loss'")
        if stages is not None and thresholds is not None:
            raise ValueError("both stages and thresholds are set; a curriculum follows one rule")
        self.start, self.power, self.until = start, power, until
        self.stages, self.thresholds = stages, thresholds
        self.by: Literal["difficulty", "loss"] = "loss" if thresholds else by
        self.hardest_first = hardest_first
        self.progress = 0.0
        self._competence_at(0.0)  # checks the rule's arguments
        self.inner.clear()
        self._member = torch.full((size,), filled)
        self._eligible = torch.zeros(size, dtype=torch.bool)
        self._difficulty: Tensor | None = None
        self._loss = torch.full((size if self.by == "loss" else 0,), -math.inf)
        if difficulty is not None:
            self.set_difficulty(difficulty)
        elif self.by == "loss":
            self._restrict()

    @property
    def learns(self) -> bool:
        """Whether the inner sampler does, or eligibility depends on the losses."""
        return super().learns or self.by == "loss"

    @property
    def accepts_absent(self) -> bool:
        """True: losses of samples that are not eligible are used too."""
        return True

    @property
    def follows_progress(self) -> bool:
        """True."""
        return True

    @property
    def needs_difficulty(self) -> bool:
        """True until it is set, unless losses are used."""
        return self.by == "difficulty" and self._difficulty is None

    def reseed(self, seed: int) -> None:
        """Restart the inner sampler's random numbers from ``seed``."""
        self.inner.reseed(seed)

    @property
    def competence(self) -> float:
        """The fraction of the samples that the rule allows now; 1 under ``thresholds``."""
        return self._competence_at(self._done())

    def _done(self) -> float:
        """Progress of the curriculum, in [0, 1]."""
        return min(self.progress / self.until, 1.0)

    def _competence_at(self, done: float) -> float:
        if self.thresholds is not None:
            self_paced_threshold(done, start=self.thresholds[0], end=self.thresholds[1])
            return 1.0
        if self.stages is not None:
            return staged_competence(done, shares=self.stages)
        return competence(done, start=self.start, power=self.power)

    def set_difficulty(self, difficulty: Tensor) -> None:
        """Set the difficulty ``[size]`` of all samples, finite, greater is harder.

        Raises:
            ValueError: naming the indices whose difficulty is NaN or infinite, or for another
                shape; nothing changes.
        """
        difficulty = self._check_scores(difficulty, name="difficulties", negative=True)
        super().set_difficulty(difficulty)
        if self.by == "difficulty":
            self._difficulty = difficulty
            self._restrict()

    def advance(self, progress: float) -> None:
        """Set the fraction of the training that is done, and with it the eligible samples.

        Raises:
            ValueError: if progress is outside [0, 1], or no loss is below the threshold.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is {progress}; a fraction of the training is in [0, 1]")
        super().advance(progress)
        self.progress = progress
        if not self.needs_difficulty:
            self._restrict()

    def _restrict(self) -> None:
        """Insert into the inner sampler what became eligible, and remove what no longer is."""
        done = self._done()
        eligible = self._member.clone()
        if bool(eligible.any()) and done < 1:
            score = self._difficulty if self._difficulty is not None else self._loss
            eligible[self._member] = self._judge(score[self._member], done)
        super().remove((self._eligible & ~eligible).nonzero().flatten())
        super().insert((eligible & ~self._eligible).nonzero().flatten())
        self._eligible = eligible

    def _judge(self, score: Tensor, done: float) -> Tensor:
        if self.thresholds is not None:
            threshold = self_paced_threshold(done, start=self.thresholds[0], end=self.thresholds[1])
            return self_paced_mask(score, threshold=threshold)
        return eligible_mask(score, self._competence_at(done), hardest_first=self.hardest_first)

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` members; they can be drawn once they are eligible."""
        self._member[check_indices(index, self.size)] = True
        if not self.needs_difficulty:
            self._restrict()

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again."""
        index = check_indices(index, self.size)
        self._member[index] = False
        super().remove(index[self._eligible[index]])
        self._eligible[index] = False

    def clear(self) -> None:
        """Remove all members and forget their losses; difficulties and generator are not reset."""
        super().clear()
        self._member.zero_()
        self._eligible.zero_()
        self._loss.fill_(-math.inf)

    def draw(self, batch_size: int) -> Draw:
        """The inner sampler's draw from the eligible samples.

        Raises:
            ValueError: if difficulties were not set, nothing can be drawn, or ``batch_size`` is not
                above 0.
        """
        if self.needs_difficulty:
            raise ValueError(
                "this curriculum has no difficulties: give the datamodule `difficulty` (a column "
                "of the dataset, or a file of scores), call set_difficulty, or use losses "
                "(by: loss)"
            )
        return self.inner.draw(batch_size)

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Forward to the inner sampler, and remember the losses if eligibility depends on them.

        Samples that are not eligible any more are forwarded only if the inner sampler accepts them.

        Raises:
            ValueError: as the inner sampler's ``update``; or if eligibility depends on the losses
                and one is NaN.
        """
        indices = check_indices(index, self.size)
        for sampler in self._learners():
            if sampler.accepts_absent:
                sampler.update(index, priority)
            else:
                kept = self._eligible[indices].to(index.device)
                sampler.update(index[kept], priority[kept])
        if self.by == "loss":
            loss = priority.detach().cpu().float()
            if bool((missing := loss.isnan()).any()):
                raise ValueError(
                    f"the losses of index {indices[missing][:8].tolist()} are NaN, which is "
                    "neither easy nor hard: look for NaN in the model"
                )
            self._loss[indices] = loss

    def scores(self) -> Tensor:
        """The inner sampler's scores, or else the last losses (0 where unknown)."""
        if self.by == "loss" and not super().learns:
            return self._loss.double().clamp_min(0)
        return super().scores()

    def set_scores(self, score: Tensor) -> None:
        """Start from the scores of an earlier run's inner sampler, or else from its losses."""
        if self.by == "loss" and not super().learns:
            self._loss = self._check_scores(score, name="losses").float()
            self._restrict()
        else:
            super().set_scores(score)

    def state_dict(self) -> dict[str, Any]:
        """The inner sampler's state, members, eligible samples, progress and losses, copied."""
        return {
            **super().state_dict(),
            "by": self.by,
            "member": self._member.clone(),
            "eligible": self._eligible.clone(),
            "progress": self.progress,
            "loss": self._loss.clone(),
            "difficulty": None if self._difficulty is None else self._difficulty.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; inner sampler, size and difficulties must be those of the state."""
        self._check_state(state, by=self.by)
        difficulty = state["difficulty"]
        if self._difficulty is not None and difficulty is not None:
            differs = difficulty != self._difficulty
            if bool(differs.any()):
                where = differs.nonzero().flatten()[:8].tolist()
                raise ValueError(
                    f"the difficulties of index {where} are not those of the state: resume with "
                    "the same difficulty column. Nothing was changed"
                )
        super().load_state_dict(state)
        self._difficulty = None if difficulty is None else difficulty.clone()
        self._member = state["member"].clone()
        self._eligible = state["eligible"].clone()
        self._loss = state["loss"].clone()
        self.progress = float(state["progress"])
