"""Replays on disk: written in full or not at all, read without running code from the file."""

from pathlib import Path
from typing import Any, cast

import torch


def save_state(state: dict[str, Any], path: str | Path) -> None:
    """Write ``state`` to ``path``; a file that is there is replaced only once all is written."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    torch.save(state, partial)
    partial.replace(target)


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote.

    Raises:
        OSError: if there is no such file, or it may not be read.
        ValueError: if it is damaged, or holds more than tensors and primitives.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise  # nothing is wrong with the file itself
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise ValueError(
            f"{path} is no replay that can be read: it is damaged, or holds more than tensors and "
            f"numbers (which is never loaded, since it could run code). {error}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not the state of a replay")
    return cast("dict[str, Any]", state)
