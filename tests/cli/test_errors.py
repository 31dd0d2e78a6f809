"""Errors in a config are short: they name the option, and the options that exist."""

from pathlib import Path

import pytest

from lit_adaptive.cli.errors import shorten
from lit_adaptive.cli.main import AdaptiveCLI

CONFIG = Path(__file__).parents[2] / "configs" / "digits_adaptive.yaml"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--data.sampler.learning_rat=0.1", ["AdaptiveBatchSampler", "mean 'learning_rate'?"]),
        ("--data.sampler.momentum=7", ["momentum is 7.0; it must lie in [0, 1]"]),
        ("--data.scores=/nowhere.csv", ["/nowhere.csv is not there"]),
        ("--data.batch_sise=3", ["AdaptiveDataModule", "mean 'batch_size'?"]),
        ("--data.dataset.splitt=test", ["LongTailedDigits", "mean 'split'?", "imbalance"]),
        ("--data.sampler=Adaptive", ['"sampler"', "Adaptive"]),
        ("--model.network.hidden=x", ["Dense", '"hidden"']),
        ("--nonsense=3", ["unrecognized arguments: --nonsense=3"]),
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


def test_a_short_message_is_unchanged() -> None:
    assert shorten("trainer.x is 3; it must be 4") == "trainer.x is 3; it must be 4"
