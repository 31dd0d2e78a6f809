"""Batches by length: what is drawn stays the inner sampler's, only the order changes."""

import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adaptive.samplers import (
    AdaptiveDataWeighter,
    BucketedSampler,
    CurriculumSampler,
    DrawBatches,
    MixtureSampler,
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
def test_what_is_drawn_is_what_the_inner_sampler_drew(batch: int, batches: int, seed: int) -> None:
    sampler = make(lambda n: PrioritizedSampler(n, alpha=1.0), batches=batches, seed=seed)
    sampler.update(torch.arange(SIZE), 1 + torch.arange(float(SIZE)))
    twin = PrioritizedSampler(SIZE, alpha=1.0)
    twin.load_state_dict(sampler.inner.state_dict())
    for _ in range(3):
        drawn = [sampler.draw(batch) for _ in range(batches)]
        expected = twin.draw(batch * batches)
        index = torch.cat([draw.index for draw in drawn])
        chance = torch.cat([draw.probability for draw in drawn])
        assert index.sort().values.equal(expected.index.sort().values)
        assert chance.equal(twin.probabilities()[index])


def test_batches_hold_neighbours_in_length_and_come_in_random_order() -> None:
    sampler = make(batches=8)
    orders = []
    for _ in range(20):
        drawn = [LENGTHS[sampler.draw(5).index] for _ in range(8)]
        order = sorted(range(8), key=lambda k: (float(drawn[k].max()), float(drawn[k].min())))
        ascending = torch.cat([drawn[k] for k in order])
        assert ascending.equal(LENGTHS.sort().values)
        assert all(batch.equal(batch.sort().values) for batch in drawn)
        orders.append(tuple(order))
    assert len(set(orders)) > 15


def test_padding_falls_to_what_sorting_can_save() -> None:
    def padded(sampler: Any) -> float:
        lengths = [LENGTHS[sampler.draw(5).index] for _ in range(80)]
        return sum(float(5 * batch.max() - batch.sum()) for batch in lengths)

    assert padded(make(batches=8)) < 0.25 * padded(ShuffledSampler(SIZE))


def test_equally_long_samples_of_a_stratified_draw_are_shuffled() -> None:
    # A tree's draws ascend in index: cut without shuffling, a batch would be one narrow stretch.
    sampler = BucketedSampler(1000, PrioritizedSampler, batches=10)
    sampler.set_lengths(torch.ones(1000))
    drawn = [sampler.draw(10).index for _ in range(30)]
    assert min(int(index.max() - index.min()) for index in drawn) > 400  # a tenth spans 100


def test_every_sample_once_in_a_pass() -> None:
    sampler = make(batches=4)
    for _ in range(5):
        index = torch.cat([sampler.draw(10).index for _ in range(4)])
        assert index.sort().values.equal(torch.arange(SIZE))


def test_count_and_least_probability_are_those_of_the_draw() -> None:
    # Weights are (N P(i))^-beta: both must be of the moment at which P(i) was.
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
            sampler.advance(1.0)  # the support grows while two batches are pending
    assert [draw.drawable for draw in served] == [10] * 3 + [40] * 3
    assert [float(draw.probability[0]) for draw in served] == [1 / 10] * 3 + [1 / 40] * 3
    assert [draw.min_probability for draw in served] == [1 / 10] * 3 + [1 / 40] * 3


def test_what_is_removed_is_not_served_and_the_rest_is_cut_anew() -> None:
    sampler = make(batches=4)
    first = sampler.draw(10).index
    pending = sorted(set(range(SIZE)) - set(first.tolist()))
    gone = torch.tensor(pending[:5] + first[:2].tolist())
    sampler.remove(gone)
    rest = torch.cat([sampler.draw(10).index for _ in range(2)])
    assert len(set(rest.tolist())) == 20
    assert not set(rest.tolist()) & set(gone.tolist())
    assert sampler.count == SIZE - 7
    sampler.clear()
    assert sampler.count == 0
    with pytest.raises(ValueError, match="nothing was inserted"):
        sampler.draw(1)
    sampler.insert(torch.tensor([3]))
    assert sampler.draw(2).index.tolist() == [3, 3]


def test_another_batch_size_cuts_what_is_pending_and_loses_less_than_one_batch() -> None:
    sampler = make(batches=4)
    seen = sampler.draw(10).index.tolist()
    more = [sampler.draw(7).index for _ in range(4)]  # of the 30 pending
    seen += torch.cat(more).tolist()
    assert len(set(seen)) == 38
    lengths = torch.cat(sorted((LENGTHS[index] for index in more), key=lambda each: each.max()))
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
def test_resumes_twice_with_batches_pending(inner: Any) -> None:
    def step(sampler: BucketedSampler, k: int) -> list[Any]:
        sampler.advance(k / 30)
        draw = sampler.draw(6)
        if sampler.learns:
            sampler.update(draw.index, (draw.index * (k + 1) % 5).double() + 1)
        return [draw.index.tolist(), draw.probability.tolist(), sampler.min_probability()]

    whole, broken = make(inner, seed=2), make(inner, seed=2)
    expected = [step(whole, k) for k in range(30)]
    found = []
    for part in range(3):
        found += [step(broken, k) for k in range(10 * part, 10 * part + 10)]
        file = io.BytesIO()
        torch.save(broken.state_dict(), file)
        file.seek(0)
        broken = make(inner, seed=99)
        broken.draw(5)
        broken.load_state_dict(torch.load(file, weights_only=True))
    assert found == expected


def test_reseeding_repeats_draws_and_orders() -> None:
    sampler = make(UniformSampler, seed=1)
    sampler.draw(3)
    sampler.reseed(8)
    first = [sampler.draw(4).index.tolist() for _ in range(6)]
    other = make(UniformSampler, seed=8)
    assert [other.draw(4).index.tolist() for _ in range(6)] == first


def test_everything_else_is_the_inner_samplers() -> None:
    sampler = make(lambda n: RewardWeightedSampler(n, balance_groups=True))
    assert sampler.learns
    assert sampler.learns_absent
    assert sampler.wants_groups
    sampler.set_groups(torch.arange(SIZE) // 4)
    assert not sampler.wants_groups
    reward = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    sampler.set_scores(reward)
    assert sampler.scores().equal(reward)
    assert sampler.probabilities().equal(sampler.inner.probabilities())
    assert sampler.probability_of(torch.tensor([3])) == sampler.probabilities()[3]
    assert sampler.min_probability() == sampler.inner.min_probability()
    plain = make()
    assert not plain.learns
    assert not plain.learns_absent
    assert plain.scores().tolist() == [1.0] * SIZE
    curriculum = make(CurriculumSampler)
    assert curriculum.follows_progress
    assert curriculum.wants_difficulty
    curriculum.set_difficulty(torch.arange(SIZE))
    assert not curriculum.wants_difficulty
    weighter = make(AdaptiveDataWeighter)
    assert weighter.weighs
    weights = weighter.loss_weights(torch.tensor([0, 1]))
    assert weights is not None
    assert weights.tolist() == pytest.approx([1, 1])
    weighter.forget(0.5)


def test_mixtures_and_curricula_hand_on_lengths() -> None:
    for outer in (
        MixtureSampler(SIZE, [BucketedSampler, UniformSampler]),
        CurriculumSampler(SIZE, BucketedSampler, difficulty=torch.arange(float(SIZE))),
        BucketedSampler(SIZE, BucketedSampler),
    ):
        assert outer.wants_lengths
        outer.set_lengths(LENGTHS)
        assert not outer.wants_lengths
        assert len(outer.draw(6).index) == 6


def test_bad_input_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="batches is 0"):
        BucketedSampler(4, batches=0)
    sampler = BucketedSampler(4)
    assert sampler.wants_lengths
    with pytest.raises(ValueError, match="no lengths to sort by: give the datamodule"):
        sampler.draw(2)
    for lengths, words in (
        (torch.ones(3), r"shape \(3,\) for 4"),
        (torch.tensor([1, math.nan, 2, -1]), r"index \[1, 3\] are \[nan, -1\.0\]"),
    ):
        with pytest.raises(ValueError, match=words):
            sampler.set_lengths(lengths)
    assert sampler.wants_lengths
    sampler.set_lengths(torch.ones(4))
    with pytest.raises(ValueError, match="batch_size is 0"):
        sampler.draw(0)
    with pytest.raises(ValueError, match="out of range"):
        sampler.remove(torch.tensor([4]))
    for call in (
        lambda: sampler.update(torch.tensor([0]), torch.ones(1)),
        lambda: sampler.set_scores(torch.ones(4)),
        lambda: sampler.forget(0.5),
    ):
        with pytest.raises(ValueError, match="ShuffledSampler learns nothing"):
            call()


def test_states_that_do_not_fit_are_refused_and_change_nothing() -> None:
    sampler = make(seed=4)
    sampler.draw(5)
    state = sampler.state_dict()
    for other, change, words in (
        (make(batches=5), {}, "batches is 4, this sampler's is 5"),
        (make(size=39), {}, "size is 40, this sampler's is 39"),
        (make(UniformSampler), {}, "the state's"),
        (make(), {"probability": state["probability"][:3]}, "damaged"),
        (make(), {"cut": 4}, "damaged"),
        (make(), {"index": state["index"] + 30}, "out of range"),
    ):
        twin = other.state_dict()
        with pytest.raises(ValueError, match=words):
            other.load_state_dict({**state, **change})
        assert other.state_dict()["generator"].equal(twin["generator"])
        assert len(other.state_dict()["index"]) == 0
