"""Priorities of groups of rollouts, and how they fade, against the written formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.freshness import (
    absolute_advantage,
    fresh_priorities,
    freshness_factor,
    learnability,
    log_masses,
    uniform_priorities,
)

NAN = math.nan


def test_freshness_is_one_when_new_and_one_by_e_after_tau() -> None:
    # FreshPER, arXiv:2604.16918: exp(-age / tau), tau 500.
    found = freshness_factor(torch.tensor([0, 500, 1000]), tau=500.0)
    due = torch.tensor([1.0, math.exp(-1), math.exp(-2)], dtype=torch.float64)
    torch.testing.assert_close(found, due)


def test_priority_is_base_times_freshness() -> None:
    base, age = torch.tensor([2.0, 2.0, 0.0]), torch.tensor([0, 3, 3])
    due = torch.tensor([2.0, 2.0 * math.exp(-3 / 4), 0.0], dtype=torch.float64)
    torch.testing.assert_close(fresh_priorities(base, age, tau=4.0), due)


@given(
    st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(0, 900)), min_size=1, max_size=9),
    st.integers(0, 300),
    st.floats(0, 1),
    st.floats(0.5, 1000),
)
def test_log_masses_give_the_law_of_fresh_priorities_at_every_version(
    groups: list[tuple[float, int]], later: int, alpha: float, tau: float
) -> None:
    base = torch.tensor([each[0] for each in groups], dtype=torch.float64)
    version = torch.tensor([each[1] for each in groups])
    now = int(version.max()) + later
    log = log_masses(base, version, alpha=alpha, tau=tau)
    # alpha log p, with the age now; softmax because one by one they may underflow.
    due = (alpha * (base.log() - (now - version).double() / tau)).softmax(0)
    torch.testing.assert_close(log.softmax(0), due, rtol=1e-9, atol=1e-300)
    priority = fresh_priorities(base, now - version, tau=tau)
    if float(priority.min()) > 1e-280:  # below, few digits are left
        direct = priority.pow(alpha)
        torch.testing.assert_close(log.softmax(0), direct / direct.sum(), rtol=1e-9, atol=0)


def test_without_tau_masses_ignore_the_version() -> None:
    base = torch.tensor([1.0, 4.0, 1.0])
    log = log_masses(base, torch.tensor([0, 5, 1000]), alpha=0.5, tau=None)
    torch.testing.assert_close(log.exp(), torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64))


def test_absolute_advantage_is_the_mean_over_those_that_count() -> None:
    advantage = torch.tensor([1.0, -3.0, 0.5, -0.5, 7.0], requires_grad=True)
    group = torch.tensor([0, 0, 2, 2, 2])
    found = absolute_advantage(advantage, group, 4)
    assert found.tolist() == [2.0, 0.0, 8 / 3, 0.0]
    assert not found.requires_grad
    counted = torch.tensor([True, True, True, True, False])
    assert absolute_advantage(advantage, group, 4, counted=counted).tolist() == [2.0, 0, 0.5, 0]


def test_learnability_is_p_times_1_minus_p() -> None:
    # Eight rollouts each, k of them right: greatest at p = 1/2, nothing at 0 and 1.
    reward = (torch.arange(8).expand(9, 8) < torch.arange(9)[:, None]).float().flatten()
    found = learnability(reward, torch.arange(9).repeat_interleave(8), 9)
    p = torch.arange(9).double() / 8
    torch.testing.assert_close(found, p * (1 - p))
    assert found.argmax() == 4


def test_learnability_of_graded_rewards_is_their_variance_and_missing_ones_do_not_count() -> None:
    reward = torch.tensor([-1.0, 3.0, NAN, 0.5, 0.5, NAN])
    found = learnability(reward, torch.tensor([0, 0, 0, 1, 1, 2]), 3)
    assert found.tolist() == [4.0, 0.0, 0.0]


def test_uniform_priorities_are_one() -> None:
    assert uniform_priorities(3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("tau", [0.0, -1.0, NAN, math.inf])
def test_tau_out_of_range_is_named(tau: float) -> None:
    with pytest.raises(ValueError, match=f"tau is {tau}.*above 0.*'prioritized'"):
        freshness_factor(torch.tensor([1]), tau=tau)
    with pytest.raises(ValueError, match="tau is"):
        log_masses(torch.ones(1), torch.zeros(1), alpha=0.6, tau=tau)


def test_a_negative_age_is_named() -> None:
    with pytest.raises(ValueError, match=r"ages at \[1\] are \[-2\].*current version minus"):
        freshness_factor(torch.tensor([0, -2]), tau=5.0)


def test_alpha_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        log_masses(torch.ones(1), torch.zeros(1), alpha=1.5, tau=None)
