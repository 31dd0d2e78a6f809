"""GRPO with replay: killed and resumed, on two processes, and learning."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from resumed_runs import (
    CONFIG,
    TRAINER,
    assert_same,
    assert_same_end,
    assert_same_metrics,
    latest_checkpoint,
    run,
    steps_of,
)

CONFIGS = CONFIG.parent


def _config(folder: Path) -> Path:
    """The config with two steps of warm-up, and without callbacks that only report."""
    config = yaml.safe_load((CONFIGS / "grpo_rr.yaml").read_text())
    names = ("callbacks.SupervisedWarmup", "callbacks.RolloutReplay")
    callbacks = [c for c in config["trainer"]["callbacks"] if c["class_path"] in names]
    callbacks[0]["init_args"]["steps"] = 2
    config["trainer"]["callbacks"] = callbacks
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "grpo_rr.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _fit(folder: Path, kill_at: int, *more: str, signal: str = "learnability") -> list[str]:
    return [
        *("-m", "lit_adaptive", "fit", "--config", str(_config(folder))),
        *("--runs", str(folder / "runs"), "--trainer.max_epochs=2", "--data.steps_per_epoch=8"),
        *("--data.dataset.source.size=64", "--data.val_dataset.source.size=16"),
        "--data.batch_size=4",
        *("--data.group_size=4", "--data.inner_epochs=2", "--data.minibatches=2"),
        *("--data.replay.policy=fresh", "--model.objective.clip_center=old"),
        *("--data.sampler=lit_adaptive.samplers.PrioritizedSampler",),
        *("--model.model.hidden_size=32", "--model.model.layers=1"),
        "--data.rewards=lit_adaptive.rollout.Scorer",
        "--data.rewards.rewards=[{class_path: killing_parts.EvenLength}]",
        "--data.rewards.workers=0",
        "--data.engine=killing_parts.KillingEngine",
        "--trainer.accumulate_grad_batches=2",
        *(
            "--trainer.callbacks+=callbacks.PromptStatistics",
            f"--trainer.callbacks.signal={signal}",
        ),
        "--trainer.callbacks+=recorder.Recorder",
        f"--trainer.callbacks.folder={folder}",
        f"--trainer.callbacks.kill_at={kill_at}",
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        f"--trainer.callbacks.dirpath={folder}/checkpoints",
        "--trainer.callbacks.every_n_train_steps=3",
        "--trainer.callbacks.save_top_k=-1",
        *more,
    ]


@pytest.mark.multiprocess
def test_killed_in_training_ends_bit_equal_with_its_replay(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(_fit(whole, -1))
    run(_fit(broken, 27), killed=True)
    run(_fit(broken, 69, f"--ckpt_path={latest_checkpoint(broken)}"), killed=True)
    run(_fit(broken, -1, f"--ckpt_path={latest_checkpoint(broken)}"))
    # 16 steps of 2 passes, 2 minibatches and 2 micro-batches.
    assert len(steps_of(whole)) == 128
    assert steps_of(broken) == steps_of(whole)
    assert_same_end(broken, whole)
    end = torch.load(whole / "end-0.pt", weights_only=True)
    assert len(end["data"]["replay"]["groups"]["prompt"]) > 4


@pytest.mark.multiprocess
def test_killed_while_generating_scoring_and_saving_ends_bit_equal(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(_fit(whole, -1))
    run(_fit(broken, -1, "--data.engine.die_at=4"), killed=True)
    scoring = (
        "--data.rewards.rewards=[{class_path: killing_parts.EvenLength, init_args: {die_at: 40}}]"
    )
    run(_fit(broken, -1, scoring, f"--ckpt_path={latest_checkpoint(broken)}"), killed=True)
    saving = [
        "--trainer.callbacks+=killing_parts.KillsWhileSaving",
        "--trainer.callbacks.at=48",
    ]
    run(_fit(broken, -1, *saving, f"--ckpt_path={latest_checkpoint(broken)}"), killed=True)
    run(_fit(broken, -1, f"--ckpt_path={latest_checkpoint(broken)}"))
    assert steps_of(broken) == steps_of(whole)
    assert_same_end(broken, whole)


@pytest.mark.multiprocess
@pytest.mark.parametrize("overlay", ["ddp", "fsdp2"])
def test_two_processes_train_like_one(overlay: str, tmp_path: Path) -> None:
    # Seeds belong to prompts, advantages to groups, and divisors to the whole update: two ranks
    # generate the same rollouts and end with the same parameters.
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--trainer.max_epochs=1", "--trainer.accumulate_grad_batches=1"]
    more += ["--trainer.log_every_n_steps=1"]
    ranks = ["--config", str(TRAINER / f"{overlay}.yaml"), "--data.batch_size=2"]
    run(_fit(one, -1, *more))
    run(_fit(two, -1, *more, *ranks))
    ends = [torch.load(two / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(ends[0]["data"], ends[1]["data"])
    assert_same_metrics(one, two)
    alone = torch.load(one / "end-0.pt", weights_only=True)
    for name in ("prompt", "tokens", "reward", "version"):
        replays = [end["data"]["replay"]["groups"][name] for end in (alone, ends[0])]
        assert replays[0].equal(replays[1]), name
    for name, value in alone["parameters"].items():
        if value.dtype.is_floating_point and name.startswith("language"):
            torch.testing.assert_close(ends[0]["parameters"][name], value, rtol=1e-3, atol=2e-4)


@pytest.mark.multiprocess
def test_two_processes_agree_on_the_selection_by_difficulty(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--trainer.accumulate_grad_batches=1", "--data.sampler.group_size=4"]
    more.insert(0, "--data.sampler=lit_adaptive.samplers.DifficultySampler")
    more += ["--data.sampler.tau=0.1", "--data.sampler.window=2"]
    more += ["--trainer.callbacks+=callbacks.DifficultyRefresh", "--trainer.callbacks.updates=5"]
    more += ["--trainer.callbacks.references=10", "--trainer.callbacks.hidden_size=8"]
    ranks = ["--config", str(TRAINER / "ddp.yaml"), "--data.batch_size=2"]
    run(_fit(one, -1, *more, signal="pass_rate"))
    run(_fit(two, -1, *more, *ranks, signal="pass_rate"))
    ends = [torch.load(two / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(ends[0]["data"], ends[1]["data"])
    # What one process draws while its parameters are still those of two: the first steps.
    for name in ("prompt", "reward"):
        drawn = [
            torch.load(folder / "end-0.pt", weights_only=True)["data"]["replay"]["groups"][name]
            for folder in (one, two)
        ]
        assert drawn[0][:4].equal(drawn[1][:4]), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_config_learns_from_rewards(tmp_path: Path) -> None:
    # The policy answers a quarter to a third of the questions correctly after the warm-up.
    recipe = str(CONFIGS / "grpo_rr.yaml")
    command = ["-m", "lit_adaptive", "fit", "--config", recipe, "--runs", str(tmp_path)]
    subprocess.run([sys.executable, *command, "--trainer.max_epochs=16"], check=True, timeout=1100)
    (file,) = tmp_path.glob("grpo_rr/*/metrics.csv")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    rewards = [float(row["train/reward"]) for row in rows if row["train/reward"]]
    exact_match = [float(row["val/exact_match"]) for row in rows if row["val/exact_match"]]
    generated = [float(row["train/generated_tokens"]) for row in rows if row["train/reward"]]
    assert sum(rewards[:4]) / 4 < 0.4
    assert exact_match[-1] > 0.8
    rollouts = [float(row["train/rollouts"]) for row in rows if row["train/reward"]]
    assert rollouts[-1] < 0.55 * 400 * 32 * 8  # half as many as GRPO without replay
    assert generated == sorted(generated)
