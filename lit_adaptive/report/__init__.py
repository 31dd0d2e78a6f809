"""Figures and tables of a run. matplotlib is imported only to draw."""

from lit_adaptive.report.comparison import (
    Comparison,
    ConfigResult,
    Curve,
    compare_runs,
    markdown,
    read_curve,
)
from lit_adaptive.report.curves import draw_learning_curve, learning_curve, read_series
from lit_adaptive.report.page import write_page
from lit_adaptive.report.samples import (
    SampleRecord,
    draw_sample_report,
    probability_histogram,
    write_sample_table,
)
from lit_adaptive.report.state import StateEntry, state_entries, state_tables, write_state
from lit_adaptive.report.statistics import Estimate, PairedTest

__all__ = [
    "Comparison",
    "ConfigResult",
    "Curve",
    "Estimate",
    "PairedTest",
    "SampleRecord",
    "StateEntry",
    "compare_runs",
    "draw_learning_curve",
    "draw_sample_report",
    "learning_curve",
    "markdown",
    "probability_histogram",
    "read_curve",
    "read_series",
    "state_entries",
    "state_tables",
    "write_page",
    "write_sample_table",
    "write_state",
]
