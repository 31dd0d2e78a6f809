import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.curriculum import (
    competence,
    difficulty_cdf,
    eligible_mask,
    self_paced_mask,
    self_paced_threshold,
    staged_competence,
)


def test_competence_is_platanios_square_root() -> None:
    # Platanios et al. (2019), equation 8: c(t) = min(1, sqrt(t (1 - c0^2) / T + c0^2)), c0 = 0.01.
    assert competence(0.0) == pytest.approx(0.01)
    for t in (0.1, 0.25, 0.9):
        assert competence(t) == pytest.approx(math.sqrt(t * (1 - 0.01**2) + 0.01**2))
    assert competence(1.0) == 1.0
    assert competence(0.5, power=1, start=0.2) == pytest.approx(0.6)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1), st.floats(0.2, 5))
def test_competence_never_falls(one: float, other: float, start: float, power: float) -> None:
    early, late = sorted((one, other))
    first = competence(early, start=start, power=power)
    assert start * (1 - 1e-9) <= first <= competence(late, start=start, power=power) <= 1


def test_stages_are_equally_long() -> None:
    shares = [0.25, 0.5, 1.0]
    stages = [staged_competence(p, shares=shares) for p in (0.0, 0.33, 0.34, 0.66, 0.67, 1.0)]
    assert stages == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_cdf_is_the_fraction_not_harder(values: list[int]) -> None:
    cdf = difficulty_cdf(torch.tensor(values).double())
    expected = [sum(other <= value for other in values) / len(values) for value in values]
    torch.testing.assert_close(cdf, torch.tensor(expected, dtype=torch.float64))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(1, 12), st.booleans())
def test_eligible_samples_have_a_cdf_up_to_the_competence_and_are_never_none(
    values: list[int], k: int, hardest_first: bool
) -> None:
    share = min(k / len(values), 1.0)
    eligible = eligible_mask(torch.tensor(values).double(), share, hardest_first=hardest_first)
    sign = -1 if hardest_first else 1
    signed = [sign * value for value in values]
    count = min(k, len(values))
    expected = [sum(other <= value for other in signed) <= count for value in signed]
    if not any(expected):
        expected = [value == min(signed) for value in signed]
    assert eligible.tolist() == expected


def test_self_paced_samples_have_losses_below_one_over_k() -> None:
    # Kumar et al. (2010): v_i = 1[l_i < 1 / K].
    loss = torch.tensor([0.2, 1.0, -math.inf, 3.0])
    assert self_paced_mask(loss, threshold=1.0).tolist() == [True, False, True, False]


def test_the_self_paced_threshold_grows_geometrically() -> None:
    assert self_paced_threshold(0.0, start=0.5, end=8.0) == pytest.approx(0.5)
    assert self_paced_threshold(0.5, start=0.5, end=8.0) == pytest.approx(2.0)
    assert self_paced_threshold(1.0, start=0.5, end=8.0) == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"progress": 1.5}, "progress is 1.5"),
        ({"progress": 0.5, "start": 0.0}, "start is 0.0"),
        ({"progress": 0.5, "power": 0.0}, "power is 0.0"),
    ],
)
def test_competence_arguments_out_of_range_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        competence(**options)


@pytest.mark.parametrize("shares", [[], [0.5, 1.5]])
def test_a_stage_without_a_share_in_0_1_is_rejected(shares) -> None:
    with pytest.raises(ValueError, match=r"one share of the samples in \(0, 1\] for each stage"):
        staged_competence(0.5, shares=shares)


@pytest.mark.parametrize(
    ("difficulty", "share", "message"),
    [
        ([], 0.5, "no difficulties"),
        ([1.0, 1.0], 0.0, "competence is 0.0"),
        ([1.0, math.nan], 0.5, r"samples \[1\] are NaN"),
    ],
)
def test_eligibility_needs_difficulties_and_a_positive_share(difficulty, share, message) -> None:
    with pytest.raises(ValueError, match=message):
        eligible_mask(torch.tensor(difficulty), share)


def test_a_threshold_below_all_losses_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"the smallest is 1\.0: start with a larger"):
        self_paced_mask(torch.ones(2), threshold=0.5)


def test_a_self_paced_threshold_is_positive_and_does_not_fall() -> None:
    with pytest.raises(ValueError, match=r"threshold is 0\.0"):
        self_paced_mask(torch.ones(2), threshold=0.0)
    with pytest.raises(ValueError, match="the threshold grows"):
        self_paced_threshold(0.5, start=2.0, end=1.0)


@pytest.mark.parametrize("power", [1e-9, 700.0, 1e30])
def test_competence_starts_at_the_start_with_any_power(power: float) -> None:
    # 0.2**700 is rounded to 0, and so was the competence.
    assert competence(0.0, start=0.2, power=power) == pytest.approx(0.2)
    assert 0.2 <= competence(1e-9, start=0.2, power=power) <= 1.0
    assert competence(1.0, start=0.2, power=power) == 1.0
