"""Schedules begin at the start, end at the end, and stay there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.schedules import constant, cosine, exponential, linear


@pytest.mark.parametrize("schedule", [linear, exponential, cosine])
def test_starts_and_ends_where_it_says_and_stays_there(schedule) -> None:
    at = {step: schedule(step, start=0.4, end=1.0, steps=10) for step in (-3, 0, 10, 99)}
    assert at == pytest.approx({-3: 0.4, 0: 0.4, 10: 1.0, 99: 1.0})


def test_half_way() -> None:
    assert linear(5, start=0.0, end=1.0, steps=10) == 0.5
    assert cosine(5, start=0.0, end=1.0, steps=10) == pytest.approx(0.5)
    assert exponential(5, start=1.0, end=0.01, steps=10) == pytest.approx(0.1)


@given(st.integers(0, 100), st.floats(0.01, 5), st.floats(0.01, 5))
def test_never_leaves_the_range_between_start_and_end(step: int, start: float, end: float) -> None:
    low, high = min(start, end) - 1e-12, max(start, end) + 1e-12
    for schedule in (linear, exponential, cosine):
        assert low <= schedule(step, start=start, end=end, steps=50) <= high


def test_constant_and_refusals() -> None:
    assert constant(7, value=0.3) == 0.3
    with pytest.raises(ValueError, match="steps is 0"):
        linear(1, start=0, end=1, steps=0)
    with pytest.raises(ValueError, match="exponential stays above 0"):
        exponential(1, start=0, end=1, steps=2)
