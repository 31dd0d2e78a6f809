"""Imports point down only: lower layers do not load the libraries of higher ones."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("lit_adaptive.core.sum_tree", "lightning"),
        ("lit_adaptive.samplers", "lightning"),
        ("lit_adaptive.replay", "lightning"),
        ("lit_adaptive.samplers", "transformers"),
        ("lit_adaptive.replay", "gymnasium"),
        ("lit_adaptive.modules", "callbacks"),
        ("lit_adaptive.modules", "lit_adaptive.data"),
        ("lit_adaptive.data", "lit_adaptive.modules"),
        ("lit_adaptive.cli.main", "wandb"),
        ("lit_adaptive.report", "matplotlib"),
    ],
)
def test_layer_does_not_load(module: str, forbidden: str) -> None:
    code = f"import {module}, sys; sys.exit('{forbidden}' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
