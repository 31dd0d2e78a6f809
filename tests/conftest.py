"""Fixtures, hypothesis settings and the cache folder of all tests."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from lit_adaptive.cli.main import RUN_DIR

# Tests run in as many processes as there are cores (pytest-xdist), each with one thread.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# `datasets` reads this when it is imported.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="lit-adaptive-tests-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

# No deadline: the first call of a numba function compiles it.
hypothesis.settings.register_profile("lit-adaptive", deadline=None)
hypothesis.settings.load_profile("lit-adaptive")


@pytest.fixture(autouse=True)
def _clean_command_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide pytest's arguments from LightningCLI, and forget the run directory of a test."""
    monkeypatch.setattr(sys, "argv", ["lit-adaptive"])
    yield
    os.environ.pop(RUN_DIR, None)
