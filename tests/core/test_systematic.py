"""Systematic sampling: fixed size, distinct items, exact inclusion probabilities."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.kernels.systematic import one_of_each_range
from lit_adaptive.core.systematic import (
    inclusion_probabilities,
    systematic_sample,
    uniform_sample,
)

MASSES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40)


@given(MASSES, st.data())
def test_inclusion_is_proportional_below_one_and_sums_to_the_count(
    masses: list[float], data: st.DataObject
) -> None:
    mass = torch.tensor(masses, dtype=torch.float64)
    count = data.draw(st.integers(0, len(masses)))
    inclusion = inclusion_probabilities(mass, count)
    torch.testing.assert_close(inclusion.sum(), torch.tensor(count, dtype=torch.float64))
    assert bool(((inclusion >= 0) & (inclusion <= 1)).all())
    below = inclusion < 1
    ratio = inclusion[below] / mass[below]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    # What is certain is heavier than what is not.
    assert not bool(below.any() and (~below).any()) or mass[~below].min() >= mass[below].max()


@given(MASSES, st.data(), st.integers(0, 9999))
def test_draws_are_distinct_and_of_the_size_asked_for(
    masses: list[float], data: st.DataObject, seed: int
) -> None:
    count = data.draw(st.integers(0, len(masses)))
    inclusion = inclusion_probabilities(torch.tensor(masses, dtype=torch.float64), count)
    drawn = systematic_sample(inclusion, torch.Generator().manual_seed(seed)).tolist()
    assert len(drawn) == len(set(drawn)) == count
    assert {i for i, p in enumerate(inclusion.tolist()) if p == 1} <= set(drawn)


def test_frequencies_match_inclusion_probabilities_and_order_is_random() -> None:
    inclusion = inclusion_probabilities(torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0]).double(), 3)
    torch.testing.assert_close(inclusion, torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]).double())
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([systematic_sample(inclusion, generator) for _ in range(4000)])
    frequency = torch.bincount(draws.flatten(), minlength=5) / 4000
    torch.testing.assert_close(frequency.double(), inclusion, rtol=0, atol=0.03)
    first = torch.bincount(draws[:, 0], minlength=5) / 4000
    torch.testing.assert_close(first.double(), inclusion / 3, rtol=0, atol=0.03)


@pytest.mark.parametrize("mass", [[3, 5, 7, 4, 6, 5, 8, 2], [1, 9, 1, 9, 1], [1, 1, 1, 1]])
def test_items_across_the_border_of_two_ranges_are_included_with_their_probability(
    mass: list[int],
) -> None:
    # All pairs of 400 equidistant random numbers: an integral, without chance.
    inclusion = inclusion_probabilities(torch.tensor(mass).double(), 2)
    ends, grid = inclusion.cumsum(0).numpy(), (np.arange(400) + 0.5) / 400
    drawn = [one_of_each_range(ends, np.array(pair)) for pair in itertools.product(grid, grid)]
    frequency = torch.from_numpy(np.bincount(np.concatenate(drawn)) / len(drawn))
    torch.testing.assert_close(frequency, inclusion, rtol=0, atol=0.004)


def test_masses_of_300_orders_of_magnitude_give_distinct_items() -> None:
    mass = torch.linspace(-690, 0, 3000, dtype=torch.float64).exp()
    generator = torch.Generator().manual_seed(0)
    for order in (mass, mass.flip(0), mass[torch.randperm(3000, generator=generator)]):
        for count in (1, 2, 50, 2999, 3000):
            inclusion = inclusion_probabilities(order, count)
            assert len(set(systematic_sample(inclusion, generator).tolist())) == count


def test_uniform_selections_and_orders_are_equally_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [tuple(uniform_sample(4, 2, generator).tolist()) for _ in range(12_000)]
    expected = list(itertools.permutations(range(4), 2))
    assert set(draws) == set(expected)
    # Chi-square with 11 degrees of freedom; 31.3 is exceeded once in a thousand times.
    assert sum((draws.count(pair) - 1000) ** 2 / 1000 for pair in expected) < 31.3
    assert sorted(uniform_sample(50, 50, generator).tolist()) == list(range(50))
    assert uniform_sample(3, 0, generator).tolist() == []
