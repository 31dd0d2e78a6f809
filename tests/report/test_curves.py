"""The learning curve shows what a run has, against what it consumed."""

from pathlib import Path

import pytest

from lit_adaptive.report.curves import draw_learning_curve, learning_curve, read_series

DQN = """step,train/transitions,train/return,val/return,train/loss
9,100,,,0.5
19,200,12,,0.4
19,,,30,
"""
FINE_TUNED = """step,train/loss,val/nll,val/exact_match,train/token_accuracy
9,2.0,,,0.25
19,,1.5,0.5,
"""
ROLLOUTS = """\
step,train/generated_tokens,train/reward,train/entropy,val/exact_match,val/pass@1,val/pass@16
4,1000,0.25,1.5,,,
9,2000,0.5,1.0,,,
9,,,,0.75,0.5,1.0
"""


def _panels(
    folder: Path, text: str
) -> list[tuple[str, dict[str, tuple[list[float], list[float]]]]]:
    path = folder / "metrics.csv"
    path.write_text(text)
    figure = learning_curve(path)
    return [
        (
            axes.get_ylabel(),
            {str(n.get_label()): ([*n.get_xdata()], [*n.get_ydata()]) for n in axes.lines},
        )
        for axes in figure.axes
    ] + [(figure.axes[1].get_xlabel(), {})]


def test_returns_against_transitions(tmp_path: Path) -> None:
    above, below, against = _panels(tmp_path, DQN)
    assert above == ("return", {"exploring": ([200], [12]), "greedy": ([200], [30])})
    assert below == ("loss", {"training": ([100, 200], [0.5, 0.4])})
    assert against[0] == "transitions collected"


def test_shares_and_losses_against_steps(tmp_path: Path) -> None:
    above, below, against = _panels(tmp_path, FINE_TUNED)
    assert above == (
        "share",
        {"tokens right in training": ([9], [0.25]), "answers right in validation": ([19], [0.5])},
    )
    assert below == ("loss", {"training": ([9], [2.0]), "validation": ([19], [1.5])})
    assert against[0] == "optimizer steps"


def test_rewards_and_passes_against_generated_tokens_and_entropy_for_want_of_a_loss(
    tmp_path: Path,
) -> None:
    above, below, against = _panels(tmp_path, ROLLOUTS)
    assert above == (
        "reward",
        {
            "mean reward in training": ([1000, 2000], [0.25, 0.5]),
            "greedy answers right": ([2000], [0.75]),
            "pass@1": ([2000], [0.5]),
            "pass@16": ([2000], [1.0]),
        },
    )
    assert below == ("entropy per token, nats", {"in training": ([1000, 2000], [1.5, 1.0])})
    assert against[0] == "generated tokens"


@pytest.mark.parametrize("text", ["step\n", "step,epoch\n3,0\n"])
def test_nothing_to_show_is_no_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    draw_learning_curve(path, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert read_series(path, "train/loss", "step") == ([], [])
