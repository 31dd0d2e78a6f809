"""``lit-adaptive inspect``: what a checkpoint holds, without running code of it."""

from pathlib import Path
from typing import get_args

from lit_adaptive.cli.errors import ShortErrorParser
from lit_adaptive.report.state import TableFormat, state_entries, write_state
from lit_adaptive.sharded import read_checkpoint


def inspect_parser() -> ShortErrorParser:
    """Parser of the command's arguments."""
    usage = "lit-adaptive inspect CHECKPOINT [--out FOLDER] [--format csv|parquet]"
    parser = ShortErrorParser(
        prog="lit-adaptive inspect",
        usage=usage,
        description="Show what a checkpoint holds of samplers, replay, predictors and callbacks.",
    )
    parser.add_argument("checkpoint", type=str, help="A file, or a folder of shards.")
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="Folder for tables of what it holds of each sample, and pictures of them.",
    )
    parser.add_argument(
        "--format", choices=get_args(TableFormat), default="csv", help="Format of the tables."
    )
    return parser


def inspect(arguments: list[str]) -> None:
    """Inspect as ``arguments`` say; an error ends the process with a short message."""
    parser = inspect_parser()
    options = parser.parse_args(arguments)
    try:
        checkpoint = read_checkpoint(options.checkpoint)
        entries = state_entries(checkpoint)
        width = max(len(entry.path) for entry in entries)
        for entry in entries:
            print(f"{entry.path:{width}}  {entry.kind:22}  {entry.value}")
        if options.out is not None:
            for file in write_state(checkpoint, Path(options.out), options.format):
                print(f"written: {file}")
    except (ValueError, OSError) as error:
        parser.error(str(error), error)
