"""The learning curve: which series are shown, against which measure of consumption."""

from pathlib import Path

import pytest

from lit_adaptive.report import draw_learning_curve, learning_curve, read_series

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


Panel = tuple[str, dict[str, tuple[list[float], list[float]]]]


def panels(folder: Path, text: str) -> tuple[Panel, Panel, str]:
    """The upper and lower panel (label, series by legend) and the label of the x axis."""
    path = folder / "metrics.csv"
    path.write_text(text)
    figure = learning_curve(path)
    upper, lower = (
        (
            axes.get_ylabel(),
            {str(n.get_label()): ([*n.get_xdata()], [*n.get_ydata()]) for n in axes.lines},
        )
        for axes in figure.axes
    )
    return upper, lower, figure.axes[1].get_xlabel()


def test_returns_are_shown_against_transitions(tmp_path: Path) -> None:
    upper, lower, x_label = panels(tmp_path, DQN)
    assert upper == ("return", {"exploring": ([200], [12]), "greedy": ([200], [30])})
    assert lower == ("loss", {"training": ([100, 200], [0.5, 0.4])})
    assert x_label == "transitions collected"


def test_accuracies_and_losses_are_shown_against_steps(tmp_path: Path) -> None:
    upper, lower, x_label = panels(tmp_path, FINE_TUNED)
    assert upper == (
        "fraction",
        {
            "correct tokens in training": ([9], [0.25]),
            "correct answers in validation": ([19], [0.5]),
        },
    )
    assert lower == ("loss", {"training": ([9], [2.0]), "validation": ([19], [1.5])})
    assert x_label == "optimizer steps"


def test_rewards_pass_at_k_and_entropy_are_shown_against_generated_tokens(
    tmp_path: Path,
) -> None:
    upper, lower, x_label = panels(tmp_path, ROLLOUTS)
    assert upper == (
        "reward",
        {
            "mean reward in training": ([1000, 2000], [0.25, 0.5]),
            "greedy exact match": ([2000], [0.75]),
            "pass@1": ([2000], [0.5]),
            "pass@16": ([2000], [1.0]),
        },
    )
    assert lower == ("entropy per token, nats", {"in training": ([1000, 2000], [1.5, 1.0])})
    assert x_label == "generated tokens"


@pytest.mark.parametrize("text", ["step\n", "step,epoch\n3,0\n"])
def test_metrics_without_any_series_give_an_empty_curve(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    draw_learning_curve(path, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert read_series(path, "train/loss", "step") == ([], [])


def test_a_panel_without_values_takes_no_room_and_steps_are_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n0,0.5\n1,0.25\n")
    (axes,) = learning_curve(path).axes
    assert axes.get_ylabel() == "loss"
    assert axes.get_xlabel() == "optimizer steps"
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    path.write_text("step,other\n0,0.5\n")
    assert learning_curve(path).axes == []


def test_a_color_has_one_meaning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/loss,train/accuracy,val/macro_f1\n1,1,2,3,4\n2,1,2,3,4\n")
    upper, lower = ({n.get_color() for n in axes.lines} for axes in learning_curve(path).axes)
    assert upper & lower == {"0.75"}  # training
