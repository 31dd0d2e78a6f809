"""Equations of prioritized replay (Schaul et al., 2016)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_adaptive.core.prioritized import (
    importance_sampling_weights,
    priority_masses,
    proportional_priorities,
    rank_priorities,
    sampling_probabilities,
)


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


HALF = doubles([0.5, 0.5])


def test_proportional_priority_is_absolute_error_plus_epsilon() -> None:
    # Section 3.3: p_i = |delta_i| + epsilon.
    error = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    priority = proportional_priorities(error, epsilon=0.5)
    assert priority.tolist() == [2.5, 0.5, 3.5]
    assert not priority.requires_grad


@pytest.mark.parametrize("epsilon", [-1.0, math.nan])
def test_negative_or_nan_epsilon_is_rejected(epsilon: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon is {epsilon}; it must not be negative"):
        proportional_priorities(HALF, epsilon=epsilon)


def test_rank_priority_is_one_over_rank() -> None:
    # Section 3.3: p_i = 1 / rank(i), rank by |delta|; equal scores in the order of indices.
    assert rank_priorities(doubles([0.1, 9, 3, 3])).tolist() == [1 / 4, 1, 1 / 2, 1 / 3]


def test_nan_scores_have_no_rank() -> None:
    with pytest.raises(ValueError, match=r"items \[0\] are NaN"):
        rank_priorities(doubles([math.nan, 1]))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.6, 1.0])
def test_probability_is_equation_1(alpha: float) -> None:
    priority = doubles([0.5, 2, 1e-3, 7])
    powers = [p**alpha for p in priority.tolist()]
    expected = doubles([p / sum(powers) for p in powers])
    torch.testing.assert_close(sampling_probabilities(priority, alpha=alpha), expected)
    torch.testing.assert_close(priority_masses(priority, alpha=alpha), doubles(powers))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_priority_zero_is_never_drawn_not_even_at_alpha_zero(alpha: float) -> None:
    priority = doubles([0, 1, 3])
    assert priority_masses(priority, alpha=alpha)[0] == 0
    assert sampling_probabilities(priority, alpha=alpha)[0] == 0


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_outside_0_1_is_rejected(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha is .* \[0, 1\]"):
        priority_masses(HALF, alpha=alpha)
    with pytest.raises(ValueError, match=r"alpha is .* \[0, 1\]"):
        sampling_probabilities(HALF, alpha=alpha)


def test_probabilities_of_huge_and_tiny_priorities_sum_to_one() -> None:
    for values in ([1e308] * 4, [5e-324] * 4, [1e308, 5e-324]):
        for alpha in (0.0, 0.6, 1.0):
            probability = sampling_probabilities(doubles(values), alpha=alpha)
            torch.testing.assert_close(probability.sum(), doubles([1.0])[0])
    assert sampling_probabilities(doubles([1e308, 5e-324]), alpha=0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("priority", [math.nan, math.inf, -1.0])
def test_probabilities_of_invalid_priorities_are_rejected(priority: float) -> None:
    with pytest.raises(ValueError, match=r"items \[1\] are"):
        sampling_probabilities(doubles([1, priority]), alpha=0.5)


def test_without_a_positive_priority_nothing_can_be_drawn() -> None:
    with pytest.raises(ValueError, match="no priority is above 0"):
        sampling_probabilities(doubles([0, 0]), alpha=0.5)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=30), st.floats(0, 1))
def test_at_beta_one_the_weighted_mean_is_the_uniform_mean(p: list[float], alpha: float) -> None:
    # Section 3.4: w_i = (1/N 1/P(i))^beta fully compensates at beta = 1. All of E[w f] enumerated.
    probability = sampling_probabilities(doubles(p), alpha=alpha)
    f = torch.arange(len(p), dtype=torch.float64) + 1
    weight = importance_sampling_weights(probability, beta=1.0)
    scale = 1 / (len(p) * probability.min())  # the maximum that w was divided by
    torch.testing.assert_close((probability * weight * f).sum() * scale, f.mean())


@given(st.lists(st.floats(2.3e-308, 1), min_size=1, max_size=30), st.floats(0, 1), st.booleans())
def test_weight_is_in_0_1_and_equals_the_formula(p: list[float], beta: float, buffer: bool) -> None:
    probability = doubles(p)
    low = min(p) / 2 if buffer and min(p) > 1e-300 else None
    weight = importance_sampling_weights(probability, beta=beta, min_probability=low)
    assert weight.dtype is torch.float64
    assert (weight > 0).all()
    assert (weight <= 1).all()
    if low is None:
        assert weight.max() == 1
    if min(p) > 1e-150:  # below, the formula as printed overflows
        greatest = (50 * (low or min(p))) ** -beta
        expected = doubles([(50 * x) ** -beta / greatest for x in p])
        torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)


def test_an_empty_batch_has_no_weights() -> None:
    assert importance_sampling_weights(doubles([]), beta=0.5).shape == (0,)


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_beta_outside_0_1_is_rejected(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta is .* \[0, 1\]"):
        importance_sampling_weights(HALF, beta=beta)


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.5, math.nan])
def test_weights_of_probabilities_outside_0_1_are_rejected(probability: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        importance_sampling_weights(doubles([0.5, probability]), beta=1)


@pytest.mark.parametrize("low", [0.0, -1.0, 0.6, math.nan])
def test_a_min_probability_above_one_in_the_batch_is_rejected(low: float) -> None:
    with pytest.raises(ValueError, match=rf"min_probability is {low}; .* 0\.5, the smallest"):
        importance_sampling_weights(HALF, beta=1, min_probability=low)
