"""Two real processes: one law, each its share."""

from pathlib import Path

import pytest
import torch
from resumed_runs import CONFIG, TRAINER, assert_same, latest_checkpoint, run, steps_of


def _assert_one_law(folder: Path, batch_size: int) -> None:
    one, other = steps_of(folder, 0), steps_of(folder, 1)
    assert one.keys() == other.keys()
    assert len(one) > 10
    shared = 0
    for step, mine in one.items():
        theirs = other[step]
        assert len(mine["index"]) == len(theirs["index"]) == batch_size
        shared += len(set(mine["index"]) & set(theirs["index"]))
        # Divided by the maximum over both ranks: exactly one global maximum of 1.
        assert max(*mine["weight"], *theirs["weight"]) == pytest.approx(1.0)
    # With replacement, so now and then an index of large mass falls to both.
    assert shared / (len(one) * batch_size) < 0.25
    ends = [torch.load(folder / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(ends[0], ends[1])


@pytest.mark.multiprocess
def test_ddp_on_a_dataset_holds_equal_priorities_and_resumes(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(["train_line.py", str(whole), "0", "-1", "-", "2"])
    _assert_one_law(whole, batch_size=8)
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
        "--trainer.callbacks+=recorder.Recorder",
    ]
    run([*common, f"--trainer.callbacks.folder={tmp_path / 'first'}"])
    _assert_one_law(tmp_path / "first", batch_size=64)
    saved = next((tmp_path / "runs").glob("dqn_per/*/checkpoints/last.ckpt"))
    again = [*common, f"--trainer.callbacks.folder={tmp_path / 'second'}"]
    run([*again, f"--ckpt_path={saved}", "--trainer.max_epochs=2"])
    _assert_one_law(tmp_path / "second", batch_size=64)
    assert min(steps_of(tmp_path / "second")) == max(steps_of(tmp_path / "first")) + 1


__all__ = ["latest_checkpoint"]
