"""``lit-adaptive report``: one HTML page about one or several runs."""

from pathlib import Path

from lit_adaptive import __version__
from lit_adaptive.cli.errors import ShortErrorParser
from lit_adaptive.report.page import write_page


def report_parser() -> ShortErrorParser:
    """Parser of the command's arguments."""
    usage = "lit-adaptive report RUN_DIRECTORY ... [--out FILE.html]"
    parser = ShortErrorParser(
        prog="lit-adaptive report",
        usage=usage,
        description="Write one HTML page about one or several runs, finished or not.",
    )
    parser.add_argument("runs", nargs="+", type=str, help="Run directories.")
    parser.add_argument(
        "--out", type=str, default="report.html", help="Page to write; figures go beside it."
    )
    return parser


def report(arguments: list[str]) -> None:
    """Report as ``arguments`` say; an error ends the process with a short message."""
    parser = report_parser()
    options = parser.parse_args(arguments)
    out = Path(options.out)
    if out.suffix != ".html":
        parser.error(f"out is {out}; it must end in .html")
    try:
        write_page([Path(path) for path in options.runs], out, __version__)
    except (ValueError, OSError) as error:
        parser.error(str(error), error)
    print(f"written: {out}")
