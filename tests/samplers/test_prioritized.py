"""Proportional prioritization; what it shares with the other samplers is in test_base."""

import pytest
import torch

from lit_adaptive.core.prioritized import importance_sampling_weights, sampling_probabilities
from lit_adaptive.samplers import PrioritizedSampler


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_probabilities_are_equation_1(alpha: float) -> None:
    # Schaul et al. (2016), equation 1.
    sampler = PrioritizedSampler(5, alpha=alpha)
    priority = torch.tensor([0.0, 1e-3, 2.0, 5.0, 1.0], dtype=torch.float64)
    sampler.update(torch.arange(5), priority)
    expected = sampling_probabilities(priority, alpha=alpha)
    torch.testing.assert_close(sampler.probabilities(), expected, rtol=1e-14, atol=0)


def test_an_item_of_priority_0_is_inserted_but_not_drawn_until_updated() -> None:
    sampler = PrioritizedSampler(3)
    sampler.update(torch.arange(3), torch.tensor([0.0, 2.0, 5.0]))
    assert sampler.count == 3
    assert 0 not in sampler.draw(500).index.tolist()
    sampler.update(torch.tensor([0]), torch.tensor([2.0]))
    assert sampler.probabilities()[0] == sampler.probabilities()[1]


def test_priorities_all_0_are_an_error_at_the_draw() -> None:
    sampler = PrioritizedSampler(3)
    sampler.update(torch.arange(3), torch.zeros(3))
    with pytest.raises(ValueError, match="total priority is 0"):
        sampler.draw(2)


def test_scores_all_0_are_an_error_and_change_nothing() -> None:
    sampler = PrioritizedSampler(3)
    with pytest.raises(ValueError, match="no score is above 0"):
        sampler.set_scores(torch.zeros(3))
    assert sampler.probabilities().tolist() == pytest.approx([1 / 3] * 3)


def test_weighted_mean_over_draws_is_the_uniform_mean() -> None:
    # Schaul et al. (2016), section 3.4: beta = 1 corrects the bias fully.
    sampler = PrioritizedSampler(40, seed=5)
    sampler.remove(torch.tensor([0, 39]))
    sampler.update(torch.arange(1, 7), torch.tensor([0.5, 3, 0.01, 9, 2, 1]))
    f = torch.arange(40, dtype=torch.float64)
    drawable = sampler.probabilities() > 0
    total = 0.0
    for _ in range(2000):
        draw = sampler.draw(32)
        least = sampler.min_probability()
        weight = importance_sampling_weights(draw.probability, beta=1.0, min_probability=least)
        total += float((weight * f[draw.index]).mean()) / (sampler.count * least)
    assert total / 2000 == pytest.approx(float(f[drawable].mean()), rel=0.01)
