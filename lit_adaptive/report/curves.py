"""The learning curve: returns or scores above, losses below, against what the run consumed."""

import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Series = tuple[list[float], list[float]]
_NAMES = {"train/transitions": "transitions collected", "step": "optimizer steps"}


def read_series(metrics: Path, name: str, against: str) -> Series:
    """Two columns of a ``metrics.csv``; ``against`` is carried on to rows that lack it."""
    x: list[float] = []
    y: list[float] = []
    latest = 0.0
    with metrics.open() as file:
        for row in csv.DictReader(file):
            latest = float(row.get(against) or latest)
            if row.get(name):
                x.append(latest)
                y.append(float(row[name]))
    return x, y


_ABOVE = {
    "return": {"train/return": "exploring", "val/return": "greedy"},
    "score": {
        "train/accuracy": "training accuracy",
        "val/macro_f1": "validation macro-F1",
        "val/accuracy": "validation accuracy",
    },
    "share": {
        "train/token_accuracy": "tokens right in training",
        "val/token_accuracy": "tokens right in validation",
        "val/exact_match": "answers right in validation",
    },
}
"""What the upper panel shows, the first kind of which there is any: label of the axis, series."""

_BELOW = {"train/loss": "training", "val/loss": "validation", "val/nll": "validation"}
_STYLES = ("0.75", "C0", "C1")


def _plot(axes: Axes, metrics: Path, against: str, wanted: dict[str, str]) -> bool:
    """Draw the series that there are; whether there was one."""
    found = {name: read_series(metrics, name, against) for name in wanted}
    for color, (name, series) in zip(_STYLES, found.items(), strict=False):
        if series[0]:
            marker = "" if name.startswith("train/") else "o"
            axes.plot(*series, label=wanted[name], color=color, marker=marker, markersize=3)
    if len(axes.lines) > 1:
        axes.legend(loc="best", frameon=False)
    return bool(axes.lines)


def draw_learning_curve(metrics: Path, out: Path) -> None:
    """Write a PNG of what ``metrics`` (a ``CSVLogger``'s) has of returns, scores and losses."""
    against = (
        "train/transitions" if read_series(metrics, "train/transitions", "step")[0] else "step"
    )
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for label, wanted in _ABOVE.items():
        if _plot(above, metrics, against, wanted):
            above.set_ylabel(label)
            break
    above.set_title(f"{out.parent.parent.name} / {out.parent.name}", fontsize=9)
    _plot(below, metrics, against, _BELOW)
    below.set_ylabel("loss")
    below.set_xlabel(_NAMES[against])
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(out, dpi=120)
