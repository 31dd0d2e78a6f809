"""Shuffled epochs; what InfoBatch shares is tested for both."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.samplers import InfoBatchSampler, ShuffledSampler

both = pytest.mark.parametrize("cls", [ShuffledSampler, InfoBatchSampler])


@given(st.integers(1, 12), st.lists(st.integers(1, 7), min_size=1, max_size=20))
def test_every_epoch_holds_every_sample_once(size: int, batches: list[int]) -> None:
    sampler = ShuffledSampler(size, seed=1)
    stream: list[int] = []
    for batch in batches:
        draw = sampler.draw(batch)
        assert draw.probability.tolist() == [1 / size] * batch
        stream += draw.index.tolist()
    for start in range(0, len(stream) - size + 1, size):
        assert sorted(stream[start : start + size]) == list(range(size))
    rest = stream[len(stream) // size * size :]
    assert len(set(rest)) == len(rest)


def test_orders_differ_between_epochs_and_are_all_equally_likely() -> None:
    sampler = ShuffledSampler(3, seed=0)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(6000):
        order = tuple(sampler.draw(3).index.tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert max(counts.values()) - min(counts.values()) < 200  # 1000 +- 29 each


def test_inserted_samples_begin_a_new_epoch_and_removed_samples_leave_it() -> None:
    sampler = ShuffledSampler(8, filled=False, seed=2)
    with pytest.raises(ValueError, match="nothing was inserted"):
        sampler.draw(1)
    sampler.insert(torch.arange(6))
    first = sampler.draw(2).index.tolist()
    sampler.insert(torch.tensor([6, 7, 7, first[0]]))  # the last is inserted already
    removed = next(i for i in range(6) if i not in first)
    sampler.remove(torch.tensor([removed]))
    assert sampler.count == 7
    assert sorted(sampler.draw(7).index.tolist()) == sorted(set(range(8)) - {removed})
    assert sampler.probabilities()[removed] == 0
    assert float(sampler.probabilities().sum()) == pytest.approx(1.0)


@both
def test_a_drawn_batch_does_not_change_when_the_epoch_does(cls: type) -> None:
    sampler = cls(9, seed=1)
    index = sampler.draw(4).index
    before = index.clone()
    sampler.remove(index[:2])
    sampler.insert(index[:2])
    sampler.draw(20)
    assert index.equal(before)


@both
def test_resumes_twice_in_the_middle_of_an_epoch(cls: type) -> None:
    def step(sampler: ShuffledSampler | InfoBatchSampler) -> list[int]:
        draw = sampler.draw(5)
        if isinstance(sampler, InfoBatchSampler):
            sampler.update(draw.index, draw.index.float().sin())
        return draw.index.tolist()

    uninterrupted, sampler = cls(13, seed=4), cls(13, seed=4)
    expected = [step(uninterrupted) for _ in range(27)]
    draws = []
    for _ in range(3):
        draws += [step(sampler) for _ in range(9)]
        state = sampler.state_dict()
        sampler = cls(13, seed=77)
        sampler.draw(4)
        sampler.load_state_dict(state)
    assert draws == expected


@both
def test_a_state_of_another_size_or_with_absent_samples_is_an_error(cls: type) -> None:
    sampler = cls(13)
    sampler.draw(4)
    state = sampler.state_dict()
    with pytest.raises(ValueError, match="size is 13, this sampler's is 12"):
        cls(12).load_state_dict(state)
    state["rest"] = torch.tensor([3])
    state["inserted"] = torch.arange(13) != 3
    with pytest.raises(ValueError, match="damaged"):
        sampler.load_state_dict(state)
