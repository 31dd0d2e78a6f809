import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from lit_adaptive.core.hard_examples import (
    focal_loss,
    hardest_indices,
    infobatch_keep_probabilities,
    kept_count,
    loss_cdf,
    reducible_loss,
    selective_backprop_probabilities,
)

losses = st.lists(st.integers(0, 20), min_size=1, max_size=30)


@given(losses, st.floats(0.01, 1.0))
def test_hardest_are_the_first_after_sorting(values: list[int], keep: float) -> None:
    score = torch.tensor(values, dtype=torch.float32)
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    expected = sorted(ranked[: math.ceil(keep * len(values))])
    assert hardest_indices(score, keep=keep).tolist() == expected


def test_ohem_keeps_128_of_two_images_as_in_the_paper() -> None:
    # Shrivastava et al. (2016): the 128 largest losses of about 2 x 2000 regions.
    score = torch.arange(4000).float().flip(0)
    assert hardest_indices(score, keep=128).tolist() == list(range(128))


def test_keep_is_a_share_or_a_number() -> None:
    assert kept_count(10, 0.25) == 3
    assert kept_count(10, 1) == 10
    assert kept_count(10, 4) == 4


@pytest.mark.parametrize(
    ("keep", "message"),
    [(11, "batch has 10"), (0, "above 0"), (2.5, "must be whole"), (-1, "above 0")],
)
def test_keep_that_is_neither_a_share_nor_a_number_is_rejected(keep: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kept_count(10, keep)


def test_nan_scores_cannot_be_ranked() -> None:
    with pytest.raises(ValueError, match=r"\[1\] are NaN"):
        hardest_indices(torch.tensor([1.0, torch.nan]), keep=0.5)


@given(losses, losses)
def test_loss_cdf_is_the_fraction_of_the_history_not_above(
    values: list[int], history: list[int]
) -> None:
    cdf = loss_cdf(torch.tensor(values).float(), torch.tensor(history).float())
    expected = [sum(past <= value for past in history) / len(history) for value in values]
    torch.testing.assert_close(cdf, torch.tensor(expected, dtype=torch.float64))


def test_selective_backprop_keeps_a_half_a_third_a_quarter() -> None:
    # Jiang et al. (2019), section 3.2: beta sets the selectivity; the mean of U^beta is 1/(1+beta).
    loss = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    for beta in (1, 2, 3):
        share = float(selective_backprop_probabilities(loss, loss, beta=beta).mean())
        assert share == pytest.approx(1 / (1 + beta), abs=1e-3)
    assert selective_backprop_probabilities(loss, loss, beta=0).eq(1).all()


def test_selective_backprop_needs_a_history_and_a_selectivity_of_at_least_0() -> None:
    loss = torch.rand(5)
    with pytest.raises(ValueError, match="beta is -1"):
        selective_backprop_probabilities(loss, loss, beta=-1)
    with pytest.raises(ValueError, match="history of losses is empty"):
        selective_backprop_probabilities(loss, torch.empty(0))


def test_infobatch_keeps_hard_samples_and_samples_without_a_loss() -> None:
    loss = torch.tensor([1.0, 3.0, torch.inf])
    assert infobatch_keep_probabilities(loss, prune=0.5).tolist() == [0.5, 1.0, 1.0]
    assert infobatch_keep_probabilities(torch.full((3,), torch.inf), prune=0.5).tolist() == [
        1.0,
        1.0,
        1.0,
    ]
    assert infobatch_keep_probabilities(torch.full((3,), 2.0), prune=0.5).tolist() == [
        1.0,
        1.0,
        1.0,
    ]


def test_pruning_all_easy_samples_is_rejected() -> None:
    with pytest.raises(ValueError, match="prune is 1"):
        infobatch_keep_probabilities(torch.ones(3), prune=1.0)


def test_reducible_loss_prefers_learnable_to_noisy_samples() -> None:
    # Mindermann et al. (2022), equation 3: a loss that the holdout model has too counts little.
    current = torch.tensor([3.0, 3.0, 0.1])
    holdout = torch.tensor([2.9, 0.2, 0.1])
    assert hardest_indices(reducible_loss(current, holdout), keep=1 / 3).tolist() == [1]


def test_focal_loss_is_cross_entropy_at_gamma_0_and_a_hundredth_at_p_point_9() -> None:
    # Lin et al. (2017), section 3.2: with gamma 2 and p = 0.9 the loss is 100 times lower.
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    plain = cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(focal_loss(logits, target, gamma=0.0), plain)
    easy = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log()
    first = torch.tensor([0])
    ratio = focal_loss(easy, first) / cross_entropy(easy, first, reduction="none")
    assert float(ratio) == pytest.approx(0.01)


def test_alpha_is_a_factor_of_the_focal_loss() -> None:
    logits, target = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(
        focal_loss(logits, target, alpha=0.25) * 4, focal_loss(logits, target)
    )


def test_focal_gradient_equals_that_of_the_formula() -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 0, 1])
    focal_loss(logits, target, gamma=2.0).sum().backward()
    gradient = logits.grad
    logits.grad = None
    p = logits.softmax(1).gather(1, target[:, None])
    (-((1 - p) ** 2) * p.log()).sum().backward()
    torch.testing.assert_close(gradient, logits.grad)


def test_focal_gradient_is_finite_at_probabilities_of_0_and_1() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0, 0]), gamma=0.5).sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
