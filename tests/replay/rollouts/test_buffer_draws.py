"""Draws from the rollout buffer against the distributions of the papers."""

import math

import pytest
import torch
from groups_twin import filled_buffer, graded_group, joined
from torch import Tensor

from lit_adaptive.replay.rollouts.buffer import RolloutBuffer

POLICIES = ("uniform", "prioritized", "fresh")


def inclusions(buffer: RolloutBuffer, count: int, draws: int, version: int) -> Tensor:
    """Number of draws that hold each group, the oldest first."""
    keys = buffer.probabilities()[0]
    number = torch.zeros(len(keys))
    for _ in range(draws):
        drawn = buffer.draw(count, version=version, beta=1)
        assert len(set(drawn.key.tolist())) == count
        number += (drawn.key[:, None] == keys).sum(0)
    return number


def expected_probabilities(buffer: RolloutBuffer, version: int) -> Tensor:
    """P(i) in ``filled_buffer``, from the formulas of the papers."""
    i = torch.arange(len(buffer), dtype=torch.float64)
    priority = 1.0 + i % 5 + 1e-6
    if buffer.policy == "fresh":
        priority = priority * (-(version - i) / buffer.tau).exp()
    mass = torch.ones_like(i) if buffer.policy == "uniform" else priority**buffer.alpha
    return mass / mass.sum()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("count", [1, 7])
def test_draws_follow_the_policys_distribution(policy: str, count: int) -> None:
    buffer = filled_buffer(20, policy=policy, tau=15.0, seed=count)
    probability = expected_probabilities(buffer, 30)
    assert float(probability.max()) * count < 1  # no group is certain
    draws = 2000
    number = inclusions(buffer, count, draws, 30).double()
    expected = draws * count * probability
    deviation = (expected * (1 - count * probability)).sqrt()
    assert float(((number - expected) / deviation).abs().max()) < 4
    # Chi-square with 19 degrees of freedom; draws without replacement vary less than single ones.
    assert float(((number - expected) ** 2 / expected).sum()) < 43.8  # 0.1 %


def test_prioritized_ignores_age_and_fresh_fades_with_it() -> None:
    # Equal |A|: equally likely in PER; in FreshPER in proportion to exp(-alpha age / tau).
    groups = joined([graded_group(i, advantage=0.5, version=v) for i, v in enumerate([0, 10, 20])])
    plain = RolloutBuffer(3, policy="prioritized", tau=10.0)
    fresh = RolloutBuffer(3, policy="fresh", tau=10.0)
    plain.add(groups)
    fresh.add(groups)
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(plain.probabilities()[1], third)
    ratio = fresh.probabilities()[1]
    assert float(ratio[0] / ratio[1]) == pytest.approx(math.exp(-0.6))
    assert float(ratio[1] / ratio[2]) == pytest.approx(math.exp(-0.6))
    drawn = fresh.draw(1, version=500, beta=1)  # the distribution does not depend on the version
    torch.testing.assert_close(fresh.probabilities()[1], ratio)
    assert drawn.weight.tolist() == [1.0]


def test_priorities_are_multiplied_by_the_factors_of_the_prompts() -> None:
    buffer = RolloutBuffer(3, policy="prioritized", alpha=0.5)
    buffer.add(joined([graded_group(i, advantage=0.5) for i in (4, 2)]))
    buffer.set_factors(torch.tensor([1.0, 1.0, 0.04, 0.25, 0.16]))
    buffer.add(joined([graded_group(3, advantage=0.5)]))  # later groups have their factor too
    expected = torch.tensor([0.4, 0.2, 0.5], dtype=torch.float64) / 1.1
    torch.testing.assert_close(buffer.probabilities()[1], expected)
    buffer.update_priorities(torch.tensor([1]), torch.tensor([2.0]))  # four times |A|
    expected = torch.tensor([0.4, 0.4, 0.5], dtype=torch.float64) / 1.3
    torch.testing.assert_close(buffer.probabilities()[1], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"factors of prompts \[1, 2\] are \[0.0, nan\]"):
        buffer.set_factors(torch.tensor([1.0, 0.0, math.nan]))
    buffer.set_factors(None)
    assert float(buffer.probabilities()[1][0] * 2) == pytest.approx(0.5, abs=1e-5)


def test_a_heavy_group_is_certain_and_the_others_share_the_rest() -> None:
    buffer = RolloutBuffer(5, policy="prioritized", alpha=1.0)
    buffer.add(joined([graded_group(i, advantage=a) for i, a in enumerate([1, 1, 100, 2, 40])]))
    # k = 3: 100 of 144, then 40 of 44 are certain; 1, 1 and 2 share the third place.
    drawn = buffer.draw(3, version=0, beta=1)
    assert {2, 4} < set(drawn.groups.prompt.tolist())
    frequency = inclusions(buffer, 3, 1000, 0) / 1000
    torch.testing.assert_close(frequency[[2, 4]], torch.ones(2), rtol=0, atol=0)
    torch.testing.assert_close(
        frequency[[0, 1, 3]], torch.tensor([0.25, 0.25, 0.5]), atol=0.05, rtol=0
    )
    probability = dict(zip(drawn.groups.prompt.tolist(), drawn.probability.tolist(), strict=True))
    share = 1 / 2 if 3 in probability else 1 / 4
    assert sorted(probability.values()) == pytest.approx([share / 3, 1 / 3, 1 / 3])
    before = buffer.probabilities()[1]
    buffer.draw(4, version=0, beta=1)
    assert before.equal(buffer.probabilities()[1])


def test_a_draw_of_all_groups_holds_each_once() -> None:
    for policy in POLICIES:
        buffer = filled_buffer(13, policy=policy, tau=0.3)
        drawn = buffer.draw(13, version=12, beta=1)
        assert sorted(drawn.groups.prompt.tolist()) == list(range(13))
        torch.testing.assert_close(drawn.probability, torch.full((13,), 1 / 13).double())
        assert drawn.weight.tolist() == [1.0] * 13


def test_weighted_means_over_draws_are_unbiased() -> None:
    buffer = filled_buffer(20, policy="fresh", tau=15.0)
    value = torch.arange(20, dtype=torch.float64).square()
    total, draws, count = 0.0, 2000, 5
    for _ in range(draws):
        drawn = buffer.draw(count, version=20, beta=1)
        full = (20 * drawn.probability).reciprocal()
        torch.testing.assert_close(drawn.weight, full / full.max())
        total += float((full * value[drawn.groups.prompt]).sum()) / count
    assert total / draws == pytest.approx(float(value.mean()), rel=0.03)


def test_uniform_draws_have_weight_1_and_equal_probabilities() -> None:
    drawn = filled_buffer(8).draw(3, version=9, beta=1)
    assert drawn.weight.tolist() == [1.0] * 3
    assert drawn.probability.tolist() == [1 / 8] * 3


def test_probabilities_stay_exact_over_thousands_of_versions() -> None:
    # 4200 versions at tau 0.5: log masses reach 5040, far beyond the exponents of float64.
    buffer = RolloutBuffer(4, policy="fresh", tau=0.5, alpha=0.6)
    for version in range(0, 4200, 7):
        buffer.add(joined([graded_group(version, version=version, advantage=2.0)]))
        if version % 700 == 0 and len(buffer) == 4:
            probability = buffer.probabilities()[1]
            expected = torch.tensor([-25.2, -16.8, -8.4, 0.0], dtype=torch.float64).softmax(0)
            torch.testing.assert_close(probability, expected, rtol=1e-9, atol=0)


def test_a_draw_of_all_groups_holds_the_very_old_ones() -> None:
    buffer = RolloutBuffer(3, policy="fresh", tau=0.01)
    buffer.add(joined([graded_group(i, version=10**6 * i) for i in range(3)]))
    drawn = buffer.draw(3, version=2 * 10**6, beta=0.4)
    assert sorted(drawn.groups.prompt.tolist()) == [0, 1, 2]
    assert buffer.draw(1, version=2 * 10**6, beta=0.4).groups.prompt.tolist() == [2]


def test_the_distribution_follows_expiry_and_new_priorities() -> None:
    buffer = filled_buffer(4, policy="prioritized", alpha=1.0, max_age=5)  # of versions 0 to 3
    drawn = buffer.draw(4, version=3, beta=1)
    assert len(drawn.key) == 4
    assert buffer.expire(7) == 2
    key, probability = buffer.probabilities()
    torch.testing.assert_close(
        probability, torch.tensor([3.0, 4.0]).double() / 7, rtol=1e-5, atol=0
    )
    assert buffer.draw(2, version=7, beta=1).key.sort().values.equal(key)
    buffer.update_priorities(key, torch.tensor([9.0, 1.0]))
    torch.testing.assert_close(
        buffer.probabilities()[1], torch.tensor([0.9, 0.1]).double(), rtol=1e-5, atol=0
    )
