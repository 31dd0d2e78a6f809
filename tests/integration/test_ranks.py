"""Two real processes share one sampling distribution."""

import csv
import json
from pathlib import Path

import pytest
import torch
from resumed_runs import CONFIG, TRAINER, assert_same, run, steps_of


def _assert_one_distribution(folder: Path, batch_size: int) -> None:
    steps = [steps_of(folder, rank) for rank in (0, 1)]
    assert steps[0].keys() == steps[1].keys()
    assert len(steps[0]) > 10
    shared = 0
    for number, first in steps[0].items():
        second = steps[1][number]
        assert len(first["index"]) == len(second["index"]) == batch_size
        shared += len(set(first["index"]) & set(second["index"]))
        # Weights are divided by the maximum over both ranks, so that one weight is 1.
        assert max(*first["weight"], *second["weight"]) == pytest.approx(1.0)
    # Draws are with replacement: both ranks can draw an index of large mass.
    assert shared / (len(steps[0]) * batch_size) < 0.25
    ends = [torch.load(folder / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(ends[0], ends[1])


def _assert_losses_of_all_ranks_are_logged(folder: Path) -> None:
    steps = [steps_of(folder / "first", rank) for rank in (0, 1)]
    (file,) = folder.glob("runs/*/*/metrics.csv")
    rows = [row for row in csv.DictReader(file.read_text().splitlines()) if row["train/loss"]]
    assert len(rows) == 30
    for row in rows:
        losses = [rank[int(row["step"])]["loss"] for rank in steps]
        assert losses[0] != losses[1]
        assert float(row["train/loss"]) == pytest.approx(sum(losses) / 2, rel=1e-4)


@pytest.mark.multiprocess
def test_ddp_on_a_dataset_holds_equal_priorities_and_resumes(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(["train_line.py", str(whole), "0", "-1", "-", "2"])
    _assert_one_distribution(whole, batch_size=8)
    checkpoints = sorted((whole / "checkpoints").glob("*.ckpt"))
    run(["train_line.py", str(broken), "0", "-1", str(checkpoints[1]), "2"])
    for rank in (0, 1):
        resumed, uninterrupted = steps_of(broken, rank), steps_of(whole, rank)
        assert resumed
        assert resumed == {step: uninterrupted[step] for step in resumed}
    ends = [torch.load(folder / "end-0.pt", weights_only=True) for folder in (whole, broken)]
    assert_same(ends[0], ends[1])


@pytest.mark.multiprocess
@pytest.mark.parametrize("overlay", ["ddp", "fsdp2"])
def test_dqn_on_two_processes_holds_one_replay(overlay: str, tmp_path: Path) -> None:
    common = [
        *("-m", "lit_adaptive", "fit", "--config", str(CONFIG)),
        *("--config", str(TRAINER / f"{overlay}.yaml"), "--runs", str(tmp_path / "runs")),
        *("--trainer.max_epochs=1", "--data.batches_per_epoch=30", "--data.capacity=2000"),
        "--data.evaluation_episodes=3",
        "--trainer.log_every_n_steps=1",
        "--trainer.callbacks+=recorder.Recorder",
    ]
    run([*common, f"--trainer.callbacks.folder={tmp_path / 'first'}"])
    _assert_one_distribution(tmp_path / "first", batch_size=64)
    _assert_losses_of_all_ranks_are_logged(tmp_path)
    saved = next((tmp_path / "runs").glob("dqn_per/*/checkpoints/last.ckpt"))
    again = [*common, f"--trainer.callbacks.folder={tmp_path / 'second'}"]
    run([*again, f"--ckpt_path={saved}", "--trainer.max_epochs=2"])
    _assert_one_distribution(tmp_path / "second", batch_size=64)
    assert min(steps_of(tmp_path / "second")) == max(steps_of(tmp_path / "first")) + 1


@pytest.mark.multiprocess
def test_two_ranks_validate_as_one_when_a_batch_is_padding_only(tmp_path: Path) -> None:
    metrics = []
    for ranks in (1, 2):
        run(["evaluate_ranks.py", str(tmp_path / f"{ranks}.json"), str(ranks)])
        metrics.append(json.loads((tmp_path / f"{ranks}.json").read_text()))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)
