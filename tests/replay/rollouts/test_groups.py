"""Ragged groups of rollouts against lists."""

from typing import Any

import pytest
import torch
from groups_twin import NAN, assert_same, graded, joined, random_group
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.replay.rollouts.groups import FIELDS, RolloutGroups, ragged_positions


def some(count: int, seed: int = 0) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(seed)
    return [random_group(random) for _ in range(count)]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_ragged_positions_are_those_of_slices(lengths: list[int], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10))
    due = [sum(lengths[:i]) + k for i in index for k in range(lengths[i])]
    found = ragged_positions(torch.tensor(lengths), torch.tensor(index, dtype=torch.int64))
    assert found.tolist() == due


@given(st.integers(1, 6), st.integers(0, 99), st.data())
def test_selects_what_a_list_selects(count: int, seed: int, data: st.DataObject) -> None:
    groups = some(count, seed)
    index = data.draw(st.lists(st.integers(0, count - 1), max_size=8))
    selected = joined(groups).select(torch.tensor(index, dtype=torch.int64))
    selected.check()
    assert_same(selected, joined([groups[i] for i in index]))


def test_cat_of_parts_is_the_whole() -> None:
    groups = some(7)
    parts = [joined(groups[:2]), joined([]), joined(groups[2:])]
    assert_same(RolloutGroups.cat(parts), joined(groups))
    assert_same(RolloutGroups.cat([]), joined([]))
    assert len(RolloutGroups.empty()) == 0
    RolloutGroups.empty().check()


def test_counts_and_owners() -> None:
    groups = joined([graded(3, right=2), graded(9, right=1)])
    assert (len(groups), groups.rollouts) == (2, 5)
    assert groups.group.tolist() == [0, 0, 0, 1, 1]
    assert groups.sequence.tolist() == [0, 1, 2, 3, 4]
    ragged = joined(some(5, 3))
    lengths = [int((ragged.sequence == i).sum()) for i in range(ragged.rollouts)]
    assert lengths == ragged.lengths.tolist()
    assert [int((ragged.group == i).sum()) for i in range(5)] == ragged.size.tolist()


def test_mean_reward_leaves_out_rollouts_without_one() -> None:
    rewards = [[1.0, 0.0, NAN], [NAN], [1.0, 1.0, 1.0], [-0.5, 2.0]]
    groups = some(4)
    for group, reward in zip(groups, rewards, strict=True):
        size = len(reward)
        group |= {"reward": reward, "size": size, "lengths": [0] * size}
        group |= {"tokens": [], "log_probs": [], "advantage": [0.0] * size}
        group |= {"stopped": [True] * size, "demonstration": [False] * size}
    found = joined(groups).mean_reward
    due = torch.tensor([0.5, NAN, 1.0, 0.75])
    torch.testing.assert_close(found, due, rtol=0, atol=0, equal_nan=True)


def test_state_is_tensors_and_comes_back() -> None:
    groups = joined(some(4))
    state = groups.state_dict()
    assert set(state) == set(FIELDS)
    assert_same(RolloutGroups.from_state_dict(state), groups)
    assert groups.nbytes == sum(value.nbytes for value in state.values())


def test_state_with_other_fields_is_refused() -> None:
    state = joined(some(2)).state_dict()
    state["rewards"] = state.pop("reward")
    with pytest.raises(ValueError, match=r"lack \['reward'\] and have the unknown \['rewards'\]"):
        RolloutGroups.from_state_dict(state)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tokens", torch.zeros(3, dtype=torch.int64), "tokens is .*int64.* flat tensor of .*int32"),
        ("tokens", [1, 2], r"tokens is \[1, 2\]"),
        ("tokens", torch.zeros(3, dtype=torch.int32), "tokens has 3 entries; it must have 5"),
        ("log_probs", torch.zeros(2, 2), r"log_probs .* shape \[2, 2\]"),
        ("reward", torch.zeros(4), "reward has 4 entries; it must have 5 .*size sums to 5"),
        ("version", torch.zeros(1, dtype=torch.int64), "version has 1 entries; it must have 2"),
        ("size", torch.tensor([5, 0]), r"size at \[1\] is \[0\]; it must be at least 1"),
        ("lengths", torch.tensor([2, 2, 2, 0, -1]), r"lengths at \[4\] is \[-1\]"),
        ("prompt_lengths", torch.tensor([1, 2]), "prompt_tokens has 2 entries; it must have 3"),
    ],
)
def test_fields_that_do_not_fit_are_named(name: str, value: Any, said: str) -> None:
    state = joined([graded(3, right=2), graded(9, right=1)]).state_dict()
    with pytest.raises(ValueError, match=said):
        RolloutGroups.from_state_dict({**state, name: value})


def test_select_names_groups_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"no groups \[4, -1\]; indices lie in \[0, 2\)"):
        joined(some(2)).select(torch.tensor([0, 4, -1]))
