"""Stored trajectories: shards on disk, and the newest group of each prompt with a gradient."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from groups_twin import (
    Group,
    as_primitives,
    assert_same,
    graded_group,
    joined,
    known_rewards,
    random_group,
    reloaded,
)
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.replay import TrajectoryBuffer, TrajectoryStore

FACTS = {"tokenizer": "abc", "temperature": "1.0"}


def flat_group(prompt: int, **options: Any) -> Group:
    """Both rollouts have reward 0."""
    return graded_group(prompt, **options) | {"reward": [0.0, 0.0], "advantage": [0.0, 0.0]}


def test_shards_hold_the_groups_bit_for_bit(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    groups = [random_group(random) for _ in range(9)]
    store = TrajectoryStore(tmp_path / "new", FACTS)
    assert len(store.read()) == len(store.prompts()) == 0
    for part in (groups[:4], groups[4:5], groups[5:]):
        store.add(joined(part))
    reopened = TrajectoryStore(tmp_path / "new", FACTS)
    assert len(reopened.shards) == 3
    assert_same(reopened.read(), joined(groups))
    assert reopened.prompts().tolist() == sorted({group["prompt"] for group in groups})


def test_other_facts_are_rejected_by_name(tmp_path: Path) -> None:
    TrajectoryStore(tmp_path, FACTS).add(joined([graded_group(1)]))
    TrajectoryStore(tmp_path, {"tokenizer": "abc"})  # asks for less
    with pytest.raises(ValueError, match=r"temperature is '0\.5', there '1\.0'\. Use"):
        TrajectoryStore(tmp_path, FACTS | {"temperature": "0.5"})
    with pytest.raises(ValueError, match="model is 'm', there None"):
        TrajectoryStore(tmp_path, FACTS | {"model": "m"})


def test_a_full_disk_leaves_what_was_complete(tmp_path: Path, monkeypatch: Any) -> None:
    store = TrajectoryStore(tmp_path, FACTS)
    store.add(joined([graded_group(1)]))

    def fill(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lit_adaptive.replay.trajectories.save_file", fill)
        with pytest.raises(OSError, match="No space"):
            store.add(joined([graded_group(2)]))
    assert [path.name for path in tmp_path.iterdir()] == ["trajectories-00000.safetensors"]
    assert TrajectoryStore(tmp_path, FACTS).prompts().tolist() == [1]
    assert store.add(joined([graded_group(2)])).name == "trajectories-00001.safetensors"


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path, FACTS)
    store.add(joined([graded_group(1)]))
    path = store.add(joined([graded_group(2)]))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"trajectories-00001\.safetensors is damaged"):
        TrajectoryStore(tmp_path, FACTS)
    with pytest.raises(ValueError, match="is damaged"):
        store.read()


def test_rollouts_without_finite_log_probabilities_are_not_stored(tmp_path: Path) -> None:
    broken = joined([graded_group(1), graded_group(7) | {"log_probs": [[math.nan], [0.0]]}])
    store, buffer = TrajectoryStore(tmp_path, FACTS), TrajectoryBuffer()
    for add in (store.add, buffer.update):
        with pytest.raises(ValueError, match=r"log_probs of the groups of prompts \[7\]"):
            add(broken)
    assert not store.shards
    assert len(buffer) == 0


@given(st.integers(0, 999))
def test_the_newest_group_with_a_gradient_is_kept(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    buffer, held = TrajectoryBuffer(), dict[int, Group]()

    def has_gradient(group: Group) -> bool:
        return any(group["demonstration"]) or len(set(known_rewards(group))) > 1

    for version in range(4):
        groups = [random_group(random, version=version) for _ in range(6)]
        buffer.update(joined(groups))
        for group in groups:
            old = held.get(group["prompt"])
            if old is None or has_gradient(group) or not has_gradient(old):
                held[group["prompt"]] = group
    assert buffer.prompts.tolist() == sorted(held)
    assert_same(buffer.select(buffer.prompts), joined([held[p] for p in sorted(held)]))
    assert buffer.informative.tolist() == [p for p in sorted(held) if has_gradient(held[p])]


def test_prompts_that_the_first_policy_could_not_solve_come_back() -> None:
    buffer = TrajectoryBuffer()
    buffer.update(joined([flat_group(1), flat_group(2), graded_group(3)]))
    assert buffer.informative.tolist() == [3]
    buffer.update(joined([graded_group(1, version=5), flat_group(3, version=5)]))
    assert buffer.informative.tolist() == [1, 3]
    assert buffer.select(torch.tensor([3, 1])).version.tolist() == [0, 5]
    assert (buffer.replaced, buffer.revived, buffer.skipped) == (1, 1, 1)
    with pytest.raises(ValueError, match=r"the prompts \[8\] have no trajectories"):
        buffer.select(torch.tensor([1, 8]))


def test_a_buffer_is_restored_exactly_or_not_at_all() -> None:
    random = torch.Generator().manual_seed(3)
    buffer = TrajectoryBuffer()
    buffer.fingerprint = "model"
    buffer.update(joined([random_group(random) for _ in range(8)]))
    state = reloaded(buffer.state_dict())
    restored = TrajectoryBuffer()
    restored.fingerprint = "model"
    restored.load_state_dict(state)
    later = joined([random_group(random, version=2) for _ in range(8)])
    for each in (buffer, restored):
        each.update(later)
    assert repr(as_primitives(restored.state_dict())) == repr(as_primitives(buffer.state_dict()))
    other = TrajectoryBuffer()
    other.fingerprint = "another model"
    other.update(joined([graded_group(1)]))
    before = repr(as_primitives(other.state_dict()))
    with pytest.raises(ValueError, match="fingerprint='model'"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="the state is of None"):
        other.load_state_dict({})
    assert repr(as_primitives(other.state_dict())) == before


def test_stored_groups_are_not_part_of_the_state_and_replaced_ones_are() -> None:
    start = joined([flat_group(1), graded_group(2), graded_group(3)])
    buffer, restored = TrajectoryBuffer(), TrajectoryBuffer()
    for each in (buffer, restored):
        each.update(start, stored=True)
    buffer.update(joined([graded_group(1, version=4), flat_group(2, version=4)]))
    state = reloaded(buffer.state_dict())
    assert state["groups"]["prompt"].tolist() == [1]
    restored.load_state_dict(state)
    everything = torch.tensor([1, 2, 3])
    assert_same(restored.select(everything), buffer.select(everything))
    assert repr(as_primitives(restored.state_dict())) == repr(as_primitives(state))


def test_renumbered_groups_follow_their_prompts_into_the_state() -> None:
    buffer = TrajectoryBuffer()
    buffer.update(joined([graded_group(0), flat_group(1), graded_group(2)]), stored=True)
    buffer.renumber(torch.tensor([2, -1, 1]))  # 0 is gone, the second is new
    assert buffer.prompts.tolist() == [0, 2]
    assert buffer.informative.tolist() == [0]
    assert buffer.select(torch.tensor([0, 2])).prompt.tolist() == [0, 2]
    assert buffer.state_dict()["groups"]["prompt"].tolist() == [0, 2]
