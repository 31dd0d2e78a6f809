"""InfoBatch; what it shares with shuffled epochs is in test_shuffled."""

import math

import pytest
import torch

from lit_adaptive.samplers import InfoBatchSampler


def epoch_length(sampler: InfoBatchSampler) -> int:
    sampler._begin_epoch()
    return len(sampler._order)


def test_half_of_the_easy_samples_are_pruned_and_the_others_weighted_double() -> None:
    # Qin et al. (2024): r = 0.5 of those below the mean loss; the kept weigh 1 / (1 - r).
    size = 1000
    sampler = InfoBatchSampler(size, prune=0.5, seed=0)
    loss = torch.linspace(0, 1, size)  # mean 0.5: 500 are easy
    assert sampler.draw(size).index.sort().values.equal(torch.arange(size))  # no loss is known yet
    sampler.update(torch.arange(size), loss)
    counts = torch.zeros(size)
    epochs = 40
    for _ in range(epochs):
        length = epoch_length(sampler)
        assert 700 < length < 800
        draw = sampler.draw(length)
        counts[draw.index] += 1
        weight = 1 / (sampler.count * draw.probability)
        assert weight[loss[draw.index] < 0.5].eq(2).all()
        assert weight[loss[draw.index] >= 0.5].eq(1).all()
        assert float(weight.sum()) == pytest.approx(size, rel=0.06)
    assert counts[500:].eq(epochs).all()
    assert float(counts[:500].mean()) == pytest.approx(epochs / 2, rel=0.02)


def test_the_final_epochs_are_complete() -> None:
    # The paper trains on the full data for the last 12.5 % of the epochs.
    sampler = InfoBatchSampler(40, prune=0.9, seed=0)
    sampler.draw(40)
    sampler.update(torch.arange(40), torch.arange(40).float())
    sampler.advance(0.87)
    assert epoch_length(sampler) < 40
    sampler.advance(0.875)
    sampler._begin_epoch()
    assert sampler.draw(40).index.sort().values.equal(torch.arange(40))
    assert sampler.probabilities().tolist() == [1 / 40] * 40


def test_a_run_resumed_in_its_final_epochs_does_not_prune_again() -> None:
    sampler = InfoBatchSampler(40, prune=0.9)
    sampler.draw(40)
    sampler.update(torch.arange(40), torch.arange(40).float())
    sampler.advance(0.9)
    resumed = InfoBatchSampler(40, prune=0.9)
    resumed.load_state_dict(sampler.state_dict())
    assert [epoch_length(resumed) for _ in range(3)] == [40] * 3
    resumed.load_state_dict({**sampler.state_dict(), "annealing": False})
    assert epoch_length(resumed) < 40


def test_the_least_probability_is_that_of_the_easy_samples() -> None:
    sampler = InfoBatchSampler(10, prune=0.5)
    sampler.update(torch.arange(10), torch.arange(10.0))
    sampler._begin_epoch()
    assert sampler.min_probability() == 0.5 / 10
    sampler.remove(torch.arange(5))
    assert sampler.min_probability() == 1 / 5


def test_unknown_losses_score_as_the_greatest_known_one() -> None:
    sampler = InfoBatchSampler(4)
    assert sampler.scores().tolist() == [0.0] * 4
    sampler.update(torch.tensor([1, 2]), torch.tensor([3.0, 1.0]))
    assert sampler.scores().tolist() == [3.0, 3.0, 1.0, 3.0]
    fresh = InfoBatchSampler(4)
    fresh.set_scores(sampler.scores())
    assert fresh.scores().equal(sampler.scores())


def test_clear_forgets_losses() -> None:
    sampler = InfoBatchSampler(40, prune=0.9)
    sampler.update(torch.arange(40), torch.arange(40).float())
    sampler.clear()
    sampler.insert(torch.arange(40))
    assert epoch_length(sampler) == 40


@pytest.mark.parametrize(
    ("index", "loss", "message"),
    [
        ([1], [math.nan], r"index \[1\] are \[nan\]"),
        ([4], [1.0], r"index \[4\] was not inserted"),
        ([5], [1.0], r"out of range: \[5\]"),
        ([1, 2], [1.0], r"shape \(2,\), the losses \(1,\)"),
    ],
)
def test_a_wrong_update_names_its_indices_and_changes_nothing(
    index: list[int], loss: list[float], message: str
) -> None:
    sampler = InfoBatchSampler(5)
    sampler.remove(torch.tensor([4]))
    with pytest.raises(ValueError, match=message):
        sampler.update(torch.tensor(index), torch.tensor(loss))
    assert sampler._loss.isinf().all()


@pytest.mark.parametrize(
    ("options", "message"), [({"prune": 1.0}, "prune is 1"), ({"anneal": 2.0}, "anneal is 2")]
)
def test_an_option_out_of_range_is_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfoBatchSampler(5, **options)
