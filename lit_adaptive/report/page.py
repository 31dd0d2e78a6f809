"""One self-contained HTML page about one or several runs."""

import base64
import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader

from lit_adaptive.report.curves import Series, read_metrics
from lit_adaptive.report.options import options_of, read_config
from lit_adaptive.report.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURES = ("confusion_matrix.png", "sample_report.png", "difficulty.png", "influence.png")
_PLACES = ("runs", "config", "trainer.default_root_dir")  # options that say where, not what
_ROWS, _TEXT = 8, 300  # of a table, and characters of a cell
_PER_ROW = 4  # metrics of a figure
_TIMES = "train/seconds/"
_GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Validation": ("Against optimizer steps.", ("val/",)),
    "Training": ("Against optimizer steps.", ("train/",)),
    "Sampling, weights and replay": (
        "Effective sample sizes, weights, draws, replay and selections against optimizer steps.",
        (
            *("sampler/", "is_weight/", "train/replay/", "train/difficulty/", "train/influence/"),
            "train/prompts/",
        ),
    ),
}
"""Title -> explanation and prefixes of the columns; the longest prefix decides."""


class _Picture(NamedTuple):
    """A picture of a run, as base64."""

    name: str
    image: str


class _Table(NamedTuple):
    """Rows of texts."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass
class _Run:
    """A run directory, as far as the run has come.

    Attributes:
        label: shown instead of the path.
        metrics: all that has been logged, against steps, by name.
        options: options of its ``config.yaml`` by path.
        color: of its curves.
        steps: optimizer steps.
        last: last values of the metrics, shown.
        pictures: what callbacks drew.
        tables: samples and answers.
    """

    label: str
    metrics: dict[str, Series]
    options: dict[str, Any]
    color: str
    steps: int = 0
    last: dict[str, str] = field(default_factory=dict)
    pictures: list[_Picture] = field(default_factory=list)
    tables: list[_Table] = field(default_factory=list)


def write_page(directories: list[Path], out: Path, version: str) -> None:
    """Write the page, and the figures beside it as ``NAME-TITLE.png``.

    Args:
        directories: run directories, at least one.
        out: the HTML file.
        version: of lit-adaptive.

    Raises:
        ValueError: naming a directory that is not that of a run, or a damaged file.
    """
    from matplotlib.colors import to_hex

    labels = _labels(directories)
    runs = [
        _read_run(path, label, to_hex(f"C{number % 10}"))
        for number, (path, label) in enumerate(zip(directories, labels, strict=True))
    ]
    names = list(dict.fromkeys(name for run in runs for name in run.last))
    groups = []
    for title, (note, columns) in _grouped(runs).items():
        groups.append((title, note, _curves(runs, columns)))
    if shares := _time_shares(runs):
        groups.append(("Time", "Share of the seconds of a step, over the whole run.", shares))
    out.parent.mkdir(parents=True, exist_ok=True)
    shown = []
    for title, note, figure in groups:
        picture = out.with_name(f"{out.stem}-{title.split(',')[0].lower()}.png")
        figure.savefig(picture, dpi=100)
        shown.append({"title": title, "note": note, "image": _encoded(picture)})
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("page.html").render(
        title=labels[0] if len(runs) == 1 else f"{len(runs)} runs",
        version=version,
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        runs=runs,
        last=names[:8],
        options=_differing(runs),
        groups=shown,
    )
    out.write_text(page, encoding="utf-8")


# Reading ------------------------------------------------------------------------------------------


def _labels(directories: list[Path]) -> list[str]:
    """Config and run of each directory, which is unique unless the directories are the same."""
    labels = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in directories]
    if len({*labels}) < len(labels):
        labels = [str(path) for path in directories]
    return labels


def _read_run(directory: Path, label: str, color: str) -> _Run:
    metrics = directory / "metrics.csv"
    if not metrics.is_file():
        raise ValueError(
            f"{directory} has no metrics.csv: give the directory of a run, such as "
            "runs/CONFIG/TIME-SEED"
        )
    try:
        series = read_metrics(metrics)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{metrics} is damaged: {error}") from error
    run = _Run(label, series, {}, color, int(max(series.get("step", ([], []))[1], default=0)))
    found = [name for name in series if name.startswith("val/")] or [
        name for name in ("train/loss", "train/reward", "train/return") if name in series
    ]
    for name in sorted(found):
        if values := series[name][1]:
            run.last[name] = f"{values[-1]:.4g}"
    config = directory / "config.yaml"
    if config.exists():
        run.options = dict(options_of(read_config(config)))
    videos = sorted(path.name for path in directory.glob("episode-seed=*.gif"))
    for name in (*_PICTURES, *videos):
        if (directory / name).is_file():
            run.pictures.append(_Picture(name, _encoded(directory / name)))
    run.tables = [*_tables(directory)]
    return run


def _encoded(picture: Path) -> str:
    return base64.b64encode(picture.read_bytes()).decode()


def _tables(directory: Path) -> Iterator[_Table]:
    """Most drawn and hardest samples; best and worst answers."""
    samples = directory / "samples.csv"
    if samples.is_file():
        with samples.open(newline="", errors="replace") as file:
            rows = list(csv.DictReader(file))
        for title, column in (
            ("Most drawn samples", "draws"),
            ("Samples of the greatest last loss", "last_loss"),
        ):
            yield from _extremes(rows, title, column)
    for name in ("completions.jsonl", "rollouts.jsonl"):
        answers = directory / name
        if answers.is_file():
            rows = [*_json_rows(answers)]
            yield from _extremes(rows, f"Best answers ({name})", "reward")
            yield from _extremes(rows, f"Worst answers ({name})", "reward", least=True)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                return  # a live run is writing this line
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of {path} is not an object")
            yield {name: value for name, value in row.items() if not isinstance(value, list)}


def _extremes(
    rows: list[dict[str, Any]], title: str, column: str, *, least: bool = False
) -> Iterator[_Table]:
    """A table of the rows with the greatest or least values of a column, if there are any."""
    known = [(value, row) for row in rows if math.isfinite(value := _number(row.get(column)))]
    known.sort(key=lambda pair: pair[0], reverse=not least)
    chosen = [row for _, row in known[:_ROWS]]
    if chosen:
        header = list(dict.fromkeys(name for row in chosen for name in row))
        cells = [[visible(row.get(name, ""), _TEXT) for name in header] for row in chosen]
        yield _Table(title, header, cells)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _differing(runs: list[_Run]) -> list[dict[str, Any]]:
    """Options that are not the same in all runs."""
    paths = dict.fromkeys(path for run in runs for path in run.options)
    rows = []
    for path in [path for path in paths if path not in _PLACES]:
        shown = [visible(run.options[path], _TEXT) if path in run.options else "" for run in runs]
        if len({*shown}) > 1:
            rows.append({"path": path, "shown": shown})
    return rows


# Figures ------------------------------------------------------------------------------------------


def _grouped(runs: list[_Run]) -> dict[str, tuple[str, list[str]]]:
    """Explanation and columns with values of each group that has any."""
    prefixes = {prefix: title for title, (_, several) in _GROUPS.items() for prefix in several}
    columns: dict[str, list[str]] = {title: [] for title in _GROUPS}
    for name in sorted({name for run in runs for name in run.metrics}):
        fitting = [prefix for prefix in prefixes if name.startswith(prefix)]
        if fitting and not name.startswith(_TIMES):
            columns[prefixes[max(fitting, key=len)]].append(name)
    return {title: (_GROUPS[title][0], names) for title, names in columns.items() if names}


def _curves(runs: list[_Run], names: list[str]) -> "Figure":
    """A panel for each metric, with a curve for each run."""
    from matplotlib.figure import Figure

    rows = -(-len(names) // _PER_ROW)
    figure = Figure(figsize=(11.5, 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, _PER_ROW, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        for run in runs:
            x, y = run.metrics.get(name, ([], []))
            if x:
                axes.plot(x, y, color=run.color, linewidth=1.2, marker="." if len(x) == 1 else "")
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.remove()
    return figure


def _time_shares(runs: list[_Run]) -> "Figure | None":
    """A bar for each run with the shares of ``train/seconds/*``."""
    from matplotlib.figure import Figure

    names = sorted({n for run in runs for n in run.metrics if n.startswith(_TIMES)})
    if not names:
        return None
    figure = Figure(figsize=(11.5, 0.8 + 0.45 * len(runs)), layout="constrained")
    axes = figure.subplots()
    for place, run in enumerate(runs):
        seconds = np.array([sum(run.metrics.get(name, ([], []))[1]) for name in names])
        shares, left = seconds / max(seconds.sum(), 1e-12), 0.0
        for number, (name, share) in enumerate(zip(names, shares.tolist(), strict=True)):
            label = name.removeprefix(_TIMES) if place == 0 else None
            axes.barh(place, share, left=left, color=f"C{number % 10}", label=label)
            left += share
    axes.set_yticks(range(len(runs)), [run.label for run in runs], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1))
    return figure
