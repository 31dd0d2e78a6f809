"""Shipped configs, killed by SIGKILL at random points and resumed, train as if never killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_killed_at_random_points_a_run_ends_bit_equal(tmp_path: Path) -> None:
    script = Path(__file__).with_name("random_kills.py")
    names = ["digits_adaptive", "dqn_per", "sft_influence", "grpo_dots_rr"]
    command = [sys.executable, str(script), *names, "--points", "8", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580)
    *runs, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [run["config"] for run in runs][:4] == names, done.stderr
    assert not [run for run in runs if run["differences"]]
    assert last == {"points": sum(run["killed"] for run in runs), "divergences": 0}
    assert last["points"] >= 8
