"""Validation of sharded checkpoints before anything of them is loaded.

``torch.distributed.checkpoint`` reads ``.metadata`` with ``pickle``, and loads entries that are not
tensors (options of optimizers) without ``weights_only``: both can execute code. Here the metadata
may name only the classes that torch writes, and every other entry must load with ``weights_only``.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata

from lit_adaptive.cli.checkpoints import METADATA

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
