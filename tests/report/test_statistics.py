"""Statistics of paired runs, against SciPy's tests, loops and simulated experiments."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lit_adaptive.report.statistics import (
    bootstrap,
    holm,
    interquartile_mean,
    paired_test,
    probability_of_improvement,
    t_estimate,
)

VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=12)


@given(PAIRS)
def test_the_test_and_its_interval_are_students(pairs: list[tuple[float, float]]) -> None:
    values, baseline = (list(each) for each in zip(*pairs, strict=True))
    differences = np.subtract(values, baseline)
    result = paired_test(values, baseline)
    if np.ptp(differences) == 0:
        assert result.p == (1.0 if differences[0] == 0 else 0.0)
        return
    peer: Any = stats.ttest_rel(values, baseline)
    interval = peer.confidence_interval()
    assert result.p == pytest.approx(peer.pvalue, rel=1e-6, abs=1e-12)
    assert result.difference.low == pytest.approx(interval.low, abs=1e-6)
    assert result.difference.high == pytest.approx(interval.high, abs=1e-6)


def test_hedges_effect_size() -> None:
    # Mean 2, standard deviation 1: d = 2, times 1 - 3 / (4 * 2 - 1) for three seeds.
    assert paired_test([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).effect == pytest.approx(2 * 4 / 7)


def test_one_seed_has_a_value_but_shows_nothing() -> None:
    result = paired_test([1.0], [0.5])
    assert result.difference.value == 0.5
    assert all(math.isnan(each) for each in (*result.difference[1:], result.p, result.effect))
    assert math.isnan(bootstrap(interquartile_mean, [1.0]).low)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(VALUES, min_size=1, max_size=9), st.lists(VALUES, min_size=1, max_size=9))
def test_probability_of_improvement_counts_pairs(mine: list[float], other: list[float]) -> None:
    wins = sum((a > b) + 0.5 * (a == b) for a in mine for b in other)
    result = probability_of_improvement(np.array(mine), np.array(other))
    assert float(result) == pytest.approx(wins / len(mine) / len(other))


def test_interquartile_mean_by_hand() -> None:
    assert float(interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -50]))) == 3.5


def test_false_positives_of_null_pairs_and_coverage_are_those_of_the_level() -> None:
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(2, 4000, 5)) + rng.normal(size=(4000, 5))  # seeds have effects too
    found = [paired_test(a, b).p < 0.05 for a, b in zip(*runs, strict=True)]
    assert 0.04 < np.mean(found) < 0.06
    covered = [e.low <= 0 <= e.high for e in map(t_estimate, runs[0])]
    assert 0.94 < np.mean(covered) < 0.96


def test_correction_keeps_the_error_of_several_configs() -> None:
    rng = np.random.default_rng(1)
    runs = rng.normal(size=(2000, 5, 5))  # a baseline and four configs without any effect
    wrong = 0
    for baseline, *others in runs:
        wrong += min(holm([paired_test(other, baseline).p for other in others])) < 0.05
    assert wrong / len(runs) < 0.055


def test_bootstrap_draws_seeds_with_replacement() -> None:
    estimate = bootstrap(lambda x, axis: x.mean(axis), [0.0, 1.0])
    assert estimate == pytest.approx((0.5, 0.0, 1.0))  # both seeds, or one of them twice
    paired = bootstrap(
        lambda x, y, axis: (x - y).mean(axis), [1.0, 2.0, 9.0], [0.0, 1.0, 8.0], paired=True
    )
    assert paired == pytest.approx((1.0, 1.0, 1.0))


def test_estimates_and_intervals_are_those_of_rliable() -> None:
    """The figures are rliable 1.2's, with 50,000 (IQM) and 20,000 resamples."""
    first = [1.834, 2.638, 1.066, 3.981, 0.913, 0.985, 0.106, 0.520, 1.058, 2.257]
    second = [1.640, 2.521, 1.018, 2.533, 1.183, 1.011, -0.184, 0.707, 1.029, 1.953]
    for values, expected in (
        (first, (1.35216667, 0.77683333, 2.243)),
        (second, (1.30566667, 0.82083333, 1.95466667)),
    ):
        got = bootstrap(interquartile_mean, values)
        assert got.value == pytest.approx(expected[0])
        assert got[1:] == pytest.approx(expected[1:], abs=0.03)
    improvement = bootstrap(probability_of_improvement, first, second)
    assert improvement.value == pytest.approx(0.51)
    assert improvement[1:] == pytest.approx((0.24, 0.77), abs=0.02)
