"""``lit-adaptive export``: from a checkpoint to what transformers, peft and vLLM load."""

from lit_adaptive.cli.errors import ShortErrorParser
from lit_adaptive.modules.language.export import export_checkpoint
from lit_adaptive.modules.language.recipes import DTypeName


def export_parser() -> ShortErrorParser:
    """Parser of the command's arguments."""
    usage = "lit-adaptive export CHECKPOINT FOLDER [--merge] [--dtype DTYPE]"
    parser = ShortErrorParser(
        prog="lit-adaptive export",
        usage=usage,
        description="Write the language model of a checkpoint for transformers, peft and vLLM.",
    )
    parser.add_argument("checkpoint", help="Checkpoint of IWSFT or GRPO: a file or a folder.")
    parser.add_argument("folder", help="New or empty folder to write to.")
    parser.add_argument(
        "--merge", action="store_true", help="Add the LoRA to the weights; else write an adapter."
    )
    parser.add_argument(
        "--dtype",
        type=DTypeName | None,
        default=None,
        help="Data type of the weights; by default that of the checkpoint.",
    )
    return parser


def export(arguments: list[str]) -> None:
    """Export as ``arguments`` say; an error ends the process with a short message."""
    parser = export_parser()
    options = parser.parse_args(arguments)
    try:
        export_checkpoint(
            options.checkpoint, options.folder, merge=options.merge, dtype=options.dtype
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error), error)
    print(f"exported: {options.folder}")
