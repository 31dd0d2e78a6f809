"""Draws prompts of a difficulty that the policy learns most from.

The equations are in ``core.difficulty``; the estimates of pass rates in ``samplers.pass_rates``.

Departures from DOTS (Sun et al., 2025, arXiv:2506.05316):
  1. A selection is drawn in float64 with Gumbel noise, not from a float32 softmax.
  2. The estimate combines the prediction with the prompt's own rollouts (``BetaPosterior``); the
     paper uses the prediction alone.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.difficulty import (
    Selection,
    Target,
    check_selection,
    gumbel_top_k,
    selection_log_masses,
    selection_scores,
    tracked_difficulty,
)
from lit_adaptive.core.segments import segment_mean
from lit_adaptive.samplers.base import AdaptiveSampler, Draw, check_indices, renumbered
from lit_adaptive.samplers.pass_rates import BetaPosterior, FixedDifficulty, PassRateEstimator


class DifficultySampler(AdaptiveSampler):
    r"""Draws without replacement by estimated difficulty: DOTS, and others by its options.

    One selection serves the draws of ``window`` steps in random order, so that no prompt repeats in
    them; then the next is made with the estimates at that moment. ``update``, once per step, takes
    pass rates.

        DOTS        target near, selection softmax, tau 1e-3, window 2, with a predictor
        MoPPS       target near, selection top_k, thompson
        DPS         estimator MarkovForecast, target informative, selection top_k
        AdaRFT      estimator FixedDifficulty, target near, selection top_k, track_reward

    The probability of a draw is the probability that the prompt is in the selection, given the
    random numbers of the others, divided by the selection's size: with full correction
    (``beta: 1``) weights are unbiased.

    Args:
        size: number of prompts, above 0.
        estimator: estimate of each pass rate; by default a ``BetaPosterior``.
        target: score of a prompt (``core.difficulty.selection_scores``); that of the mean pass
            rate, but for ``learnability`` and ``informative`` of a ``BetaPosterior`` and
            ``informative`` of a ``MarkovForecast`` the expectation under the estimator's belief.
        selection: probability of a prompt as a function of its score
            (``core.difficulty.selection_log_masses``).
        alpha: difficulty (1 - pass rate) that ``near`` aims at, in [0, 1].
        tau: temperature of ``softmax``, above 0.
        thompson: draw pass rates from the estimator's belief at each selection, instead of its
            means.
        uniform_share: part of the probability that is spread evenly over all prompts, in [0, 1).
        window: number of steps that a selection serves, above 0; the paper's mu.
        group_size: rollouts behind each pass rate, above 0: the datamodule's ``group_size``.
        track_reward: move ``alpha`` after each update so that the mean pass rate stays 1/2.
        filled: True: all prompts can be drawn from the start; False: none.
        seed: of the sampler's own generator.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(
        self,
        size: int,
        estimator: PassRateEstimator | None = None,
        *,
        target: Target = "near",
        selection: Selection = "softmax",
        alpha: float = 0.5,
        tau: float = 1e-3,
        thompson: bool = False,
        uniform_share: float = 0.0,
        window: int = 1,
        group_size: int = 8,
        track_reward: bool = False,
        filled: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(size, seed=seed)
        check_selection(target, selection, alpha, tau)
        if not 0 <= uniform_share < 1:
            raise ValueError(f"uniform_share is {uniform_share}; it must lie in [0, 1)")
        check_at_least(window=(window, 1), group_size=(group_size, 1))
        self.estimator = BetaPosterior() if estimator is None else copy.deepcopy(estimator)
        self.estimator.allocate(size)
        self.target: Target = target
        self.selection: Selection = selection
        self.alpha, self.tau, self.uniform_share = alpha, tau, uniform_share
        self.thompson, self.window, self.group_size = thompson, window, group_size
        self.track_reward = track_reward
        if thompson:
            self.estimator.sample(torch.Generator())  # raises if it cannot
        self._inserted = torch.full((size,), filled)
        self.end_window()

    # Choice --------------------------------------------------------------------------------------

    @property
    def takes_pass_rates(self) -> bool:
        """True."""
        return True

    @property
    def needs_difficulty(self) -> bool:
        """Whether the estimator is a ``FixedDifficulty`` without difficulties."""
        fixed = isinstance(self.estimator, FixedDifficulty)
        return fixed and bool(self.estimator.mean().isnan().any())

    @property
    def learns(self) -> bool:
        """Whether ``update`` changes what is drawn."""
        return self.track_reward or not isinstance(self.estimator, FixedDifficulty)

    @property
    def accepts_absent(self) -> bool:
        """True."""
        return True

    @property
    def without_replacement(self) -> bool:
        """True."""
        return True

    @property
    def count(self) -> int:
        """Number of prompts that can be drawn."""
        return int(self._inserted.sum())

    @property
    def drawable(self) -> Tensor:
        """Prompts that can be drawn: ``[count]`` int64, ascending."""
        return self._inserted.nonzero().flatten()

    def pass_rates(self) -> Tensor:
        """Estimated pass rates: ``[size]`` float64 in [0, 1]."""
        return self.estimator.mean()

    def set_difficulty(self, difficulty: Tensor) -> None:
        """Set the difficulty ``[size]`` of all prompts, if the estimator takes it."""
        if isinstance(self.estimator, FixedDifficulty):
            self.estimator.set_difficulty(self._check_scores(difficulty, name="difficulties"))

    def set_prediction(self, pass_rate: Tensor, variance: Tensor | None = None) -> None:
        """Take predicted pass rates and make a new selection.

        Args:
            pass_rate: ``[size]`` in [0, 1].
            variance: ``[size]``, variance of the belief about each, at least 0; None: unknown.

        Raises:
            ValueError: naming the indices outside [0, 1], or for another shape.
        """
        everything = torch.arange(self.size)
        _, rate = self._check_pass_rates(everything, pass_rate)
        if variance is not None:
            _, variance = self._check_pass_rates(everything, variance, name="variances")
        self.estimator.set_prediction(rate, variance)
        self.end_window()

    def end_window(self) -> None:
        """Make a new selection at the next draw."""
        # Selected, and not served yet.
        self._queue = Draw(torch.empty(0, dtype=torch.int64), torch.empty(0).double())
        self._selected = False  # whether this window has its selection
        self._drawn: list[int] = []  # in this window: selected, served or not, or left out
        self._steps = 0  # of this window

    def leave_out(self, index: Tensor) -> None:
        """Do not draw ``index`` ``[K]`` in this window: it was rolled out for another purpose."""
        index = check_indices(index, self.size)
        self._drop(index)
        self._drawn += index.tolist()

    def _drop(self, index: Tensor) -> None:
        """Take ``index`` out of what the selection still has to serve."""
        stays = ~torch.isin(self._queue.index, index)
        self._queue = Draw(*(part[stays] for part in self._queue))

    def _log_masses(self) -> Tensor:
        """Log masses ``[size]``; ``-inf`` where not inserted."""
        if self.needs_difficulty:
            raise ValueError(
                "FixedDifficulty has no difficulties: give the datamodule `difficulty` (a column "
                "of the dataset, or a file of scores)"
            )
        estimator, score = self.estimator, None
        if not self.thompson:
            score = estimator.expected_score(self.target, self.group_size)
        if score is None:
            rate = estimator.sample(self.generator) if self.thompson else estimator.mean()
            score = selection_scores(
                rate, self.target, alpha=self.alpha, group_size=self.group_size
            )
        options: dict[str, Any] = {"tau": self.tau, "uniform_share": self.uniform_share}
        if self.count == self.size:
            return selection_log_masses(score, self.selection, **options)
        inserted = self.drawable
        log = torch.full((self.size,), -torch.inf, dtype=torch.float64)
        log[inserted] = selection_log_masses(score[inserted], self.selection, **options)
        return log

    def _select(self, count: int) -> Draw:
        """Up to ``count`` prompts that this window has not had, in random order."""
        log = self._log_masses()
        log[torch.tensor(self._drawn, dtype=torch.int64)] = -torch.inf
        count = min(count, int((log > -torch.inf).sum()))
        selected, inclusion = gumbel_top_k(log, count, self.generator)
        order = torch.randperm(count, generator=self.generator)
        self._drawn += selected.tolist()
        return Draw(selected[order], inclusion[order] / max(count, 1))

    def draw(self, batch_size: int) -> Draw:
        """The next prompts of the selection; if it is used up, others that the window has not had.

        Raises:
            ValueError: if fewer than ``batch_size`` prompts can be drawn, or it is not above 0.
        """
        self._check_draw(batch_size)
        if batch_size > self.count:
            raise ValueError(
                f"batch_size is {batch_size}, but only {self.count} prompts can be drawn without "
                "replacement: lower it, or add prompts"
            )
        if not self._selected:
            self._queue = self._select(self.window * batch_size)
            self._selected = True
        draw, self._queue = (
            Draw(*(part[:batch_size] for part in self._queue)),
            Draw(*(part[batch_size:] for part in self._queue)),
        )
        while len(draw.index) < batch_size:
            more = self._select(batch_size - len(draw.index))
            if not len(more.index):  # the window has had them all
                self._drawn = draw.index.tolist()
            draw = Draw(*(torch.cat(parts) for parts in zip(draw, more, strict=True)))
        return draw

    def probabilities(self) -> Tensor:
        """Probability of each prompt to be the first of the next selection: ``[size]`` float64."""
        self._check_draw()
        return self._log_masses().softmax(0)

    # Learning ------------------------------------------------------------------------------------

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Learn the pass rates ``[K]`` in [0, 1] of ``index`` ``[K]`` int64, and count a step.

        Of several pass rates of a prompt the mean counts. After ``window`` steps a new selection is
        made.

        Raises:
            ValueError: naming the offending indices, if one is out of range or its pass rate is
                outside [0, 1] or NaN; nothing changes.
        """
        index, rate = self._check_pass_rates(index, priority)
        prompt, inverse = torch.unique(index, return_inverse=True)
        mean = segment_mean(rate, inverse, len(prompt))
        self.estimator.observe(prompt, mean, self.group_size)
        if self.track_reward and len(rate):
            self.alpha = tracked_difficulty(self.alpha, float(rate.mean()))
        self._steps += 1
        if self._steps >= self.window:
            self.end_window()

    def scores(self) -> Tensor:
        """The estimated pass rates."""
        return self.pass_rates()

    def set_scores(self, score: Tensor) -> None:
        """Start from the pass rates ``[size]`` of an earlier run, as predictions."""
        self.set_prediction(score)

    # Members -------------------------------------------------------------------------------------

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable from the next selection on."""
        self._inserted[check_indices(index, self.size)] = True

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again."""
        index = check_indices(index, self.size)
        self._inserted[index] = False
        self._drop(index)

    def clear(self) -> None:
        """Remove all prompts and forget their pass rates; the generator is not reset."""
        self._inserted.zero_()
        self.estimator.allocate(self.size)
        self.end_window()

    def state_dict(self) -> dict[str, Any]:
        """Estimates, members, the selection, the target difficulty and the generator, copied."""
        return {
            **super().state_dict(),
            "estimator": type(self.estimator).__name__,
            "estimates": self.estimator.state_dict(),
            "inserted": self._inserted.clone(),
            "queue": self._queue.index.clone(),
            "probability": self._queue.probability.clone(),
            "selected": self._selected,
            "drawn": torch.tensor(self._drawn, dtype=torch.int64),
            "steps": self._steps,
            "alpha": self.alpha,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; the estimator and the size must be those of the state."""
        self._check_state(state, estimator=type(self.estimator).__name__)
        self.estimator.load_state_dict(state["estimates"])
        super().load_state_dict(state)
        self._inserted = state["inserted"].clone()
        self._queue = Draw(state["queue"].clone(), state["probability"].clone())
        self._selected = bool(state["selected"])
        self._drawn = state["drawn"].tolist()
        self._steps = int(state["steps"])
        if self.track_reward:
            self.alpha = float(state["alpha"])

    def load_remapped(self, state: dict[str, Any], rows: Tensor) -> None:
        """Resume with other prompts, and make a new selection at the next draw.

        Args:
            state: of a sampler of other prompts.
            rows: ``[size]`` int64, index of each prompt in ``state``; -1 for a new one, which can
                be drawn and of which nothing is known.
        """
        fresh = self.state_dict()
        estimates = {
            name: renumbered(state["estimates"][name], rows, initial)
            for name, initial in fresh["estimates"].items()
        }
        inserted = renumbered(state["inserted"], rows, torch.ones(self.size, dtype=torch.bool))
        kept = {name: state[name] for name in ("kind", "estimator", "generator", "alpha")}
        self.load_state_dict(fresh | kept | {"estimates": estimates, "inserted": inserted})
