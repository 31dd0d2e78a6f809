"""What undoes the bias of a choice: each estimator by enumeration of all that can happen."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.corrections import inclusion_weights, inverse_probability_weights
from lit_adaptive.core.hard_examples import (
    infobatch_keep_probabilities,
    selective_backprop_probabilities,
)

masses = st.lists(st.integers(1, 9), min_size=2, max_size=5)
F = torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0], dtype=torch.float64)


@given(masses)
def test_with_replacement_the_weighted_mean_is_unbiased(mass: list[int]) -> None:
    # Hansen and Hurwitz (1943): over all pairs of draws, each with its probability.
    p = torch.tensor(mass, dtype=torch.float64)
    p /= p.sum()
    f = F[: len(p)]
    expected = 0.0
    for draw in itertools.product(range(len(p)), repeat=2):
        chosen = torch.tensor(draw)
        weight = inverse_probability_weights(p[chosen], size=len(p), beta=1.0)
        expected += float(p[chosen].prod() * (weight * f[chosen]).mean())
    assert expected == pytest.approx(float(f.mean()), abs=1e-12)


def _every_kept_set(chance: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
    cases = []
    for kept in itertools.product([False, True], repeat=len(chance)):
        mask = torch.tensor(kept)
        cases.append((float(torch.where(mask, chance, 1 - chance).prod()), mask))
    return cases


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_selective_backprop_with_inverse_chances_is_unbiased(beta: float) -> None:
    loss = torch.tensor([0.1, 0.7, 0.4, 2.0])
    chance = selective_backprop_probabilities(loss, loss, beta=beta)
    f = F[:4]
    expected = sum(
        likely * float((inclusion_weights(chance[mask]) * f[mask]).sum()) / len(f)
        for likely, mask in _every_kept_set(chance)
    )
    assert expected == pytest.approx(float(f.mean()), abs=1e-12)


@pytest.mark.parametrize("prune", [0.25, 0.5, 0.75])
def test_infobatch_leaves_the_expected_sum_of_a_pass_as_it_was(prune: float) -> None:
    # Qin et al. (2024), section 3.3: rescaling by 1 / (1 - r).
    loss = torch.tensor([0.1, 0.7, 0.4, 2.0, 0.2])
    chance = infobatch_keep_probabilities(loss, prune=prune)
    assert chance.tolist() == [1 - prune, 1.0, 1 - prune, 1.0, 1 - prune]  # mean 0.68
    total = sum(
        likely * float((inclusion_weights(chance[mask]) * F[mask]).sum())
        for likely, mask in _every_kept_set(chance)
    )
    assert total == pytest.approx(float(F.sum()), abs=1e-12)


def test_beta_lies_between_no_correction_and_all() -> None:
    p = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64)
    assert inverse_probability_weights(p, size=4, beta=0.0).tolist() == [1.0, 1.0, 1.0]
    assert inverse_probability_weights(p, size=4, beta=1.0).tolist() == [0.5, 1.0, 2.0]
    torch.testing.assert_close(
        inverse_probability_weights(p, size=4, beta=0.5),
        torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).sqrt(),
    )


def test_names_what_is_out_of_range() -> None:
    p = torch.tensor([0.5, 0.0])
    with pytest.raises(ValueError, match=r"from 0\.0 to 0\.5"):
        inverse_probability_weights(p, size=2)
    with pytest.raises(ValueError, match=r"from 0\.0 to 0\.5"):
        inclusion_weights(p)
    with pytest.raises(ValueError, match=r"beta is 1\.5"):
        inverse_probability_weights(p[:1], size=2, beta=1.5)
    with pytest.raises(ValueError, match="size is 0"):
        inverse_probability_weights(p[:1], size=0)
    assert len(inverse_probability_weights(p[:0], size=2)) == 0
    with pytest.raises(ValueError, match="probabilities"):
        inverse_probability_weights(torch.tensor([torch.nan]), size=2)
