"""RolloutReplay adds the groups of each finished step to the buffer."""

from pathlib import Path

import pytest
from rollout_training import fit_rollouts

from callbacks import RolloutReplay
from lit_adaptive.replay import RolloutBuffer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


def test_the_groups_of_each_step_are_added_once(tmp_path: Path) -> None:
    buffer = RolloutBuffer(64, deduplicate=False)
    steps, _, _ = fit_rollouts(RolloutReplay(), folder=tmp_path, replay=buffer)
    assert len(steps) == 6
    informative = sum(
        int(((s.fresh.mean_reward > 0) & (s.fresh.mean_reward < 1)).sum()) for s in steps
    )
    counters = buffer.counters
    assert len(buffer) == informative
    assert counters["dropped_solved"] + counters["dropped_failed"] == 24 - informative


def test_a_datamodule_without_a_replay_is_rejected_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the datamodule a replay"):
        fit_rollouts(RolloutReplay(), folder=tmp_path)
