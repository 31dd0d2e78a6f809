"""The learning curve: returns or scores above, losses below, against what the run consumed."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[list[float], list[float]]

_X_LABELS = {
    "train/transitions": "transitions collected",
    "train/generated_tokens": "generated tokens",
    "step": "optimizer steps",
}
"""Columns of the horizontal axis, with their labels; the first column with values is used."""

_UPPER = {
    "return": {"train/return": "exploring", "val/return": "greedy"},
    "score": {
        "train/accuracy": "training accuracy",
        "val/macro_f1": "validation macro-F1",
        "val/accuracy": "validation accuracy",
    },
    "reward": {"train/reward": "mean reward in training"},
    "fraction": {
        "train/token_accuracy": "correct tokens in training",
        "val/token_accuracy": "correct tokens in validation",
        "val/exact_match": "correct answers in validation",
    },
}
"""Label of the vertical axis -> column -> legend; the first label with any values is shown."""

_LOWER = {
    "loss": {"train/loss": "training", "val/loss": "validation", "val/nll": "validation"},
    "entropy per token, nats": {"train/entropy": "in training"},
}
_UPPER_COLORS = ("0.75", "C0", "C1", "C2", "C3", "C4")
_LOWER_COLORS = ("0.75", "0.25", "0.25")
"""Light gray is training in both panels; a color is one quantity of the upper panel."""


def read_series(metrics: Path, name: str, x_name: str) -> Series:
    """Columns ``x_name`` and ``name`` of a ``metrics.csv``, in rows that have ``name``.

    A row without ``x_name`` takes the last value before it.
    """
    return read_metrics(metrics, x_name, [name]).get(name, ([], []))


def read_metrics(
    metrics: Path, x_name: str = "step", names: Sequence[str] | None = None
) -> dict[str, Series]:
    """Several columns of a ``metrics.csv``, by default all, in one pass; see ``read_series``."""
    columns: dict[str, Series] = {}
    last_x = 0.0
    with metrics.open() as file:
        reader = csv.DictReader(file)
        for row in reader:
            last_x = float(row.get(x_name) or last_x)
            for name in names or reader.fieldnames or ():
                x, y = columns.setdefault(name, ([], []))
                if row.get(name):
                    x.append(last_x)
                    y.append(float(row[name]))
    return columns


Panel = tuple[str, dict[str, tuple[str, Series]]]


def _first_panel(metrics: Path, x_name: str, panels: dict[str, dict[str, str]]) -> Panel | None:
    """Label and series (column -> legend, values) of the first panel that has any values."""
    for label, legend in panels.items():
        series = {n: (text, read_series(metrics, n, x_name)) for n, text in legend.items()}
        if any(x for _, (x, _) in series.values()):
            return label, series
    return None


def _plot(axes: "Axes", panel: Panel, colors: Sequence[str]) -> None:
    label, series = panel
    for color, (name, (legend, (x, y))) in zip(colors, series.items(), strict=False):
        if x:
            marker = "" if name.startswith("train/") else "o"
            axes.plot(x, y, label=legend, color=color, marker=marker, markersize=3)
    axes.set_ylabel(label)
    axes.legend(loc="best", framealpha=0.8, edgecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _answer_columns(metrics: Path) -> dict[str, str]:
    """Columns of greedy exact match and pass@k, with their legends."""
    with metrics.open() as file:
        names = next(csv.reader(file), [])
    passes = sorted((n for n in names if n.startswith("val/pass@")), key=lambda n: (len(n), n))
    return {"val/exact_match": "greedy exact match"} | {n: n.removeprefix("val/") for n in passes}


def learning_curve(metrics: Path) -> "Figure":
    """Plot the returns, scores or rewards, and the losses, of a ``CSVLogger``'s ``metrics.csv``."""
    from matplotlib.figure import Figure

    x_name = next(n for n in _X_LABELS if n == "step" or read_series(metrics, n, "step")[0])
    upper = _UPPER | {"reward": _UPPER["reward"] | _answer_columns(metrics)}
    if not read_series(metrics, "train/reward", "step")[0]:
        del upper["reward"]
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    found = (
        (_first_panel(metrics, x_name, upper), _UPPER_COLORS, 2),
        (_first_panel(metrics, x_name, _LOWER), _LOWER_COLORS, 1),
    )
    shown = [(panel, colors, ratio) for panel, colors, ratio in found if panel is not None]
    if not shown:
        figure.text(0.5, 0.5, "no metric of a learning curve was logged", ha="center")
        return figure
    heights = [ratio for _, _, ratio in shown]
    rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (panel, colors, _) in zip(rows, shown, strict=True):
        _plot(axes, panel, colors)
    rows[0].set_title(f"{metrics.parent.parent.name} / {metrics.parent.name}", fontsize=9)
    rows[-1].set_xlabel(_X_LABELS[x_name])
    rows[-1].locator_params(axis="x", integer=True, min_n_ticks=1)  # counts
    return figure


def draw_learning_curve(metrics: Path, out: Path) -> None:
    """Write ``learning_curve`` to ``out``, a PNG."""
    learning_curve(metrics).savefig(out, dpi=120)
