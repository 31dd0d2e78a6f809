"""Shuffled passes, and InfoBatch's pruned ones."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.samplers import InfoBatchSampler, ShuffledSampler


@given(st.integers(1, 12), st.lists(st.integers(1, 7), min_size=1, max_size=20))
def test_every_pass_holds_every_sample_once(size: int, batches: list[int]) -> None:
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


def test_orders_differ_between_passes_and_are_all_equally_likely() -> None:
    sampler = ShuffledSampler(3, seed=0)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(6000):
        order = tuple(sampler.draw(3).index.tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert max(counts.values()) - min(counts.values()) < 200  # 1000 +- 29 each


def test_what_comes_in_and_goes_out_in_the_middle_of_a_pass() -> None:
    sampler = ShuffledSampler(8, filled=False, seed=2)
    with pytest.raises(ValueError, match="nothing was inserted"):
        sampler.draw(1)
    sampler.insert(torch.arange(6))
    first = sampler.draw(2).index.tolist()
    sampler.insert(torch.tensor([6, 7, 7, first[0]]))  # the last is there already
    gone = next(i for i in range(6) if i not in first)
    sampler.remove(torch.tensor([gone]))
    assert sampler.count == 7
    rest = sampler.draw(5).index.tolist()
    assert sorted(first + rest) == sorted(set(range(8)) - {gone})
    assert sampler.probabilities()[gone] == 0
    assert float(sampler.probabilities().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("cls", [ShuffledSampler, InfoBatchSampler])
def test_resumes_twice_in_the_middle_of_a_pass(cls: type) -> None:
    def step(sampler: ShuffledSampler | InfoBatchSampler) -> list[int]:
        draw = sampler.draw(5)
        if isinstance(sampler, InfoBatchSampler):
            sampler.update(draw.index, draw.index.float().sin())
        return draw.index.tolist()

    whole, broken = cls(13, seed=4), cls(13, seed=4)
    expected = [step(whole) for _ in range(27)]
    found = []
    for _ in range(3):
        found += [step(broken) for _ in range(9)]
        state = broken.state_dict()
        broken = cls(13, seed=77)
        broken.draw(4)
        broken.load_state_dict(state)
    assert found == expected
    with pytest.raises(ValueError, match="size is 13, this sampler's is 12"):
        cls(12).load_state_dict(state)
    state["rest"] = torch.tensor([3])
    state["member"] = torch.arange(13) != 3
    with pytest.raises(ValueError, match="damaged"):
        broken.load_state_dict(state)


def test_infobatch_prunes_half_of_the_easy_and_weights_them_double() -> None:
    # Qin et al. (2024): r = 0.5 of those below the mean loss; the kept weigh 1 / (1 - r).
    size = 1000
    sampler = InfoBatchSampler(size, prune=0.5, seed=0)
    loss = torch.linspace(0, 1, size)  # mean 0.5: 500 are easy
    assert sampler.draw(size).index.sort().values.equal(torch.arange(size))  # nothing is known yet
    sampler.update(torch.arange(size), loss)
    seen = torch.zeros(size)
    passes = 40
    for _ in range(passes):
        sampler._begin_pass()
        length = len(sampler._order)
        assert 700 < length < 800
        draw = sampler.draw(length)
        seen[draw.index] += 1
        weight = 1 / (sampler.count * draw.probability)
        assert weight[loss[draw.index] < 0.5].eq(2).all()
        assert weight[loss[draw.index] >= 0.5].eq(1).all()
        assert float(weight.sum()) == pytest.approx(size, rel=0.06)
    assert seen[500:].eq(passes).all()
    assert float(seen[:500].mean()) == pytest.approx(passes / 2, rel=0.02)


def test_infobatch_leaves_nothing_out_at_the_end() -> None:
    # The paper trains on the full data for the last 12.5 % of the epochs.
    sampler = InfoBatchSampler(40, prune=0.9, seed=0)
    sampler.draw(40)
    sampler.update(torch.arange(40), torch.arange(40).float())
    sampler.advance(0.87)
    sampler._begin_pass()
    assert len(sampler._order) < 40
    sampler.advance(0.875)
    sampler._begin_pass()
    assert sampler.draw(40).index.sort().values.equal(torch.arange(40))
    assert sampler.probabilities().tolist() == [1 / 40] * 40


def test_infobatch_names_bad_losses() -> None:
    sampler = InfoBatchSampler(5)
    sampler.remove(torch.tensor([4]))
    for index, loss, words in (
        ([1], [math.nan], r"index \[1\] are \[nan\]"),
        ([4], [1.0], r"index \[4\] was not inserted"),
        ([5], [1.0], r"out of range: \[5\]"),
        ([1, 2], [1.0], "2 indices have 1 losses"),
    ):
        with pytest.raises(ValueError, match=words):
            sampler.update(torch.tensor(index), torch.tensor(loss))
    assert sampler._loss.isinf().all()
    for options, words in (({"prune": 1.0}, "prune is 1"), ({"anneal": 2.0}, "anneal is 2")):
        with pytest.raises(ValueError, match=words):
            InfoBatchSampler(5, **options)
