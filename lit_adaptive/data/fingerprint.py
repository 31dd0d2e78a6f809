"""Fingerprints of training data, by which a resumed run recognizes that its data changed.

A hash of each row and column is reduced to one of each column's blocks of rows, which tells where
data differ, and to a sum over the rows, which tells whether they are only in another order.
"""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from lit_adaptive.data.seeding import seeded
from lit_adaptive.data.sources.columns import MapDataset, is_numeric, is_text
from lit_adaptive.data.sources.rows import HubRows, load_rows

Hashes = npt.NDArray[np.uint64]

_BLOCKS = 64  # of a column
_SAMPLED = 32  # items of a dataset that does not say what it holds
_CHUNK = 10_000  # rows hashed at once


def data_fingerprint(dataset: MapDataset) -> dict[str, Any]:
    """What ``data_changes`` compares: the number of rows, and hashes of each column.

    Args:
        dataset: its method ``content`` returns its columns (name and values). Of datasets without
            it, the scalar columns (``datasets``), the attribute ``targets`` and 32 items are read;
            items that are random are left out.
    """
    size = len(dataset)  # type: ignore[arg-type]
    columns: dict[str, list[str]] = {}
    whole: list[Hashes] = []
    for name, hashes in _column_hashes(dataset):
        blocks = np.array_split(hashes, min(_BLOCKS, len(hashes)))
        columns[name] = [_digest(block.tobytes()) for block in blocks]
        if len(hashes) == size:
            whole.append(hashes)
    rows = functools.reduce(lambda row, hashes: _mixed(row) + hashes, whole) if whole else None
    total = None if rows is None else str(_mixed(rows).sum(dtype=np.uint64))
    return {"size": size, "columns": columns, "rows": total}


def data_changes(saved: dict[str, Any], current: dict[str, Any]) -> str | None:
    """How the data of two fingerprints differ; None if they do not, columns of one aside."""
    if saved["size"] != current["size"]:
        return f"there are {current['size']} rows, and were {saved['size']}"
    old, new = saved["columns"], current["columns"]
    changed = [name for name in old if name in new and old[name] != new[name]]
    if not changed:
        return None
    if saved["rows"] == current["rows"] is not None:
        return "the rows are in another order"
    blocks = list(zip(old[changed[0]], new[changed[0]], strict=True))
    block = next(i for i, (before, now) in enumerate(blocks) if before != now)
    bounds = np.array_split(np.arange(saved["size"]), len(blocks))[block]
    return f"{', '.join(changed)} changed, first in rows {bounds[0]} to {bounds[-1]} (from 0)"


def _column_hashes(dataset: Any) -> Iterator[tuple[str, Hashes]]:
    """A hash of each row by column; of sampled rows for ``items``."""
    if hasattr(dataset, "content"):
        for name, values in dataset.content():
            yield name, row_hashes(values)
        return
    if isinstance(dataset, HubRows) or hasattr(dataset, "select_columns"):
        rows = load_rows(dataset)
        for field in rows.dataset.features.arrow_schema:
            if is_numeric(field.type) or is_text(field.type):
                yield field.name, row_hashes(rows.column(field.name))
    targets = getattr(dataset, "targets", None)
    if targets is not None and len(targets) == len(dataset):
        yield "targets", row_hashes(targets)
    digests = [_item_digest(dataset, i) for i in _evenly_spaced(len(dataset))]
    if None not in digests:
        yield "items", row_hashes(digests)


def row_hashes(values: Any) -> Hashes:
    """A hash of each row: ``[N]`` uint64.

    Args:
        values: tensor or array ``[N, ...]``, Arrow column or list.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype.is_floating_point else values).numpy()
    if isinstance(values, np.ndarray) and values.dtype != object:
        return _array_hashes(values)
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        return _object_hashes(list(values))
    column: Any = values
    if pa.types.is_temporal(column.type):  # Python's dates end with the year 9999
        column = column.cast(pa.int64() if column.type.bit_width == 64 else pa.int32())
    pieces = [column.slice(start, _CHUNK) for start in range(0, len(column), _CHUNK)]
    if is_numeric(column.type) and not pa.types.is_decimal(column.type):
        arrays = [np.asarray(piece.to_numpy(zero_copy_only=False)) for piece in pieces]
        return np.concatenate([_array_hashes(array.astype(np.float64)) for array in arrays])
    return np.concatenate([_object_hashes(piece.to_pylist()) for piece in pieces])


def _array_hashes(values: npt.NDArray[Any]) -> Hashes:
    octets = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    padded = np.zeros((_CHUNK, -(-octets.shape[1] // 8) * 8), np.uint8)
    factors = np.random.default_rng(0).integers(1, 2**63, padded.shape[1] // 8, np.uint64)
    hashes: list[Hashes] = []
    for start in range(0, len(octets), _CHUNK):
        piece = octets[start : start + _CHUNK]
        padded[: len(piece), : piece.shape[1]] = piece
        hashes.append(_mixed(padded[: len(piece)].view(np.uint64) @ (2 * factors + 1)))
    return np.concatenate(hashes)


def _object_hashes(values: list[Any]) -> Hashes:
    texts = [value if isinstance(value, str) else repr(value) for value in values]
    digests = (
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in texts
    )
    return np.frombuffer(b"".join(digests), np.uint64)


def _mixed(hashes: Hashes) -> Hashes:
    """Hashes whose sums do not cancel (the finalizer of SplitMix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _evenly_spaced(size: int) -> list[int]:
    return sorted({*np.linspace(0, size - 1, _SAMPLED).astype(int).tolist()})


def _item_digest(dataset: Any, index: int) -> str | None:
    """A digest of an item's numbers, texts, arrays and images; None if it is random."""
    digests: list[str] = []
    for _ in range(2):
        with seeded(index):
            digests.append(_digest(b"".join(_octets(dataset[index]))))
    return digests[0] if digests[0] == digests[1] else None


def _octets(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield str(name).encode()
            yield from _octets(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _octets(item)
    elif isinstance(value, Tensor):
        yield row_hashes(value.reshape(1, -1)).tobytes() if value.numel() else b""
    elif isinstance(value, str | bytes | int | float | np.ndarray | np.generic):
        yield value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
    elif hasattr(value, "tobytes"):  # a PIL image
        yield value.tobytes()


def _digest(octets: bytes) -> str:
    return hashlib.blake2b(octets, digest_size=6).hexdigest()
