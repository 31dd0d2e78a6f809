"""Statistics of paired runs: one value per seed, of a config and of the baseline."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

Values = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95


class Estimate(NamedTuple):
    """An estimate and its 95 % interval, whose ends are NaN if there is only one seed."""

    value: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """Difference of paired values.

    Attributes:
        difference: mean difference with its t-interval.
        p: two-sided p-value of the paired t-test; 1 if all differences are 0.
        effect: Hedges' g of the differences, their mean by their standard deviation, corrected for
            few seeds; infinite if they are equal, but not 0.
    """

    difference: Estimate
    p: float
    effect: float


def t_estimate(values: Sequence[float]) -> Estimate:
    """Mean of ``values``, one per seed, and its t-interval."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Estimate(mean, math.nan, math.nan)
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(array) - 1)) * error
    return Estimate(mean, mean - half, mean + half)


def paired_test(values: Sequence[float], baseline: Sequence[float]) -> PairedTest:
    """Compare values with a baseline's of the same seeds.

    The interval and the test are Student's: with 5 seeds a percentile bootstrap of the mean covers
    the true one in 84 of 100 experiments instead of 95.
    """
    differences = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    interval = t_estimate(differences.tolist())
    count = len(differences)
    if count < 2:
        return PairedTest(interval, math.nan, math.nan)
    deviation = float(differences.std(ddof=1))
    if deviation == 0:
        same = interval.value == 0
        effect = 0.0 if same else math.copysign(math.inf, interval.value)
        return PairedTest(interval, 1.0 if same else 0.0, effect)
    standardized = interval.value / deviation
    p = 2 * float(stats.t.sf(abs(standardized) * math.sqrt(count), count - 1))
    return PairedTest(interval, p, standardized * (1 - 3 / (4 * (count - 1) - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of p-values of several comparisons; NaN stays NaN."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        if not math.isnan(p_values[place]):
            largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
            corrected[place] = largest
    return corrected


def interquartile_mean(values: Values, axis: int = -1) -> Values:
    """Mean of the middle half of the values (Agarwal et al., arXiv:2108.13264)."""
    return np.asarray(stats.trim_mean(values, 0.25, axis=axis))


def probability_of_improvement(values: Values, baseline: Values, axis: int = -1) -> Values:
    """Probability that a value exceeds one of the baseline; ties count half (arXiv:2108.13264)."""
    mine, other = (np.moveaxis(each, axis, -1) for each in (values, baseline))
    signs = np.sign(mine[..., :, None] - other[..., None, :])
    return np.asarray(((signs + 1) / 2).mean((-2, -1)))


def bootstrap(
    statistic: Callable[..., Values], *samples: Sequence[float], paired: bool = False
) -> Estimate:
    """A statistic of values per seed with the percentile interval of 10,000 resamples.

    Args:
        statistic: takes arrays ``[..., seeds]`` and the ``axis``, and reduces it.
        *samples: values of each config.
        paired: whether a resample draws the same seeds of all configs.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    value = float(statistic(*arrays, axis=-1))
    if len(arrays[0]) < 2:
        return Estimate(value, math.nan, math.nan)
    interval = stats.bootstrap(
        arrays,
        statistic,
        n_resamples=RESAMPLES,
        vectorized=True,
        paired=paired,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))
