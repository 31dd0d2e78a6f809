"""Start, kill, resume and compare runs: shared by the integration tests."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent

CONFIG = HERE.parent.parent / "configs" / "dqn_per.yaml"
TRAINER = CONFIG.parent / "trainer"


def run(command: list[str], *, killed: bool = False) -> None:
    """Run Python with ``command``; check that it succeeds, or is killed."""
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE,
        timeout=280,
    )
    assert done.returncode == (-9 if killed else 0), done.stdout + done.stderr


def steps_of(folder: Path, rank: int = 0) -> dict[int, dict[str, Any]]:
    """Recorded steps of a run by batch number; a resumed run's replace those it repeats."""
    lines = (folder / f"steps-{rank}.jsonl").read_text().splitlines()
    return {step["batch"]: step for step in map(json.loads, lines)}


def assert_same_metrics(first: Path, second: Path) -> None:
    """Assert that the first training metrics logged in two folders agree, up to rounding.

    Timings, and metrics of the sampler's and engine's own, are left out.
    """
    rows = []
    for folder in (first, second):
        with next(folder.glob("runs/**/metrics.csv")).open() as file:
            filled = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
        rows.append(next(row for row in filled if any(k.startswith("train/") for k in row)))
    names = [n for n in rows[0] if n.startswith(("train/", "iw/")) and "seconds" not in n]
    assert len(names) > 4
    for name in names:
        assert math.isclose(
            float(rows[0][name]), float(rows[1][name]), rel_tol=2e-3, abs_tol=2e-4
        ), (name, rows[0][name], rows[1][name])


def assert_same(first: Any, second: Any, path: str = "") -> None:
    """Assert that two nested states are bit-equal."""
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, path
        equal = torch.equal(first, second)
        if not equal and first.is_floating_point():  # NaN marks entries without a value
            equal = torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
        assert equal, path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    else:
        assert first == second, path


def assert_same_end(first: Path, second: Path) -> None:
    """Assert that two runs end in the same state."""
    ends = [torch.load(folder / "end-0.pt", weights_only=True) for folder in (first, second)]
    assert_same(ends[0], ends[1])


def latest_checkpoint(folder: Path) -> str:
    checkpoints = folder.glob("checkpoints/*.ckpt")
    return str(max(checkpoints, key=lambda path: (path.stat().st_mtime_ns, path.name)))


def dqn_command(folder: Path, kill_at: int, *more: str) -> list[str]:
    """Arguments of a small DQN run with a recorder."""
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
