"""``lit-adaptive compare``: real runs, interruptions and refusals."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lit_adaptive.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
UNIFORM, ADAPTIVE = CONFIGS / "digits_uniform.yaml", CONFIGS / "digits_adaptive.yaml"
SHORT = ["--", "--trainer.max_epochs=3", "--data.batches_per_epoch=5"]


def command(out: Path, *more: str) -> list[str]:
    return [
        *("compare", str(UNIFORM), str(ADAPTIVE), "--seeds=2", "--jobs=2"),
        *(f"--out={out}", *more, *SHORT),
    ]


def result(out: Path) -> dict[str, Any]:
    comparison: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    return comparison


@pytest.mark.slow
def test_configs_are_trained_with_paired_seeds_and_continue_after_a_kill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(command(tmp_path / "whole"))
    shown = capsys.readouterr().out
    change = (
        "'lit_adaptive.samplers.ShuffledSampler' -> 'lit_adaptive.samplers.AdaptiveBatchSampler'"
    )
    assert f"digits_adaptive: data.sampler: {change}" in shown
    assert "warning" not in shown  # sampler and feedback are one idea
    whole = result(tmp_path / "whole")
    assert whole["metric"] == "val/macro_f1"
    assert [row["name"] for row in whole["rows"]] == ["digits_uniform", "digits_adaptive"]
    assert {len(runs) for runs in whole["curves"].values()} == {2}
    seconds = whole["curves"]["digits_adaptive"][0]["costs"]["train/seconds"]
    assert len(seconds) == 3
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert (tmp_path / "whole" / "comparison.png").stat().st_size > 10_000

    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "lit_adaptive", *command(killed)])
    while not list(killed.glob("runs/*/*/*/metrics.csv")):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not (killed / "comparison.json").exists()
    main(command(killed))
    for name, runs in whole["curves"].items():
        for run, other in zip(runs, result(killed)["curves"][name], strict=True):
            assert run["values"] == other["values"]


@pytest.mark.slow
def test_a_failed_run_shows_the_end_of_its_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*command(tmp_path / "out"), "--model.learning_rate=-1"])
    shown = capsys.readouterr().err
    assert "ended with status 2" in shown
    assert "learning_rate is -1" in shown


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit):
        main(["compare", *args])
    return capsys.readouterr().err


def test_bad_input_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "digits_uniform.yaml"
    copy.write_text(UNIFORM.read_text())
    plain, broken = tmp_path / "plain.yaml", tmp_path / "broken.yaml"
    plain.write_text("model: lit_adaptive.modules.Classifier\n")
    broken.write_text("model: [\n")
    out = f"--out={tmp_path / 'out'}"
    for args, message in (
        (["nowhere.yaml"], "nowhere.yaml does not exist"),
        ([str(UNIFORM), str(copy)], "two configs are named digits_uniform"),
        ([str(UNIFORM), "--seeds=0"], "seeds is 0; it must be at least 1"),
        ([str(UNIFORM), "--jobs=-1"], "jobs is -1; it must be at least 1"),
        ([str(plain)], "no ModelCheckpoint with a monitor"),
        ([str(broken)], "broken.yaml is not YAML"),
        ([], "configs"),
    ):
        assert message in refusal(capsys, *args, out)
    assert not (tmp_path / "out").exists()
    assert "which has other files" in refusal(capsys, str(UNIFORM), f"--out={tmp_path}")


def test_a_folder_of_other_runs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_adaptive.cli.compare._train", lambda *_: sys.exit(3))
    config = tmp_path / "digits_uniform.yaml"
    config.write_text(UNIFORM.read_text())
    arguments = [str(config), f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):  # before the runs
        main(["compare", *arguments])
    assert "had the options []" in refusal(capsys, *arguments, *SHORT)
    config.write_text(UNIFORM.read_text().replace("3.0e-3", "1.0e-3"))
    assert "is not what it was" in refusal(capsys, *arguments)


def test_more_than_one_idea_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_adaptive.cli.compare._train", lambda *_: sys.exit(3))
    other = tmp_path / "other.yaml"
    other.write_text(ADAPTIVE.read_text().replace("3.0e-3", "1.0e-3"))
    with pytest.raises(SystemExit):
        main(["compare", str(UNIFORM), str(other), f"--out={tmp_path / 'out'}"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "other: model.learning_rate: 0.003 -> 0.001" in shown
    assert (
        "differs from digits_uniform in 2 ideas (model.learning_rate, sampler and callbacks)"
        in shown
    )
