"""A run that is killed and resumed twice ends like the uninterrupted run."""

import random
from pathlib import Path

import pytest
from resumed_runs import (
    assert_same_end,
    dqn_command,
    latest_checkpoint,
    run,
    steps_of,
)


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_run_killed_twice_draws_the_same_as_the_uninterrupted_run(
    workers: int, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    script = "train_line.py"
    run([script, str(whole), str(workers), "-1", "-", "1"])
    generator = random.Random(workers)
    first, second = sorted(generator.sample(range(7, 50), 2))
    run([script, str(broken), str(workers), str(first), "-", "1"], killed=True)
    run(
        [script, str(broken), str(workers), str(second), latest_checkpoint(broken), "1"],
        killed=True,
    )
    run([script, str(broken), str(workers), "-1", latest_checkpoint(broken), "1"])
    assert steps_of(broken) == steps_of(whole)
    assert_same_end(broken, whole)


@pytest.mark.multiprocess
def test_dqn_killed_twice_ends_bit_equal_in_replay_priorities_generators_and_parameters(
    tmp_path: Path,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(dqn_command(whole, -1))
    run(dqn_command(broken, 33), killed=True)
    run(dqn_command(broken, 77, f"--ckpt_path={latest_checkpoint(broken)}"), killed=True)
    run(dqn_command(broken, -1, f"--ckpt_path={latest_checkpoint(broken)}"))
    assert steps_of(broken) == steps_of(whole)
    assert_same_end(broken, whole)
