"""Comparison of runs: what it says about planted differences, and how it is written."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lit_adaptive.report.comparison import (
    Curve,
    Mode,
    area,
    as_dict,
    compare_runs,
    curves_figure,
    markdown,
    read_curve,
)

STEPS = [*range(0, 201, 10)]


def learned(speed: float, seed: int, *, sign: int = 1) -> Curve:
    """A run whose metric rises to 1 (or falls to -1) at a rate, with noise of 0.01."""
    noise = np.random.default_rng(seed).normal(scale=0.01, size=len(STEPS))
    values = [sign * (1 - math.exp(-speed * step / 50)) for step in STEPS]
    costs = {
        "step": [float(step) for step in STEPS],
        "train/seconds": [3.0 * step for step in STEPS],
    }
    return Curve([value + float(e) for value, e in zip(values, noise, strict=True)], costs)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_planted_doubled_speed_is_found(mode: Mode) -> None:
    sign = 1 if mode == "max" else -1
    curves = {
        "base": [learned(0.5, seed, sign=sign) for seed in range(5)],
        "fast": [learned(1.0, seed + 50, sign=sign) for seed in range(5)],
        "slow": [learned(0.25, seed + 90, sign=sign) for seed in range(5)],
    }
    base, fast, slow = compare_runs(curves, [*range(5)], "m", mode).rows
    assert [row.verdict(mode) for row in (base, fast, slow)] == ["baseline", "better", "worse"]
    for column in ("step", "train/seconds"):
        assert fast.cost[column].low < 0.5 < fast.cost[column].high
        assert slow.cost[column].value == pytest.approx(1.0, abs=0.05)  # all that it took
    assert (fast.reached, slow.reached) == (5, 0)
    assert fast.improvement is not None
    assert fast.improvement == (1.0, 1.0, 1.0)
    assert fast.area_difference is not None
    assert sign * fast.area_difference.difference.low > 0


def test_equal_configs_show_no_difference() -> None:
    curves = {
        "a": [learned(0.5, n) for n in range(5)],
        "b": [learned(0.5, n) for n in range(5, 10)],
    }
    comparison = compare_runs(curves, [*range(5)], "m")
    assert comparison.rows[1].verdict("max") == "no difference shown"
    assert "no difference shown" in markdown(comparison)


def test_a_target_of_all_seeds() -> None:
    curves = {name: [learned(r, n) for n in range(3)] for name, r in (("a", 0.5), ("b", 1.0))}
    row = compare_runs(curves, [0, 1, 2], "m", target=0.5).rows[1]
    # 1 - exp(-step / 100) reaches 0.5 at step 69.3, the other at 34.7.
    assert row.cost["step"].value == pytest.approx(0.5, rel=0.05)


def test_area_is_over_the_steps_that_all_have() -> None:
    curve = Curve([0.0, 1.0, 1.0], {"step": [0.0, 10.0, 20.0]})
    assert area(curve, 20.0) == pytest.approx(0.75)
    assert area(curve, 10.0) == pytest.approx(0.5)
    assert area(curve, 5.0) == pytest.approx(0.25)


def test_one_seed_shows_nothing() -> None:
    comparison = compare_runs({"a": [learned(0.5, 0)], "b": [learned(5.0, 1)]}, [0], "m")
    assert comparison.rows[1].verdict("max") == "no difference shown"
    assert "One seed has no interval" in markdown(comparison)


def test_json_has_every_measurement_and_no_nan_and_figures_are_drawn(tmp_path: Path) -> None:
    curves = {"a|b": [learned(0.5, 0)], "<b>": [learned(0.5, 1)]}
    comparison = compare_runs(curves, [0], "m")
    written = json.loads(json.dumps(as_dict(comparison), allow_nan=False))
    assert written["curves"]["a|b"][0]["values"] == curves["a|b"][0].values
    assert written["rows"][1]["p"] is None
    assert "| a\\|b " in markdown(comparison)
    curves_figure(comparison).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_foreign_directory_or_metric_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run directory"):
        read_curve(tmp_path / "metrics.csv", "m")
    file = tmp_path / "metrics.csv"
    file.write_text("step,train/loss,train/seconds\n5,0.5,2.5\n10,0.25,5.0\n")
    with pytest.raises(ValueError, match=r"val/x was never logged in .* it has step, train/loss"):
        read_curve(file, "val/x")
    curve = read_curve(file, "train/loss")
    assert curve == Curve([0.5, 0.25], {"step": [5.0, 10.0], "train/seconds": [2.5, 5.0]})
