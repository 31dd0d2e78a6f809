r"""Selection of prompts by difficulty: the score of each, and draws without replacement.

    pass rate    p_q  expected reward of the policy's completions of prompt q, in [0, 1]
    difficulty   d_q  1 - p_q, relative to the policy as it is now ("adaptive difficulty")
    score        s_q  expected benefit of a rollout of the prompt
    log mass          logarithm of the relative frequency of the prompt in draws

Difficulty-targeted online data selection (DOTS; Sun et al., 2025, arXiv:2506.05316) draws with
:math:`P(q) \propto \exp(-|d_q - \alpha| / \tau)`. Its theorem 1: under a centered advantage the
expected squared gradient of a prompt is :math:`V\,p(1-p)(1 - 1/G)` with V the variance of a
rollout's score function, if rollouts are independent; it is largest at p = 1/2.

Draws without replacement are the k largest of the log masses plus independent Gumbel noise, which
is to draw one after another in proportion to the masses of those that are left (Kool et al., 2019,
arXiv:1903.06059). The authors' code draws from a float32 softmax, in which at
:math:`\tau = 10^{-3}` most probabilities are 0, and then draws prompts of probability 0.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_choices
from lit_adaptive.core.segments import segment_mean

Target = Literal["near", "learnability", "root_learnability", "informative", "arcsine"]
Selection = Literal["softmax", "top_k", "proportional"]

_LOWEST_LOG_MASS = -690.0  # relative to the largest: 1e-300, drawn only after all others
_TOP_K_TAU = 1e-12  # so steep that no Gumbel noise turns the order of scores around
_LEAST_NOISE = 2.0**-60  # below the least difference of random numbers, above 0


def adaptive_difficulty(reward: Tensor, group: Tensor, size: int) -> Tensor:
    """Mean of ``1 - reward`` of each group of rollouts: ``[P]`` float64. DOTS, section 4.1.

    Args:
        reward: ``[N]`` in [0, 1]; NaN where no reward applies, which does not count.
        group: ``[N]`` int64 in ``[0, size)``.
        size: number of groups P.

    Returns:
        ``[P]`` float64; NaN for a group without rewards.

    Raises:
        ValueError: naming the rewards that are outside [0, 1].
    """
    known = ~reward.isnan()
    value = reward.detach()[known].double()
    outside = (value < 0) | (value > 1)
    if bool(outside.any()):
        raise ValueError(
            f"there are rewards of {value[outside][:8].tolist()}; a difficulty is 1 minus the mean "
            "of rewards in [0, 1]: scale the rewards, or choose prompts by the spread of their "
            "rewards (PrioritizedSampler with callbacks.PromptStatistics, signal: spread)"
        )
    counted = segment_mean(known.double(), group, size) > 0
    mean = segment_mean(1 - value, group[known], size)
    return mean.masked_fill(~counted, math.nan)


# Scores of prompts --------------------------------------------------------------------------------


def check_selection(target: str, selection: str, alpha: float, tau: float) -> None:
    """Reject options of a selection that are out of range or do not go together.

    Raises:
        ValueError: naming the option, its value and the rule.
    """
    check_choices(target=(target, get_args(Target)), selection=(selection, get_args(Selection)))
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; a difficulty is 1 - pass rate, so it lies in [0, 1]")
    if not 0 < tau < math.inf:
        raise ValueError(
            f"tau is {tau}; scores are divided by it, so it must be above 0 and finite (for the "
            "prompts of the largest scores alone set selection to top_k)"
        )
    if selection == "proportional" and target == "near":
        raise ValueError(
            "selection is 'proportional' and target 'near', whose scores are distances: set "
            "selection to softmax or top_k"
        )
    if selection != "proportional" and target == "arcsine":
        raise ValueError(
            f"selection is {selection!r} and target 'arcsine', whose scores are relative "
            "frequencies: set selection to proportional"
        )


def selection_scores(
    pass_rate: Tensor, target: Target, *, alpha: float = 0.5, group_size: int = 8
) -> Tensor:
    r"""Score of each prompt: ``[N]`` float64.

        near                -|d - alpha|                         DOTS
        learnability        p (1 - p)                            E||g||^2 of a centered advantage
        root_learnability   sqrt(p (1 - p))                      CurES (arXiv:2510.01037)
        informative         1 - p^G - (1 - p)^G                  probability that rewards differ;
                                                                 E||g||^2 if divided by their std
        arcsine             1 / density of arcsin(sqrt(p))       draws uniform in arcsin(sqrt(p))

    Args:
        pass_rate: ``[N]`` in [0, 1].
        target: which score.
        alpha: difficulty that ``near`` aims at, in [0, 1].
        group_size: number G of rollouts of a prompt, for ``informative``.
    """
    p = pass_rate.double()
    if target == "near":
        return -((1 - p) - alpha).abs()
    if target == "learnability":
        return p * (1 - p)
    if target == "root_learnability":
        return (p * (1 - p)).sqrt()
    if target == "informative":
        return 1 - p**group_size - (1 - p) ** group_size
    return 1 / arcsine_density(p)


def arcsine_density(pass_rate: Tensor, bins: int = 20) -> Tensor:
    """Fraction of the prompts whose arcsin(sqrt(p)) is in the same of ``bins`` equal bins: ``[N]``.

    With advantages divided by the standard deviation, an update moves arcsin(sqrt(p)) of every
    prompt with spread equally far, so draws that are uniform in it are the neutral choice.
    """
    angle = pass_rate.double().clamp(0, 1).sqrt().asin() / (math.pi / 2)
    bin_index = (angle * bins).long().clamp(max=bins - 1)
    return (torch.bincount(bin_index, minlength=bins).double() / len(angle))[bin_index]


def selection_log_masses(
    score: Tensor, selection: Selection, *, tau: float = 1e-3, uniform_share: float = 0.0
) -> Tensor:
    """Log masses ``[N]`` float64 of prompts, finite, relative to the largest.

    Args:
        score: ``[N]``, finite; not negative for ``proportional``.
        selection: mass exp(score / tau) (``softmax``), the score itself (``proportional``), or so
            steep in the score that the largest are drawn (``top_k``), equal ones at random.
        tau: temperature of ``softmax``, above 0; 1e-3 in the paper.
        uniform_share: part of the probability that is spread evenly over all prompts, in [0, 1].
    """
    score = score.double()
    if selection == "proportional":
        log = score.log()
        log = (log - log.max()).nan_to_num(nan=0.0, neginf=_LOWEST_LOG_MASS)  # NaN: all are 0
    else:
        log = (score - score.max()) / (tau if selection == "softmax" else _TOP_K_TAU)
    if uniform_share > 0:
        size = torch.tensor(float(len(log)), dtype=torch.float64)
        share = torch.tensor(uniform_share, dtype=torch.float64)
        log = torch.logaddexp(log - log.logsumexp(0) + (-share).log1p(), (share / size).log())
    return log


class GumbelDraw(NamedTuple):
    """Distinct items in order of the draw, and the probability of each to be among them.

    Attributes:
        index: ``[k]`` int64.
        inclusion: ``[k]`` float64 in (0, 1]: probability that the item is among the k, given the
            noise of the others. For any f, the sum of f(i) / inclusion(i) over the draw is an
            unbiased estimate of the sum over all items.
    """

    index: Tensor  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    inclusion: Tensor


def gumbel_top_k(log_mass: Tensor, count: int, generator: torch.Generator) -> GumbelDraw:
    r"""Draw distinct items one after another, in proportion to the masses of those that are left.

    With the noise of the others given, item i is drawn if :math:`\log m_i` plus its own noise
    exceeds their k-th largest sum, :math:`\kappa`: with probability
    :math:`1 - \exp(-m_i e^{-\kappa})` (Kool et al., 2019, section 4.1; the priority sampling of
    Duffield et al., 2007).

    Args:
        log_mass: ``[N]`` float64; ``-inf`` for an item that is never drawn.
        count: number of draws k, in ``[0, number of finite log masses]``.
        generator: source of the random numbers.

    Raises:
        ValueError: if fewer than ``count`` log masses are finite, or one is NaN.
    """
    drawable = int((log_mass > -math.inf).sum())
    if not 0 <= count <= drawable or bool(log_mass.isnan().any()):
        raise ValueError(
            f"count is {count}, but {drawable} of {len(log_mass)} items can be drawn (their log "
            "masses are finite): draw fewer, or give more items a mass"
        )
    # Exponential noise by inversion: torch's own exponential_ takes three times as long.
    uniform = torch.rand(len(log_mass), dtype=torch.float64, generator=generator)
    noise = uniform.neg_().log1p_().neg_().clamp_(min=_LEAST_NOISE)
    perturbed = log_mass.double() - noise.log_()
    top = perturbed.topk(min(count + 1, len(log_mass)))
    index = top.indices[:count]
    threshold = float(top.values[count]) if count < len(log_mass) else -math.inf
    return GumbelDraw(index, -torch.expm1(-torch.exp(log_mass[index].double() - threshold)))


def expected_signal(
    pass_rate: Tensor, group_size: int, advantages: Callable[[Tensor, Tensor, int], Tensor]
) -> Tensor:
    r"""Mean of the squared advantages of a group, expected over its rewards of 0 and 1.

    Times the variance of a rollout's score function this is :math:`E\|g\|^2` of the mean over the
    group times G, if rollouts are independent (DOTS, theorem 1). It is p(1-p)(1-1/G) for centered
    rewards, p(1-p) G/(G-1) for leave-one-out, and (1-1/G)(1 - p^G - (1-p)^G) for rewards divided
    by the group's standard deviation.

    Args:
        pass_rate: ``[N]`` in [0, 1].
        group_size: number G of rollouts of a prompt.
        advantages: function of rewards ``[R]``, groups ``[R]`` and the number of groups, such as
            that of the objective.

    Returns:
        ``[N]`` float64.
    """
    correct = torch.arange(group_size + 1)  # every possible number of correct rollouts
    reward = (torch.arange(group_size) < correct[:, None]).float().flatten()
    group = torch.arange(group_size + 1).repeat_interleave(group_size)
    squared = advantages(reward, group, group_size + 1).double().square()
    signal = segment_mean(squared, group, group_size + 1)
    ways = [float(math.comb(group_size, number)) for number in correct.tolist()]
    p = pass_rate.double()[:, None]
    chance = (
        torch.tensor(ways, dtype=torch.float64) * p**correct * (1 - p) ** (group_size - correct)
    )
    return torch.mv(chance, signal)


# Prediction ---------------------------------------------------------------------------------------


def attention_weights(query: Tensor, reference: Tensor) -> Tensor:
    r"""Weights of the reference prompts in the prediction of each prompt: ``[B, K]``.

    :math:`a = \mathrm{softmax}(z_q \cdot z_i / \sqrt{h})`. DOTS, section 4.1, predicts the mean
    :math:`\hat p_q = \sum_i a_i p_i` of the references' pass rates. The weights are also a belief
    about the prompt, that its pass rate is :math:`p_i` with probability :math:`a_i`: a mean of 1/2
    of references that are solved or hopeless promises less than one of references near 1/2.

    Args:
        query: ``[B, h]``, features of the prompts.
        reference: ``[K, h]``, features of the reference prompts.
    """
    return torch.softmax(query @ reference.T / query.shape[1] ** 0.5, dim=-1)


def calibrated_logits(pass_rate: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    r"""Logits :math:`w\,\mathrm{logit}(\hat p) + b` of calibrated pass rates: ``[B]``.

    Platt scaling, DOTS, section 4.1. Pass rates are first limited to [1e-4, 1 - 1e-4].

    Args:
        pass_rate: ``[B]`` in [0, 1].
        scale: w, scalar or ``[B]``, above 0.
        shift: b, scalar or ``[B]``.
    """
    return scale * torch.logit(pass_rate, eps=1e-4) + shift


# Estimates of pass rates --------------------------------------------------------------------------


class MarkovBelief(NamedTuple):
    """Belief about which prompts are never, sometimes or always solved.

    Attributes:
        state: ``[N, 3]`` float64, probabilities of never, sometimes and always.
        transition: ``[N, 3, 3]`` float64, Dirichlet counts of going to (row) from (column).
    """

    state: Tensor
    transition: Tensor


def markov_forecast(belief: MarkovBelief) -> Tensor:
    """State of each prompt one step later: ``[N, 3]``. DPS (arXiv:2603.10887)."""
    matrix = belief.transition / belief.transition.sum(1, keepdim=True)
    return (matrix @ belief.state[:, :, None])[:, :, 0]


def markov_observe(belief: MarkovBelief, outcome: Tensor, *, forgetting: float) -> MarkovBelief:
    """Learn from the outcome of a group of each prompt. DPS (arXiv:2603.10887).

    Args:
        belief: belief about the N prompts, with the forecast as its state.
        outcome: ``[N]`` int64: 0 if no rollout was right, 1 if some were, 2 if all were.
        forgetting: weight of the counts so far against the prior counts of 1, in [0, 1]; 0.7 on
            mathematics in the paper.
    """
    observed = torch.nn.functional.one_hot(outcome, 3).double()
    matrix = belief.transition / belief.transition.sum(1, keepdim=True)
    joint = observed[:, :, None] * belief.state[:, None, :] * matrix
    joint = joint / joint.sum((1, 2), keepdim=True)
    transition = forgetting * belief.transition + (1 - forgetting) + joint
    return MarkovBelief(observed, transition)


class Gaussian(NamedTuple):
    """Mean ``[N]`` and variance ``[N]`` of normal distributions."""

    mean: Tensor
    variance: Tensor


def kalman_update(belief: Gaussian, pass_rate: Tensor, rollouts: Tensor) -> Gaussian:
    """Posterior of psi = arcsin(sqrt(p)) after a group of rollouts of each prompt.

    In psi the noise of an observed pass rate is nearly the same everywhere: variance 1 / (4G + 2),
    and 1 / (2G) for groups without spread, whose distance from the boundary is not seen.

    Args:
        belief: psi of the N prompts.
        pass_rate: ``[N]`` in [0, 1], observed.
        rollouts: ``[N]``, number G of rollouts behind each.
    """
    flat = (pass_rate <= 0) | (pass_rate >= 1)
    noise = torch.where(flat, 1 / (2 * rollouts), 1 / (4 * rollouts + 2))
    gain = belief.variance / (belief.variance + noise)
    mean = belief.mean + gain * (pass_rate.clamp(0, 1).sqrt().asin() - belief.mean)
    return Gaussian(mean, (1 - gain) * belief.variance)


def skip_probabilities(streak: Tensor, base: Tensor) -> Tensor:
    """Probability of leaving out prompts whose latest groups had no spread.

    GRESO (arXiv:2506.02177): 1 - max(base^z, 0.01).

    Args:
        streak: ``[K]`` int64, number z of the latest visits in a row without spread.
        base: ``[K]`` in [0, 1], the base of each prompt.
    """
    return 1 - (base.double() ** streak.double()).clamp(min=0.01)


def tracked_difficulty(
    alpha: float,
    pass_rate: float,
    *,
    goal: float = 0.5,
    sensitivity: float = 2.0,
    step: float = 0.5,
) -> float:
    """Target difficulty after a step of the given mean pass rate, in [0, 1].

    AdaRFT (arXiv:2504.05520, equation 3), with difficulties in [0, 1] instead of [0, 100]:
    clip(T + eta tanh(a (R - b)), 0, 1).

    Args:
        alpha: target difficulty T so far.
        pass_rate: mean reward R of the step.
        goal: mean reward b to be held.
        sensitivity: a.
        step: largest change eta.
    """
    return min(max(alpha + step * math.tanh(sensitivity * (pass_rate - goal)), 0.0), 1.0)


# How good a prediction is -------------------------------------------------------------------------


class SelectionPrecision(NamedTuple):
    """Share of chosen prompts of medium difficulty, and what it could be.

    Attributes:
        precision: of the prompts predicted nearest to the target, the share whose true pass rate
            lies in the band.
        upper_bound: precision of a perfect prediction.
        random: precision of a random choice.
    """

    precision: float
    upper_bound: float
    random: float


def selection_precision(
    predicted: Tensor,
    pass_rate: Tensor,
    count: int,
    *,
    alpha: float = 0.5,
    band: tuple[float, float] = (0.125, 0.875),
) -> SelectionPrecision:
    """Precision of choosing the ``count`` prompts predicted nearest to a difficulty.

    DOTS, appendix: pass rates in [0.125, 0.875] are those of groups of 8 that have spread.

    Args:
        predicted: ``[N]``, predicted pass rates.
        pass_rate: ``[N]``, true pass rates.
        count: number of prompts that are chosen, in ``[1, N]``.
        alpha: target difficulty.
        band: pass rates that count as right.
    """
    inside = ((pass_rate >= band[0]) & (pass_rate <= band[1])).double()
    chosen = (1 - predicted.double() - alpha).abs().topk(count, largest=False).indices
    return SelectionPrecision(
        float(inside[chosen].mean()),
        min(float(inside.sum()) / count, 1.0),
        float(inside.mean()),
    )


def calibration_error(predicted: Tensor, pass_rate: Tensor, bins: int = 10) -> float:
    """Mean difference of predicted and true pass rates over bins of the prediction, in [0, 1]."""
    bin_index = (predicted.double() * bins).long().clamp(0, bins - 1)
    gap = segment_mean(predicted.double() - pass_rate.double(), bin_index, bins)
    share = torch.bincount(bin_index, minlength=bins).double() / len(predicted)
    return float((gap.abs() * share).sum())
