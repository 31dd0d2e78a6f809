"""Invalid input to the ring: errors name the value, and nothing changes."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from lit_adaptive.replay import TransitionRing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"capacity": -3}, "capacity is -3"),
        ({"capacity": 4, "n_step": 0}, "n_step is 0"),
        ({"capacity": 4, "n_step": 256}, r"n_step is 256; it must lie in \[1, 255\]"),
        ({"capacity": 4, "num_streams": 0}, "num_streams is 0"),
        ({"capacity": 4, "frame_stack": 0}, "frame_stack is 0"),
        ({"capacity": 4, "gamma": 1.01}, "gamma is 1.01"),
        ({"capacity": 4, "gamma": float("nan")}, "gamma is nan"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransitionRing(**arguments)


GOOD: dict[str, Any] = {
    "observation": {"x": torch.zeros(2, 3)},
    "action": torch.zeros(2, dtype=torch.int64),
    "reward": torch.zeros(2),
    "next_observation": {"x": torch.ones(2, 3)},
    "terminated": torch.tensor([False, False]),
    "truncated": torch.tensor([False, False]),
}
BAD = [
    ({"observation": {"x": torch.zeros(2, 4)}}, r"observation\['x'\] has shape \[2, 4\].*\[2, 3\]"),
    ({"observation": {"x": torch.zeros(3, 3)}}, r"observation\['x'\] has shape \[3, 3\]"),
    ({"observation": {"x": torch.zeros(2, 3).int()}}, r"observation\['x'\].*torch.int32.*float32"),
    ({"observation": {"y": torch.zeros(2, 3)}}, r"observation is nested differently.*\['x'\]"),
    ({"observation": torch.zeros(2, 3)}, "observation is nested differently"),
    ({"next_observation": {"x": torch.zeros(2, 4)}}, r"next_observation\['x'\] has shape \[2, 4\]"),
    ({"next_observation": {"x": (torch.zeros(2, 3),)}}, "next_observation is nested differently"),
    ({"observation": {"x": ["a", "b"]}}, r"observation\['x'\] is a list, not an array of numbers"),
    ({"action": torch.zeros(2)}, r"action has shape \[2\] and type torch.float32"),
    ({"action": torch.zeros(2, 1, dtype=torch.int64)}, r"action has shape \[2, 1\]"),
    ({"reward": torch.zeros(2, 1)}, r"reward has shape \[2, 1\]; expected \[2\]"),
    ({"reward": torch.tensor([0.0, float("nan")])}, r"reward of streams \[1\] is \[nan\]"),
    ({"reward": np.array([-np.inf, 0])}, r"reward of streams \[0\] is \[-inf\]"),
    ({"terminated": True}, r"terminated has shape \[\]; expected \[2\]"),
    ({"truncated": [True]}, r"truncated has shape \[1\]; expected \[2\]"),
    ({"stream": [0, 2]}, r"stream is \[0, 2\]; pass \[E\] distinct integers in \[0, 2\)"),
    ({"stream": [-1, 0]}, r"stream is \[-1, 0\]"),
    ({"stream": [1, 1]}, r"stream is \[1, 1\].*distinct"),
    ({"stream": [0.0, 1.0]}, r"stream is \[0.0, 1.0\]; pass \[E\] distinct integers"),
    ({"stream": [1]}, r"observation\['x'\] has shape \[2, 3\].*expected \[1, 3\]"),
]


def _state(ring: TransitionRing) -> dict[str, Any]:
    return copy.deepcopy(ring.state_dict())


def _same(actual: Any, expected: Any) -> bool:
    if isinstance(actual, dict):
        return actual.keys() == expected.keys() and all(
            _same(actual[key], expected[key]) for key in actual
        )
    return actual.equal(expected) if isinstance(actual, torch.Tensor) else actual == expected


@pytest.mark.parametrize(("wrong", "message"), BAD)
@pytest.mark.parametrize("n_step", [1, 3])
def test_an_invalid_step_changes_nothing(wrong: dict[str, Any], message: str, n_step: int) -> None:
    ring = TransitionRing(8, num_streams=2, n_step=n_step)
    ring.add(**GOOD)
    before = _state(ring)
    with pytest.raises(ValueError, match=message):
        ring.add(**(GOOD | wrong))
    assert _same(_state(ring), before)


def test_a_refused_first_step_does_not_set_the_shapes() -> None:
    ring = TransitionRing(8, num_streams=2)
    with pytest.raises(ValueError, match="reward of streams"):
        ring.add(**(GOOD | {"reward": [0.0, float("nan")]}))
    wider = {"observation": torch.zeros(2, 5), "next_observation": torch.zeros(2, 5)}
    ring.add(**(GOOD | wider))
    assert ring.get(torch.tensor([0]))["observation"].shape == (1, 5)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (1.0, r"observation is a single number.*pass \[E, \.\.\.\]"),
        ({}, "observation is {}, which holds no tensor"),
        ((), r"observation is \(\), which holds no tensor"),
        (torch.zeros(1, 0), r"observation has shape \[1, 0\], which is empty"),
        ("text", "observation is a str, not an array of numbers"),
        (torch.zeros(2, 3), r"observation has shape \[2, 3\].*expected \[1, 3\]"),
    ],
)
def test_an_invalid_first_observation_is_named(observation: Any, message: str) -> None:
    ring = TransitionRing(8)
    with pytest.raises(ValueError, match=message):
        ring.add(observation, [0], [0.0], observation, [False])
    assert len(ring) == 0


@pytest.mark.parametrize("shape", [(1, 3, 5), (1,)])
def test_an_observation_that_is_not_a_frame_stack_is_named(shape: tuple[int, ...]) -> None:
    ring = TransitionRing(8, frame_stack=4)
    with pytest.raises(ValueError, match=r"observation has shape .* stacks 4 frames"):
        ring.add(torch.zeros(shape), [0], [0.0], torch.zeros(shape), [False])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 2], r"slots \[2\] hold no transition: 2 of 5 are filled"),
        ([5], r"slots \[5\] hold no transition"),
        ([-1], r"slots \[-1\] hold no transition.*\[0, 2\)"),
        ([[0]], r"index is \[1, 1\] of torch.int64"),
        ([0.0], r"index is \[1\] of torch.float32"),
        ([True, False], r"index is \[2\] of torch.bool"),
    ],
)
@pytest.mark.parametrize("method", ["get", "serial", "age"])
def test_empty_slots_cannot_be_read(method: str, index: list[Any], message: str) -> None:
    ring = TransitionRing(5)
    for i in range(2):
        ring.add([[i]], [i], [0.0], [[i]], [True])
    with pytest.raises(ValueError, match=message):
        getattr(ring, method)(torch.tensor(index))


def test_an_empty_ring_cannot_be_read() -> None:
    ring = TransitionRing(5)
    with pytest.raises(ValueError, match="nothing was added yet"):
        ring.get(torch.tensor([0]))
    with pytest.raises(ValueError, match="0 of 5 are filled"):
        ring.serial(torch.tensor([0]))


def test_an_empty_ring_has_no_episodes_and_no_memory() -> None:
    ring = TransitionRing(5)
    assert ring.end_episode().tolist() == []
    assert ring.nbytes == ring.num_frames == ring.frames_used == 0
