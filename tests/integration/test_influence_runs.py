"""Runs with InfluenceRefresh: killed and resumed, and in two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from resumed_runs import assert_same, latest_checkpoint, run


def train(folder: Path, *, place: str = "-", ranks: int = 1, ckpt: str = "-") -> None:
    killed = place != "-"
    run(["train_influence.py", str(folder), place, str(ranks), ckpt], killed=killed)


def end(folder: Path, rank: int = 0) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / f"end-{rank}.pt", weights_only=True)
    return state


@pytest.mark.slow
def test_killed_in_collection_and_in_scoring_ends_as_the_uninterrupted_run(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole)
    train(killed, place="collection")
    shards = sorted((killed / "trajectories" / "train").iterdir())
    assert 0 < len(shards) < 10  # of six prompts each
    written = [shard.stat().st_mtime_ns for shard in shards]
    train(killed, place="scoring")
    assert [shard.stat().st_mtime_ns for shard in shards] == written  # not made again
    train(killed, ckpt=latest_checkpoint(killed))
    assert len(end(whole)["phases"]) == 3
    assert_same(end(killed), end(whole))


@pytest.mark.multiprocess
def test_two_processes_select_and_train_as_one(tmp_path: Path) -> None:
    for ranks in (1, 2):
        train(tmp_path / str(ranks), ranks=ranks)
    one, first, second = (end(tmp_path / name, r) for name, r in (("1", 0), ("2", 0), ("2", 1)))
    assert_same(first, second)
    # Matrix products of other shapes round differently, so later phases may break ties otherwise.
    assert_same(first["phases"][0], one["phases"][0])
    torch.testing.assert_close(first["weights"], one["weights"], rtol=0, atol=5e-3)
