"""Rows that all ranks found, as one JSON line each."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from lit_adaptive.files import write_atomically


def gathered_rows(rows: list[Any], trainer: Trainer) -> list[Any]:
    """The rows of all ranks, one rank after another, on every rank. All ranks must ask."""
    if trainer.world_size == 1:
        return rows
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, rows)
    return list(chain(*parts))


def run_directory(trainer: Trainer) -> Path:
    """Where the run's files are. All ranks must ask."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def folder_of_logs(trainer: Trainer) -> Path:
    """Where the CSV logger writes, else the root; asks no other rank, so that one may ask alone."""
    folder = Path(trainer.default_root_dir)
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            folder = Path(logger.log_dir)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line, UTF-8; the file is whole or not there."""
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """Tensors and numpy's numbers as Python's; anything else, such as a date, as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
