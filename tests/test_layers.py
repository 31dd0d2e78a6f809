"""Arrows point down only; the lower layers serve a plain PyTorch loop."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("lit_adaptive/**/*.py"), *ROOT.glob("callbacks/**/*.py")])


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("lit_adaptive.core.sumtree", "lightning"),
        ("lit_adaptive.samplers", "lightning"),
        ("lit_adaptive.replay", "lightning"),
        ("lit_adaptive.samplers", "transformers"),
        ("lit_adaptive.replay", "gymnasium"),
        ("lit_adaptive.modules", "callbacks"),
        ("lit_adaptive.modules", "lit_adaptive.data"),
        ("lit_adaptive.data", "lit_adaptive.modules"),
        ("lit_adaptive.cli", "wandb"),
        ("lit_adaptive.cli", "lit_adaptive.report.curves"),
    ],
)
def test_layer_does_not_load(module: str, forbidden: str) -> None:
    code = f"import {module}, sys; sys.exit('{forbidden}' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_is_above_400_lines_and_the_median_is_at_most_150() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert max(lengths.values()) <= 400, max(lengths, key=lambda path: lengths[path])
    assert statistics.median(lengths.values()) <= 150


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_above_50_lines(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            body = node.body
            documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
            first = body[1] if documented and len(body) > 1 else body[0]
            assert node.end_lineno - first.lineno + 1 <= 50, f"{path}:{node.lineno} {node.name}"
