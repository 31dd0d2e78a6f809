"""Errors in a config are short: they name the option, and the options that exist."""

import re
from pathlib import Path

import pytest

from lit_adaptive import __version__
from lit_adaptive.cli.brief_help import OPTIONS
from lit_adaptive.cli.errors import shorten
from lit_adaptive.cli.main import AdaptiveCLI, main

CONFIG = Path(__file__).parents[2] / "configs" / "digits_adaptive.yaml"


@pytest.mark.filterwarnings("ignore:`isinstance")
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--data.sampler.learning_rat=0.1", ["AdaptiveBatchSampler", "mean 'learning_rate'?"]),
        ("--data.sampler.momentum=7", ["momentum is 7.0; it must lie in [0, 1]"]),
        ("--data.scores=/nowhere.csv", ["/nowhere.csv is not there"]),
        ("--data.batch_sise=3", ["AdaptiveDataModule", "mean 'batch_size'?"]),
        ("--data.dataset.splitt=test", ["LongTailedDigits", "mean 'split'?", "imbalance"]),
        ("--data.dataset=/etc/passwd", ["/etc/passwd is a file, and", "TableDataset and its path"]),
        ("--data.sampler=Adaptive", ['"sampler"', "Adaptive"]),
        ("--model.network.hidden=x", ["Dense", '"hidden"']),
        ("--data.sampler=AdaptivBatchSampler", ["mean lit_adaptive.samplers.AdaptiveBatchSampler"]),
        ("--trainer.callbacks+=callbacks." + "LosRefresh", ["mean callbacks.LossRefresh"]),
        ("--model=Clasifier", ["did you mean lit_adaptive.modules.Classifier"]),
        ("--model.network=torch.nn.Liner", ["did you mean torch.nn.Linear"]),
        ("--trainer.gradient_clip_val=-1", ["gradient_clip_val is -1"]),
        ("--trainer.accumulate_grad_batches=-2", ["accumulate_grad_batches is -2"]),
        ("--trainer.check_val_every_n_epoch=0", ["check_val_every_n_epoch is 0", "at least 1"]),
        ("--trainer.val_check_interval=0", ["val_check_interval is 0"]),
        ("--trainer.devices=-2", ["trainer.devices is -2"]),
        ("--trainer.val_check_interval=1000", ["val_check_interval` (1000) must be less"]),
        ("--model.learning_rate=nan", ['"learning_rate"', "a finite number (got nan)"]),
        ("--ckpt_path=/nowhere.ckpt", ["/nowhere.ckpt, which does not exist"]),
        ("--ckpt_path=hpc", ["hpc, which does not exist"]),
        ("--runs=/dev/null/runs", ["runs is /dev/null/runs", "to a writable folder"]),
        ("--nonsense=3", ["unrecognized arguments: --nonsense=3"]),
        (f"--data.batch_size={10**30}", [f"data.init_args.batch_size is {10**30}", "2**63"]),
        (f"--trainer.max_steps={10**30}", [f"trainer.max_steps is {10**30}", "2**63"]),
        (f"--model.num_classes={10**13}", ["out of memory", f"num_classes={10**13}: lower it"]),
    ],
)
def test_an_error_names_the_option_and_a_suggestion_in_few_lines(
    argument: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        AdaptiveCLI(["fit", "--config", str(CONFIG), f"--runs={tmp_path}", argument])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    message = message[message.index("error: ") :]
    for word in words:
        assert word in message
    assert len(message.splitlines()) <= 8
    for noise in ("Union subtypes", "NoneType", "Namespace(", "Traceback", "usage:"):
        assert noise not in message


@pytest.mark.parametrize(
    "text", ["root:secret:0\n", "x,y\nsecret,1\n", "class_path: secret\n", "secret"]
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.txt"])
def test_a_file_in_place_of_a_dataset_is_named_without_its_content(
    text: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, overlay = tmp_path / name, tmp_path / "overlay.yaml"
    file.write_text(text)
    overlay.write_text(
        "data:\n  class_path: lit_adaptive.data.AdaptiveDataModule\n"
        f"  init_args:\n    dataset: {file}\n"
    )
    for option in (f"--data.dataset={file}", f"--config={overlay}"):
        with pytest.raises(SystemExit):
            AdaptiveCLI(["fit", "--config", str(CONFIG), f"--runs={tmp_path}", option])
        message = capsys.readouterr().err
        assert f"{file} is a file, and this option takes a class" in message
        assert "secret" not in message
        assert "Errno" not in message


@pytest.mark.parametrize(
    "option",
    [
        *("config", "model", "model.network", "model.optimizer", "model.lr_scheduler", "data"),
        *("data.sampler", "data.val_dataset", "trainer", "trainer.callbacks", "trainer.logger"),
        *("trainer.strategy", "trainer.plugins", "trainer.max_epochs"),
    ],
)
def test_no_option_prints_the_content_of_a_file(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "passwords"
    file.write_text("root:secret:0\nother:secret:1\n")
    with pytest.raises(SystemExit):
        AdaptiveCLI(["fit", "--config", str(CONFIG), f"--runs={tmp_path}", f"--{option}={file}"])
    message = capsys.readouterr().err
    assert "error: " in message
    assert "secret" not in message


def test_a_short_message_is_unchanged() -> None:
    assert shorten("trainer.x is 3; it must be 4") == "trainer.x is 3; it must be 4"


def test_a_gpu_config_without_a_gpu_names_the_option_and_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    overlay = str(CONFIG.parent / "trainer" / "gpu.yaml")
    with pytest.raises(SystemExit):
        AdaptiveCLI(["fit", "--config", str(CONFIG), "--config", overlay, f"--runs={tmp_path}"])
    error = capsys.readouterr().err
    assert "trainer.accelerator is gpu" in error
    assert "set it to cpu or auto" in error
    assert "Traceback" not in error


def _printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        AdaptiveCLI(arguments)
    assert not end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "predict", "collect"])
def test_help_fits_a_screen_and_says_how_to_see_the_rest(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _printed([command, "--help"], capsys).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"usage: lit-adaptive {command} [options]"
    first_words = {line.split()[0] for line in lines if line.startswith("  --")}
    assert {"--help.all", "--print_config", "--data.help", "--trainer.max_epochs"} <= first_words
    assert ("--out" in first_words) == (command == "collect")


def test_the_complete_help_has_every_option_of_the_short_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = _printed(["collect", "--help.all"], capsys)
    assert len(text.splitlines()) < 210
    assert text.startswith("usage: lit-adaptive [options] collect [options]\n")
    options = {name for group in OPTIONS.values() for name in group}
    assert options <= set(re.findall(r"--[\w.]+\+?", text))
    assert "--trainer.detect_anomaly" in text


def test_classes_that_the_help_names_have_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    names = re.findall(r"\b(Classifier|DQN|IWSFT|GRPO|\w+DataModule)\b", " ".join(OPTIONS))
    assert len(names) == 8
    for name in names:
        kind = "data" if name.endswith("DataModule") else "model"
        text = _printed(["fit", f"--{kind}.help", name], capsys)
        assert f"--{kind}." in text
        assert "datapipes" not in re.sub(r"\s", "", text)  # torch's subclasses of Dataset


def test_the_version_names_the_program_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert _printed(["--version"], capsys) == f"lit-adaptive {__version__}\n"


def test_a_batch_that_does_not_fit_into_the_memory_names_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--trainer.fast_dev_run=true", f"--data.batch_size={10**13}", f"--runs={tmp_path}"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(CONFIG), *options])
    error = capsys.readouterr().err.partition("error: ")[2]
    assert f"data.init_args.batch_size={10**13}: lower it" in error
    assert "out of memory" in error


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("source.size=many", ["lit_adaptive.data.Arithmetic", '"size"', "'int'", "got many"]),
        ("source.seize=7", ["'seize' is not accepted by lit_adaptive.data.Arithmetic", "'size'?"]),
    ],
)
def test_a_bad_option_of_a_source_is_not_taken_for_a_list_of_rows(
    option: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(CONFIG.with_name("dapo.yaml")), f"--runs={tmp_path}"]
    with pytest.raises(SystemExit):
        AdaptiveCLI(["fit", *arguments, f"--data.dataset.{option}"])
    error = capsys.readouterr().err.partition("error: ")[2]
    for word in words:
        assert word in error
