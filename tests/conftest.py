"""What every test may count on: a command line that is the test's own."""

import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

from lit_adaptive.cli.main import RUN_DIR

# The first call of a compiled loop compiles it: no example has a deadline.
hypothesis.settings.register_profile("lit-adaptive", deadline=None)
hypothesis.settings.load_profile("lit-adaptive")


@pytest.fixture(autouse=True)
def _own_command_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "argv", ["lit-adaptive"])
    yield
    os.environ.pop(RUN_DIR, None)
