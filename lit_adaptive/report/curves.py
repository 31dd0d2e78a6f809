"""The learning curve: returns or scores above, losses below, against what the run consumed."""

import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Series = tuple[list[float], list[float]]
_NAMES = {
    "train/transitions": "transitions collected",
    "train/generated_tokens": "generated tokens",
    "step": "optimizer steps",
}


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
    "reward": {"train/reward": "mean reward in training"},
    "share": {
        "train/token_accuracy": "tokens right in training",
        "val/token_accuracy": "tokens right in validation",
        "val/exact_match": "answers right in validation",
    },
}
"""What the upper panel shows, the first kind of which there is any: label of the axis, series."""

_BELOW = {
    "loss": {"train/loss": "training", "val/loss": "validation", "val/nll": "validation"},
    "entropy per token, nats": {"train/entropy": "in training"},
}
_STYLES = ("0.75", "C0", "C1", "C2", "C3", "C4")
_CONSUMED = ("train/transitions", "train/generated_tokens", "step")


def _plot(axes: Axes, metrics: Path, against: str, kinds: dict[str, dict[str, str]]) -> None:
    """Draw the first kind of which there is any series."""
    for label, wanted in kinds.items():
        found = {name: read_series(metrics, name, against) for name in wanted}
        if not any(series[0] for series in found.values()):
            continue
        for color, (name, series) in zip(_STYLES, found.items(), strict=False):
            if series[0]:
                marker = "" if name.startswith("train/") else "o"
                axes.plot(*series, label=wanted[name], color=color, marker=marker, markersize=3)
        axes.set_ylabel(label)
        axes.legend(loc="best", framealpha=0.8, edgecolor="none")
        return
    axes.set_visible(False)


def _answers(metrics: Path) -> dict[str, str]:
    """How answers do in validation, beside the reward: greedy ones, and any of k samples."""
    with metrics.open() as file:
        names = next(csv.reader(file), [])
    passes = sorted((n for n in names if n.startswith("val/pass@")), key=lambda n: (len(n), n))
    return {"val/exact_match": "greedy answers right"} | {n: n[len("val/") :] for n in passes}


def learning_curve(metrics: Path) -> Figure:
    """What ``metrics`` (a ``CSVLogger``'s) has of returns, scores or rewards, and of losses."""
    against = next(n for n in _CONSUMED if n == "step" or read_series(metrics, n, "step")[0])
    above = _ABOVE | {"reward": _ABOVE["reward"] | _answers(metrics)}
    if not read_series(metrics, "train/reward", "step")[0]:
        del above["reward"]
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for axes, kinds in zip(panels, (above, _BELOW), strict=True):
        _plot(axes, metrics, against, kinds)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    panels[0].set_title(f"{metrics.parent.parent.name} / {metrics.parent.name}", fontsize=9)
    panels[1].set_xlabel(_NAMES[against])
    return figure


def draw_learning_curve(metrics: Path, out: Path) -> None:
    """Write ``learning_curve`` as a PNG."""
    learning_curve(metrics).savefig(out, dpi=120)
