import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.schedules import linear_schedule


def test_a_linear_schedule_is_constant_before_the_start_and_after_the_end() -> None:
    at = {step: linear_schedule(step, start=0.4, end=1.0, steps=10) for step in (-3, 0, 10, 99)}
    assert at == pytest.approx({-3: 0.4, 0: 0.4, 10: 1.0, 99: 1.0})


def test_a_linear_schedule_is_halfway_at_half_the_steps() -> None:
    assert linear_schedule(5, start=0.0, end=1.0, steps=10) == 0.5


@given(st.integers(0, 100), st.floats(0.01, 5), st.floats(0.01, 5))
def test_a_linear_schedule_stays_between_start_and_end(step: int, start: float, end: float) -> None:
    low, high = min(start, end) - 1e-12, max(start, end) + 1e-12
    assert low <= linear_schedule(step, start=start, end=end, steps=50) <= high


def test_a_schedule_of_no_steps_is_rejected() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        linear_schedule(1, start=0, end=1, steps=0)
