"""Files that are written completely or not at all, and states read without running code."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch


@contextmanager
def write_atomically(path: str | Path) -> Generator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``.

    The bytes are on the disk before the rename, so ``path`` holds either the old content or all of
    the new. If the block raises, the temporary file is removed and ``path`` is unchanged. Missing
    parent folders are created.

    Args:
        path: the file to write or replace.

    Raises:
        OSError: if the folder is not writable or the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".partial")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def save_state(state: dict[str, Any], path: str | Path) -> None:
    """Write a ``state_dict`` to ``path``, atomically."""
    with write_atomically(path) as temporary:
        torch.save(state, temporary)


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a file of ``save_state``.

    Raises:
        OSError: if the file is missing or not readable.
        ValueError: if it is damaged, or holds anything but tensors and Python primitives.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # a damaged pickle raises any exception
        raise ValueError(
            f"{path} is damaged, or holds objects other than tensors and numbers, which are never "
            f"loaded because they could run code; use another checkpoint. {error}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a replay's state_dict")
    return cast("dict[str, Any]", state)
