"""The newest state of a run, its resumption as one run, signals, and saves that are interrupted."""

import csv
import errno
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml

from lit_adaptive.cli.checkpoints import newest_checkpoint
from lit_adaptive.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance", "ignore:.*is deprecated")


def part(path: str, **options: Any) -> dict[str, Any]:
    """A class in a config."""
    return {"class_path": path, "init_args": options}


def fit(runs: Path, *more: str, parts: tuple[dict[str, Any], ...] = (), mode: str = "max") -> Path:
    """Train on a few batches, with some callbacks more; the run's directory."""
    best = part("lightning.pytorch.callbacks.ModelCheckpoint", monitor="val/macro_f1", mode=mode)
    callbacks = [{"class_path": "callbacks.LossRefresh"}, best, *parts]
    overlay = runs / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    flags = [
        *("--config", str(CONFIGS / "digits_adaptive.yaml"), "--config", str(overlay)),
        *("--runs", str(runs), "--data.batches_per_epoch=7", "--trainer.log_every_n_steps=2"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    ]
    main(["fit", *flags, *more])
    return newest_run(runs)


def newest_run(runs: Path) -> Path:
    """The run that began last."""
    return max(runs.glob("*/*"), key=lambda path: path.stat().st_ctime_ns)


def state(run: Path) -> dict[str, Any]:
    """The newest state of a run."""
    loaded: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return loaded


def equal_weights(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same weights."""
    one, other = state(first)["state_dict"], state(second)["state_dict"]
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs."""
    return fit(tmp_path_factory.mktemp("uninterrupted"), "--trainer.max_epochs=4")


def test_last_is_the_final_state_even_without_improvement(tmp_path: Path) -> None:
    # Of a score that rises the first value is the least.
    run = fit(tmp_path, "--trainer.max_epochs=3", mode="min")
    assert state(run)["global_step"] == 21
    run = fit(tmp_path, "--trainer.max_steps=18")
    assert state(run)["global_step"] == 18


@pytest.mark.parametrize(
    ("flags", "parts", "words"),
    [
        (["--trainer.max_epochs=1"], (), "ended after 7 steps: trainer.max_epochs is 1"),
        (["--trainer.max_steps=9"], (), "ended after 9 steps: trainer.max_steps is 9"),
        (
            ["--trainer.max_epochs=9"],
            (part("lightning.pytorch.callbacks.EarlyStopping", monitor="val/loss", patience=0),),
            "steps: EarlyStopping: Monitored metric val/loss did not improve",
        ),
        (
            ["--trainer.max_epochs=9", "--trainer.max_time=00:00:00:00"],
            (),
            "steps: a callback or signal stopped it, or max_time passed",
        ),
    ],
    ids=["epochs", "steps", "early stopping", "time"],
)
def test_a_run_says_why_it_ended(
    flags: list[str],
    parts: tuple[dict[str, Any], ...],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit(tmp_path, *flags, parts=parts)
    assert words in capsys.readouterr().out


def test_last_resumes_the_newest_run_as_one_run(tmp_path: Path, uninterrupted: Path) -> None:
    first = fit(tmp_path, "--trainer.max_epochs=2")
    kept = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    second = fit(tmp_path, "--trainer.max_epochs=4", "--ckpt_path=last")
    assert second != first
    assert equal_weights(second, uninterrupted)
    # One curve.
    assert (second / "metrics.csv").read_text() == (uninterrupted / "metrics.csv").read_text()
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_the_best_checkpoint_so_far_is_remembered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit(tmp_path, "--trainer.max_epochs=2")
    (best,) = (first / "checkpoints").glob("epoch*.ckpt")
    score = capsys.readouterr().out.split("best val/macro_f1 ")[1].split()[0]
    # With a learning rate of almost 0 nothing gets better.
    second = fit(
        tmp_path,
        *("--trainer.max_epochs=4", "--ckpt_path=last", "--model.learning_rate=1e-12"),
    )
    assert f"best val/macro_f1 {score} in {best}" in capsys.readouterr().out
    assert best.exists()
    assert not list((second / "checkpoints").glob("epoch*.ckpt"))


def test_last_without_a_former_run_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, "--ckpt_path=last")
    error = capsys.readouterr().err
    assert "--ckpt_path is last" in error
    assert str(tmp_path / "digits_adaptive") in error


def test_an_interrupted_save_is_never_the_newest(tmp_path: Path) -> None:
    folders = [tmp_path / name / "checkpoints" for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir(parents=True)
    (folders[0] / "last.ckpt").write_bytes(b"complete")
    (folders[1] / "last.ckpt.partial").write_bytes(b"half")
    (folders[1] / "last-v1.ckpt").write_bytes(b"")
    (folders[2] / "last.ckpt").mkdir()  # shards without the file that is written last
    assert newest_checkpoint(tmp_path) == folders[0] / "last.ckpt"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_the_step_and_exits_with_128_plus_signal(
    name: str, tmp_path: Path, uninterrupted: Path
) -> None:
    number = int(getattr(signal, name))
    before = signal.getsignal(number)
    sends = part("signal_at_step.SignalAtStep", step=10, number=number)
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, "--trainer.max_epochs=4", parts=(sends,))
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) == before
    assert state(newest_run(tmp_path))["global_step"] == 11
    resumed = fit(tmp_path, "--trainer.max_epochs=4", "--ckpt_path=last")
    assert equal_weights(resumed, uninterrupted)
    assert (resumed / "metrics.csv").read_text() == (uninterrupted / "metrics.csv").read_text()


def test_the_state_is_saved_by_time(tmp_path: Path) -> None:
    newest = part("callbacks.NewestCheckpoint", interval=0.0)
    steps: list[int] = []
    save = torch.save

    def count(checkpoint: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(checkpoint, dict) and "global_step" in checkpoint:
            steps.append(checkpoint["global_step"])
        save(checkpoint, *args, **kwargs)

    with patch("torch.save", count), patch("callbacks.newest_checkpoint._LEAST_RATIO", 0):
        fit(tmp_path, "--trainer.max_epochs=2", parts=(newest,))
    assert steps[0] == 0  # behind the warm-up
    assert sorted(set(steps)) == list(range(15))


def test_a_full_disk_leaves_the_older_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(tmp_path, "--trainer.max_epochs=1")
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    target = run / "checkpoints" / "last.ckpt"

    def full(checkpoint: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half of a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device")

    newest = part("callbacks.NewestCheckpoint", dirpath=str(target.parent))
    more = ("--trainer.max_epochs=2", f"--ckpt_path={target}")
    with patch("torch.save", full), pytest.raises(SystemExit):
        fit(tmp_path, *more, parts=(newest,))
    assert "No space left on device: free some space" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert not list(tmp_path.rglob("*.partial"))


def test_metrics_of_steps_behind_the_checkpoint_are_logged_once(
    tmp_path: Path, uninterrupted: Path
) -> None:
    run = fit(tmp_path, "--trainer.max_epochs=4")
    early = max((run / "checkpoints").glob("epoch*.ckpt"))
    step = torch.load(early, weights_only=True)["global_step"]
    resumed = fit(tmp_path, "--trainer.max_epochs=4", f"--ckpt_path={early}")
    with (resumed / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert step <= 28
    assert [row["step"] for row in rows] == sorted((row["step"] for row in rows), key=int)
    assert (resumed / "metrics.csv").read_text() == (uninterrupted / "metrics.csv").read_text()


def test_options_of_the_optimizer_win_over_the_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_epochs=1")
    flags = ("--model.learning_rate=0.0625", "--model.weight_decay=0.25")
    run = fit(tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last", *flags)
    (group,) = state(run)["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (0.0625, 0.25)
    # The next run resumes with them; without the flags, those of the config return.
    run = fit(tmp_path, "--trainer.max_epochs=3", "--ckpt_path=last")
    (group,) = state(run)["optimizer_states"][0]["param_groups"]
    assert group["lr"] != 0.0625


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model.optimizer=torch.optim.SGD"],
            "run had another optimizer (options there: amsgrad",
        ),
        (
            [
                "--model.lr_scheduler=torch.optim.lr_scheduler.StepLR",
                "--model.lr_scheduler.step_size=1",
            ],
            "run had another learning-rate schedule (options there: there is none; here: ",
        ),
    ],
    ids=["optimizer", "schedule"],
)
def test_a_state_that_another_optimizer_cannot_take_is_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, "--trainer.max_epochs=1")
    with pytest.raises(SystemExit):
        fit(tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last", *flags)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--seed_everything=8", "--data.seed=8"])
def test_another_seed_gives_other_draws_on_resumption(tmp_path: Path, flag: str) -> None:
    first = fit(tmp_path, "--trainer.max_epochs=1")
    flags = ("--trainer.max_epochs=2", f"--ckpt_path={first / 'checkpoints' / 'last.ckpt'}")
    same, again, other = (fit(tmp_path, *flags, *more) for more in ([], [], [flag]))
    assert equal_weights(same, again)
    assert not equal_weights(same, other)


@pytest.mark.parametrize("inner", [False, True])
def test_a_seed_of_the_sampler_is_rejected(
    tmp_path: Path, inner: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data.sampler.seed=3"]
    if inner:
        component = part("lit_adaptive.samplers.AdaptiveBatchSampler", seed=3)
        mixture = part("lit_adaptive.samplers.MixtureSampler", samplers=[component])
        (tmp_path / "mixture.yaml").write_text(
            yaml.safe_dump({"data": {"init_args": {"sampler": mixture}}})
        )
        flags = ["--config", str(tmp_path / "mixture.yaml")]
    with pytest.raises(SystemExit):
        fit(tmp_path, *flags)
    error = capsys.readouterr().err
    assert "data.sampler" in error
    assert "set data.seed or seed_everything" in error


def test_the_patience_of_early_stopping_wins_over_the_checkpoint(tmp_path: Path) -> None:
    def stopping(patience: int) -> dict[str, Any]:
        name = "lightning.pytorch.callbacks.EarlyStopping"
        return part(name, monitor="val/macro_f1", mode="min", patience=patience)

    fit(tmp_path, "--trainer.max_epochs=1", parts=(stopping(50),))
    flags = ("--trainer.max_epochs=20", "--ckpt_path=last")
    run = fit(tmp_path, *flags, parts=(stopping(1),))
    assert state(run)["global_step"] < 70


def test_another_number_of_processes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit(tmp_path, "--trainer.max_epochs=1")
    checkpoint = state(first)
    assert checkpoint["world_size"] == 1
    checkpoint["world_size"] = 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    with pytest.warns(UserWarning, match=r"run had 2 processes, this one has 1: .* 0.5 times"):
        fit(tmp_path, "--trainer.max_epochs=2", f"--ckpt_path={tmp_path / 'two.ckpt'}")


def test_a_checkpoint_of_another_network_is_rejected_in_few_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, "--trainer.max_epochs=1")
    with pytest.raises(SystemExit):
        fit(tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last", "--model.network.hidden=[9]")
    error = capsys.readouterr().err.split("error: ")[1]
    assert "last.ckpt is not a checkpoint of this model" in error
    assert "size mismatch for network" in error
    assert len(error.splitlines()) < 7


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        ("digits_adaptive", "--data.sampler.learning_rate=0.5"),
        ("digits_adaptive", "--data.beta=0.7"),
        ("digits_adaptive", "--data.batch_size=16"),
        ("digits_adaptive", "--model.label_smoothing=0.2"),
        ("digits_data_weighter", "--data.sampler.learning_rate=5"),
        ("digits_infobatch", "--data.sampler.prune=0.9"),
    ],
)
def test_an_option_beside_ckpt_path_takes_effect(
    config: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", str(CONFIGS / f"{config}.yaml"), f"--runs={tmp_path}"]
    flags += ["--data.batches_per_epoch=12", "--trainer.enable_model_summary=false"]
    flags += ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=4"]
    main(["fit", *flags, "--trainer.max_epochs=1"])
    first = newest_run(tmp_path)
    flags += ["--trainer.max_epochs=2", f"--ckpt_path={first / 'checkpoints' / 'last.ckpt'}"]
    runs = []
    for more in ([], [flag]):
        main(["fit", *flags, *more])
        runs.append(newest_run(tmp_path))
    assert not equal_weights(*runs)
