"""Written transitions can be drawn; updates of overwritten ones are ignored."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_adaptive.replay import ReplayBuffer, TransitionRing
from lit_adaptive.samplers import (
    IndexSampler,
    PrioritizedSampler,
    RankPrioritizedSampler,
    UniformSampler,
)

SAMPLERS = [UniformSampler, PrioritizedSampler, RankPrioritizedSampler]


def _fill(buffer: ReplayBuffer, count: int, start: int = 0) -> None:
    for i in range(start, start + count):
        buffer.add([[float(i)]], [i], [float(i)], [[float(i + 1)]], [i % 7 == 6])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_only_written_slots(sampler: type[IndexSampler]) -> None:
    buffer = ReplayBuffer(50, sampler=sampler)
    _fill(buffer, 10)
    drawn = set()
    for _ in range(60):
        draw = buffer.draw(8)
        assert draw.index.max() < 10
        assert draw.probability.equal(buffer.sampler.probabilities()[draw.index])
        batch = buffer.get(draw.index)
        assert batch["action"].tolist() == draw.index.tolist()
        drawn |= set(draw.index.tolist())
    assert drawn == set(range(10))


def test_a_filled_sampler_is_cleared() -> None:
    buffer = ReplayBuffer(50, sampler=partial(PrioritizedSampler, filled=True))
    assert buffer.sampler.count == 0
    _fill(buffer, 3)
    assert buffer.sampler.count == 3


@pytest.mark.parametrize("held", [0, 5])
def test_a_batch_larger_than_the_content_is_refused(held: int) -> None:
    buffer = ReplayBuffer(50)
    _fill(buffer, held)
    with pytest.raises(ValueError, match=f"batch_size is 6 and the replay holds {held} trans"):
        buffer.draw(6)
    with pytest.raises(ValueError, match="batch_size"):
        buffer.draw(0)


def test_a_sampler_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="among 7 slots, the capacity is 50"):
        ReplayBuffer(50, sampler=lambda size: UniformSampler(7))


def test_a_capacity_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity is 0"):
        ReplayBuffer(0)


def test_a_sampler_without_priorities_refuses_updates() -> None:
    buffer = ReplayBuffer(50)
    _fill(buffer, 3)
    with pytest.raises(ValueError, match="UniformSampler takes no priorities"):
        buffer.update(torch.tensor([0]), torch.tensor([1.0]))


@pytest.mark.parametrize("sampler", [PrioritizedSampler, RankPrioritizedSampler])
def test_slots_overwritten_since_the_draw_keep_their_new_priority(
    sampler: type[IndexSampler],
) -> None:
    one, other = (ReplayBuffer(4, sampler=sampler) for _ in range(2))
    for buffer in (one, other):
        _fill(buffer, 4)
    index = torch.tensor([0, 1, 2, 3, 1])
    serial = one.serial(index)
    for buffer in (one, other):
        _fill(buffer, 2, start=4)  # overwrites slots 0 and 1
    one.update(index, torch.tensor([9.0, 8.0, 0.5, 0.25, 7.0]), serial=serial)
    other.update(torch.tensor([2, 3]), torch.tensor([0.5, 0.25]))
    assert one.sampler.probabilities().equal(other.sampler.probabilities())
    assert one.stale_updates == 3
    # The same slots one lap later have other serial numbers.
    _fill(one, 4, start=6)
    one.update(torch.tensor([2]), torch.tensor([100.0]), serial=torch.tensor([2]))
    assert one.stale_updates == 4


def test_a_new_transition_in_an_old_slot_gets_the_greatest_priority_so_far() -> None:
    # Schaul et al. (2016), algorithm 1, line 6.
    buffer = ReplayBuffer(4, sampler=partial(PrioritizedSampler, alpha=1.0))
    _fill(buffer, 4)
    buffer.update(torch.tensor([0, 1]), torch.tensor([5.0, 0.5]))
    buffer.update(torch.tensor([0]), torch.tensor([0.25]))
    _fill(buffer, 2, start=4)  # slots 0 and 1
    expected = torch.tensor([5.0, 5, 1, 1]).double() / 12
    torch.testing.assert_close(buffer.sampler.probabilities(), expected)


@pytest.mark.parametrize(
    ("priority", "message"),
    [
        ([1.0, float("nan")], r"index \[2\]"),
        ([float("inf"), 1.0], r"index \[1\]"),
        ([1.0, -1.0], r"index \[2\]"),
    ],
)
@pytest.mark.parametrize("with_serial", [True, False])
def test_a_bad_priority_changes_nothing(
    priority: list[float], message: str, with_serial: bool
) -> None:
    buffer = ReplayBuffer(4, sampler=PrioritizedSampler)
    _fill(buffer, 4)
    before = buffer.sampler.probabilities().clone()
    index = torch.tensor([1, 2])
    serial = buffer.serial(index) if with_serial else None
    with pytest.raises(ValueError, match=message):
        buffer.update(index, torch.tensor(priority), serial=serial)
    assert buffer.sampler.probabilities().equal(before)


@pytest.mark.parametrize("serial", [None, torch.tensor([0])])
def test_empty_slots_cannot_be_updated(serial: torch.Tensor | None) -> None:
    buffer = ReplayBuffer(4, sampler=PrioritizedSampler)
    _fill(buffer, 2)
    for wrong in (-1, 2, 4):
        with pytest.raises(ValueError, match=rf"\[{wrong}\]"):
            buffer.update(torch.tensor([wrong]), torch.tensor([1.0]), serial=serial)


def test_mismatched_lengths_are_refused() -> None:
    buffer = ReplayBuffer(4, sampler=PrioritizedSampler)
    _fill(buffer, 4)
    with pytest.raises(ValueError, match="must be"):
        buffer.update(torch.tensor([0, 1]), torch.tensor([1.0]), serial=torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="must be"):
        buffer.update(torch.tensor([0, 1]), torch.ones(2), serial=torch.tensor([0]))


def test_n_step_transitions_are_inserted_once_complete() -> None:
    buffer = ReplayBuffer(20, n_step=3, num_streams=2)
    now = torch.zeros(2, 1)
    for _ in range(2):
        assert buffer.add(now, [0, 0], [1, 1], now, [False, False]).tolist() == []
    assert buffer.sampler.count == 0
    assert buffer.add(now, [0, 0], [1, 1], now, [True, False]).tolist() == [0, 1, 2, 3]
    assert buffer.end_episode(torch.tensor([1])).tolist() == [4, 5]
    assert buffer.sampler.count == len(buffer) == 6


def _assert_continues_alike(one: ReplayBuffer, other: ReplayBuffer) -> None:
    assert len(one) == len(other)
    for step in range(30):
        draws = one.draw(5), other.draw(5)
        assert draws[0].index.equal(draws[1].index)
        assert draws[0].probability.equal(draws[1].probability)
        batches = one.get(draws[0].index), other.get(draws[1].index)
        assert all(batches[0][key].equal(batches[1][key]) for key in batches[0])
        for buffer in (one, other):
            if not isinstance(buffer.sampler, UniformSampler):
                priority = torch.linspace(0.1, 2 + step, 5)
                buffer.update(draws[0].index, priority, buffer.serial(draws[0].index))
            _fill(buffer, 1, start=500 + step)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("n_step", [1, 3])
def test_a_loaded_buffer_draws_what_the_saved_one_draws(
    sampler: type[IndexSampler], n_step: int, tmp_path: Path
) -> None:
    one, other = (ReplayBuffer(30, sampler=sampler, n_step=n_step) for _ in range(2))
    _fill(one, 43)
    one.draw(7)
    one.save(tmp_path / "replay.pt")
    other.load(tmp_path / "replay.pt")
    _assert_continues_alike(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sampler": UniformSampler},
            "sampler_kind='PrioritizedSampler', this ReplayBuffer sampler_kind='Uniform",
        ),
        ({"sampler": partial(PrioritizedSampler, alpha=0.5)}, "alpha"),
        ({"capacity": 31}, "capacity=30"),
        ({"n_step": 2}, "n_step=1"),
        ({"gamma": 0.5}, "gamma=0.99"),
    ],
)
def test_a_checkpoint_of_another_buffer_changes_nothing(
    change: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"capacity": 30, "sampler": PrioritizedSampler}
    one, other = ReplayBuffer(**arguments), ReplayBuffer(**(arguments | change))
    _fill(one, 40)
    _fill(other, 9)
    index = torch.arange(len(other))
    before = other.get(index), other.sampler.probabilities().clone()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(one.state_dict())
    after = other.get(index)
    assert len(other) == len(index)
    assert all(after[key].equal(before[0][key]) for key in after)
    assert other.sampler.probabilities().equal(before[1])


def test_a_state_of_another_class_is_refused() -> None:
    buffer = ReplayBuffer(4)
    with pytest.raises(ValueError, match="state is of 'TransitionRing', not of a ReplayBuffer"):
        buffer.load_state_dict(TransitionRing(4).state_dict())
    with pytest.raises(ValueError, match="it is damaged"):
        buffer.load_state_dict(buffer.state_dict() | {"ring": None})


def test_a_state_whose_sampler_is_damaged_changes_nothing() -> None:
    one, other = (ReplayBuffer(4, sampler=PrioritizedSampler) for _ in range(2))
    _fill(one, 4)
    state = one.state_dict()
    state["sampler"]["mass"] = state["sampler"]["mass"] * float("nan")
    with pytest.raises(ValueError, match="damaged"):
        other.load_state_dict(state)
    assert len(other) == other.sampler.count == 0


def test_a_state_whose_parts_were_not_saved_together_changes_nothing(tmp_path: Path) -> None:
    one, more = ReplayBuffer(16), ReplayBuffer(16)
    for replay, steps in ((one, 10), (more, 16)):
        for _ in range(steps):
            replay.add(torch.zeros(1, 2), [0], [1.0], torch.ones(1, 2), [False])
    mixed = {**one.state_dict(), "sampler": more.state_dict()["sampler"]}
    with pytest.raises(ValueError, match="holds 10 transitions and its sampler draws among 16"):
        more.load_state_dict(mixed)
    assert len(more) == more.sampler.count == 16
    with pytest.raises(ValueError, match="lacks its transitions or its sampler"):
        more.load_state_dict({k: v for k, v in mixed.items() if k != "sampler"})


def test_a_truncated_file_is_called_damaged(tmp_path: Path) -> None:
    replay = ReplayBuffer(16)
    replay.add(torch.zeros(1, 2), [0], [1.0], torch.ones(1, 2), [False])
    path = tmp_path / "replay.pt"
    replay.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        replay.load(path)


def test_a_missing_file_raises_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ReplayBuffer(16).load(tmp_path / "nowhere.pt")
