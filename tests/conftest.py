"""Fixtures and hypothesis settings of all tests."""

import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

from lit_adaptive.cli.main import RUN_DIR

# No deadline: the first call of a numba function compiles it.
hypothesis.settings.register_profile("lit-adaptive", deadline=None)
hypothesis.settings.load_profile("lit-adaptive")


@pytest.fixture(autouse=True)
def _clean_command_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide pytest's arguments from LightningCLI, and forget the run directory of a test."""
    monkeypatch.setattr(sys, "argv", ["lit-adaptive"])
    yield
    os.environ.pop(RUN_DIR, None)
