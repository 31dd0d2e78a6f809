"""Masses by reward, against twins that loop, and against the papers' and the control code's."""

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
    exponential_masses,
    nested_masses,
    proportional_masses,
    rank_masses,
    standardize_rewards,
    threshold_masses,
    top_masses,
)

# Few distinct values, so that ties are the rule, as with 0/1 rewards.
REWARDS = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=30)


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_rwr_weighs_by_the_exponential_of_the_reward() -> None:
    # Peters & Schaal (2007): in proportion to exp(r / tau).
    mass = exponential_masses(torch.tensor([1.0, 2.0, -1.0]), temperature=0.5)
    law = mass / mass.sum()
    expected = [math.exp(2), math.exp(4), math.exp(-2)]
    assert law.tolist() == pytest.approx([e / sum(expected) for e in expected])
    assert mass.amax() == 1


def test_huge_rewards_and_tiny_temperatures_do_not_overflow() -> None:
    mass = exponential_masses(doubles([1e300, 1e300, -1e300]), temperature=1e-3)
    assert mass.tolist() == [1, 1, 0]
    assert exponential_masses(doubles([0.0, -700.0]), temperature=1.0)[1] > 0
    assert exponential_masses(doubles([5.0, 3.0]), temperature=1e6).tolist() == pytest.approx(
        [1, 1], abs=1e-5
    )


@given(REWARDS, st.floats(0.2, 5))
def test_tied_ranks_share_the_masses_of_their_places(rewards: list[float], tau: float) -> None:
    found = rank_masses(doubles(rewards), temperature=tau)
    for reward, mass in zip(rewards, found.tolist(), strict=True):
        above, ties = sum(r > reward for r in rewards), rewards.count(reward)
        places = range(above + 1, above + ties + 1)
        assert mass == pytest.approx(sum(k ** (-1 / tau) for k in places) / ties)


def test_distinct_ranks_are_those_of_prioritized_replay() -> None:
    # Schaul et al. (2016), section 3.3: 1 / rank.
    assert rank_masses(torch.tensor([0.1, 9.0, -4.0, 1.0])).tolist() == [1 / 3, 1, 1 / 4, 1 / 2]


@given(REWARDS, st.integers(1, 10))
def test_a_best_share_is_the_best_and_all_that_tie_with_the_last(
    rewards: list[float], tenths: int
) -> None:
    found = top_masses(doubles(rewards), share=tenths / 10)
    number = max(1, -(-tenths * len(rewards) // 10))
    cut = sorted(rewards, reverse=True)[number - 1]
    assert found.tolist() == [float(reward >= cut) for reward in rewards]


@pytest.mark.parametrize("size", [1, 2, 9, 10, 11, 19, 20, 99, 100, 101, 350])
def test_nested_shares_count_as_the_control_codes_concatenated_percentiles(size: int) -> None:
    # emmyqin/iw_sft_control: trajectories at or above the percentiles 90, 95 and 98, concatenated.
    dice = np.random.default_rng(size)
    for rewards in (dice.normal(size=size), dice.integers(0, 6, size).astype(float)):
        expected = sum(rewards >= np.percentile(rewards, q) for q in (90, 95, 98))
        found = nested_masses(torch.from_numpy(rewards))
        assert found.numpy().tolist() == expected.astype(float).tolist()


def test_the_best_2_percent_count_three_times_the_next_3_twice_and_the_next_5_once() -> None:
    found = nested_masses(torch.arange(100.0))
    assert found.tolist() == [0.0] * 90 + [1.0] * 5 + [2.0] * 3 + [3.0] * 2


def test_threshold_and_proportional() -> None:
    rewards = torch.tensor([0.0, 0.5, 2.0])
    assert threshold_masses(rewards, threshold=0.5).tolist() == [0, 1, 1]
    assert proportional_masses(rewards).tolist() == [0, 0.5, 2]


GROUPED: dict[str, Callable[..., Tensor]] = {
    "exponential": lambda r, **g: exponential_masses(r, temperature=0.7, **g),
    "rank": lambda r, **g: rank_masses(r, temperature=2.0, **g),
    "top": lambda r, **g: top_masses(r, share=0.4, **g),
    "nested": lambda r, **g: nested_masses(r, shares=[0.5, 0.2], **g),
}


@pytest.mark.parametrize("name", GROUPED)
@given(st.lists(st.tuples(st.sampled_from([-7, 3, 90]), st.sampled_from([0.0, 1.0, 2.5])),
                min_size=1, max_size=25))  # fmt: skip
def test_with_groups_each_is_as_if_alone(name: str, items: list[tuple[int, float]]) -> None:
    group = torch.tensor([g for g, _ in items])
    reward = doubles([r for _, r in items])
    found = GROUPED[name](reward, group=group)
    for each in group.unique():
        alone = GROUPED[name](reward[group == each])
        torch.testing.assert_close(found[group == each], alone)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=25))
def test_standardized_within_groups_has_mean_0_and_deviation_1(
    items: list[tuple[int, float]],
) -> None:
    group = torch.tensor([g for g, _ in items])
    reward = doubles([round(r, 2) for _, r in items])
    found = standardize_rewards(reward, group)
    for each in group.unique():
        ours, mine = found[group == each], reward[group == each]
        if mine.max() == mine.min():
            assert ours.abs().max() == 0
        else:
            expected = (mine - mine.mean()) / mine.std(correction=0)
            torch.testing.assert_close(ours, expected)


def test_equal_rewards_are_standardized_to_exactly_0() -> None:
    # 0.1 + 0.1 + 0.1 over 3 is not 0.1; a deviation of 1e-17 would make noise of it.
    group = torch.tensor([0, 0, 0, 1])
    assert standardize_rewards(doubles([0.1, 0.1, 0.1, 7.0]), group).tolist() == [0, 0, 0, 0]


def test_per_group_gives_each_group_one_in_all() -> None:
    found = balance_groups(doubles([1, 3, 5, 0]), torch.tensor([2, 2, 0, 9]))
    assert found.tolist() == [0.25, 0.75, 1, 0]


@pytest.mark.parametrize(
    "law",
    [
        lambda r: exponential_masses(r, temperature=1.0),
        rank_masses,
        lambda r: threshold_masses(r, threshold=-9),
        lambda r: top_masses(r, share=0.3),
        nested_masses,
        proportional_masses,
    ],
)
def test_equal_rewards_are_drawn_alike_and_nan_is_named(law: Any) -> None:
    assert law(torch.full((7,), 0.3)).unique().numel() == 1
    assert law(torch.empty(0)).shape == (0,)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"index \[1, 3\] are \["):
            law(torch.tensor([0.0, bad, 1.0, bad]))


def test_bad_settings_and_hopeless_rewards_say_what_to_do() -> None:
    one = torch.tensor([1.0, 0.5])
    for call, words in (
        (lambda: exponential_masses(one, temperature=0.0), r"temperature is 0\.0.*scheme top"),
        (lambda: rank_masses(one, temperature=-1.0), r"temperature is -1\.0"),
        (lambda: exponential_masses(one, temperature=math.inf), "finite"),
        (lambda: top_masses(one, share=0.0), r"\[0\.0\].*\(0, 1\]"),
        (lambda: nested_masses(one, shares=[]), "at least one"),
        (lambda: nested_masses(one, shares=[0.5, 1.1]), r"1\.1"),
        (lambda: threshold_masses(one, threshold=2.0), "below the threshold 2, the highest is 1"),
        (lambda: proportional_masses(-one), r"index \[0, 1\] are \[-1\.0, -0\.5\].*shift"),
        (lambda: proportional_masses(0 * one), "all 2 rewards are 0"),
        (lambda: proportional_masses(1.5e308 * one.double()), "overflows: scale"),
        (lambda: standardize_rewards(one, torch.tensor([1])), "the group of each"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
