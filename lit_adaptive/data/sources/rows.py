"""Rows of text from anywhere, in chunks: a file, a Hugging Face dataset, a table, a dataset.

Rows are counted from 0. Whatever the source, a chunk is a dictionary of lists, so what reads them
need not care, and a file may be larger than memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
from pyarrow import csv, parquet
from torch.utils.data import Dataset

from lit_adaptive.data.sources.columns import MapDataset
from lit_adaptive.data.sources.hub import load_hub

Chunk: TypeAlias = dict[str, list[Any]]
RowSource: TypeAlias = MapDataset | str | Path | Sequence[dict[str, Any]]
"""File, folder, hub name, list of dictionaries or map-style dataset that ``read_rows`` reads.

``Path`` keeps jsonargparse from replacing a path by the content of its file; ``MapDataset`` stands
first so that the command line can change one option of a dataset that a config names.
"""

CHUNK = 2048  # rows; few enough that a chunk of long texts fits in memory


class Rows(NamedTuple):
    """Where rows come from.

    Attributes:
        source: what errors call it.
        chunks: reads it from the start; each chunk has at most ``CHUNK`` rows, in order, the same
            columns as the others, and None where a value is missing.
        key: changes when the rows change; costs little for files, a pass over the rows otherwise.
    """

    source: str
    chunks: Callable[[], Iterator[Chunk]]
    key: Callable[[], str]


class HubRows(Dataset[dict[str, Any]]):
    """Rows of a Hugging Face dataset, from disk or the hub, with all of its columns.

    Needs ``pip install lit-adaptive[hub]``.

    Args:
        path: a folder that ``save_to_disk`` wrote, a folder of data, or a name on the hub.
        name: its configuration on the hub, if it has several.
        split: such as ``train`` or ``test``, on the hub also ``train[:10%]``.

    Raises:
        ModuleNotFoundError: if ``datasets`` is not installed.
        ValueError: if there is no such dataset or split.
    """

    def __init__(self, path: str, *, name: str | None = None, split: str = "train") -> None:
        self.dataset = load_hub(str(path), name, split)
        self.source = f"{path} ({split})"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.dataset[index]
        return row


def read_rows(source: Any) -> Rows:
    """The rows of ``source``.

    Args:
        source: path of a ``.jsonl``, ``.csv`` or ``.parquet`` file; another string is a Hugging
            Face folder or name (its split ``train``). Or an object: a ``HubRows``, a
            ``datasets.Dataset``, an Arrow table or what has one as ``table`` (``Arithmetic``), or
            a map-style dataset or list of dictionaries.

    Raises:
        ValueError: if there is no such file or dataset, it is of another kind, or its items are no
            dictionaries.
    """
    if isinstance(source, (str, Path)):
        read = _READERS.get(Path(source).suffix.lower())
        return _of_hub(HubRows(str(source))) if read is None else _of_file(Path(source), read)
    if isinstance(source, HubRows):
        return _of_hub(source)
    table: Any = source if isinstance(source, pa.Table) else getattr(source, "table", None)
    name = str(getattr(source, "source", type(source).__name__))
    if isinstance(table, pa.Table):
        return _of_chunks(name, lambda: _of_batches([table]))
    if hasattr(source, "with_format") and hasattr(source, "_fingerprint"):
        return _of_datasets(source, name)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return _of_chunks(name, lambda: _of_items(source, name))
    raise ValueError(
        f"rows cannot be read from a {type(source).__name__}; give a .jsonl, .csv or .parquet "
        "file, a Hugging Face dataset, or a map-style dataset of dictionaries"
    )


def _of_chunks(name: str, chunks: Callable[[], Iterator[Chunk]]) -> Rows:
    return Rows(name, chunks, lambda: _digest(chunks()))


def _of_file(file: Path, read: Callable[[Path], Iterator[Chunk]]) -> Rows:
    if not file.is_file():
        raise ValueError(f"{file} is not there, or no file; give the path of a file that exists")

    def chunks() -> Iterator[Chunk]:
        try:
            yield from read(file)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} cannot be read as {file.suffix}: {error}") from error

    def key() -> str:
        facts = file.stat()
        return f"{file.resolve()} {facts.st_size} {facts.st_mtime_ns}"

    return Rows(str(file), chunks, key)


def _jsonl(file: Path) -> Iterator[Chunk]:
    """Columns are those of all rows of a chunk; a row may leave some out."""
    rows: list[dict[str, Any]] = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of {file} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of {file} is no JSON object but {line.strip()!r}")
            rows.append(row)
            if len(rows) == CHUNK:
                yield _columns(rows)
                rows = []
    if rows:
        yield _columns(rows)


def _columns(rows: list[dict[str, Any]]) -> Chunk:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _csv(file: Path) -> Iterator[Chunk]:
    """All columns as strings; those that are numbers throughout are told later."""

    def opened(types: dict[str, Any]) -> Any:
        return csv.open_csv(
            file,
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=types),
        )

    with opened({}) as reader:
        names = reader.schema.names
    with opened(dict.fromkeys(names, pa.string())) as reader:
        yield from _of_batches(reader)


def _parquet(file: Path) -> Iterator[Chunk]:
    with parquet.ParquetFile(file, memory_map=True) as opened:
        yield from _of_batches(opened.iter_batches(CHUNK))


def _of_batches(batches: Iterable[Any]) -> Iterator[Chunk]:
    """Of tables or batches of any size."""
    for batch in batches:
        for start in range(0, batch.num_rows, CHUNK):
            yield batch.slice(start, CHUNK).to_pydict()


_READERS: dict[str, Callable[[Path], Iterator[Chunk]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def _of_hub(rows: HubRows) -> Rows:
    return _of_datasets(rows.dataset, rows.source)


def _of_datasets(dataset: Any, name: str) -> Rows:
    def chunks() -> Iterator[Chunk]:
        for batch in dataset.with_format("arrow").iter(CHUNK):
            yield batch.to_pydict()

    return Rows(name, chunks, lambda: str(dataset._fingerprint))


def _of_items(items: Any, name: str) -> Iterator[Chunk]:
    for start in range(0, len(items), CHUNK):
        rows = [items[i] for i in range(start, min(start + CHUNK, len(items)))]
        odd = [start + i for i, row in enumerate(rows) if not isinstance(row, dict)]
        if odd:
            kind = type(rows[odd[0] - start]).__name__
            raise ValueError(
                f"row {odd[0]} of {name} is a {kind}; rows are dictionaries of columns"
            )
        yield _columns(rows)


def _digest(chunks: Iterable[Chunk]) -> str:
    digest = hashlib.blake2b()
    for chunk in chunks:
        digest.update(repr(chunk).encode())
    return digest.hexdigest()
