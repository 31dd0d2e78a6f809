"""Tables and intervals of README and docs are those of the results that the benchmarks wrote."""

import json
import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# Not imported by name: the names of other benchmarks are those of packages (minatar).
tables = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "tables.py")))
_INTERVAL = re.compile(r"([+-]?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)( %)?")


def pairs(value: Any) -> Iterator[tuple[float, float]]:
    """Means with half widths, in whatever form a benchmark writes them."""
    if isinstance(value, dict):
        for key, half in value.items():
            if key.endswith("half_width"):
                yield value[f"{key.removesuffix('half_width')}difference"], half
        if {"value", "low", "high"} <= value.keys():
            yield value["value"], (value["high"] - value["low"]) / 2
        for each in value.values():
            yield from pairs(each)
    elif isinstance(value, list):
        if len(value) == 2 and all(isinstance(one, int | float) for one in value):
            yield value[0], value[1]
        for each in value:
            yield from pairs(each)


@cache
def written(decimals: int, scale: int) -> set[tuple[str, str]]:
    """All intervals of all results, in units of ``1 / scale``, as text."""
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    return {
        (f"{scale * mean:.{decimals}f}", f"{scale * half:.{decimals}f}")
        for file in files
        for mean, half in pairs(json.loads(file.read_text()))
    }


def test_every_interval_is_one_that_a_benchmark_measured() -> None:
    missing: list[str] = []
    count = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, line in enumerate(page.read_text().splitlines(), 1):
            for mean, half, percent in _INTERVAL.findall(line):
                count += 1
                decimals = len(half.partition(".")[2])
                if (mean.lstrip("+"), half) not in written(decimals, 100 if percent else 1):
                    missing.append(f"{page.name}:{number}: {mean} ± {half}{percent}")
    assert count > 200
    assert not missing


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_python_benchmarks_tables_py_changes_nothing(page: Path) -> None:
    assert tables.rewritten(page.read_text()) == page.read_text()


def test_every_table_has_its_place() -> None:
    text = "".join(page.read_text() for page in tables.PAGES)
    assert sorted(re.findall(r"<!-- table: (\w+) -->", text)) == sorted(tables.TABLES)
