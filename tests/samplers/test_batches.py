"""Batches of draws: every rank's share of them, and resuming in the middle of an epoch."""

import io
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lit_adaptive.samplers import (
    BatchDraw,
    Draw,
    DrawBatches,
    PrioritizedSampler,
    UniformSampler,
    rank_share,
)


def sampler_with_priorities() -> PrioritizedSampler:
    sampler = PrioritizedSampler(50, seed=3)
    sampler.update(torch.arange(50), torch.arange(50).double() + 1)
    return sampler


def learn(sampler: PrioritizedSampler, draw: BatchDraw) -> None:
    sampler.update(draw.index, (draw.index * 7 % 11).double() + 0.5)


def equal(a: BatchDraw, b: BatchDraw) -> bool:
    return (
        a.index.equal(b.index)
        and a.probability.equal(b.probability)
        and a.min_probability == b.min_probability
    )


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [5, 12])
def test_shares_are_disjoint_in_position_and_together_the_global_draw(
    world: int, total: int
) -> None:
    draw = Draw(torch.arange(total) * 10, torch.rand(total).double())
    shares = [rank_share(draw, rank, world) for rank in range(world)]
    index = torch.cat([s.index for s in shares])
    assert index.sort().values.equal(draw.index)
    assert len(set(index.tolist())) == total
    for rank, share in enumerate(shares):
        assert share.index.equal(draw.index[rank::world])
        assert share.probability.equal(draw.probability[rank::world])


def test_every_rank_serves_its_share_of_the_same_global_batch() -> None:
    epochs = []
    for rank in range(3):
        batches = DrawBatches(sampler_with_priorities(), 4, 5, rank=rank, world_size=3)
        epochs.append(list(batches))
    twin = sampler_with_priorities()
    for shares in zip(*epochs, strict=True):
        draw = twin.draw(12)
        for rank, share in enumerate(shares):
            assert share.index.equal(draw.index[rank::3])
            assert share.min_probability == draw.probability.min()  # of the global batch


def test_normalize_buffer_gives_the_smallest_probability_of_the_buffer_at_the_draw() -> None:
    sampler = sampler_with_priorities()
    batches = iter(DrawBatches(sampler, 4, 2, normalize="buffer"))
    before = sampler.min_probability()
    assert next(batches).min_probability == before
    sampler.update(torch.tensor([0]), torch.tensor([0.001]))
    assert next(batches).min_probability == sampler.min_probability() < before


def test_a_batch_is_drawn_when_it_is_requested() -> None:
    sampler = sampler_with_priorities()
    batches = iter(DrawBatches(sampler, 200, 2))
    next(batches)
    sampler.update(torch.arange(50), torch.zeros(50).index_fill(0, torch.tensor([9]), 1.0))
    assert set(next(batches).index.tolist()) == {9}


def test_a_run_resumed_at_any_batch_serves_what_the_uninterrupted_one_serves() -> None:
    def run(batches: DrawBatches, sampler: PrioritizedSampler) -> Iterator[Any]:
        for _ in range(2):
            for draw in batches:
                batches.acknowledge()
                learn(sampler, draw)
                states = batches.state_dict(), sampler.state_dict()
                yield draw, states, batches.position

    sampler = sampler_with_priorities()
    uninterrupted = list(run(DrawBatches(sampler, 4, 3), sampler))
    assert [position for _, _, position in uninterrupted] == [1, 2, 3, 1, 2, 3]
    for done in range(1, 6):
        file = io.BytesIO()
        torch.save(uninterrupted[done - 1][1], file)
        file.seek(0)
        place, memory = torch.load(file, weights_only=True)
        sampler = PrioritizedSampler(50, seed=77)
        batches = DrawBatches(sampler, 4, 3)
        batches.load_state_dict(place)
        sampler.load_state_dict(memory)
        rest = [draw for draw, _, _ in itertools.islice(run(batches, sampler), 6 - done)]
        assert len(rest) == 6 - done
        assert all(equal(a, b) for a, (b, _, _) in zip(rest, uninterrupted[done:], strict=True))


class Echo(Dataset[BatchDraw]):
    def __getitem__(self, draw: BatchDraw) -> BatchDraw:
        return draw


def as_is(draw: BatchDraw) -> BatchDraw:
    return draw


def loader(batches: DrawBatches, workers: int) -> DataLoader[BatchDraw]:
    return DataLoader(
        Echo(), sampler=batches, batch_size=None, num_workers=workers, collate_fn=as_is
    )


def test_with_two_workers_a_resumed_run_serves_the_draws_in_flight_again() -> None:
    # Each worker requests 2 batches ahead: 4 draws are in flight.
    sampler = sampler_with_priorities()
    batches = DrawBatches(sampler, 4, 9)
    served, saved = [], None
    for draw in loader(batches, 2):
        batches.acknowledge()
        served.append(draw)
        learn(sampler, draw)
        if len(served) == 3:
            saved = batches.state_dict(), sampler.state_dict()
    assert saved is not None
    assert saved[0]["position"] == 3
    assert len(served) == 9
    assert len(saved[0]["index"]) > 0

    sampler = PrioritizedSampler(50)
    batches = DrawBatches(sampler, 4, 9)
    sampler.load_state_dict(saved[1])
    batches.load_state_dict(saved[0])
    resumed = []
    for draw in loader(batches, 2):
        batches.acknowledge()
        resumed.append(draw)
        learn(sampler, draw)
    assert len(resumed) == 6
    assert all(equal(a, b) for a, b in zip(resumed, served[3:], strict=True))
    assert len(list(batches)) == 9  # the next epoch is complete
    assert batches.position == 0


def test_a_state_is_a_copy_and_a_finished_epoch_resumes_as_a_new_one() -> None:
    batches = DrawBatches(UniformSampler(9), 2, 3)
    epoch = iter(batches)
    next(epoch)
    state = batches.state_dict()
    kept = state["index"].clone()
    batches.acknowledge()
    for _ in epoch:
        batches.acknowledge()
    assert state["position"] == 0
    assert state["index"].equal(kept)
    assert kept.shape == (1, 2)
    done = DrawBatches(UniformSampler(9), 2, 3)
    done.load_state_dict(batches.state_dict())
    assert len(list(done)) == len(done) == 3


def test_another_global_batch_is_an_error_only_while_draws_are_in_flight() -> None:
    batches = DrawBatches(UniformSampler(9), 6, 3)
    epoch = iter(batches)
    next(epoch)
    state = batches.state_dict()
    same_product = DrawBatches(UniformSampler(9), 3, 3, world_size=2)
    same_product.load_state_dict(state)
    other = DrawBatches(UniformSampler(9), 4, 3)
    with pytest.raises(ValueError, match=r"1 global batches of 6 in flight.* 4 \* 1"):
        other.load_state_dict(state)
    assert other.position == 0
    batches.acknowledge()
    other.load_state_dict(batches.state_dict())
    assert len(list(other)) == 2
    next(epoch)
    shorter = DrawBatches(UniformSampler(9), 6, 1)
    with pytest.raises(ValueError, match="2 batches into its epoch, which here has"):
        shorter.load_state_dict(batches.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batches_per_epoch": 0}, "batches_per_epoch is 0"),
        ({"world_size": 0}, "world_size is 0"),
        ({"rank": -1}, "rank is -1"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"normalize": "max"}, "normalize is 'max'"),
    ],
)
def test_an_argument_out_of_range_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DrawBatches(UniformSampler(3), **{"batch_size": 2, "batches_per_epoch": 2, **change})


def test_acknowledging_more_batches_than_were_taken_is_an_error() -> None:
    batches = DrawBatches(UniformSampler(3), 2, 2)
    with pytest.raises(ValueError, match="no batch is in flight"):
        batches.acknowledge()


def test_the_share_of_a_rank_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="rank is 3"):
        rank_share(UniformSampler(3).draw(2), 3, 3)
