"""A run that is killed and resumed, twice in a row, ends where the uninterrupted run ends."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
CONFIG = HERE.parent.parent / "configs" / "dqn_per.yaml"


def _run(command: list[str], *, killed: bool = False) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE,
        timeout=280,
    )
    assert done.returncode == (-9 if killed else 0), done.stdout + done.stderr


def _steps(folder: Path, rank: int = 0) -> dict[int, dict[str, Any]]:
    lines = (folder / f"steps-{rank}.jsonl").read_text().splitlines()
    return {step["batch"]: step for step in map(json.loads, lines)}


def _assert_same(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        alike = torch.equal(one, other)
        if not alike and one.is_floating_point():  # NaN stands for what was never seen
            alike = torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
        assert alike, where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            _assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            _assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


def _assert_same_end(one: Path, other: Path) -> None:
    ends = [torch.load(folder / "end-0.pt", weights_only=True) for folder in (one, other)]
    _assert_same(ends[0], ends[1])


def _latest(folder: Path) -> str:
    found = folder.glob("checkpoints/*.ckpt")
    return str(max(found, key=lambda path: (path.stat().st_mtime_ns, path.name)))


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [0, 2])
def test_dataset_run_killed_twice_draws_what_the_uninterrupted_run_draws(
    workers: int, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    script = "train_line.py"
    _run([script, str(whole), str(workers), "-1", "-", "1"])
    dice = random.Random(workers)
    first, second = sorted(dice.sample(range(7, 50), 2))
    _run([script, str(broken), str(workers), str(first), "-", "1"], killed=True)
    _run([script, str(broken), str(workers), str(second), _latest(broken), "1"], killed=True)
    _run([script, str(broken), str(workers), "-1", _latest(broken), "1"])
    # Later lines replace earlier ones: what counts is what the resumed run did.
    assert _steps(broken) == _steps(whole)
    _assert_same_end(broken, whole)


def _dqn(folder: Path, kill_at: int, *more: str) -> list[str]:
    return [
        *("-m", "lit_adaptive", "fit", "--config", str(CONFIG), "--runs", str(folder / "runs")),
        *("--trainer.max_epochs=3", "--data.batches_per_epoch=40", "--data.capacity=1100"),
        "--data.evaluation_episodes=2",
        "--trainer.callbacks+=recorder.Recorder",
        f"--trainer.callbacks.folder={folder}",
        f"--trainer.callbacks.kill_at={kill_at}",
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        f"--trainer.callbacks.dirpath={folder}/checkpoints",
        "--trainer.callbacks.every_n_train_steps=7",
        "--trainer.callbacks.save_top_k=-1",
        *more,
    ]


@pytest.mark.multiprocess
def test_dqn_killed_twice_ends_bit_equal_in_replay_priorities_generators_and_parameters(
    tmp_path: Path,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    _run(_dqn(whole, -1))
    _run(_dqn(broken, 33), killed=True)
    _run(_dqn(broken, 77, f"--ckpt_path={_latest(broken)}"), killed=True)
    _run(_dqn(broken, -1, f"--ckpt_path={_latest(broken)}"))
    assert _steps(broken) == _steps(whole)
    _assert_same_end(broken, whole)
