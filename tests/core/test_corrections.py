"""Each estimator by enumeration of all possible selections."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.corrections import (
    _ratio_powers_torch,
    inclusion_weights,
    inverse_probability_weights,
    ratio_powers,
)
from lit_adaptive.core.hard_examples import (
    infobatch_keep_probabilities,
    selective_backprop_probabilities,
)

F = torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0], dtype=torch.float64)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_with_replacement_the_weighted_mean_is_unbiased(mass: list[int]) -> None:
    # Hansen and Hurwitz (1943): over all pairs of draws, each with its probability.
    p = torch.tensor(mass, dtype=torch.float64)
    p /= p.sum()
    f = F[: len(p)]
    expected = 0.0
    for pair in itertools.product(range(len(p)), repeat=2):
        index = torch.tensor(pair)
        weight = inverse_probability_weights(p[index], size=len(p), beta=1.0)
        expected += float(p[index].prod() * (weight * f[index]).mean())
    assert expected == pytest.approx(float(f.mean()), abs=1e-12)


def _kept_sets(inclusion: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
    """Probability and mask of every set of kept items."""
    cases = []
    for kept in itertools.product([False, True], repeat=len(inclusion)):
        mask = torch.tensor(kept)
        cases.append((float(torch.where(mask, inclusion, 1 - inclusion).prod()), mask))
    return cases


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_selective_backprop_with_inverse_probabilities_is_unbiased(beta: float) -> None:
    loss = torch.tensor([0.1, 0.7, 0.4, 2.0])
    inclusion = selective_backprop_probabilities(loss, loss, beta=beta)
    f = F[:4]
    expected = sum(
        probability * float((inclusion_weights(inclusion[mask]) * f[mask]).sum()) / len(f)
        for probability, mask in _kept_sets(inclusion)
    )
    assert expected == pytest.approx(float(f.mean()), abs=1e-12)


@pytest.mark.parametrize("prune", [0.25, 0.5, 0.75])
def test_infobatch_preserves_the_expected_sum_of_an_epoch(prune: float) -> None:
    # Qin et al. (2024), section 3.3: rescaling by 1 / (1 - r).
    loss = torch.tensor([0.1, 0.7, 0.4, 2.0, 0.2])
    inclusion = infobatch_keep_probabilities(loss, prune=prune)
    assert inclusion.tolist() == [1 - prune, 1.0, 1 - prune, 1.0, 1 - prune]  # mean 0.68
    expected = sum(
        probability * float((inclusion_weights(inclusion[mask]) * F[mask]).sum())
        for probability, mask in _kept_sets(inclusion)
    )
    assert expected == pytest.approx(float(F.sum()), abs=1e-12)


def test_beta_interpolates_between_no_and_full_correction() -> None:
    p = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64)
    assert inverse_probability_weights(p, size=4, beta=0.0).tolist() == [1.0, 1.0, 1.0]
    assert inverse_probability_weights(p, size=4, beta=1.0).tolist() == [0.5, 1.0, 2.0]
    torch.testing.assert_close(
        inverse_probability_weights(p, size=4, beta=0.5),
        torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).sqrt(),
    )


def test_an_empty_batch_has_no_weights() -> None:
    assert len(inverse_probability_weights(torch.empty(0), size=2)) == 0


@pytest.mark.parametrize(
    "weights", [lambda p: inverse_probability_weights(p, size=2), inclusion_weights]
)
def test_probabilities_outside_0_1_are_rejected(weights) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"from 0\.0 to 0\.5; they must lie in \(0, 1\]"):
        weights(torch.tensor([0.5, 0.0]))
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        weights(torch.tensor([math.nan, 0.5]))


def test_beta_outside_0_1_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"beta is 1\.5"):
        inverse_probability_weights(torch.tensor([0.5]), size=2, beta=1.5)


def test_a_size_of_0_is_rejected() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        inverse_probability_weights(torch.tensor([0.5]), size=0)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("numerator", [0.0, 0.001])
def test_compiled_weights_are_those_of_torch(beta: float, numerator: float) -> None:
    p = 1 - torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p[7] = 1e-300
    compiled, least = ratio_powers(numerator, p, beta)
    expected, least_of_torch = _ratio_powers_torch(numerator, p, beta)
    assert least == least_of_torch == 1e-300
    torch.testing.assert_close(compiled, expected, rtol=1e-14, atol=0)
