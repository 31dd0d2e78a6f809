"""A saved and loaded ring continues as an uninterrupted one."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from replay_play import ARGUMENTS, StepSource, assert_same

from lit_adaptive.replay import TransitionRing


@pytest.mark.parametrize("before", [0, 1, 2, 5, 60])
def test_a_loaded_ring_continues_bit_for_bit(before: int, tmp_path: Path) -> None:
    uninterrupted, source = TransitionRing(**ARGUMENTS), StepSource()
    source.add_to(uninterrupted, before)
    uninterrupted.save(tmp_path / "ring.pt")
    resumed = TransitionRing(**ARGUMENTS)
    resumed.load(tmp_path / "ring.pt")
    assert_same(resumed.state_dict(), uninterrupted.state_dict())
    copy_of_source = source.copy()
    assert source.add_to(uninterrupted, 45) == copy_of_source.add_to(resumed, 45)
    # The states are equal, although frames are in different rows.
    assert_same(resumed.state_dict(), uninterrupted.state_dict())
    index = torch.arange(len(uninterrupted))
    assert_same(resumed.get(index), uninterrupted.get(index))
    assert resumed.frames_used == uninterrupted.frames_used


def test_loading_replaces_the_contents() -> None:
    one, other, source = TransitionRing(**ARGUMENTS), TransitionRing(**ARGUMENTS), StepSource()
    source.add_to(one, 30)
    source.add_to(other, 50)
    other.load_state_dict(one.state_dict())
    assert_same(other.state_dict(), one.state_dict())
    other.load_state_dict(TransitionRing(**ARGUMENTS).state_dict())
    assert len(other) == 0
    source.add_to(other, 5)


def test_a_state_is_a_copy_without_free_rows() -> None:
    ring, source = TransitionRing(**(ARGUMENTS | {"capacity": 5000})), StepSource()
    source.add_to(ring, 20)
    state = ring.state_dict()
    before = copy.deepcopy(state)
    source.add_to(ring, 20)
    assert_same(state, before)
    content = state["content"]
    length = min(state["added"], 5000)
    assert len(content["reward"]) == len(content["pointer"]) == length
    assert len(content["frames"]["x"]) < 2 * length + 30
    loaded = TransitionRing(**(ARGUMENTS | {"capacity": 5000}))
    loaded.load_state_dict(state)
    source.add_to(loaded, 20)
    assert_same(state, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 21}, "state has capacity=20, this TransitionRing capacity=21"),
        ({"num_streams": 4}, "state has num_streams=3, this TransitionRing num_streams=4"),
        ({"n_step": 4}, "state has n_step=3, this TransitionRing n_step=4"),
        ({"gamma": 0.5}, "state has gamma=0.9, this TransitionRing gamma=0.5"),
        ({"frame_stack": 1}, "state has frame_stack=2, this TransitionRing frame_stack=1"),
    ],
)
def test_a_state_with_other_options_is_refused(change: dict[str, Any], message: str) -> None:
    ring = TransitionRing(**ARGUMENTS)
    StepSource().add_to(ring, 10)
    with pytest.raises(ValueError, match=message):
        TransitionRing(**(ARGUMENTS | change)).load_state_dict(ring.state_dict())


def test_a_state_with_other_observations_is_refused() -> None:
    ring, other = TransitionRing(4), TransitionRing(4)
    ring.add([[1.0]], [0], [0.0], [[2.0]], [True])
    other.add([[1.0, 2.0]], [0], [0.0], [[2.0, 3.0]], [True])
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"observation is .*\(1,\).*, this ring's .*\(2,\)"):
        other.load_state_dict(ring.state_dict())
    assert_same(other.state_dict(), before)


def _set(*path: str) -> Callable[[dict[str, Any], Any], None]:
    def change(state: dict[str, Any], value: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value(state[path[-1]]) if callable(value) else value

    return change


DAMAGE = [
    (_set("kind"), "Other", "state is of 'Other', not of a TransitionRing"),
    (_set("added"), -1, "added=-1"),
    (_set("added"), 7, "pointer is not"),
    (_set("content"), None, "it is damaged"),
    (_set("content", "pointer"), lambda p: p + 999, "frames that it does not hold"),
    (_set("content", "pointer"), lambda p: p.long(), "pointer is not"),
    (_set("content", "pointer"), lambda p: p.clamp(max=3), "frames without references"),
    (_set("content", "latest"), lambda p: p - 99, "frames that it does not hold"),
    (_set("content", "reward"), lambda r: r[:-1], "reward is not"),
    (_set("content", "steps"), lambda s: s + 9, r"steps lie outside \[1, 3\]"),
    (_set("content", "open"), lambda o: o + 3, "open windows"),
    (_set("content", "action", "a"), lambda a: a[:-1], "action is not"),
    (_set("content", "window_action", "a"), lambda a: a[:0], "window_action is not"),
    (_set("content", "frames", "x"), lambda x: x[:-1], "frames are not"),
    (
        _set("content", "frames"),
        lambda f: {"x": f["x"][:-1], "y": (f["y"][0][:-1],)},
        "does not hold",
    ),
    (_set("content", "frames"), 3, "frames are not"),
    (_set("content", "window_gain"), [1.0], "window_gain is not"),
    (_set("content", "window_first"), lambda w: w.flip(1), "frames that it does not hold"),
]


@pytest.mark.parametrize(("change", "value", "message"), DAMAGE)
def test_a_damaged_state_changes_nothing(
    change: Callable[..., None], value: Any, message: str
) -> None:
    ring, target, source = TransitionRing(**ARGUMENTS), TransitionRing(**ARGUMENTS), StepSource()
    source.add_to(ring, 30)
    source.add_to(target, 9)
    before = target.state_dict()
    state = ring.state_dict()
    assert int(state["content"]["open"].min()) < 2  # so that flipping windows is damage
    change(state, value)
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(state)
    assert_same(target.state_dict(), before)


class NotAPrimitive:
    """Must not be unpickled."""


@pytest.mark.parametrize("damage", ["empty", "text", "noise", "cut", "object", "list"])
def test_a_damaged_file_changes_nothing(damage: str, tmp_path: Path) -> None:
    ring, path = TransitionRing(4), tmp_path / "ring.pt"
    ring.add([[1.0]], [0], [0.0], [[2.0]], [True])
    before = ring.state_dict()
    ring.save(path)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (999,), generator=generator, dtype=torch.uint8)
    if damage in ("object", "list"):
        torch.save({"kind": NotAPrimitive()} if damage == "object" else [1, 2], path)
    else:
        damaged = {"empty": b"", "text": b"hello there", "noise": bytes(noise.tolist())}
        path.write_bytes(damaged.get(damage, content[: len(content) // 2]))
    with pytest.raises(ValueError, match=r"ring\.pt (is damaged|holds a list)"):
        ring.load(path)
    assert_same(ring.state_dict(), before)


def test_a_missing_file_raises_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TransitionRing(4).load(tmp_path / "nowhere.pt")


def test_an_error_while_saving_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, path = TransitionRing(4), tmp_path / "ring.pt"
    ring.save(path)
    kept = path.read_bytes()
    save = torch.save

    def full_disk(state: Any, target: Any) -> None:
        save(state, target)
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    ring.add([[1.0]], [0], [0.0], [[2.0]], [True])
    with pytest.raises(OSError, match="no space left"):
        ring.save(path)
    assert path.read_bytes() == kept
