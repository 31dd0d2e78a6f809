"""Comparison of runs with paired seeds: table, JSON and figures."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lit_adaptive.report.curves import read_series
from lit_adaptive.report.statistics import (
    Estimate,
    PairedTest,
    bootstrap,
    holm,
    interquartile_mean,
    paired_test,
    probability_of_improvement,
    t_estimate,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSTS = {
    "step": "optimizer steps",
    "train/generated_tokens": "generated tokens",
    "train/rollouts": "rollouts",
    "train/transitions": "transitions",
    "train/seconds": "seconds",
}
"""Columns of a run's ``metrics.csv`` that count what it consumed, with their names."""

SIGNIFICANT = 0.05


class Curve(NamedTuple):
    """Measurements of a run.

    Attributes:
        values: the metric at each of n measurements.
        costs: what the run had consumed at each, by column of ``COSTS``.
    """

    values: list[float]
    costs: dict[str, list[float]]


Mode = Literal["max", "min"]


def read_curve(metrics: Path, metric: str) -> Curve:
    """Measurements of ``metric`` in a run's ``metrics.csv``.

    Raises:
        ValueError: if the file is none or the metric was not logged.
    """
    if not metrics.is_file():
        raise ValueError(f"{metrics} does not exist: {metrics.parent} is not a run directory")
    with metrics.open() as file:
        names = next(csv.reader(file), [])
    values = read_series(metrics, metric, "step")[1]
    if not values:
        raise ValueError(
            f"{metric} was never logged in {metrics}; it has {', '.join(sorted(names))}: set "
            "--metric to one of them, or let the run validate"
        )
    costs = {
        name: series
        for name in COSTS
        if name in names and max(series := read_series(metrics, metric, name)[0]) > 0
    }
    return Curve(values, costs)


def area(curve: Curve, end: float) -> float:
    """Mean of the metric over optimizer steps from the first measurement to step ``end``."""
    x, y = np.asarray(curve.costs["step"]), np.asarray(curve.values)
    if end <= x[0]:
        return float(y[0])
    inside = x < end
    x, y = np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def reached(curve: Curve, target: float, mode: Mode) -> int | None:
    """Number of the first measurement that is at least (``min``: at most) the target, or none."""
    good = (value >= target if mode == "max" else value <= target for value in curve.values)
    return next((place for place, each in enumerate(good) if each), None)


@dataclass(frozen=True)
class ConfigResult:
    """What a config's runs came to, beside the baseline's with the same seeds.

    Attributes:
        name: of the config.
        final: mean of the last value of the metric.
        difference: of the final values to the baseline's; none for the baseline.
        p: p-value with Holm's correction for the number of configs.
        iqm: interquartile mean of the final values.
        improvement: probability that a final value is better than one of the baseline.
        area: mean of the metric over the steps that all runs made.
        area_difference: of the areas to the baseline's.
        cost: cost until the target, relative to the baseline's (geometric mean, t-interval of the
            logarithm), by column of ``COSTS``; a run that did not reach it counts with all of its.
        reached: number of runs that reached the target.
    """

    name: str
    final: Estimate
    difference: PairedTest | None
    p: float
    iqm: Estimate
    improvement: Estimate | None
    area: Estimate
    area_difference: PairedTest | None
    cost: dict[str, Estimate]
    reached: int

    def verdict(self, mode: Mode) -> str:
        """``better``, ``worse`` or ``no difference shown``."""
        if self.difference is None:
            return "baseline"
        if not self.p < SIGNIFICANT:
            return "no difference shown"
        better = (self.difference.difference.value > 0) == (mode == "max")
        return "better" if better else "worse"


@dataclass(frozen=True)
class Comparison:
    """Rows of configs, the baseline's first.

    Attributes:
        metric: name of the metric.
        mode: whether more or less of it is better.
        target: of all runs; none if each seed's target is its baseline's final value.
        seeds: the seeds.
        curves: of each config, one per seed.
        rows: one per config.
    """

    metric: str
    mode: Mode
    target: float | None
    seeds: list[int]
    curves: dict[str, list[Curve]]
    rows: list[ConfigResult]


def compare_runs(
    curves: dict[str, list[Curve]],
    seeds: list[int],
    metric: str,
    mode: Mode = "max",
    target: float | None = None,
) -> Comparison:
    """Compare the runs of each config with those of the first one.

    Args:
        curves: measurements by config, one per seed.
        seeds: one per run.
        metric: name of the metric.
        mode: whether more or less of it is better.
        target: value whose cost is compared; by default the final value of the baseline's run with
            the same seed.
    """
    baseline = next(iter(curves))
    finals = {name: [curve.values[-1] for curve in runs] for name, runs in curves.items()}
    end = min(curve.costs["step"][-1] for runs in curves.values() for curve in runs)
    areas = {name: [area(curve, end) for curve in runs] for name, runs in curves.items()}
    targets = [target] * len(seeds) if target is not None else finals[baseline]
    others = [name for name in curves if name != baseline]
    tests = {name: paired_test(finals[name], finals[baseline]) for name in others}
    corrected = dict(zip(others, holm([tests[name].p for name in others]), strict=True))
    sign = 1 if mode == "max" else -1
    rows = []
    for name, runs in curves.items():
        compared = name != baseline
        signed = [[sign * value for value in finals[each]] for each in (name, baseline)]
        places = [reached(run, goal, mode) for run, goal in zip(runs, targets, strict=True)]
        rows.append(
            ConfigResult(
                name,
                t_estimate(finals[name]),
                tests.get(name),
                corrected.get(name, math.nan),
                bootstrap(interquartile_mean, finals[name]),
                bootstrap(probability_of_improvement, *signed) if compared else None,
                t_estimate(areas[name]),
                paired_test(areas[name], areas[baseline]) if compared else None,
                _costs(runs, curves[baseline], targets, mode) if compared else {},
                sum(place is not None for place in places),
            )
        )
    return Comparison(metric, mode, target, seeds, curves, rows)


def _costs(
    runs: list[Curve], baselines: list[Curve], targets: Sequence[float], mode: Mode
) -> dict[str, Estimate]:
    """Cost to the target relative to the baseline's, by column that all runs have."""
    ratios: dict[str, Estimate] = {}
    for column in COSTS:
        if not all(column in run.costs for run in [*runs, *baselines]):
            continue
        logs = []
        for run, baseline, goal in zip(runs, baselines, targets, strict=True):
            taken = [_cost(each, goal, mode, column) for each in (run, baseline)]
            logs.append(math.log(taken[0] / taken[1]))
        ratios[column] = Estimate(*(math.exp(value) for value in t_estimate(logs)))
    return ratios


def _cost(curve: Curve, target: float, mode: Mode, column: str) -> float:
    """Cost at which the line through the measurements reaches the target, above 0; else of all."""
    costs, values, place = curve.costs[column], curve.values, reached(curve, target, mode)
    first = next(cost for cost in costs if cost > 0)
    if place is None:
        return costs[-1]
    if place == 0:
        return max(costs[0], first)
    part = (target - values[place - 1]) / (values[place] - values[place - 1])
    return max(costs[place - 1] + part * (costs[place] - costs[place - 1]), first)


# Output -------------------------------------------------------------------------------------------


def _shown(estimate: Estimate | None, digits: str = ".3g", sign: str = "") -> str:
    if estimate is None:
        return ""
    value, low, high = (f"{each:{sign}{digits}}" for each in estimate)
    return value if math.isnan(estimate.low) else f"{value} [{low}, {high}]"


def _shares(estimate: Estimate) -> str:
    """A ratio as the change in percent."""
    return _shown(Estimate(*(100 * (value - 1) for value in estimate)), ".0f", "+") + " %"


def _cell(text: str) -> str:
    """Text of a Markdown table's cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [[_cell(text) for text in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in lines)


def markdown(comparison: Comparison) -> str:
    """Three tables: the final values, further statistics, and the cost to the target."""
    rows, mode = comparison.rows, comparison.mode
    count, baseline = len(comparison.seeds), rows[0].name
    better = "more is better" if mode == "max" else "less is better"
    text = (
        f"{comparison.metric} ({better}), {count} paired seed{'s' if count > 1 else ''}, baseline "
        f"{baseline}; 95 % intervals in brackets.\n\n"
    )
    text += _table(
        ["config", "final", "difference", "p (Holm)", "verdict"],
        [
            [
                row.name,
                _shown(row.final),
                _shown(row.difference.difference, sign="+") if row.difference else "",
                f"{row.p:.2g}" if row.difference else "",
                row.verdict(mode),
            ]
            for row in rows
        ],
    )
    text += "\n" + _table(
        ["config", "area under curve", "its difference", "IQM", "P(improvement)", "effect"],
        [
            [
                row.name,
                _shown(row.area),
                _shown(row.area_difference.difference, sign="+") if row.area_difference else "",
                _shown(row.iqm),
                _shown(row.improvement, ".2f"),
                f"{row.difference.effect:+.2g}" if row.difference else "",
            ]
            for row in rows
        ],
    )
    if len(rows) > 1:
        columns = [name for name in COSTS if name in rows[1].cost]
        goal = (
            "the baseline's final value of the same seed"
            if comparison.target is None
            else f"{comparison.target:g}"
        )
        text += f"\nCost until {goal}, relative to the baseline's:\n\n"
        text += _table(
            ["config", *(COSTS[name] for name in columns), "reached"],
            [
                [
                    row.name,
                    *(_shares(row.cost[name]) if row.cost else "" for name in columns),
                    f"{row.reached} of {count}",
                ]
                for row in rows
            ],
        )
        if any(row.reached < count for row in rows):
            text += "\nA run that did not reach it counts with all that it consumed.\n"
    if count < 2:
        text += "\nOne seed has no interval: nothing is shown.\n"
    return text


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """All figures and every seed's measurements, for JSON; NaN is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if hasattr(value, "_asdict"):
            value = value._asdict()
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list) else value

    rows = [vars(row) | {"verdict": row.verdict(comparison.mode)} for row in comparison.rows]
    result: dict[str, Any] = plain(vars(comparison) | {"rows": rows})
    return result


def curves_figure(comparison: Comparison) -> "Figure":
    """Mean of the metric with the range of the seeds, against each cost; and the final values."""
    from matplotlib.figure import Figure

    every = [curve for runs in comparison.curves.values() for curve in runs]
    columns = [name for name in COSTS if all(name in curve.costs for curve in every)]
    figure = Figure(figsize=(4.2 * len(columns) + 3.6, 4), layout="constrained")
    *panels, profile = figure.subplots(1, len(columns) + 1)
    for axes, column in zip(panels, columns, strict=True):
        for number, (name, runs) in enumerate(comparison.curves.items()):
            ends = [(curve.costs[column][0], curve.costs[column][-1]) for curve in runs]
            grid = np.linspace(max(a for a, _ in ends), min(b for _, b in ends), 200)
            values = np.stack(
                [np.interp(grid, curve.costs[column], curve.values) for curve in runs]
            )
            axes.plot(grid, values.mean(0), color=f"C{number}", label=name)
            axes.fill_between(
                grid, values.min(0), values.max(0), color=f"C{number}", alpha=0.15, linewidth=0
            )
        axes.set_xlabel(COSTS[column])
    panels[0].set_ylabel(comparison.metric)
    panels[0].legend(fontsize=8)
    for number, runs in enumerate(comparison.curves.values()):
        finals = np.sort([curve.values[-1] for curve in runs])
        share = np.arange(1, len(finals) + 1) / len(finals)
        heights = [0, *share, 1] if comparison.mode == "min" else [1, *share[::-1], 0]
        profile.step(
            [finals[0], *finals, finals[-1]],
            heights,
            where="post" if comparison.mode == "min" else "pre",
            color=f"C{number}",
        )
    profile.set_xlabel(f"final {comparison.metric}")
    profile.set_ylabel("share of seeds that reach it")
    for axes in (*panels, profile):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
