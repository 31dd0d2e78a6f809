"""``digits_adaptive`` from the command line, killed by SIGKILL at random times and resumed."""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

CONFIG = Path(__file__).parents[2] / "configs" / "digits_adaptive.yaml"
EPOCHS = 16


def start(runs: Path, *more: str) -> "subprocess.Popen[str]":
    command = ["-m", "lit_adaptive", "fit", "--config", str(CONFIG), "--runs", str(runs)]
    flags = [f"--trainer.max_epochs={EPOCHS}", "--trainer.enable_progress_bar=false"]
    newest = ["--trainer.callbacks+=callbacks.NewestCheckpoint", "--trainer.callbacks.interval=0.1"]
    return subprocess.Popen(
        [sys.executable, *command, *flags, *newest, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> None:
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output


def checkpoints(runs: Path) -> list[Path]:
    return sorted(runs.glob("*/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def assert_equal(one: Any, other: Any) -> None:
    """Assert that two trees of tensors and primitives are equal, to the bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, list | tuple):
        for first, second in zip(one, other, strict=True):
            assert_equal(first, second)
    else:
        assert one == other


@pytest.mark.multiprocess
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_times_ends_bit_equal(seed: int, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(whole))
    dice, resume = random.Random(seed), ()
    for _ in range(3):
        before = len(checkpoints(broken))
        process = start(broken, *resume)
        while len(checkpoints(broken)) == before and process.poll() is None:
            time.sleep(0.01)  # until it has saved a state
        time.sleep(dice.uniform(0.0, 1.0))
        process.kill()
        process.communicate()
        resume = ("--ckpt_path=last",)
    finish(start(broken, *resume))
    one, other = (torch.load(checkpoints(runs)[-1], weights_only=True) for runs in (whole, broken))
    assert one["global_step"] == 20 * EPOCHS
    for part in ("global_step", "state_dict", "optimizer_states", "AdaptiveDataModule"):
        assert_equal(one[part], other[part])
