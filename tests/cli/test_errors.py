"""A mistake in a config is told in a few lines that name the option, and the options there are."""

from pathlib import Path

import pytest

from lit_adaptive.cli.errors import plain
from lit_adaptive.cli.main import AdaptiveCLI

CONFIG = Path(__file__).parents[2] / "configs" / "digits_adaptive.yaml"


@pytest.mark.parametrize(
    ("mistake", "words"),
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
def test_names_what_is_wrong_and_little_else(
    mistake: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        AdaptiveCLI(["fit", "--config", str(CONFIG), f"--runs={tmp_path}", mistake])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    said = said[said.index("error: ") :]
    for word in words:
        assert word in said
    assert len(said.splitlines()) <= 8
    for noise in ("Union subtypes", "NoneType", "Namespace(", "Traceback", "usage:"):
        assert noise not in said


def test_leaves_plain_messages_alone() -> None:
    assert plain("trainer.x is 3; it must be 4") == "trainer.x is 3; it must be 4"
