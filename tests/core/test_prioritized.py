"""The arithmetic of prioritized replay (Schaul et al., 2016)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_adaptive.core import prioritized
from lit_adaptive.core.prioritized import (
    importance_sampling_weights,
    priority_masses,
    proportional_priorities,
    rank_priorities,
    sampling_probabilities,
)


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_proportional_priority_is_absolute_error_plus_epsilon() -> None:
    # Section 3.3: p_i = |delta_i| + epsilon.
    error = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    priority = proportional_priorities(error, epsilon=0.5)
    assert priority.tolist() == [2.5, 0.5, 3.5]
    assert not priority.requires_grad


def test_rank_priority_is_one_over_rank() -> None:
    # Section 3.3: p_i = 1 / rank(i), rank by |delta|; equal ones in the order of indices.
    assert rank_priorities(doubles([0.1, 9, 3, 3])).tolist() == [1 / 4, 1, 1 / 2, 1 / 3]


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


def test_probabilities_of_huge_and_tiny_priorities_sum_to_one() -> None:
    for values in ([1e308] * 4, [5e-324] * 4, [1e308, 5e-324]):
        for alpha in (0.0, 0.6, 1.0):
            probability = sampling_probabilities(doubles(values), alpha=alpha)
            torch.testing.assert_close(probability.sum(), doubles([1.0])[0])
    assert sampling_probabilities(doubles([1e308, 5e-324]), alpha=0).tolist() == [0.5, 0.5]


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=30), st.floats(0, 1))
@settings(deadline=None)  # the first call compiles
def test_at_beta_one_the_weighted_mean_is_the_uniform_mean(p: list[float], alpha: float) -> None:
    # Section 3.4: w_i = (1/N 1/P(i))^beta fully compensates at beta = 1. All of E[w f] enumerated.
    probability = sampling_probabilities(doubles(p), alpha=alpha)
    f = torch.arange(len(p), dtype=torch.float64) + 1
    weight = importance_sampling_weights(probability, size=len(p), beta=1.0)
    scale = 1 / (len(p) * probability.min())  # the maximum that w was divided by
    torch.testing.assert_close((probability * weight * f).sum() * scale, f.mean())


@given(st.lists(st.floats(2.3e-308, 1), min_size=1, max_size=30), st.floats(0, 1), st.booleans())
@settings(deadline=None)  # the first call compiles
def test_weight_is_in_0_1_and_equals_the_formula(p: list[float], beta: float, buffer: bool) -> None:
    probability = doubles(p)
    low = min(p) / 2 if buffer and min(p) > 1e-300 else None
    weight = importance_sampling_weights(probability, size=50, beta=beta, min_probability=low)
    assert weight.dtype is torch.float64
    assert (weight > 0).all()
    assert (weight <= 1).all()
    if low is None:
        assert weight.max() == 1
    if min(p) > 1e-150:  # else the formula as printed overflows
        greatest = (50 * (low or min(p))) ** -beta
        expected = doubles([(50 * x) ** -beta / greatest for x in p])
        torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)
    on_device = prioritized._weights_on_device(probability, beta, low)
    torch.testing.assert_close(weight, on_device, rtol=1e-14, atol=0)


def test_bad_input_is_refused() -> None:
    half = doubles([0.5, 0.5])
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"alpha is .* \[0, 1\]"):
            priority_masses(half, alpha=alpha)
        with pytest.raises(ValueError, match="alpha is"):
            sampling_probabilities(half, alpha=alpha)
    for beta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="beta is"):
            importance_sampling_weights(half, size=2, beta=beta)
    with pytest.raises(ValueError, match="size is 0"):
        importance_sampling_weights(half, size=0, beta=1)
    for bad in (0.0, -0.1, 1.5, math.nan):
        for call in (
            lambda p: importance_sampling_weights(p, size=2, beta=1),
            lambda p: prioritized._weights_on_device(p, 1.0, None),
        ):
            with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
                call(doubles([0.5, bad]))
    for low in (0.0, -1.0, 0.6, math.nan):
        with pytest.raises(ValueError, match="min_probability is"):
            importance_sampling_weights(half, size=2, beta=1, min_probability=low)
        with pytest.raises(ValueError, match="min_probability is"):
            prioritized._weights_on_device(half, 1.0, low)
    for bad in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match=r"items \[1\] are"):
            sampling_probabilities(doubles([1, bad]), alpha=0.5)
    with pytest.raises(ValueError, match="no priority is above 0"):
        sampling_probabilities(doubles([0, 0]), alpha=0.5)
    with pytest.raises(ValueError, match=r"items \[0\] are NaN"):
        rank_priorities(doubles([math.nan, 1]))
    for epsilon in (-1.0, math.nan):
        with pytest.raises(ValueError, match="epsilon is"):
            proportional_priorities(half, epsilon=epsilon)


def test_an_empty_batch_has_no_weights() -> None:
    assert importance_sampling_weights(doubles([]), size=3, beta=0.5).shape == (0,)
