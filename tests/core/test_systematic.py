"""Systematic sampling: fixed size, distinct items, exact inclusion probabilities."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.systematic import inclusion_probabilities, systematic_sample

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
