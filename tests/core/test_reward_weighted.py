"""Masses by reward, against loops, the papers and the control code."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_adaptive.core.reward_weighted import (
    balance_groups,
    check_rewards,
    exponential_masses,
    nested_masses,
    proportional_masses,
    rank_masses,
    standardize_rewards,
    threshold_masses,
)

# Few distinct values, so that ties are the rule, as with 0/1 rewards.
REWARDS = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=30)


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_rwr_weighs_by_the_exponential_of_the_reward() -> None:
    # Peters & Schaal (2007): in proportion to exp(r / tau).
    mass = exponential_masses(torch.tensor([1.0, 2.0, -1.0]), temperature=0.5)
    probability = mass / mass.sum()
    expected = [math.exp(2), math.exp(4), math.exp(-2)]
    assert probability.tolist() == pytest.approx([e / sum(expected) for e in expected])
    assert mass.amax() == 1


def test_huge_rewards_and_tiny_temperatures_do_not_overflow() -> None:
    mass = exponential_masses(doubles([1e300, 1e300, -1e300]), temperature=1e-3)
    assert mass.tolist() == [1, 1, 0]
    assert exponential_masses(doubles([0.0, -700.0]), temperature=1.0)[1] > 0
    assert exponential_masses(doubles([5.0, 3.0]), temperature=1e6).tolist() == pytest.approx(
        [1, 1], abs=1e-5
    )


@given(REWARDS, st.floats(0.2, 5))
def test_tied_ranks_share_the_masses_of_their_ranks(rewards: list[float], tau: float) -> None:
    masses = rank_masses(doubles(rewards), temperature=tau)
    for reward, mass in zip(rewards, masses.tolist(), strict=True):
        above, ties = sum(r > reward for r in rewards), rewards.count(reward)
        ranks = range(above + 1, above + ties + 1)
        assert mass == pytest.approx(sum(k ** (-1 / tau) for k in ranks) / ties)


def test_distinct_ranks_are_those_of_prioritized_replay() -> None:
    # Schaul et al. (2016), section 3.3: 1 / rank.
    assert rank_masses(torch.tensor([0.1, 9.0, -4.0, 1.0])).tolist() == [1 / 3, 1, 1 / 4, 1 / 2]


@given(REWARDS, st.integers(1, 10))
def test_a_best_share_includes_all_ties_with_its_last_sample(
    rewards: list[float], tenths: int
) -> None:
    mass = nested_masses(doubles(rewards), shares=[tenths / 10])
    number = max(1, -(-tenths * len(rewards) // 10))
    cut = sorted(rewards, reverse=True)[number - 1]
    assert mass.tolist() == [float(reward >= cut) for reward in rewards]


@pytest.mark.parametrize("size", [1, 2, 9, 10, 11, 19, 20, 99, 100, 101, 350])
def test_nested_masses_equal_the_control_codes_concatenated_percentiles(size: int) -> None:
    # emmyqin/iw_sft_control: trajectories at or above the percentiles 90, 95 and 98, concatenated.
    rng = np.random.default_rng(size)
    for rewards in (rng.normal(size=size), rng.integers(0, 6, size).astype(float)):
        expected = sum(rewards >= np.percentile(rewards, q) for q in (90, 95, 98))
        mass = nested_masses(torch.from_numpy(rewards))
        assert mass.numpy().tolist() == expected.astype(float).tolist()


def test_the_best_2_percent_count_three_times_the_next_3_twice_and_the_next_5_once() -> None:
    mass = nested_masses(torch.arange(100.0))
    assert mass.tolist() == [0.0] * 90 + [1.0] * 5 + [2.0] * 3 + [3.0] * 2


def test_a_threshold_filters() -> None:
    reward = torch.tensor([0.0, 0.5, 2.0])
    assert threshold_masses(reward, threshold=0.5).tolist() == [0, 1, 1]


def test_sft_q_draws_in_proportion_to_the_reward() -> None:
    assert proportional_masses(torch.tensor([0.0, 0.5, 2.0])).tolist() == [0, 0.5, 2]


GROUPED: dict[str, Callable[..., Tensor]] = {
    "exponential": lambda r, **g: exponential_masses(r, temperature=0.7, **g),
    "rank": lambda r, **g: rank_masses(r, temperature=2.0, **g),
    "top": lambda r, **g: nested_masses(r, shares=[0.4], **g),
    "nested": lambda r, **g: nested_masses(r, shares=[0.5, 0.2], **g),
}


@pytest.mark.parametrize("name", GROUPED)
@given(st.lists(st.tuples(st.sampled_from([-7, 3, 90]), st.sampled_from([0.0, 1.0, 2.5])),
                min_size=1, max_size=25))  # fmt: skip
def test_masses_within_groups_are_those_of_each_group_alone(
    name: str, items: list[tuple[int, float]]
) -> None:
    group = torch.tensor([g for g, _ in items])
    reward = doubles([r for _, r in items])
    mass = GROUPED[name](reward, group=group)
    for label in group.unique():
        alone = GROUPED[name](reward[group == label])
        torch.testing.assert_close(mass[group == label], alone)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=25))
def test_standardized_rewards_have_mean_0_and_deviation_1_in_each_group(
    items: list[tuple[int, float]],
) -> None:
    group = torch.tensor([g for g, _ in items])
    reward = doubles([round(r, 2) for _, r in items])
    standardized = standardize_rewards(reward, group)
    for label in group.unique():
        value = reward[group == label]
        if value.max() == value.min():
            assert standardized[group == label].abs().max() == 0
        else:
            expected = (value - value.mean()) / value.std(correction=0)
            torch.testing.assert_close(standardized[group == label], expected)


def test_equal_rewards_are_standardized_to_exactly_0() -> None:
    # (0.1 + 0.1 + 0.1) / 3 is not 0.1; a deviation of 1e-17 would give noise.
    group = torch.tensor([0, 0, 0, 1])
    assert standardize_rewards(doubles([0.1, 0.1, 0.1, 7.0]), group).tolist() == [0, 0, 0, 0]


def test_balanced_groups_have_a_total_mass_of_1() -> None:
    mass = balance_groups(doubles([1, 3, 5, 0]), torch.tensor([2, 2, 0, 9]))
    assert mass.tolist() == [0.25, 0.75, 1, 0]


ALL = pytest.mark.parametrize(
    "masses",
    [
        lambda r: exponential_masses(r, temperature=1.0),
        rank_masses,
        lambda r: threshold_masses(r, threshold=-9),
        lambda r: nested_masses(r, shares=[0.3]),
        nested_masses,
        proportional_masses,
    ],
)


@ALL
def test_equal_rewards_have_equal_masses(masses: Any) -> None:
    assert masses(torch.full((7,), 0.3)).unique().numel() == 1
    assert masses(torch.empty(0)).shape == (0,)


@ALL
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite_are_named(masses: Any, bad: float) -> None:
    with pytest.raises(ValueError, match=r"index \[1, 3\] are \["):
        masses(torch.tensor([0.0, bad, 1.0, bad]))


ONE = torch.tensor([1.0, 0.5])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf])
@pytest.mark.parametrize("masses", [exponential_masses, rank_masses])
def test_a_temperature_must_be_positive_and_finite(
    masses: Callable[..., Tensor], temperature: float
) -> None:
    with pytest.raises(ValueError, match=f"temperature is {temperature}; .*finite.*scheme top"):
        masses(ONE, temperature=temperature)


@pytest.mark.parametrize("shares", [[], [0.0], [0.5, 1.1]])
def test_best_shares_lie_in_0_1(shares: list[float]) -> None:
    with pytest.raises(ValueError, match=r"best shares are \[.*at least one, each in \(0, 1\]"):
        nested_masses(ONE, shares=shares)


def test_a_threshold_above_all_rewards_names_the_highest() -> None:
    with pytest.raises(ValueError, match="below the threshold 2, the highest is 1: lower"):
        threshold_masses(ONE, threshold=2.0)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ([-1.0, -0.5], r"index \[0, 1\] are \[-1\.0, -0\.5\].*shift"),
        ([0.0, 0.0], "all 2 rewards are 0"),
        ([1.5e308, 0.7e308], "overflows: scale"),
    ],
)
def test_rewards_that_cannot_be_proportional_masses_are_rejected(
    reward: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        proportional_masses(doubles(reward))


def test_every_reward_needs_a_group() -> None:
    with pytest.raises(ValueError, match=r"2 rewards, but group has shape \(1,\)"):
        standardize_rewards(ONE, torch.tensor([1]))


def test_an_invalid_reward_is_named_by_its_sample() -> None:
    with pytest.raises(ValueError, match=r"index \[70\] are \[nan\]"):
        check_rewards(torch.tensor([1.0, math.nan]), index=torch.tensor([3, 70]))
