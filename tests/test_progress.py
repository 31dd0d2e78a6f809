"""The bar of a long phase: in a terminal, beside Lightning's own, and nowhere else."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PHASE = """
import time
from rich import get_console
from lightning_utilities.core.rank_zero import rank_zero_only
from lit_adaptive import progress
rank_zero_only.rank = {rank}
progress._DELAY = 0.0
outer = {outer}
if outer:
    from rich.progress import Progress
    outer = Progress(console=get_console())
    outer.start()
    outer.add_task("Epoch 0", total=10)
with progress.progress_bar("embeddings of texts", 4) as advance:
    for _ in range(4):
        advance(1)
        time.sleep(0.15)
if outer:
    outer.stop()
print("end")
"""


def _in_a_terminal(code: str) -> str:
    """What a program writes to a terminal of 80 columns."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=follower,
        stderr=follower,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80", "TERM": "xterm"},
    )
    os.close(follower)
    written = b""
    try:
        while block := os.read(leader, 1 << 16):
            written += block
    except OSError:  # the end, on Linux
        pass
    os.close(leader)
    assert process.wait() == 0
    return written.decode()


@pytest.mark.parametrize("outer", [False, True])
def test_a_terminal_shows_the_count_and_the_remaining_time_in_80_columns(outer: bool) -> None:
    text = _in_a_terminal(PHASE.format(outer=outer, rank=0))
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", text)]
    bars = [line for line in lines if line.startswith("embeddings of texts")]
    assert any(re.search(r" 2/4 0:00:0\d", bar) for bar in bars)
    assert max(map(len, lines)) <= 80
    assert any("Epoch 0" in line for line in lines) == outer
    assert text.rstrip().endswith("end")


def test_other_ranks_and_files_show_nothing() -> None:
    assert _in_a_terminal(PHASE.format(outer=False, rank=1)).strip() == "end"
    code = [sys.executable, "-c", PHASE.format(outer=False, rank=0)]
    result = subprocess.run(code, capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout + result.stderr == "end\n"
