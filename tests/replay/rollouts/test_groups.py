"""Ragged groups of rollouts against Python lists."""

from typing import Any

import pytest
import torch
from groups_twin import NAN, assert_same, graded_group, joined, random_group
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.replay.rollouts.groups import FIELDS, RolloutGroups, ragged_positions


def random_groups(count: int, seed: int = 0) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(seed)
    return [random_group(random) for _ in range(count)]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_ragged_positions_are_those_of_slices(lengths: list[int], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10))
    expected = [sum(lengths[:i]) + k for i in index for k in range(lengths[i])]
    position = ragged_positions(torch.tensor(lengths), torch.tensor(index, dtype=torch.int64))
    assert position.tolist() == expected


@given(st.integers(1, 6), st.integers(0, 99), st.data())
def test_selects_what_a_list_selects(count: int, seed: int, data: st.DataObject) -> None:
    groups = random_groups(count, seed)
    index = data.draw(st.lists(st.integers(0, count - 1), max_size=8))
    selected = joined(groups).select(torch.tensor(index, dtype=torch.int64))
    selected.check()
    assert_same(selected, joined([groups[i] for i in index]))


def test_cat_concatenates_parts_and_accepts_none() -> None:
    groups = random_groups(7)
    parts = [joined(groups[:2]), joined([]), joined(groups[2:])]
    assert_same(RolloutGroups.cat(parts), joined(groups))
    assert_same(RolloutGroups.cat([]), joined([]))
    assert len(RolloutGroups.empty()) == 0
    RolloutGroups.empty().check()


def test_group_and_sequence_give_the_owner_of_each_rollout_and_token() -> None:
    groups = joined([graded_group(3, right=2), graded_group(9, right=1)])
    assert (len(groups), groups.rollouts) == (2, 5)
    assert groups.group.tolist() == [0, 0, 0, 1, 1]
    assert groups.sequence.tolist() == [0, 1, 2, 3, 4]
    ragged = joined(random_groups(5, 3))
    lengths = [int((ragged.sequence == i).sum()) for i in range(ragged.rollouts)]
    assert lengths == ragged.lengths.tolist()
    assert [int((ragged.group == i).sum()) for i in range(5)] == ragged.size.tolist()


def test_mean_reward_ignores_rollouts_without_reward() -> None:
    rewards = [[1.0, 0.0, NAN], [NAN], [1.0, 1.0, 1.0], [-0.5, 2.0]]
    groups = random_groups(4)
    for group, reward in zip(groups, rewards, strict=True):
        size = len(reward)
        group |= {"reward": reward, "size": size, "lengths": [0] * size}
        group |= {"tokens": [], "log_probs": [], "advantage": [0.0] * size}
        group |= {"stopped": [True] * size, "demonstration": [False] * size}
    mean = joined(groups).mean_reward
    expected = torch.tensor([0.5, NAN, 1.0, 0.75])
    torch.testing.assert_close(mean, expected, rtol=0, atol=0, equal_nan=True)


def test_a_state_restores_the_same_groups() -> None:
    groups = joined(random_groups(4))
    state = groups.state_dict()
    assert set(state) == set(FIELDS)
    assert_same(RolloutGroups.from_state_dict(state), groups)
    assert groups.nbytes == sum(value.nbytes for value in state.values())


def test_a_state_with_unknown_fields_names_them() -> None:
    state = joined(random_groups(2)).state_dict()
    state["rewards"] = state.pop("reward")
    with pytest.raises(ValueError, match=r"lack \['reward'\] and have the unknown \['rewards'\]"):
        RolloutGroups.from_state_dict(state)


@pytest.mark.parametrize(
    ("name", "value", "error"),
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
def test_a_field_that_does_not_fit_is_named(name: str, value: Any, error: str) -> None:
    state = joined([graded_group(3, right=2), graded_group(9, right=1)]).state_dict()
    with pytest.raises(ValueError, match=error):
        RolloutGroups.from_state_dict({**state, name: value})


def test_select_names_indices_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"no groups \[4, -1\]; indices must lie in \[0, 2\)"):
        joined(random_groups(2)).select(torch.tensor([0, 4, -1]))


def test_an_infinite_reward_names_its_prompt() -> None:
    groups = joined([graded_group(7), graded_group(8) | {"reward": [torch.inf, 0.0]}])
    with pytest.raises(ValueError, match=r"reward of the groups of prompts \[8\] is NaN or inf"):
        groups.check_finite()


def test_an_advantage_without_reward_may_be_nan() -> None:
    joined([graded_group(7) | {"reward": [NAN, 0.0], "advantage": [NAN, 0.0]}]).check_finite()


def test_a_demonstration_needs_no_log_probs() -> None:
    group = graded_group(7) | {"demonstration": [True, False], "log_probs": [[NAN], [-1.0]]}
    joined([group]).check_finite()
