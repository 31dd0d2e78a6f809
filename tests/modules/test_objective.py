"""The objective on a batch of a fresh, a replayed and a demonstrated answer, token by token."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_adaptive.modules import PolicyObjective

LENGTHS = [3, 4, 2, 5]
SEQUENCE = torch.arange(4).repeat_interleave(torch.tensor(LENGTHS))
FRESH, REPLAYED, SHOWN, CUT = range(4)  # CUT is fresh, and was cut: it is not trained on
ADVANTAGE = torch.tensor([1.0, -0.5, 0.8, 2.0], dtype=torch.float64)
WEIGHT = torch.tensor([0.5, 2.0, 1.5, 3.0], dtype=torch.float64)


def tokens(seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return -torch.rand(sum(LENGTHS), generator=source, dtype=torch.float64) - 0.1


LOG_PROB, BEHAVIOR, OLD, REFERENCE, ENTROPY = (tokens(seed) for seed in range(5))


def batch(**more: Any) -> dict[str, Any]:
    return {
        "sequence": SEQUENCE,
        "index": torch.arange(4),
        "advantage": ADVANTAGE,
        "behavior_log_probs": BEHAVIOR,
        "old_log_probs": OLD,
        "trained": torch.tensor([True, True, True, False]),
        "off_policy": torch.tensor([False, False, True, False]),
        "age": torch.tensor([0, 3, 0, 0]),
        "weight": WEIGHT,
        "token_count": torch.tensor(7.0),
        "sequence_count": torch.tensor(3.0),
    } | more


def loss_of(objective: PolicyObjective, *, entropy: bool = False, kl: bool = False) -> float:
    output = objective.loss(
        LOG_PROB, ENTROPY if entropy else None, REFERENCE if kl else None, batch(), 8
    )
    return float(output.loss)


def expected_loss(
    of: Any, *, also: Any = None, keep: Any = None, denominator: Any = None, gamma: float = 0.1
) -> float:
    """The sum over trained tokens, divided by the update's count, of the loss at each."""
    total = 0.0
    for t, i in enumerate(SEQUENCE.tolist()):
        if i == CUT:
            continue
        a, w = float(ADVANTAGE[i]), float(WEIGHT[i])
        if i == SHOWN:
            p = math.exp(float(LOG_PROB[t]))
            value = -a * p / (p + gamma)
        else:
            base = BEHAVIOR if denominator is None else denominator(i)
            ratio = math.exp(float(LOG_PROB[t] - base[t]))
            value = -min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        factor = 1.0 if of is None else of(t, i)
        kept = keep is None or keep(t)
        total += value * w * factor * kept + (0.0 if also is None else also(t))
    return total / 7


def test_weights_multiply_the_policy_loss_of_trained_tokens() -> None:
    assert loss_of(PolicyObjective(loss_type="dapo")) == pytest.approx(expected_loss(None))


def test_kl_and_entropy_are_not_weighted() -> None:
    def also(t: int) -> float:
        gap, ratio = float(REFERENCE[t] - LOG_PROB[t]), math.exp(float(LOG_PROB[t] - BEHAVIOR[t]))
        return 0.3 * ratio * (math.exp(gap) - gap - 1) - 0.2 * float(ENTROPY[t])

    objective = PolicyObjective(loss_type="dapo", kl_beta=0.3, entropy_bonus=0.2)
    assert loss_of(objective, entropy=True, kl=True) == pytest.approx(
        expected_loss(None, also=also)
    )


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_only_fresh_tokens_get_mismatch_weights(mode: Any) -> None:
    def weight(t: int, i: int) -> float:
        if i != FRESH:
            return 1.0
        ratio = math.exp(float(OLD[t] - BEHAVIOR[t]))
        if mode == "mask":
            return ratio if 0.8 <= ratio <= 1.1 else 0.0
        return min(ratio, 1.1)

    objective = PolicyObjective(
        loss_type="dapo", mismatch=mode, mismatch_low=0.8, mismatch_high=1.1
    )
    expected = expected_loss(weight, denominator=lambda i: OLD if i == FRESH else BEHAVIOR)
    assert loss_of(objective) == pytest.approx(expected)
    assert expected != pytest.approx(expected_loss(None))


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_the_logged_share_is_of_fresh_tokens_that_were_truncated_or_masked(mode: Any) -> None:
    objective = PolicyObjective(
        loss_type="dapo", mismatch=mode, mismatch_low=0.8, mismatch_high=1.1
    )
    changed = objective.loss(LOG_PROB, None, None, batch(), 8).shares["mismatch_changed"]
    ratio = (OLD - BEHAVIOR).exp()
    outside = (ratio > 1.1) | ((ratio < 0.8) & (mode == "mask"))
    expected = outside & ((SEQUENCE == FRESH) | (SEQUENCE == CUT))
    assert 0 < int(expected.sum()) < int(((SEQUENCE == FRESH) | (SEQUENCE == CUT)).sum())
    assert changed.bool().equal(expected)


def gradient(objective: PolicyObjective) -> Tensor:
    log_prob = LOG_PROB.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        objective.loss(log_prob, None, None, batch(), 8).loss, log_prob
    )
    return gradient


def test_clip_cov_selects_only_tokens_that_have_a_gradient() -> None:
    # Cui et al. set the covariance of tokens that the PPO clip holds to minus infinity.
    def clip_cov(share: float, low: float = -99.0) -> PolicyObjective:
        return PolicyObjective(
            loss_type="dapo", covariance="clip", covariance_share=share, covariance_low=low,
            covariance_high=99.0,
        )  # fmt: skip

    plain = gradient(PolicyObjective(loss_type="dapo"))
    held = [t for t in range(len(SEQUENCE)) if plain[t] == 0 and SEQUENCE[t] != CUT]
    assert held  # some trained tokens are clipped
    free = int((plain != 0).sum())
    assert not gradient(clip_cov(1.0)).any()
    assert gradient(clip_cov(1.0, low=98.0)).equal(plain)
    for number in range(1, free + 1):  # of the nine trained tokens
        assert int((gradient(clip_cov(number / 9)) != 0).sum()) == free - number


def test_kl_cov_penalizes_the_largest_covariances() -> None:
    trained = [t for t, i in enumerate(SEQUENCE.tolist()) if i != CUT]
    a, p = ADVANTAGE[SEQUENCE][trained], LOG_PROB[trained]
    cov = (a - a.mean()) * (p - p.mean())
    chosen = {trained[k] for k in cov.argsort(descending=True)[:3].tolist()}  # a third of nine

    def also(t: int) -> float:
        gap = abs(float(LOG_PROB[t] - OLD[t]))
        return 0.7 * gap * float(WEIGHT[SEQUENCE[t]]) * (t in chosen)

    objective = PolicyObjective(
        loss_type="dapo", covariance="kl", covariance_share=3 / 9, covariance_beta=0.7
    )
    assert loss_of(objective) == pytest.approx(expected_loss(None, also=also))


def test_in_a_single_update_kl_cov_holds_all_but_demonstrations_to_their_behavior_policy() -> None:
    def also(t: int) -> float:
        gap = abs(float(LOG_PROB[t] - BEHAVIOR[t]))
        return 0.7 * gap * float(WEIGHT[SEQUENCE[t]]) * (SEQUENCE[t] != SHOWN)

    single = batch()
    del single["old_log_probs"]
    objective = PolicyObjective(
        loss_type="dapo", covariance="kl", covariance_share=1.0, covariance_beta=0.7
    )
    loss = float(objective.loss(LOG_PROB, None, None, single, 8).loss)
    assert loss == pytest.approx(expected_loss(None, also=also))


def test_demonstrations_are_never_dropped_as_off_policy() -> None:
    # The threshold drops every sequence with a negative advantage; a demonstration may have one.
    shown = batch(advantage=torch.tensor([1.0, -0.5, -0.8, 2.0]).double())
    shown["behavior_log_probs"] = torch.zeros_like(LOG_PROB)
    output = PolicyObjective(loss_type="dapo", drop_off_policy=0.0).loss(
        LOG_PROB, None, None, shown, 8
    )
    dropped = output.shares["dropped_sequences"].bool().tolist()
    assert dropped == [False, True, False, False]
    p = LOG_PROB[SEQUENCE == SHOWN].exp()
    value = (0.8 * p / (p + 0.1)).sum() * 1.5
    ratio = LOG_PROB[SEQUENCE == FRESH].exp()
    fresh = -torch.minimum(ratio, ratio.clamp(0.8, 1.2)).sum() * 0.5
    assert float(output.loss) == pytest.approx(float(value + fresh) / 7)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("grpo", 3 / 60),
        ("gspo", 3 / 60),
        ("dr_grpo", 3 / 60),
        ("dapo", 7 / 70),
        ("cispo", 7 / 70),
        ("bnpo", 1.0),  # of the micro-batch, whatever the update's
    ],
)
def test_losses_are_divided_by_the_count_of_the_update(kind: Any, part: float) -> None:
    objective = PolicyObjective(loss_type=kind)
    one = float(objective.loss(LOG_PROB, None, None, batch(), 8).loss)
    more = batch(token_count=torch.tensor(70.0), sequence_count=torch.tensor(60.0))
    other = float(objective.loss(LOG_PROB, None, None, more, 8).loss)
    assert other == pytest.approx(one * part)
