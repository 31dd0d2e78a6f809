"""Priorities of groups of rollouts and their decay."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.freshness import (
    absolute_advantage,
    fresh_priorities,
    learnability,
    log_masses,
)

NAN = math.nan


def test_a_priority_decays_by_1_over_e_in_tau_versions() -> None:
    # FreshPER, arXiv:2604.16918: p exp(-age / tau), tau 500.
    priority = fresh_priorities(
        torch.tensor([2.0, 2.0, 2.0, 0.0]), torch.tensor([0, 500, 1000, 3]), tau=500.0
    )
    expected = [2.0, 2.0 * math.exp(-1), 2.0 * math.exp(-2), 0.0]
    torch.testing.assert_close(priority, torch.tensor(expected, dtype=torch.float64))


@given(
    st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(0, 900)), min_size=1, max_size=9),
    st.integers(0, 300),
    st.floats(0, 1),
    st.floats(0.5, 1000),
)
def test_log_masses_give_the_distribution_of_fresh_priorities_at_every_version(
    groups: list[tuple[float, int]], later: int, alpha: float, tau: float
) -> None:
    base = torch.tensor([base for base, _ in groups], dtype=torch.float64)
    version = torch.tensor([version for _, version in groups])
    now = int(version.max()) + later
    probability = log_masses(base, version, alpha=alpha, tau=tau).softmax(0)
    # alpha log p with the current age; softmax, because single priorities may underflow.
    expected = (alpha * (base.log() - (now - version).double() / tau)).softmax(0)
    torch.testing.assert_close(probability, expected, rtol=1e-9, atol=1e-300)
    priority = fresh_priorities(base, now - version, tau=tau)
    if float(priority.min()) > 1e-280:  # smaller ones have few digits
        mass = priority.pow(alpha)
        torch.testing.assert_close(probability, mass / mass.sum(), rtol=1e-9, atol=0)


def test_without_tau_masses_do_not_depend_on_the_version() -> None:
    base = torch.tensor([1.0, 4.0, 1.0])
    log = log_masses(base, torch.tensor([0, 5, 1000]), alpha=0.5, tau=None)
    torch.testing.assert_close(log.exp(), torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64))


def test_absolute_advantage_is_the_mean_over_the_masked_rollouts() -> None:
    advantage = torch.tensor([1.0, -3.0, 0.5, -0.5, 7.0], requires_grad=True)
    group = torch.tensor([0, 0, 2, 2, 2])
    mean = absolute_advantage(advantage, group, 4)
    assert mean.tolist() == [2.0, 0.0, 8 / 3, 0.0]
    assert not mean.requires_grad
    mask = torch.tensor([True, True, True, True, False])
    assert absolute_advantage(advantage, group, 4, mask=mask).tolist() == [2.0, 0, 0.5, 0]


def test_learnability_is_p_times_1_minus_p() -> None:
    # Eight rollouts each, k of them correct: largest at p = 1/2, nothing at 0 and 1.
    reward = (torch.arange(8).expand(9, 8) < torch.arange(9)[:, None]).float().flatten()
    value = learnability(reward, torch.arange(9).repeat_interleave(8), 9)
    p = torch.arange(9).double() / 8
    torch.testing.assert_close(value, p * (1 - p))
    assert value.argmax() == 4


def test_learnability_of_graded_rewards_is_the_variance_of_the_known_ones() -> None:
    reward = torch.tensor([-1.0, 3.0, NAN, 0.5, 0.5, NAN])
    value = learnability(reward, torch.tensor([0, 0, 0, 1, 1, 2]), 3)
    assert value.tolist() == [4.0, 0.0, 0.0]


@pytest.mark.parametrize("tau", [0.0, -1.0, NAN, math.inf])
def test_tau_out_of_range_is_named(tau: float) -> None:
    with pytest.raises(ValueError, match=f"tau is {tau}.*above 0.*'prioritized'"):
        fresh_priorities(torch.ones(1), torch.tensor([1]), tau=tau)
    with pytest.raises(ValueError, match="tau is"):
        log_masses(torch.ones(1), torch.zeros(1), alpha=0.6, tau=tau)


def test_a_negative_age_is_named() -> None:
    with pytest.raises(ValueError, match=r"ages at \[1\] are \[-2\].*current version minus"):
        fresh_priorities(torch.ones(2), torch.tensor([0, -2]), tau=5.0)


def test_alpha_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        log_masses(torch.ones(1), torch.zeros(1), alpha=1.5, tau=None)
