"""A run loses another process, its disk, its terminal, or its network."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lit_adaptive.cli.main import RUN_DIR, _new_run_dir

CONFIGS = Path(__file__).parents[2] / "configs"
FIT = [
    sys.executable,
    "-m",
    "lit_adaptive",
    "fit",
    "--config",
    str(CONFIGS / "digits_adaptive.yaml"),
]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SAVES = ["--trainer.callbacks+=callbacks.NewestCheckpoint", "--trainer.callbacks.interval=0"]
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]


def start(runs: Path, *more: str, **options: Any) -> "subprocess.Popen[str]":
    """Start a training on digits; its output is one text."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*FIT, *QUIET, f"--runs={runs}", *more], **(pipes | options))


def checkpoints(runs: Path) -> list[Path]:
    return sorted(runs.glob("*/*/checkpoints/last.ckpt"))


def wait_for_checkpoint(process: "subprocess.Popen[str]", runs: Path) -> None:
    while not checkpoints(runs) and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_rank_of_two_is_killed_the_other_ends_with_an_error(
    victim: int, tmp_path: Path
) -> None:
    ddp = ["--config", str(CONFIGS / "trainer" / "ddp.yaml"), "--trainer.max_epochs=100000"]
    process = start(tmp_path, *ddp, *SAVES)
    wait_for_checkpoint(process, tmp_path)
    first = psutil.Process(process.pid)
    (second,) = (c for c in first.children() if "lit_adaptive" in " ".join(c.cmdline()))
    [first, second][victim].kill()
    output = process.communicate(timeout=60)[0]
    _, alive = psutil.wait_procs([second], timeout=60)
    for left in alive:
        left.kill()
    assert not alive, output
    assert process.returncode == -9 if victim == 0 else process.returncode > 0, output
    assert torch.load(checkpoints(tmp_path)[0], weights_only=True)["global_step"] >= 0


@contextlib.contextmanager
def file_system(folder: Path, *options: str) -> Iterator[Path]:
    """A file system of its own at ``folder``."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_the_older_checkpoint_whole(tmp_path: Path) -> None:
    with file_system(tmp_path / "small", "-o", "size=1m") as runs:
        process = start(runs, *SAVES, "--trainer.max_epochs=100000")
        wait_for_checkpoint(process, runs)
        with (runs / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
            while True:
                other.write(b"0" * 4096)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 2, output
        assert "No space left on device: free some space on the disk of" in output
        assert "Traceback" not in output
        (newest,) = checkpoints(runs)
        state = torch.load(newest, weights_only=True)
        assert not list(runs.rglob("*.partial"))
        (runs / "other").unlink()
        steps = state["global_step"] + 5
        process = start(runs, "--ckpt_path=last", f"--trainer.max_steps={steps}")
        output = process.communicate(timeout=120)[0]
        assert f"ended after {steps} steps" in output


def test_runs_in_a_read_only_folder_are_rejected_in_one_line(tmp_path: Path) -> None:
    with file_system(tmp_path / "fixed", "-o", "ro") as runs:
        process = start(runs)
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert "Read-only file system" in line
    assert "set --runs to a writable folder" in line


def test_a_run_without_stdin_trains(tmp_path: Path) -> None:
    command = " ".join([*FIT, *QUIET, f"--runs={tmp_path}", "--trainer.max_steps=3", "<&-"])
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(checkpoints(tmp_path)) == 1


def test_run_directories_of_one_second_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for _ in range(20):  # in less than a second, or the names differ anyway
        monkeypatch.delenv(RUN_DIR, raising=False)
        folders.append(_new_run_dir(tmp_path, "config", "7"))
    assert len({*folders}) == 20
    assert all(folder.is_dir() for folder in folders)


def test_weights_and_biases_that_does_not_answer_is_an_error_with_the_remedy(
    tmp_path: Path,
) -> None:
    environment = os.environ | {
        "WANDB_MODE": "online",
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_INIT_TIMEOUT": "5",
        "WANDB_DIR": str(tmp_path),
    }
    overlay = ["--config", str(CONFIGS / "trainer" / "wandb.yaml")]
    process = start(tmp_path, *overlay, env=environment)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 2, output
    assert "error: Weights & Biases cannot be used: " in output
    assert "WANDB_MODE=offline" in output
    assert "Traceback" not in output
