"""The learning curve: returns above, loss below, against what the run consumed."""

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


def _plot(axes: Axes, series: Series, label: str, *, faint: bool) -> None:
    if series[0]:
        color, marker = ("0.75", "") if faint else ("C0", "o")
        axes.plot(*series, label=label, color=color, marker=marker, markersize=3)


def draw_learning_curve(metrics: Path, out: Path) -> None:
    """Write a PNG of the returns and losses in ``metrics`` (a ``CSVLogger``'s) to ``out``."""
    against = (
        "train/transitions" if read_series(metrics, "train/transitions", "step")[0] else "step"
    )
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    _plot(above, read_series(metrics, "train/return", against), "exploring", faint=True)
    _plot(above, read_series(metrics, "val/return", against), "greedy", faint=False)
    above.set_ylabel("return")
    if above.lines:
        above.legend(loc="upper left", frameon=False)
    above.set_title(f"{out.parent.parent.name} / {out.parent.name}", fontsize=9)
    _plot(below, read_series(metrics, "train/loss", against), "loss", faint=False)
    below.set_ylabel("loss")
    below.set_xlabel(_NAMES[against])
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(out, dpi=120)
