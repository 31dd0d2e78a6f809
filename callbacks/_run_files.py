"""Where the files of a run go, and JSON-lines files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from lit_adaptive.files import write_atomically


def run_directory(trainer: Trainer) -> Path:
    """Directory of the run's files. Broadcasts from rank 0: all ranks must call it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def csv_logger(trainer: Trainer) -> CSVLogger | None:
    """The first CSV logger."""
    return next((each for each in trainer.loggers if isinstance(each, CSVLogger)), None)


def image_loggers(trainer: Trainer) -> list[Logger]:
    """The loggers that take images."""
    return [each for each in trainer.loggers if isinstance(each, (WandbLogger, TensorBoardLogger))]


def log_image(logger: Logger, name: str, path: Path, step: int) -> None:
    """Log a PNG to one of the ``image_loggers``."""
    if isinstance(logger, WandbLogger):
        logger.log_image(key=name, images=[str(path)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        from matplotlib.image import imread

        writer: Any = logger.experiment
        writer.add_image(name, imread(path)[..., :3], step, dataformats="HWC")


def local_run_directory(trainer: Trainer) -> Path:
    """Directory of the CSV logger, or the root directory.

    Unlike ``run_directory`` it does not communicate: a single rank may call it, and so may hooks
    that run after an exception, when other ranks may not answer.
    """
    logger = csv_logger(trainer)
    return Path(trainer.default_root_dir if logger is None else logger.log_dir)


def sample_id(ids: Any, index: int) -> Any:
    """The id of a sample as a Python value; the index itself if ``ids`` is None."""
    value: Any = index if ids is None else ids[index]
    return value.item() if hasattr(value, "item") else value


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, UTF-8, atomically."""
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(jsonl(rows))


def jsonl(rows: Iterable[dict[str, Any]]) -> Iterable[str]:
    """Lines of a JSON-lines file.

    Tensors and NumPy values become Python values; other types, such as dates, become text.
    """
    return (json.dumps(row, ensure_ascii=False, default=_to_json) + "\n" for row in rows)


def _to_json(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
