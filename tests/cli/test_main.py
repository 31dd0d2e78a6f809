"""The command line as a user meets it: run directory, overlays, refusals, resuming, trackers."""

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_adaptive.cli.main import AdaptiveCLI, main

CONFIGS = Path(__file__).parents[2] / "configs"
PER = ["--config", str(CONFIGS / "dqn_per.yaml")]
QUICK = [
    *("--trainer.max_epochs=1", "--data.batches_per_epoch=24", "--data.evaluation_episodes=2"),
    *("--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"),
    "--data.capacity=2000",
]


def _fit(runs: Path, *more: str) -> Path:
    main(["fit", *PER, *QUICK, "--runs", str(runs), *more])
    found: Path = max(runs.glob("*/*"), key=lambda path: path.stat().st_mtime_ns)
    return found


def _refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises((SystemExit, ValueError)) as error:
        main([*command])
    return str(error.value) + capsys.readouterr().err


def test_a_run_directory_holds_metrics_config_checkpoints_and_the_curve(tmp_path: Path) -> None:
    run = _fit(tmp_path)
    assert run.parent.name == "dqn_per"
    assert run.name.endswith("-7")  # the seed
    assert (
        yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["capacity"] == 2000
    )
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {key for row in rows for key, value in row.items() if value}
    assert {"val/return", "train/loss", "sampler/ess"} <= logged
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert _fit(tmp_path) != run


def test_the_saved_config_runs_again(tmp_path: Path) -> None:
    run = _fit(tmp_path)
    main(["fit", "--config", str(run / "config.yaml"), "--runs", str(tmp_path / "again")])
    again = next((tmp_path / "again").glob("config/*/metrics.csv"))
    first = (run / "metrics.csv").read_text()
    assert again.read_text() == first  # the same seed gives the same run, to the last digit


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_validate_test_and_predict_play_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = _fit(tmp_path) / "checkpoints" / "last.ckpt"
    for command in ("validate", "test", "predict"):
        args = [
            *PER,
            "--runs",
            str(tmp_path / command),
            f"--ckpt_path={last}",
            *QUICK[2:3],
            QUICK[-1],
        ]
        main([command, *args])
    assert "val/return" in (tmp_path / "validate").rglob("metrics.csv").__next__().read_text()
    assert "test/return" in (tmp_path / "test").rglob("metrics.csv").__next__().read_text()
    with next((tmp_path / "predict").rglob("episodes.csv")).open() as file:
        episodes = list(csv.DictReader(file))
    assert len(episodes) == 2
    assert all(
        float(row["return"]) == float(row["length"]) for row in episodes
    )  # CartPole: 1 a step


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_flag_beside_ckpt_path_wins_over_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = _fit(tmp_path) / "checkpoints" / "last.ckpt"
    made: list[AdaptiveCLI] = []
    run = AdaptiveCLI._run_subcommand

    def keep(self: AdaptiveCLI, subcommand: str) -> None:
        made.append(self)
        run(self, subcommand)

    monkeypatch.setattr(AdaptiveCLI, "_run_subcommand", keep)
    _fit(tmp_path, f"--ckpt_path={last}", "--model.learning_rate=0.125", "--trainer.max_epochs=2")
    optimizer: Any = made[0].model.optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert made[0].trainer.global_step == 48


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trainer.use_distributed_sampler=true"], ["use_distributed_sampler", "freezes"]),
        (["--data.environment=CartPoll-v1"], ["CartPoll-v1", "CartPole-v1"]),
        (["--data.capacity=0"], ["capacity", "0"]),
        (["--data.sampler.alpha=1.5"], ["alpha", "1.5"]),
        (["--data.beta=-1"], ["beta", "-1"]),
        (["--data.environment=Pendulum-v1"], ["Discrete"]),
        (
            ["--data.sampler=lit_adaptive.samplers.UniformSampler"],
            ["PriorityRefresh", "data.update", "PrioritizedSampler"],
        ),
        (["--trainer.callbacks=[]"], ["duty.target_sync", "TargetSync", "TransitionCollector"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_bad_run_is_refused_before_training_with_value_rule_and_remedy(
    flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _refusal(capsys, "fit", *PER, "--runs", str(tmp_path), *flags)
    for word in words:
        assert word in said


def test_a_checkpoint_of_another_capacity_or_sampler_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = _fit(tmp_path) / "checkpoints" / "last.ckpt"
    common = ["fit", *PER, *QUICK, "--runs", str(tmp_path), f"--ckpt_path={last}"]
    said = _refusal(capsys, *common, "--data.capacity=3000")
    assert "2000" in said
    assert "3000" in said
    said = _refusal(capsys, *common, "--data.sampler=lit_adaptive.samplers.RankPrioritizedSampler")
    assert "rank" in said.lower()


def test_a_corrupt_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"not a checkpoint")
    common = ["fit", *PER, *QUICK, "--runs", str(tmp_path)]
    said = _refusal(capsys, *common, f"--ckpt_path={broken}")
    assert "broken.ckpt" in said
    assert "damaged" in said


def test_a_checkpoint_with_code_in_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "anything": Path}, evil)
    common = ["fit", *PER, *QUICK, "--runs", str(tmp_path)]
    said = _refusal(capsys, *common, f"--ckpt_path={evil}")
    assert "evil.ckpt" in said
    assert "weights-only" in said


@pytest.mark.filterwarnings("default")
def test_wandb_offline_holds_the_metrics_and_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    overlay = ["--config", str(CONFIGS / "trainer" / "wandb.yaml")]
    run = _fit(tmp_path, *overlay, "--trainer.logger.init_args.offline=true")
    import wandb

    wandb.finish()
    assert (run / "metrics.csv").is_file()  # CSV always
    files = list(run.rglob("run-*.wandb"))
    assert len(files) == 1
    history, config = _read_wandb(files[0])
    assert any("val/return" in row for row in history)
    assert any("train/loss" in row for row in history)
    assert config["config"]["data"]["init_args"]["capacity"] == 2000


def _wandb_records(path: Path) -> Iterator[bytes]:
    """Records of a LevelDB log: blocks of 32 KiB, after a header of 7 bytes."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # whole, or the last part
            yield parts
            parts = b""


def _read_wandb(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """History rows and config of an offline run's own file."""
    from wandb.proto import wandb_internal_pb2

    history: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    for data in _wandb_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            names = ["/".join(item.nested_key) or item.key for item in items]
            history.append(
                {n: json.loads(item.value_json) for n, item in zip(names, items, strict=True)}
            )
        for update in (*record.config.update, *record.run.config.update):
            config[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
    return history, config


def test_tensorboard_is_an_option(tmp_path: Path) -> None:
    run = _fit(tmp_path, "--config", str(CONFIGS / "trainer" / "tensorboard.yaml"))
    assert list(run.rglob("events.out.tfevents.*"))
    assert (run / "metrics.csv").is_file()
