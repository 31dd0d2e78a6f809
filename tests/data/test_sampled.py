"""Datamodules: a draw served with index, probability and weight; and what they refuse."""

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from lit_adaptive.core.prioritized import importance_sampling_weights
from lit_adaptive.data import AdaptiveDataModule, TransitionsDataModule
from lit_adaptive.samplers import PrioritizedSampler, UniformSampler

PAIRS = TensorDataset(torch.arange(20.0), torch.arange(20))


def _learned(normalize: Any, workers: int = 0) -> AdaptiveDataModule:
    data = AdaptiveDataModule(
        PAIRS, PrioritizedSampler, batch_size=6, beta=0.7, normalize=normalize, num_workers=workers
    )
    data.update({"index": torch.arange(20)}, torch.linspace(0.1, 3, 20))
    return data


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("normalize", ["batch", "buffer"])
def test_a_batch_holds_the_drawn_items_and_their_weights(normalize: Any, workers: int) -> None:
    data = _learned(normalize, workers)
    law = data.sampler.probabilities()
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 4
    for batch in batches:
        index = batch["index"]
        assert batch["input"].tolist() == index.tolist()
        torch.testing.assert_close(batch["probability"], law[index])
        raw = (20 * law) ** -0.7
        greatest = raw[index].max() if normalize == "batch" else raw.max()
        torch.testing.assert_close(
            batch["weight"].double(), raw[index] / greatest, rtol=1e-6, atol=0
        )


def test_weights_correct_the_sampling_bias() -> None:
    # E[w f] at beta = 1 is proportional to the uniform mean of f: by enumeration, not by chance.
    data = _learned("buffer")
    law = data.sampler.probabilities()
    weight = importance_sampling_weights(
        law, beta=1.0, min_probability=data.sampler.min_probability()
    )
    f = torch.randn(20, dtype=torch.float64)
    expectation = (law * weight * f).sum() / (law * weight).sum()
    torch.testing.assert_close(expectation, f.mean())


def test_uniform_draws_have_weight_one() -> None:
    data = AdaptiveDataModule(PAIRS, UniformSampler, batch_size=6)
    assert all(batch["weight"].eq(1).all() for batch in data.train_dataloader())
    assert "data.update" not in data.provides


def test_provides_names_the_keys_of_a_transition() -> None:
    assert {"batch.input", "batch.target", "batch.index"} <= _learned("batch").provides


def test_a_nan_priority_is_rejected_and_changes_nothing() -> None:
    data = _learned("batch")
    before = data.sampler.probabilities().clone()
    with pytest.raises(ValueError, match=r"index \[3\] are \[nan\]"):
        data.update({"index": torch.tensor([2, 3])}, torch.tensor([1.0, float("nan")]))
    assert data.sampler.probabilities().equal(before)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"beta": 1.5}, r"beta is 1\.5"),
        ({"batches_per_epoch": -1}, "batches_per_epoch is -1"),
        ({"collate": lambda items: items[0][0]}, "must be dictionaries or"),
    ],
)
def test_an_option_out_of_range_is_rejected_by_name(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        next(iter(AdaptiveDataModule(PAIRS, **kwargs).train_dataloader()))


def test_an_empty_dataset_is_rejected() -> None:
    with pytest.raises(ValueError, match="dataset is empty"):
        AdaptiveDataModule(TensorDataset(torch.zeros(0)))


def test_a_state_of_plain_tensors_continues_the_draws(tmp_path: Any) -> None:
    data, again = _learned("batch"), _learned("batch")
    taken = iter(data.train_dataloader())
    for _ in range(2):
        next(taken)
    torch.save(data.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert data.sampler.draw(9).index.equal(again.sampler.draw(9).index)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"num_environments": 0}, "num_environments is 0"),
        ({"evaluation_episodes": 0}, "evaluation_episodes is 0"),
        ({"environment": "Nowhere-v9"}, "Nowhere-v9"),
        ({"gamma": 2.0}, r"gamma is 2\.0"),
    ],
)
def test_a_replay_option_out_of_range_is_rejected(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TransitionsDataModule(**{"environment": "CartPole-v1", **kwargs})


def test_drawing_from_an_empty_replay_buffer_names_the_remedy() -> None:
    data = TransitionsDataModule("CartPole-v1", capacity=10)
    with pytest.raises(ValueError, match=r"nothing to draw|can be drawn|empty"):
        next(iter(data.train_dataloader()))
