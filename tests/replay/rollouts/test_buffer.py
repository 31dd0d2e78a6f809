"""The rollout buffer against a list: contents, counters, ages and priorities."""

import math
from typing import Any

import pytest
import torch
from groups_twin import (
    NAN,
    BufferTwin,
    Group,
    assert_same,
    assert_unchanged,
    filled_buffer,
    graded_group,
    joined,
    random_group,
    reloaded,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_adaptive.replay.rollouts.buffer import RolloutBuffer
from lit_adaptive.replay.rollouts.groups import RolloutGroups

POLICIES = ("uniform", "prioritized", "fresh")


class BufferAndTwin:
    """A buffer and its twin, changed by the same calls and compared after each."""

    def __init__(self, seed: int, options: dict[str, Any]) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.options = options
        self.buffer = RolloutBuffer(**options)
        self.twin = BufferTwin(**options)
        self.version = 0

    def add(self, count: int) -> None:
        version = max(0, self.version - int(torch.randint(4, (1,), generator=self.random)))
        groups = [random_group(self.random, version=version) for _ in range(count)]
        assert self.buffer.add(joined(groups)) == self.twin.add(groups)

    def advance(self, versions: int) -> None:
        self.version += versions
        self.buffer.expire(self.version)
        self.twin.expire(self.version)

    def draw(self, share: float) -> None:
        self.advance(0)
        count = int(share * len(self.buffer))
        drawn = self.buffer.draw(count, version=self.version, beta=0.5)
        expected = self.draw_probabilities(count)
        position = self.positions(drawn.key)
        assert len(set(position)) == count
        assert_same(drawn.groups, joined([self.twin.held[i] for i in position]))
        torch.testing.assert_close(drawn.probability, expected[position], rtol=1e-9, atol=1e-300)
        if count:
            weight = (drawn.probability * len(self.buffer)).pow(-0.5)
            torch.testing.assert_close(drawn.weight, weight / weight.max())
        if count and self.random.initial_seed() % 2:
            self.update_priorities(drawn.key)

    def draw_probabilities(self, count: int) -> Tensor:
        """Groups that are too heavy are certain; the others share the rest in proportion."""
        probability = self.twin.probabilities(self.version)
        certain = torch.zeros(len(probability), dtype=torch.bool)
        while count > int(certain.sum()):
            rest = count - int(certain.sum())
            total = probability[~certain].sum()
            shared = torch.where(certain, 0, probability) / total * rest / count
            too_heavy = (shared >= (1 - 1e-9) / count) & ~certain
            if not bool(too_heavy.any()):
                break
            certain |= too_heavy
        return torch.where(certain, 1 / count, shared) if count else probability

    def positions(self, key: Tensor) -> list[int]:
        keys = self.buffer.probabilities()[0].tolist()
        return [keys.index(value) for value in key.tolist()]

    def update_priorities(self, key: Tensor) -> None:
        priority = torch.randint(5, (len(key),), generator=self.random) / 2
        for position, value in zip(self.positions(key), priority.tolist(), strict=True):
            self.twin.held[position]["base"] = value
        unknown = torch.tensor([-1, 10**12])
        updated = self.buffer.update_priorities(
            torch.cat([unknown, key]), torch.cat([torch.ones(2), priority])
        )
        assert updated == len(key)
        self.twin.count("stale_updates", 2)

    def resume(self) -> None:
        state = reloaded(self.buffer.state_dict())
        self.buffer = RolloutBuffer(**self.options, seed=99)
        self.buffer.load_state_dict(state)

    def compare(self) -> None:
        buffer, twin = self.buffer, self.twin
        assert len(buffer) == len(twin.held)
        assert_same(buffer.groups(), joined(twin.held))
        assert {name: n for name, n in buffer.counters.items() if n} == {
            name: n for name, n in twin.counters.items() if n
        }
        key, probability = buffer.probabilities()
        assert key.tolist() == sorted(set(key.tolist()))
        expected = twin.probabilities(self.version)
        torch.testing.assert_close(probability, expected, rtol=1e-9, atol=1e-300)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 9)),
        st.tuples(st.just("advance"), st.integers(0, 5)),
        st.tuples(st.just("draw"), st.floats(0, 1)),
        st.tuples(st.just("resume")),
    ),
    max_size=14,
)


@settings(max_examples=120)
@given(
    st.fixed_dictionaries(
        {
            "capacity": st.integers(1, 12),
            "policy": st.sampled_from(POLICIES),
            "signal": st.sampled_from(["advantage", "learnability"]),
            "alpha": st.sampled_from([0.0, 0.6, 1.0]),
            "tau": st.sampled_from([0.5, 3.0, 500.0]),
            "tolerance": st.sampled_from([0.0, 0.25]),
            "max_age": st.sampled_from([None, 0, 3]),
            "deduplicate": st.booleans(),
        }
    ),
    st.integers(0, 9999),
    STEPS,
)
def test_holds_counts_and_draws_what_the_twin_does(
    options: dict[str, Any], seed: int, steps: list[tuple[Any, ...]]
) -> None:
    pair = BufferAndTwin(seed, options)
    pair.add(5)
    pair.advance(0)
    pair.compare()
    for name, *arguments in steps:
        getattr(pair, name)(*arguments)
        pair.compare()


# -- which groups are held ------------------------------------------------------------------------


def group_of(reward: list[float], *, prompt: int = 0, demonstration: bool = False) -> Group:
    size = len(reward)
    group = graded_group(prompt, right=size - 1) if size > 1 else graded_group(prompt, right=0)
    return group | {"reward": reward, "demonstration": [demonstration] + [False] * (size - 1)}


@pytest.mark.parametrize(
    ("reward", "tolerance", "counter"),
    [
        ([0.0, 1.0], 0.0, None),
        ([1.0, 1.0], 0.0, "dropped_solved"),
        ([0.0, 0.0], 0.0, "dropped_failed"),
        ([0.0], 0.0, "dropped_failed"),
        ([0.0, 0.0, 0.0, 1.0], 0.25, "dropped_failed"),
        ([1.0, 1.0, 1.0, 0.0], 0.25, "dropped_solved"),
        ([1.0, 0.0, 1.0, 0.0], 0.25, None),
        ([0.5, 0.5], 0.0, "dropped_flat"),  # mean neither 0 nor 1, but no signal
        ([-1.0, -1.0], 0.0, "dropped_flat"),
        ([-1.0, 1.0], 0.25, None),  # mean 0, but shaped rewards
        ([2.0, 0.0], 0.0, None),  # mean 1
        ([NAN, 1.0, 1.0], 0.0, "dropped_solved"),
        ([NAN, 1.0, 0.0], 0.0, None),
        ([NAN, NAN], 0.0, "dropped_flat"),
    ],
)
def test_keeps_groups_whose_rewards_carry_a_signal(
    reward: list[float], tolerance: float, counter: str | None
) -> None:
    buffer = RolloutBuffer(4, tolerance=tolerance)
    assert buffer.add(joined([group_of(reward)])) == (counter is None)
    assert {name for name, number in buffer.counters.items() if number} == {counter} - {None}
    assert buffer.add(joined([group_of(reward, demonstration=True)])) == 1


def test_the_newest_group_of_a_prompt_replaces_and_the_oldest_leave_first() -> None:
    buffer = RolloutBuffer(3)
    buffer.add(joined([graded_group(i, version=i) for i in (0, 1, 2)]))
    assert buffer.add(joined([graded_group(0, version=5)])) == 1
    assert buffer.groups().prompt.tolist() == [1, 2, 0]
    assert buffer.groups().version.tolist() == [1, 2, 5]
    buffer.add(joined([graded_group(7, version=5), graded_group(8, version=5)]))
    assert buffer.groups().prompt.tolist() == [0, 7, 8]
    assert (buffer.replaced, buffer.evicted) == (1, 2)


def test_a_call_beyond_the_capacity_keeps_its_last_groups() -> None:
    buffer = RolloutBuffer(2)
    assert buffer.add(joined([graded_group(i) for i in (5, 6, 5, 7, 8)])) == 2
    assert buffer.groups().prompt.tolist() == [7, 8]
    assert (buffer.replaced, buffer.evicted) == (1, 2)


def test_without_deduplication_a_prompt_may_have_several_groups() -> None:
    buffer = RolloutBuffer(3, deduplicate=False)
    assert buffer.add(joined([graded_group(5), graded_group(5), graded_group(6)])) == 3
    assert buffer.groups().prompt.tolist() == [5, 5, 6]


def test_groups_leave_when_older_than_max_age_whatever_their_order() -> None:
    buffer = RolloutBuffer(9, max_age=2)
    buffer.add(joined([graded_group(i, version=v) for i, v in enumerate([5, 3, 5, 4])]))
    assert buffer.expire(5) == 0
    assert buffer.expire(6) == 1
    assert buffer.groups().version.tolist() == [5, 5, 4]
    drawn = buffer.draw(2, version=7, beta=0)  # a draw expires old groups too
    assert sorted(drawn.groups.version.tolist()) == [5, 5]
    assert buffer.expired == 2
    assert buffer.expire(99) == 2
    assert len(buffer) == 0
    assert buffer.add(joined([graded_group(1, version=99)])) == 1


def test_memory_does_not_grow_as_groups_are_replaced() -> None:
    random = torch.Generator().manual_seed(0)
    buffer = RolloutBuffer(40, deduplicate=True)
    sizes = []
    for _ in range(60):
        buffer.add(joined([random_group(random, prompts=60) for _ in range(20)]))
        sizes.append(buffer.nbytes)
    assert sizes[-1] <= 1.3 * sizes[20]


def test_memory_is_within_a_tenth_of_the_plain_tensors() -> None:
    groups = [graded_group(i) for i in range(64)]
    for group in groups:
        group |= {"lengths": [300, 200], "tokens": [[7] * 300, [7] * 200]}
        group |= {"log_probs": [[-1.0] * 300, [-1.0] * 200]}
    buffer = RolloutBuffer(64)
    buffer.add(joined(groups))
    assert buffer.nbytes <= 1.1 * joined(groups).nbytes


# -- priorities -----------------------------------------------------------------------------------


def test_missing_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_: RolloutGroups) -> list[RolloutGroups]:
        raise MemoryError

    buffer = filled_buffer(3)
    before = buffer.state_dict()
    monkeypatch.setattr(RolloutGroups, "split", no_memory)
    with pytest.raises(MemoryError):
        buffer.add(joined([graded_group(9, version=9)]))
    assert_unchanged(buffer, before)


@pytest.fixture
def pair() -> RolloutBuffer:
    """Two groups of equal priority, drawn in proportion to priority."""
    buffer = RolloutBuffer(2, policy="prioritized", alpha=1.0)
    buffer.add(joined([graded_group(0), graded_group(1)]))
    return buffer


def test_updated_priorities_change_the_probabilities(pair: RolloutBuffer) -> None:
    assert pair.update_priorities(pair.probabilities()[0], torch.tensor([3.0, 1.0])) == 2
    assert pair.probabilities()[1].tolist() == pytest.approx([0.75, 0.25], abs=1e-6)


def test_priorities_of_groups_that_have_left_are_counted_and_ignored(pair: RolloutBuffer) -> None:
    key = pair.probabilities()[0]
    pair.add(joined([graded_group(2)]))
    assert pair.update_priorities(key[:1], torch.tensor([100.0])) == 0
    assert pair.stale_updates == 1
    assert pair.probabilities()[1].tolist() == pytest.approx([0.5, 0.5])


def test_the_last_priority_of_a_key_counts(pair: RolloutBuffer) -> None:
    first, second = pair.probabilities()[0].tolist()
    key = torch.tensor([first, second, second, first])
    assert pair.update_priorities(key, torch.tensor([5.0, 9.0, 8.0, 2.0])) == 4
    assert pair.probabilities()[1].tolist() == pytest.approx([0.2, 0.8], abs=1e-6)


def test_priorities_have_no_effect_under_the_uniform_policy() -> None:
    buffer = filled_buffer(2)
    assert buffer.update_priorities(buffer.probabilities()[0], torch.tensor([9.0, 1.0])) == 2
    assert buffer.probabilities()[1].tolist() == [0.5, 0.5]


def test_a_draw_is_a_copy() -> None:
    buffer = filled_buffer(4)
    before = buffer.groups()
    drawn = buffer.draw(4, version=9, beta=0)
    for value in drawn.groups.state_dict().values():
        value.zero_()
    drawn.key.zero_()
    assert_same(buffer.groups(), before)
    assert buffer.update_priorities(buffer.probabilities()[0], torch.ones(4)) == 4


# -- input errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"policy": "freshest"}, r"policy is 'freshest'.*'fresh'"),
        ({"signal": "loss"}, "signal is 'loss'"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"max_age": -1}, "max_age is -1"),
        ({"tolerance": 0.5}, "tolerance is 0.5"),
    ],
)
def test_an_argument_out_of_range_is_named(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        RolloutBuffer(**{"capacity": 4, **options})


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("reward", [math.inf, 0.0], "reward of the groups of prompts \\[8\\]"),
        ("advantage", [NAN, 1.0], "advantage of the groups of prompts \\[8\\]"),
        ("log_probs", [[NAN], [0.0]], "log_probs of the groups of prompts \\[8\\]"),
        ("lengths", [1, 2], "tokens has 4 entries; it must have 5"),
    ],
)
def test_a_group_with_a_bad_value_is_named_and_changes_nothing(
    field: str, value: Any, error: str
) -> None:
    buffer = filled_buffer(3, policy="fresh")
    before = buffer.state_dict()
    with pytest.raises(ValueError, match=error):
        buffer.add(
            joined([graded_group(7, version=9), graded_group(8, version=9) | {field: value}])
        )
    assert_unchanged(buffer, before)


def test_unused_advantages_and_log_probs_may_be_nan() -> None:
    # Without a reward the advantage is not used; a demonstration has no generating policy.
    buffer = RolloutBuffer(3, policy="prioritized")
    unrewarded = group_of([NAN, 1.0, 0.0], prompt=1) | {"advantage": [NAN, 1.0, -1.0]}
    demonstrated = group_of([1.0, 0.0], prompt=2, demonstration=True) | {
        "log_probs": [[NAN], [-1.0]]
    }
    assert buffer.add(joined([unrewarded, demonstrated])) == 2
    torch.testing.assert_close(buffer.probabilities()[1], torch.full((2,), 0.5).double())


@pytest.mark.parametrize(
    ("count", "version", "beta", "error"),
    [
        (5, 3, 0.4, "count is 5, but the buffer holds 4 groups"),
        (-1, 3, 0.4, "count is -1"),
        (2, 3, 1.5, r"beta is 1\.5"),
        (2, 2, 0.4, "version is 2, but the buffer has had groups of version 3"),
    ],
)
def test_a_draw_that_is_impossible_names_the_value_and_changes_nothing(
    count: int, version: int, beta: float, error: str
) -> None:
    buffer = filled_buffer(4, max_age=5)
    before = buffer.state_dict()
    with pytest.raises(ValueError, match=error):
        buffer.draw(count, version=version, beta=beta)
    assert_unchanged(buffer, before)


def test_a_draw_that_fails_after_groups_expired_says_how_many_left() -> None:
    buffer = filled_buffer(4, max_age=5)
    with pytest.raises(ValueError, match=r"holds 2 groups \(2 have just left because of max_age 5"):
        buffer.draw(3, version=7, beta=0.4)


def test_an_empty_buffer_draws_nothing() -> None:
    for policy in POLICIES:
        buffer = RolloutBuffer(4, policy=policy)
        drawn = buffer.draw(0, version=0, beta=0.4)
        assert len(drawn.groups) == len(drawn.key) == len(drawn.weight) == 0
        with pytest.raises(ValueError, match="count is 1, but the buffer holds 0 groups"):
            buffer.draw(1, version=0, beta=0.4)
        assert buffer.add(joined([])) == 0
        assert buffer.update_priorities(torch.empty(0, dtype=torch.int64), torch.empty(0)) == 0


@pytest.mark.parametrize("wrong", [NAN, math.inf, -1.0])
def test_an_invalid_priority_names_its_key_and_changes_nothing(wrong: float) -> None:
    buffer = filled_buffer(3, policy="prioritized")
    before, key = buffer.state_dict(), buffer.probabilities()[0]
    with pytest.raises(ValueError, match=rf"key \[{int(key[1])}\] are \[{wrong}\]"):
        buffer.update_priorities(key[:2], torch.tensor([1.0, wrong]))
    assert_unchanged(buffer, before)


def test_priorities_of_another_number_than_keys_are_refused() -> None:
    buffer = filled_buffer(3, policy="prioritized")
    before = buffer.state_dict()
    with pytest.raises(ValueError, match=r"both must be \[K\]"):
        buffer.update_priorities(buffer.probabilities()[0], torch.ones(2))
    assert_unchanged(buffer, before)
