"""Every share of a count in the tree, against exact rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch

from lit_adaptive.core import (
    eligible_mask,
    hardest_indices,
    high_entropy_mask,
    kl_cov,
    nested_masses,
    staged_competence,
)
from lit_adaptive.core.hard_examples import kept_count
from lit_adaptive.core.shares import share_count
from lit_adaptive.data.datasets.arithmetic import _exact_grades
from lit_adaptive.data.datasets.digits import LongTailedDigits
from lit_adaptive.samplers import InfoBatchSampler

SHARES = [0.02, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.29, 0.3, 0.35, 0.55, 0.57, 0.575, 0.58, 0.7]
SHARES += [0.9, 1.0, 0.001, 0.0005, 0.1234567]


def exact(share: float, n: int) -> Fraction:
    """The share as it is written, of n."""
    return Fraction(str(share)) * n


@pytest.mark.parametrize("share", SHARES)
def test_share_counts_are_those_of_rational_arithmetic(share: float) -> None:
    for n in range(1, 3001):
        value = exact(share, n)
        assert share_count(share, n) == kept_count(n, share) == math.ceil(value), n
        assert share_count(share, n, rounding=math.floor) == math.floor(value), n
        assert share_count(share, n, rounding=round) == round(value), n


def test_a_computed_share_counts_as_the_fraction_it_rounds() -> None:
    for n in range(1, 400):
        for k in range(1, n + 1):
            assert share_count(k / n, n) == share_count(k / n, n, rounding=math.floor) == k


@pytest.mark.parametrize("n", [2**31, 10**12])
def test_large_counts_and_tiny_shares_are_exact(n: int) -> None:
    assert share_count(0.07, n) == math.ceil(exact(0.07, n))
    assert share_count(0.07, n, rounding=math.floor) == math.floor(exact(0.07, n))
    assert share_count(1e-15, 5) == 1
    assert share_count(1e-15, 5, rounding=math.floor) == 0


@pytest.mark.parametrize("share", SHARES)
def test_selections_take_exact_shares(share: float) -> None:
    for n in [*range(1, 60), 100, 200, 300, 700, 1000, 1400, 2000, 2900, 3000]:
        value, up, down = torch.arange(float(n)), *(f(exact(share, n)) for f in (math.ceil, int))
        assert int(nested_masses(value, shares=[share]).sum()) == up, n
        assert len(hardest_indices(value, keep=share)) == up, n
        assert int(high_entropy_mask(value, share).sum()) == up, n
        assert int(kl_cov(value, share=share).sum()) == max(1, down), n
        # A competence c allows CDF <= c, at least the easiest sample.
        assert int(eligible_mask(value, share).sum()) == max(1, down), n


def test_best_shares_of_groups_of_different_sizes_are_exact() -> None:
    group = torch.arange(100).repeat_interleave(torch.arange(1, 101))
    mass = nested_masses(torch.rand(len(group)), shares=[0.3], group=group)
    counts = torch.zeros(100).index_add_(0, group, mass.float())
    assert counts.tolist() == [math.ceil(exact(0.3, n)) for n in range(1, 101)]


def test_a_stage_begins_exactly_at_its_part_of_the_training() -> None:
    for stages in range(1, 120):
        shares = [(k + 1) / stages for k in range(stages)]
        for k in range(stages):
            assert staged_competence(k / stages, shares=shares) == shares[k], (k, stages)


@pytest.mark.parametrize("steps", [10, 20, 40, 120, 1000])
def test_the_final_part_of_the_training_begins_exactly(steps: int) -> None:
    for percent in range(1, 101):
        sampler = InfoBatchSampler(1, anneal=percent / 100)
        for step in range(steps + 1):
            sampler.advance(step / steps)
            expected = Fraction(step, steps) >= 1 - Fraction(percent, 100)
            assert sampler._annealing == expected, (step, percent)


def test_datasets_divide_exactly() -> None:
    sizes = LongTailedDigits(shares=[0.25] * 10).targets.bincount().tolist()
    assert sizes == [round(exact(0.25, 114))] * 10 == [28] * 10
    # Of 15 demonstrations 0.1 + 0.2 are 4.5: the nearest even number is 4, of floats it is 5.
    grades = _exact_grades((0.1, 0.2, 0.7), 15)
    assert [grades.count(name) for name in ("correct", "sloppy", "wrong")] == [2, 2, 11]
