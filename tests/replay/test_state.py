"""All buffers are written to files in the same way, and reject the state of another class."""

from pathlib import Path
from typing import Any

import pytest
from groups_twin import filled_buffer

from lit_adaptive.replay import (
    PrioritizedReplayBuffer,
    ReplayBuffer,
    RolloutBuffer,
    TransitionRing,
)

BUFFERS: list[Any] = [
    TransitionRing(4),
    ReplayBuffer(4),
    PrioritizedReplayBuffer(4),
    RolloutBuffer(4),
]


@pytest.mark.parametrize("buffer", BUFFERS, ids=lambda buffer: type(buffer).__name__)
def test_the_file_of_one_buffer_is_rejected_by_all_others(buffer: Any, tmp_path: Path) -> None:
    name = type(buffer).__name__
    buffer.save(tmp_path / "state.pt")
    buffer.load(tmp_path / "state.pt")
    for other in BUFFERS:
        if type(other) is not type(buffer):
            expected = f"the state is of '{name}', not of a {type(other).__name__}: "
            with pytest.raises(ValueError, match=expected):
                other.load(tmp_path / "state.pt")


def test_a_rollout_buffer_read_from_a_file_draws_as_the_one_that_was_written(
    tmp_path: Path,
) -> None:
    written, read = filled_buffer(6), RolloutBuffer(6)
    written.save(tmp_path / "rollouts.pt")
    read.load(tmp_path / "rollouts.pt")
    for _ in range(3):
        keys = [buffer.draw(2, version=9, beta=0.0).key for buffer in (written, read)]
        assert keys[0].equal(keys[1])
