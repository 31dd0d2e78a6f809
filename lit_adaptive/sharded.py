"""Checkpoints of one file or of shards (FSDP2), read without running code.

``torch.distributed.checkpoint`` reads ``.metadata`` with ``pickle``, and loads entries that are not
tensors (options of optimizers) without ``weights_only``: both can execute code. Here the metadata
may name only the classes that torch writes, and every other entry must load with ``weights_only``.
"""

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

METADATA = "meta.pt"
"""File of a sharded checkpoint that holds everything but the shards."""

_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError)
_WEIGHTS = ("state_dict.", "model.")
"""Prefixes of the weights' names in the shards of ModelParallelStrategy and FSDPStrategy."""

_CLASSES = {
    (metadata.__name__, name)
    for name in (
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex"),
        *("StorageMeta", "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
        "TensorProperties._MEM_FORMAT_ENCODING",
    )
} | {
    (filesystem.__name__, "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("torch", "device"),
    ("collections", "OrderedDict"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "Path")),
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        known = (module_name, global_name) in _CLASSES
        if not known and not _is_dtype(module_name, global_name):
            raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def _is_dtype(module: str, name: str) -> bool:
    return module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)


def check_sharded_checkpoint(folder: Path) -> None:
    """Raise unless a folder of shards holds tensors and Python primitives only.

    Args:
        folder: sharded checkpoint with ``.metadata``, the shards and possibly ``meta.pt``.

    Raises:
        pickle.UnpicklingError: if it refers to anything else.
        ValueError: if an entry lies outside of the folder.
        OSError: if a file is missing.
    """
    with (folder / ".metadata").open("rb") as file:
        index: Any = _MetadataUnpickler(file).load()
    for place, info in index.storage_data.items():
        shard = folder / info.relative_path
        if shard.resolve().parent != folder.resolve():
            raise ValueError(f"the entry {place.fqn} lies outside of it: {info.relative_path}")
        entry = index.state_dict_metadata.get(place.fqn)
        if isinstance(entry, metadata.BytesStorageMetadata):
            with shard.open("rb") as file:
                file.seek(info.offset)
                torch.load(io.BytesIO(file.read(info.length)), weights_only=True)
    if (folder / METADATA).is_file():
        torch.load(folder / METADATA, map_location="cpu", weights_only=True)


def check_sums(path: Path) -> None:
    """Raise unless every byte is as it was written; ``torch.load`` does not check it.

    Args:
        path: a checkpoint, or a folder of shards that ``check_sharded_checkpoint`` accepts. All of
            it is read.

    Raises:
        ValueError: if an entry has another CRC-32 than when it was written.
    """
    if not path.is_dir():
        _check_archive(path)
        return
    with (path / ".metadata").open("rb") as file:
        index: Any = _MetadataUnpickler(file).load()
    for info in index.storage_data.values():
        with (path / info.relative_path).open("rb") as file:
            file.seek(info.offset)
            _check_archive(io.BytesIO(file.read(info.length)))
    if (path / METADATA).is_file():
        _check_archive(path / METADATA)


def _check_archive(file: Path | IO[bytes]) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged header raises any exception
        raise ValueError(f"the archive is damaged: {error}") from error
    if damaged is not None:
        raise ValueError(f"{damaged} has changed since it was written")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Everything of a checkpoint but, of a sharded one, the state of the optimizers.

    Args:
        path: a file, or a folder of shards.

    Returns:
        The checkpoint, whose ``state_dict`` holds whole weights.

    Raises:
        ValueError: if there is no checkpoint, it cannot be read, or it holds objects other than
            tensors and Python primitives.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist: give the path of a checkpoint")
    try:
        if path.is_dir():
            check_sharded_checkpoint(path)
        check_sums(path)
        if path.is_dir():
            return _read_shards(path)
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} is not a checkpoint, is damaged, or holds more than tensors and Python "
            f"primitives, which weights-only loading rejects: choose another one ({reason})"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path} has no 'state_dict': give a checkpoint that a trainer saved")
    return cast("dict[str, Any]", checkpoint)


def _read_shards(folder: Path) -> dict[str, Any]:
    index = FileSystemReader(folder).read_metadata()
    weights = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in index.state_dict_metadata.items()
        if name.startswith(_WEIGHTS) and isinstance(entry, metadata.TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is.*")
        load(weights, checkpoint_id=folder, no_dist=True)
    rest: dict[str, Any] = torch.load(folder / METADATA, map_location="cpu", weights_only=True)
    state = {name.partition(".")[2]: weight for name, weight in weights.items()}
    return {**rest, "state_dict": state}
