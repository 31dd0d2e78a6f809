"""Run, kill, resume and compare: shared by the integration tests."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


CONFIG = HERE.parent.parent / "configs" / "dqn_per.yaml"
TRAINER = CONFIG.parent / "trainer"


def run(command: list[str], *, killed: bool = False) -> None:
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
    lines = (folder / f"steps-{rank}.jsonl").read_text().splitlines()
    return {step["batch"]: step for step in map(json.loads, lines)}


def assert_same(one: Any, other: Any, where: str = "") -> None:
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
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


def assert_same_end(one: Path, other: Path) -> None:
    ends = [torch.load(folder / "end-0.pt", weights_only=True) for folder in (one, other)]
    assert_same(ends[0], ends[1])


def latest_checkpoint(folder: Path) -> str:
    found = folder.glob("checkpoints/*.ckpt")
    return str(max(found, key=lambda path: (path.stat().st_mtime_ns, path.name)))


def dqn_command(folder: Path, kill_at: int, *more: str) -> list[str]:
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
