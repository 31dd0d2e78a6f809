"""Estimates of pass rates: what they say before, between and after visits."""

import math
from typing import Any

import pytest
import torch

from lit_adaptive.samplers import ArcsineKalman, BetaPosterior, DifficultySampler, MarkovForecast


def beta(**options: float) -> BetaPosterior:
    estimator = BetaPosterior(**options)
    estimator.allocate(3)
    estimator.set_prediction(torch.tensor([0.1, 0.5, 0.9]))
    return estimator


def test_a_prompt_without_visits_has_the_predicted_rate_and_a_visit_outweighs_it() -> None:
    estimator = beta(prior_rollouts=2.0)
    torch.testing.assert_close(estimator.mean(), torch.tensor([0.1, 0.5, 0.9]).double())
    estimator.observe(torch.tensor([0]), torch.tensor([0.75]).double(), 8)
    assert float(estimator.mean()[0]) == pytest.approx((0.2 + 6) / 10)
    estimator.set_prediction(torch.tensor([0.3, 0.5, 0.9]))
    assert float(estimator.mean()[0]) == pytest.approx((0.6 + 6) / 10)


def test_forgetting_acts_at_visits_and_decay_at_every_step() -> None:
    # MoPPS: Beta(a, b) <- lambda (a, b) + (1 - lambda) prior + counts.
    estimator = beta(prior_rollouts=2.0, forgetting=0.5)
    rate = torch.tensor([0.5]).double()
    estimator.observe(torch.tensor([1]), rate, 8)
    estimator.observe(torch.tensor([2]), rate, 8)
    assert float(estimator.successes[1]) == 4
    estimator.observe(torch.tensor([1]), 0 * rate, 8)
    assert float(estimator.mean()[1]) == pytest.approx((1 + 0.5 * 4) / (2 + 0.5 * 8 + 8))
    decaying = beta(decay=0.5)
    decaying.observe(torch.tensor([1]), rate, 8)
    decaying.observe(torch.tensor([2]), rate, 8)
    assert decaying.successes.tolist() == [0, 2, 4]


def test_draws_from_the_posterior_have_its_mean_and_variance() -> None:
    estimator = BetaPosterior()
    estimator.allocate(20_000)
    estimator.set_prediction(torch.full((20_000,), 0.25))
    drawn = estimator.sample(torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(0.25, abs=0.01)
    assert float(drawn.var()) == pytest.approx(0.25 * 0.75 / 3, rel=0.05)


def test_a_predicted_variance_sets_the_strength_of_the_prior() -> None:
    estimator = BetaPosterior(prior_rollouts=20.0)
    estimator.allocate(3)
    rate = torch.tensor([0.5, 0.5, 0.2])
    estimator.set_prediction(rate, variance=torch.tensor([0.25, 0.05, 0.02]))
    signal = estimator.expected_score("learnability", 8)
    # E[p (1 - p)] = m (1 - m) - v of each belief.
    torch.testing.assert_close(signal, torch.tensor([0.0, 0.2, 0.14]).double(), atol=5e-4, rtol=0)
    estimator.prior = estimator.prior.clamp(max=4)
    spread = estimator.expected_score("informative", 8)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([estimator.sample(generator) for _ in range(20_000)])
    monte_carlo = (1 - drawn**8 - (1 - drawn) ** 8).mean(0)
    torch.testing.assert_close(spread, monte_carlo, atol=0.01, rtol=0)
    assert estimator.expected_score("near", 8) is None


def test_prompts_that_may_be_solved_or_hopeless_are_drawn_after_those_of_one_half() -> None:
    options: dict[str, Any] = {"target": "learnability", "selection": "top_k"}
    sampler = DifficultySampler(40, **options)
    variance = torch.full((40,), 0.24)
    variance[10:14] = 0.01
    sampler.set_prediction(torch.full((40,), 0.5), variance)
    assert sorted(sampler.draw(4).index.tolist()) == [10, 11, 12, 13]
    with pytest.raises(ValueError, match="-1"):
        sampler.set_prediction(torch.full((40,), 0.5), -torch.ones(40))
    with pytest.raises(ValueError, match=r"the variances of index \[0, 1.*are \[2.0, 2.0"):
        sampler.set_prediction(torch.full((40,), 0.5), torch.full((40,), 2.0))


def test_a_forecast_moves_prompts_that_are_not_visited_too() -> None:
    estimator = MarkovForecast(forgetting=1.0)
    estimator.allocate(2)
    estimator.observe(torch.tensor([0]), torch.tensor([0.5]).double(), 8)
    estimator.observe(torch.tensor([0]), torch.tensor([1.0]).double(), 8)
    before = estimator.state[0].clone()
    estimator.observe(torch.tensor([1]), torch.tensor([0.5]).double(), 8)
    assert not torch.allclose(estimator.state[0], before)
    torch.testing.assert_close(estimator.state.sum(1), torch.ones(2, dtype=torch.float64))


def test_a_kalman_belief_widens_and_takes_predictions_where_there_were_no_visits() -> None:
    estimator = ArcsineKalman(drift=0.01, prior_variance=0.2)
    estimator.allocate(2)
    estimator.set_prediction(torch.tensor([0.2, 0.2]))
    estimator.observe(torch.tensor([0]), torch.tensor([0.5]).double(), 8)
    narrow = float(estimator.variance[0])
    estimator.observe(torch.tensor([1]), torch.tensor([0.5]).double(), 8)
    assert float(estimator.variance[0]) == pytest.approx(narrow + 0.01)
    mean = estimator.mean()
    estimator.set_prediction(torch.tensor([0.2, 0.2]))  # says nothing new
    torch.testing.assert_close(estimator.mean(), mean)
    assert 0.2 < float(mean[0]) < 0.5


def test_a_filter_in_the_angle_recovers_drifting_pass_rates_better_than_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    size, steps = 200, 60
    true = torch.rand(size, generator=generator).double().sqrt().asin()
    kalman, counts = ArcsineKalman(drift=0.003), BetaPosterior()
    kalman.allocate(size)
    counts.allocate(size)
    for _ in range(steps):
        true = (true + 0.05 * torch.randn(size, generator=generator)).clamp(0, math.pi / 2)
        index = torch.randperm(size, generator=generator)[:60]
        rate = true[index].sin().square()
        passed = torch.rand(60, 8, generator=generator) < rate[:, None]
        for estimator in (kalman, counts):
            estimator.observe(index, passed.double().mean(1), 8)
    truth = true.sin().square()
    assert (kalman.mean() - truth).abs().mean() < (counts.mean() - truth).abs().mean()
