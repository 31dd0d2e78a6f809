"""Effective sample size, entropy and coverage: their bounds, and where they are reached."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.diagnostics import coverage, effective_sample_size, sampling_entropy

WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30).map(
    lambda w: torch.tensor(w, dtype=torch.float64)
)


@given(WEIGHTS, st.floats(1e-200, 1e200))
def test_ess_lies_between_one_and_all_and_does_not_see_the_scale(
    weight: torch.Tensor, scale: float
) -> None:
    ess = effective_sample_size(weight)
    assert 1 - 1e-9 <= ess <= len(weight) + 1e-9
    torch.testing.assert_close(effective_sample_size(weight * scale), ess)


def test_ess_counts_equal_weights_and_ignores_empty_ones() -> None:
    assert effective_sample_size(torch.tensor([2.0, 2.0, 2.0, 0.0])) == 3
    assert effective_sample_size(torch.tensor([1.0, 3.0])) == pytest.approx(16 / 10)


@given(WEIGHTS)
def test_entropy_is_at_most_that_of_the_uniform(weight: torch.Tensor) -> None:
    law = weight / weight.sum()
    assert -1e-9 <= sampling_entropy(law) <= math.log(len(law)) + 1e-9
    assert -1e-9 <= sampling_entropy(law, normalized=True) <= 1 + 1e-9


def test_entropy_of_a_fair_coin_is_log_two_nats_and_of_a_certainty_nothing() -> None:
    assert sampling_entropy(torch.tensor([0.5, 0.5])) == pytest.approx(math.log(2))
    assert sampling_entropy(torch.tensor([0.0, 1.0])) == 0


def test_coverage_is_the_share_drawn_at_least_once() -> None:
    assert coverage(torch.tensor([0, 3, 1, 0])) == 0.5
    assert coverage(torch.tensor([])) == 0


@pytest.mark.parametrize("weight", [[0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0], []])
def test_refuses_what_are_no_weights(weight: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be finite"):
        effective_sample_size(torch.tensor(weight))
