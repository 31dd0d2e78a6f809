"""The command line: run directory, overlays, validation, resumption, loggers."""

import csv
import json
import os
import pickle
import shutil
import struct
import sys
import time
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
    return max(runs.glob("*/*"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one run, shared by the tests that only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit-adaptive"])
        return _fit(tmp_path_factory.mktemp("runs"))


def _error_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises((SystemExit, ValueError)) as error:
        main([*command])
    return str(error.value) + capsys.readouterr().err


def test_a_run_directory_holds_metrics_config_checkpoints_and_the_curve(finished_run: Path) -> None:
    run = finished_run
    assert run.parent.name == "dqn_per"
    assert run.name.endswith("-7")  # the seed
    assert (
        yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["capacity"] == 2000
    )
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {key for row in rows for key, value in row.items() if value}
    assert {"val/return", "train/loss", "sampler/ess"} <= logged
    assert not (run / "hparams.yaml").exists()  # config.yaml has all
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_each_run_has_a_directory_of_its_own(finished_run: Path) -> None:
    assert _fit(finished_run.parent.parent) != finished_run


def test_the_saved_config_repeats_the_run(tmp_path: Path, finished_run: Path) -> None:
    run = finished_run
    main(["fit", "--config", str(run / "config.yaml"), "--runs", str(tmp_path / "again")])
    again = next((tmp_path / "again").glob("config/*/metrics.csv"))
    first = (run / "metrics.csv").read_text()
    assert again.read_text() == first  # the same seed gives the same run


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_validate_test_and_predict_evaluate_a_checkpoint(
    tmp_path: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = finished_run / "checkpoints" / "last.ckpt"
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
        (written,) = (tmp_path / command).glob("*/*")
        assert f"run directory: {written}" in capsys.readouterr().out
    assert "val/return" in (tmp_path / "validate").rglob("metrics.csv").__next__().read_text()
    assert "test/return" in (tmp_path / "test").rglob("metrics.csv").__next__().read_text()
    with next((tmp_path / "predict").rglob("episodes.csv")).open() as file:
        episodes = list(csv.DictReader(file))
    assert len(episodes) == 2
    assert all(
        float(row["return"]) == float(row["length"]) for row in episodes
    )  # CartPole: reward 1 per step


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_an_option_overrides_the_hyperparameters_of_ckpt_path(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = finished_run / "checkpoints" / "last.ckpt"
    instances: list[AdaptiveCLI] = []
    run = AdaptiveCLI._run_subcommand

    def keep(self: AdaptiveCLI, subcommand: str) -> None:
        instances.append(self)
        run(self, subcommand)

    monkeypatch.setattr(AdaptiveCLI, "_run_subcommand", keep)
    _fit(tmp_path, f"--ckpt_path={last}", "--model.learning_rate=0.125", "--trainer.max_epochs=2")
    optimizer: Any = instances[0].model.optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert instances[0].trainer.global_step == 48


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
            ["--data.environment_kwargs.render_mode=rgb_array"],
            ["'rgb_array'", "callbacks.EpisodeVideo", "evaluation_environment_kwargs"],
        ),
        (["--trainer.callbacks=[]"], ["duty.target_sync", "TargetSync", "TransitionCollector"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_an_invalid_run_is_rejected_before_training_with_value_rule_and_remedy(
    flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = _error_of(capsys, "fit", *PER, "--runs", str(tmp_path), *flags)
    for word in words:
        assert word in error


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_best_is_the_best_checkpoint_of_the_newest_run(
    tmp_path: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (best,) = (finished_run / "checkpoints").glob("epoch*.ckpt")
    shutil.copytree(finished_run, tmp_path / "dqn_per" / "moved")
    command = ["test", *PER, *QUICK[2:3], QUICK[-1], "--ckpt_path=best", f"--runs={tmp_path}"]
    main(command)
    assert f"checkpoint: {best}" in capsys.readouterr().out
    assert "--ckpt_path is best, but no run in" in _error_of(
        capsys, *command[:-1], f"--runs={tmp_path / 'none'}"
    )


@pytest.mark.parametrize(
    ("config", "sampler", "left_out"),
    [
        ("dqn_per", "UniformSampler", "PriorityRefresh is left out: UniformSampler does not learn"),
        ("digits_adaptive", "ShuffledSampler", "LossRefresh is left out: ShuffledSampler"),
        ("digits_curriculum", "UniformSampler", "CurriculumProgress is left out: UniformSampler"),
    ],
)
def test_the_sampler_alone_makes_a_uniform_baseline_of_an_adaptive_config(
    config: str, sampler: str, left_out: str, tmp_path: Path
) -> None:
    run = ["fit", "--config", str(CONFIGS / f"{config}.yaml"), f"--runs={tmp_path}"]
    with pytest.warns(UserWarning, match=left_out):
        main([*run, f"--data.sampler={sampler}", "--trainer.fast_dev_run=true"])


def test_fast_dev_run_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", str(CONFIGS / "digits_adaptive.yaml"), "--trainer.fast_dev_run=true"])
    assert not [*tmp_path.iterdir()]


def test_logger_false_and_barebones_log_nothing(tmp_path: Path) -> None:
    run = _fit(tmp_path, "--trainer.logger=false", "--trainer.max_epochs=1")
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert not (run / "metrics.csv").exists()
    callbacks = ["TransitionCollector", "TargetSync", "PriorityRefresh"]
    flags = [f"--trainer.callbacks={json.dumps(callbacks)}", "--trainer.log_every_n_steps=null"]
    flags += ["--trainer.barebones=true", "--trainer.enable_progress_bar=null"]
    run = _fit(tmp_path / "barebones", *flags)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml"]


@pytest.mark.parametrize(
    ("config", "callbacks", "words"),
    [
        ("dqn_per", ["TargetSync", "TransitionCollector"], ["duty.feedback", "PriorityRefresh"]),
        ("dqn_rank_per", ["TargetSync", "TransitionCollector"], ["duty.feedback"]),
        ("digits_adaptive", ["SamplingMonitor"], ["duty.feedback", "LossRefresh"]),
        ("digits_data_weighter", [], ["duty.feedback"]),
        ("digits_curriculum", [], ["duty.progress", "CurriculumProgress"]),
        ("digits_self_paced", ["CurriculumProgress"], ["duty.feedback"]),
        ("digits_infobatch", ["LossRefresh"], ["duty.progress", "anneal"]),
        ("digits_hybrid", [], ["duty.feedback", "duty.progress"]),
    ],
)
def test_a_sampler_without_its_feedback_is_rejected(
    config: str,
    callbacks: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    # A list in a later config replaces the first one's; `callbacks+:` appends to it.
    run = ["fit", "--config", str(CONFIGS / f"{config}.yaml"), "--runs", str(tmp_path)]
    run += ["--config", str(tmp_path / "overlay.yaml"), "--trainer.fast_dev_run=true"]
    classes = [{"class_path": f"callbacks.{name}"} for name in callbacks]
    overlay = {"trainer": {"callbacks": classes}}
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    error = _error_of(capsys, *run)
    for word in [*words, "callbacks+:"]:
        assert word in error
    appended = {"callbacks+": [{"class_path": "lightning.pytorch.callbacks.RichModelSummary"}]}
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump({"trainer": appended}))
    main(run)


def test_scores_stand_for_feedback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # rwr.yaml draws by a column of rewards, which do not change.
    run = ["fit", "--config", str(CONFIGS / "rwr.yaml"), "--runs", str(tmp_path)]
    main([*run, "--trainer.fast_dev_run=true"])
    assert "LossRefresh" in _error_of(capsys, *run, "--data.scores=null")


@pytest.mark.parametrize("config", ["digits_uniform", "dqn_per"])
def test_features_of_the_trainer_that_cannot_act_are_rejected(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["fit", "--config", str(CONFIGS / f"{config}.yaml"), "--runs", str(tmp_path)]
    finder = {"callbacks+": [{"class_path": "lightning.pytorch.callbacks.BatchSizeFinder"}]}
    (tmp_path / "finder.yaml").write_text(yaml.safe_dump({"trainer": finder}))
    error = _error_of(capsys, *run, "--config", str(tmp_path / "finder.yaml"))
    assert "batch-size finder" in error
    error = _error_of(capsys, *run, "--trainer.overfit_batches=1")
    assert "overfit_batches is 1" in error
    assert "Subset" in error


def test_a_checkpoint_of_another_capacity_or_sampler_is_rejected(
    tmp_path: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = finished_run / "checkpoints" / "last.ckpt"
    common = ["fit", *PER, *QUICK, "--runs", str(tmp_path), f"--ckpt_path={last}"]
    error = _error_of(capsys, *common, "--data.capacity=3000")
    assert "2000" in error
    assert "3000" in error
    error = _error_of(
        capsys, *common, "--data.sampler=lit_adaptive.samplers.RankPrioritizedSampler"
    )
    assert "rank" in error.lower()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("flag", ["--data.capacity=3000", "--data.sampler=UniformSampler"])
def test_a_checkpoint_is_validated_with_another_capacity_or_sampler(
    flag: str, tmp_path: Path, finished_run: Path
) -> None:
    last = finished_run / "checkpoints" / "last.ckpt"
    main(["validate", *PER, f"--ckpt_path={last}", f"--runs={tmp_path}", QUICK[2], flag])
    assert "val/return" in next(tmp_path.rglob("metrics.csv")).read_text()


def test_any_module_class_is_a_network_if_it_takes_the_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n"
        "class Linear(nn.Linear):\n"
        "    def __init__(self, observation_shape, num_actions, bias: bool = True):\n"
        "        super().__init__(observation_shape[0], num_actions, bias=bias)\n"
    )
    fast = ("--trainer.fast_dev_run=true",)
    main(["fit", *PER, *QUICK, *fast, "--model.network=own_network.Linear"])
    error = _error_of(capsys, "fit", *PER, *QUICK, *fast, "--model.network=torch.nn.Linear")
    assert "network cannot be built for observations of shape (4,) and 2 actions" in error


def test_a_damaged_checkpoint_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"not a checkpoint")
    common = ["fit", *PER, *QUICK, "--runs", str(tmp_path)]
    error = _error_of(capsys, *common, f"--ckpt_path={broken}")
    assert "broken.ckpt" in error
    assert "damaged" in error


def test_a_checkpoint_with_arbitrary_objects_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled = tmp_path / "pickled.ckpt"
    torch.save({"state_dict": {}, "anything": Path}, pickled)
    common = ["fit", *PER, *QUICK, "--runs", str(tmp_path)]
    error = _error_of(capsys, *common, f"--ckpt_path={pickled}")
    assert "pickled.ckpt" in error
    assert "weights-only" in error


class _Touch:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def _with_another_bit(content: bytes) -> bytes:
    half = len(content) // 2  # numbers of the replay
    return content[:half] + bytes([content[half] ^ 4]) + content[half + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file, mark: file.write_bytes(b""),
        lambda file, mark: file.write_bytes(file.read_bytes()[:100]),
        lambda file, mark: file.write_bytes(file.read_bytes()[:-100]),
        lambda file, mark: file.write_bytes(file.read_bytes()[1000:]),
        lambda file, mark: file.write_bytes(_with_another_bit(file.read_bytes())),
        lambda file, mark: file.write_bytes(pickle.dumps(_Touch(mark))),
        lambda file, mark: torch.save(_Touch(mark), file),
        lambda file, mark: torch.save({"state_dict": {"weight": _Touch(mark)}}, file),
        lambda file, mark: torch.save({"callbacks": [_Touch(mark)]}, file),
    ],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_damaged_or_hostile_checkpoint_is_rejected_and_executes_nothing(
    command: str,
    spoil: Any,
    tmp_path: Path,
    finished_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, mark = tmp_path / "spoilt.ckpt", tmp_path / "executed"
    shutil.copy(finished_run / "checkpoints" / "last.ckpt", file)
    spoil(file, mark)
    error = _error_of(capsys, command, *PER, f"--runs={tmp_path}", f"--ckpt_path={file}")
    assert f"{file} cannot be loaded" in error
    assert len(error.splitlines()) < 6
    assert not mark.exists()


@pytest.mark.filterwarnings("default")
def test_wandb_offline_records_the_metrics_and_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    overlay = ["--config", str(CONFIGS / "trainer" / "wandb.yaml")]
    run = _fit(tmp_path, *overlay, "--trainer.logger.init_args.offline=true")
    import wandb

    wandb.finish()
    assert (run / "metrics.csv").is_file()  # beside every other logger
    files = list(run.rglob("run-*.wandb"))
    assert len(files) == 1
    history, config = _read_wandb(files[0])
    assert any("val/return" in row for row in history)
    assert any("train/loss" in row for row in history)
    assert config["config"]["data"]["init_args"]["capacity"] == 2000


def _wandb_records(path: Path) -> Iterator[bytes]:
    """Records of a LevelDB log: a header of 7 bytes, then blocks of 32 KiB."""
    data, offset, parts = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:
            offset += 32768 - offset % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in {1, 4}:  # a complete record, or its last part
            yield parts
            parts = b""


def _wandb_kinds(path: Path) -> Iterator[bytes]:
    from wandb.proto import wandb_internal_pb2

    for data in _wandb_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield str(record.WhichOneof("record_type")).encode()


def _read_wandb(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """History rows and config in the file of an offline run, when it is complete."""
    from wandb.proto import wandb_internal_pb2

    # The service writes the file: `finish` may return before the exit record is on the disk.
    for _ in range(300):
        if b"".join(_wandb_kinds(path)).endswith(b"exit"):
            break
        time.sleep(0.1)
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


def test_the_tensorboard_overlay_adds_a_tensorboard_logger(tmp_path: Path) -> None:
    run = _fit(tmp_path, "--config", str(CONFIGS / "trainer" / "tensorboard.yaml"))
    (events,) = run.rglob("events.out.tfevents.*")
    assert b"learning_curve" in events.read_bytes()  # the tag of an image
    assert (run / "metrics.csv").is_file()


def test_an_error_that_shows_when_training_starts_is_reported_without_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", "--config", str(CONFIGS / "grpo.yaml"), f"--runs={tmp_path}"]
    small = ["--data.group_size=1", "--data.dataset.source.size=8", "--model.model.layers=1"]
    with pytest.raises(SystemExit) as raised:
        main([*command, *small])
    assert raised.value.code == 2
    assert "error: group_size is 1" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["configs", "start"])
def test_modules_beside_the_config_and_in_the_present_folder_are_found(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("configs", "start"):
        (tmp_path / folder).mkdir()
    module = f"networks_in_{place}"
    (tmp_path / place / f"{module}.py").write_text(
        "from lit_adaptive.modules import MLP\n\n\nclass Mine(MLP):\n    pass\n"
    )
    config = tmp_path / "configs" / "mine.yaml"
    config.write_text((CONFIGS / "dqn_per.yaml").read_text())
    monkeypatch.chdir(tmp_path / "start")
    monkeypatch.setattr(sys, "path", [*sys.path])
    network = f"--model.network={module}.Mine"
    main(["fit", f"--config={config}", *QUICK, network, "--trainer.fast_dev_run=true"])
    assert module in sys.modules
