"""Bucketed batches: the draws are the inner sampler's, only their order changes."""

import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adaptive.samplers import (
    BucketedSampler,
    CurriculumSampler,
    DrawBatches,
    PrioritizedSampler,
    RewardWeightedSampler,
    ShuffledSampler,
    UniformSampler,
)

SIZE = 40
LENGTHS = (torch.arange(SIZE) * 17 % 23).double()


def make(inner: Any = ShuffledSampler, *, batches: int = 4, **options: Any) -> BucketedSampler:
    sampler = BucketedSampler(options.pop("size", SIZE), inner, batches=batches, **options)
    sampler.set_lengths(LENGTHS[: sampler.size])
    return sampler


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 9))
@settings(deadline=None)
def test_the_draws_are_those_of_the_inner_sampler(batch: int, batches: int, seed: int) -> None:
    sampler = make(lambda n: PrioritizedSampler(n, alpha=1.0), batches=batches, seed=seed)
    sampler.update(torch.arange(SIZE), 1 + torch.arange(float(SIZE)))
    twin = PrioritizedSampler(SIZE, alpha=1.0)
    twin.load_state_dict(sampler.inner.state_dict())
    for _ in range(3):
        draws = [sampler.draw(batch) for _ in range(batches)]
        expected = twin.draw(batch * batches)
        index = torch.cat([draw.index for draw in draws])
        probability = torch.cat([draw.probability for draw in draws])
        assert index.sort().values.equal(expected.index.sort().values)
        assert probability.equal(twin.probabilities()[index])


def test_batches_hold_similar_lengths_and_come_in_random_order() -> None:
    sampler = make(batches=8)
    orders = []
    for _ in range(20):
        lengths = [LENGTHS[sampler.draw(5).index] for _ in range(8)]
        order = sorted(range(8), key=lambda k: (float(lengths[k].max()), float(lengths[k].min())))
        ascending = torch.cat([lengths[k] for k in order])
        assert ascending.equal(LENGTHS.sort().values)
        assert all(batch.equal(batch.sort().values) for batch in lengths)
        orders.append(tuple(order))
    assert len(set(orders)) > 15


def test_padding_is_less_than_a_quarter_of_that_without_buckets() -> None:
    def padding(sampler: Any) -> float:
        lengths = [LENGTHS[sampler.draw(5).index] for _ in range(80)]
        return sum(float(5 * batch.max() - batch.sum()) for batch in lengths)

    assert padding(make(batches=8)) < 0.25 * padding(ShuffledSampler(SIZE))


def test_equally_long_samples_of_a_stratified_draw_are_shuffled() -> None:
    # A tree's draws ascend in index: without shuffling, a batch would have only close indices.
    sampler = BucketedSampler(1000, PrioritizedSampler, batches=10)
    sampler.set_lengths(torch.ones(1000))
    batches = [sampler.draw(10).index for _ in range(30)]
    assert min(int(index.max() - index.min()) for index in batches) > 400  # a tenth spans 100


def test_shuffled_epochs_hold_every_sample_once() -> None:
    sampler = make(batches=4)
    for _ in range(5):
        index = torch.cat([sampler.draw(10).index for _ in range(4)])
        assert index.sort().values.equal(torch.arange(SIZE))


def test_count_and_least_probability_are_those_of_the_draw() -> None:
    # Weights are (N P(i))^-beta: N must be of the same moment as P(i).
    sampler = make(
        lambda n: CurriculumSampler(
            n, UniformSampler, start=0.25, power=1, until=1.0, difficulty=torch.arange(float(n))
        ),
        batches=3,
    )
    batches = DrawBatches(sampler, 2, 6, normalize="buffer")
    served = []
    for number, draw in enumerate(batches):
        batches.acknowledge()
        served.append(draw)
        if number == 0:
            sampler.advance(1.0)  # more samples become eligible while two batches are pending
    assert [draw.drawable for draw in served] == [10] * 3 + [40] * 3
    assert [float(draw.probability[0]) for draw in served] == [1 / 10] * 3 + [1 / 40] * 3
    assert [draw.min_probability for draw in served] == [1 / 10] * 3 + [1 / 40] * 3


def test_removed_samples_leave_the_pending_draws() -> None:
    sampler = make(batches=4)
    first = sampler.draw(10).index
    pending = sorted(set(range(SIZE)) - set(first.tolist()))
    removed = torch.tensor(pending[:5] + first[:2].tolist())
    sampler.remove(removed)
    rest = torch.cat([sampler.draw(10).index for _ in range(2)])
    assert len(set(rest.tolist())) == 20
    assert not set(rest.tolist()) & set(removed.tolist())
    assert sampler.count == SIZE - 7
    sampler.clear()
    assert sampler.count == 0
    with pytest.raises(ValueError, match="nothing was inserted"):
        sampler.draw(1)
    sampler.insert(torch.tensor([3]))
    assert sampler.draw(2).index.tolist() == [3, 3]


def test_another_batch_size_splits_the_pending_draws_anew_and_loses_less_than_a_batch() -> None:
    sampler = make(batches=4)
    drawn = sampler.draw(10).index.tolist()
    more = [sampler.draw(7).index for _ in range(4)]  # of the 30 pending
    drawn += torch.cat(more).tolist()
    assert len(set(drawn)) == 38
    lengths = torch.cat(sorted((LENGTHS[index] for index in more), key=lambda batch: batch.max()))
    assert lengths.equal(lengths.sort().values)
    assert len(sampler.draw(50).index) == 50  # more than is pending


@pytest.mark.parametrize(
    "inner",
    [
        ShuffledSampler,
        lambda n: RewardWeightedSampler(n, scheme="rank"),
        lambda n: CurriculumSampler(n, PrioritizedSampler, difficulty=torch.arange(float(n))),
    ],
)
def test_resumes_twice_with_pending_draws_as_if_never_interrupted(inner: Any) -> None:
    def step(sampler: BucketedSampler, k: int) -> list[Any]:
        sampler.advance(k / 30)
        draw = sampler.draw(6)
        if sampler.learns:
            sampler.update(draw.index, (draw.index * (k + 1) % 5).double() + 1)
        return [draw.index.tolist(), draw.probability.tolist(), sampler.min_probability()]

    uninterrupted, sampler = make(inner, seed=2), make(inner, seed=2)
    expected = [step(uninterrupted, k) for k in range(30)]
    draws = []
    for part in range(3):
        draws += [step(sampler, k) for k in range(10 * part, 10 * part + 10)]
        file = io.BytesIO()
        torch.save(sampler.state_dict(), file)
        file.seek(0)
        sampler = make(inner, seed=99)
        sampler.draw(5)
        sampler.load_state_dict(torch.load(file, weights_only=True))
    assert draws == expected


def test_reseeding_repeats_draws_and_orders() -> None:
    sampler = make(UniformSampler, seed=1)
    sampler.draw(3)
    sampler.reseed(8)
    first = [sampler.draw(4).index.tolist() for _ in range(6)]
    other = make(UniformSampler, seed=8)
    assert [other.draw(4).index.tolist() for _ in range(6)] == first


def test_probabilities_are_those_of_the_inner_samplers_next_draw() -> None:
    sampler = make(lambda n: RewardWeightedSampler(n, temperature=2.0))
    sampler.set_scores(torch.linspace(-1, 1, SIZE))
    sampler.draw(3)
    assert sampler.probabilities().equal(sampler.inner.probabilities())
    assert sampler.probability_of(torch.tensor([3])) == sampler.probabilities()[3]
    assert sampler.min_probability() == sampler.inner.min_probability()


def test_a_draw_without_lengths_is_an_error() -> None:
    sampler = BucketedSampler(4)
    assert sampler.needs_lengths
    with pytest.raises(ValueError, match="no lengths to sort by: give the datamodule"):
        sampler.draw(2)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.ones(3), r"shape \(3,\) for 4"),
        (torch.tensor([1, math.nan, 2, -1]), r"index \[1, 3\] are \[nan, -1\.0\]"),
    ],
)
def test_wrong_lengths_are_named(lengths: torch.Tensor, message: str) -> None:
    sampler = BucketedSampler(4)
    with pytest.raises(ValueError, match=message):
        sampler.set_lengths(lengths)
    assert sampler.needs_lengths


def test_a_number_of_batches_or_batch_size_of_zero_or_an_index_out_of_range_is_an_error() -> None:
    with pytest.raises(ValueError, match="batches is 0"):
        BucketedSampler(4, batches=0)
    sampler = make(size=4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        sampler.draw(0)
    with pytest.raises(ValueError, match="out of range"):
        sampler.remove(torch.tensor([4]))


def test_a_state_that_does_not_fit_is_an_error_and_changes_nothing() -> None:
    sampler = make(seed=4)
    sampler.draw(5)
    state = sampler.state_dict()
    for other, change, message in (
        (make(batches=5), {}, "batches is 4, this sampler's is 5"),
        (make(size=39), {}, "size is 40, this sampler's is 39"),
        (make(UniformSampler), {}, "the state's"),
        (make(), {"probability": state["probability"][:3]}, "damaged"),
        (make(), {"split_size": 4}, "damaged"),
        (make(), {"index": state["index"] + 30}, "out of range"),
    ):
        before = other.state_dict()
        with pytest.raises(ValueError, match=message):
            other.load_state_dict({**state, **change})
        assert other.state_dict()["generator"].equal(before["generator"])
        assert len(other.state_dict()["index"]) == 0
