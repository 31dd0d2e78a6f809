"""The data weighter; what it shares with the AdaBoost-like sampler is in test_adaptive_batch."""

import pytest
import torch

from lit_adaptive.samplers import AdaptiveBatchSampler, AdaptiveDataWeighter

LOSS = torch.linspace(0, 5, 12).square()


def test_its_loss_weights_have_the_expectation_of_uncorrected_draws() -> None:
    sampler, weighter = AdaptiveBatchSampler(12, 1.0), AdaptiveDataWeighter(12, 1.0)
    for s in (sampler, weighter):
        s.update(torch.arange(12), LOSS)
    f = torch.linspace(-1, 2, 12, dtype=torch.float64)
    weights = weighter.loss_weights(torch.arange(12))
    weighted = float((weighter.probabilities() * weights * f).sum())
    assert weighted == pytest.approx(float((sampler.probabilities() * f).sum()))
    assert float(weights.mean()) == pytest.approx(1.0)


def test_every_sample_is_drawn_once_per_epoch_with_its_loss_weight() -> None:
    weighter = AdaptiveDataWeighter(12, 1.0)
    weighter.update(torch.arange(12), LOSS)
    index, weight = weighter.sample(12)
    assert index.sort().values.tolist() == list(range(12))
    torch.testing.assert_close(weight, weighter.loss_weights(torch.arange(12))[index])
    assert weighter.min_probability() == 1 / 12
    assert weighter.probability_of(torch.tensor([3])).tolist() == [1 / 12]


def test_removed_samples_leave_the_epoch_and_the_mean_of_the_weights_stays_1() -> None:
    weighter = AdaptiveDataWeighter(12, 1.0)
    weighter.update(torch.arange(12), LOSS)
    weighter.remove(torch.tensor([0, 11]))
    assert set(weighter.draw(20).index.tolist()) == set(range(1, 11))
    assert float(weighter.loss_weights(torch.arange(1, 11)).mean()) == pytest.approx(1.0)
    weighter.clear()
    with pytest.raises(ValueError, match="nothing"):
        weighter.draw(1)


def test_a_state_that_fails_halfway_leaves_the_epoch_unchanged() -> None:
    weighter = AdaptiveDataWeighter(12)
    weighter.draw(5)
    state = weighter.state_dict()
    other = AdaptiveDataWeighter(12, floor=0.9, ceiling=1.1, seed=4)
    rest = other.state_dict()["shuffled"]["rest"]
    trained = AdaptiveDataWeighter(12, 1.0)
    trained.update(torch.arange(12), LOSS)
    with pytest.raises(ValueError, match="same floor and ceiling"):
        other.load_state_dict({**trained.state_dict(), "shuffled": state["shuffled"]})
    assert other.state_dict()["shuffled"]["rest"].equal(rest)
