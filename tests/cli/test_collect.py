"""``lit-adaptive collect``: what it writes, and how it continues."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from groups_twin import assert_same

from lit_adaptive.cli.main import main
from lit_adaptive.replay import RolloutGroups, TrajectoryStore

CONFIG = Path(__file__).parents[2] / "configs" / "grpo.yaml"
WARMUP = (
    "{class_path: callbacks.SupervisedWarmup, init_args: {steps: 2, batch_size: 4, dataset: "
    "{class_path: lit_adaptive.data.Arithmetic, init_args: {split: train, size: 8, digits: 1}}}}"
)
QUICK = [
    *("--config", str(CONFIG), "--data.batch_size=8", "--data.group_size=4"),
    *("--data.dataset.source.size=20", "--trainer.accelerator=cpu"),
    f"--trainer.callbacks=[{WARMUP}, {{class_path: callbacks.CompletionWriter}}]",
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def collect(folder: Path, *more: str) -> RolloutGroups:
    out = folder / "trajectories"
    main(["collect", *QUICK, "--runs", str(folder / "runs"), "--out", str(out), *more])
    return TrajectoryStore(out, {}).read()


def test_all_prompts_are_rolled_out_once_with_log_probabilities_and_rewards(tmp_path: Path) -> None:
    groups = collect(tmp_path)
    store = TrajectoryStore(tmp_path / "trajectories", {"temperature": "1.0"})
    assert len(store.shards) == 3  # of 8, 8 and 4 prompts
    assert groups.prompt.tolist() == list(range(20))
    assert groups.size.tolist() == [4] * 20
    assert groups.version.tolist() == [0] * 20
    assert bool((groups.log_probs < 0).all())
    assert set(groups.reward.tolist()) <= {0.0, 1.0}
    assert not list(tmp_path.glob("runs/*/*/completions*"))  # other callbacks do not run
    with pytest.raises(ValueError, match=r"temperature is '0\.5'"):
        TrajectoryStore(tmp_path / "trajectories", {"temperature": "0.5"})


def test_an_interrupted_collection_continues_with_what_is_missing(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = collect(tmp_path / "whole")
    added, add = [], TrajectoryStore.add

    def until_full(self: TrajectoryStore, groups: RolloutGroups) -> Path:
        if len(self.shards) == 1:
            raise OSError(28, "No space left on device")
        return add(self, groups)

    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryStore, "add", until_full)
        with pytest.raises(SystemExit):
            collect(tmp_path / "broken")
    assert "No space left on device: free some space" in capsys.readouterr().err

    def count(self: TrajectoryStore, groups: RolloutGroups) -> Path:
        added.append(len(groups))
        return add(self, groups)

    monkeypatch.setattr(TrajectoryStore, "add", count)
    assert_same(collect(tmp_path / "broken", "--data.batch_size=6"), whole)
    assert added == [6, 6]
    assert_same(collect(tmp_path / "broken"), whole)
    assert added == [6, 6]


def test_another_policy_or_task_does_not_continue_it(tmp_path: Path, capsys: Any) -> None:
    collect(tmp_path)
    for option, message in (
        ("--data.sampling.temperature=0.5", "temperature is '0.5', there '1.0'"),
        ("--model.model.hidden_size=64", "model is "),
        ("--data.dataset.source.size=21", "prompts is "),
        ("--seed_everything=8", "weights is "),
        ("--samples=6", "samples is '6', there '4'"),
    ):
        with pytest.raises((SystemExit, ValueError)) as error:
            collect(tmp_path, option)
        assert message in str(error.value) + capsys.readouterr().err, option


def test_validation_prompts_and_their_number_of_rollouts(tmp_path: Path) -> None:
    options = ("--prompts=validation", "--data.val_dataset.source.size=5", "--samples=6")
    groups = collect(tmp_path, *options, "--data.val_dataset.columns=[answer]")
    assert len(groups) == 5
    assert groups.size.tolist() == [6] * 5


def test_bad_options_are_named(tmp_path: Path, capsys: Any) -> None:
    for options, message in (
        (["--samples=1"], "samples is 1; it must be at least 2"),
        (["--prompts=validation", "--data.val_dataset=null"], "data.val_dataset is null"),
    ):
        with pytest.raises((SystemExit, ValueError)) as error:
            collect(tmp_path, *options)
        assert message in str(error.value) + capsys.readouterr().err


@pytest.mark.multiprocess
def test_two_processes_collect_what_one_collects(tmp_path: Path) -> None:
    whole = collect(tmp_path / "one")
    out = tmp_path / "two" / "trajectories"
    command = ["-m", "lit_adaptive", "collect", *QUICK, "--runs", str(tmp_path / "runs")]
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=4"]
    subprocess.run([sys.executable, *command, *ranks, "--out", str(out)], check=True, timeout=250)
    groups = TrajectoryStore(out, {}).read()
    groups = groups.select(groups.prompt.argsort())
    # Matrix products of other shapes round differently.
    torch.testing.assert_close(groups.log_probs, whole.log_probs, rtol=1e-4, atol=1e-5)
    assert_same(replace(groups, log_probs=whole.log_probs), whole)
