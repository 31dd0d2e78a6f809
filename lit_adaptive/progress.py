"""A progress bar for what takes long outside of the trainer's own bar.

It is shown on rank 0 of a terminal, after a second, and removed at the end. Beside the bar of
Lightning, which is one of rich on the same console, it stands in a line below.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from threading import Timer

from lightning_utilities.core.rank_zero import rank_zero_only
from rich import get_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_DELAY = 1.0
"""Seconds before a bar appears, so that short phases do not flicker."""


@contextmanager
def progress_bar(description: str, total: int | None) -> Generator[Callable[[int], None]]:
    """Show how far a phase is; yields a function that takes the number of items just finished.

    Args:
        description: what is done, in a few words.
        total: number of items; None if it is unknown how far the phase is: the time it takes so far
            is shown.
    """
    console = get_console()
    if not console.is_interactive or getattr(rank_zero_only, "rank", 0) != 0:
        yield lambda _: None
        return
    time = [TimeElapsedColumn()] if total is None else [MofNCompleteColumn(), TimeRemainingColumn()]
    columns = [TextColumn("{task.description}"), BarColumn(20), *time]
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(description, total=total)
    start = Timer(_DELAY, bar.start)
    start.daemon = True
    start.start()
    try:
        yield lambda count: bar.advance(task, count)
    finally:
        start.cancel()
        start.join()  # or the bar could appear after it was stopped
        bar.stop()


def count_down(remaining: Iterator[int], description: str) -> int:
    """Exhaust an iterator over how many items are still missing, and show a bar of them.

    Returns:
        How many were missing at the start.
    """
    total = missing = next(remaining)
    with progress_bar(description, total) as advance:
        for now in remaining:
            advance(missing - now)
            missing = now
    return total
