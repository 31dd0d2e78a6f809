"""One reader of rows: files, folders, the Hugging Face hub, lists and map-style datasets.

Everything becomes a ``datasets.Dataset``: files are converted to Arrow once, cached under
``HF_DATASETS_CACHE`` and memory-mapped. A row that lacks a column holds None there. The values of a
CSV file stay strings; those of a JSON file are never parsed as dates.
"""

import hashlib
import json
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_adaptive.data.sources.columns import (
    Ids,
    MapDataset,
    check_rows,
    ids_from_arrow,
    is_numeric,
    parse_numbers,
    to_float64,
    validated_ids,
)

RowSource: TypeAlias = MapDataset | str | Path | Sequence[dict[str, Any]]
"""File, folder, hub name, list of dictionaries or map-style dataset that ``load_rows`` reads.

``Path`` keeps jsonargparse from replacing a path by the content of its file; ``MapDataset`` stands
first so that the command line can change one option of a dataset that a config names.
"""

_BUILDERS = {
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_JSON_CHUNK = 1 << 26  # bytes of a JSON file from which `datasets` infers the types


class Rows(NamedTuple):
    """Rows as a Hugging Face dataset.

    Attributes:
        dataset: ``datasets.Dataset``.
        source: name of the rows in errors.
        key: changes whenever the rows change.
        in_memory: whether the rows are held in memory rather than in Arrow files.
        untyped: whether all values are strings because the format has no types (CSV).
    """

    dataset: Any
    source: str
    key: str
    in_memory: bool = False
    untyped: bool = False

    def take(self, rows: Any, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The named columns of the rows ``[n]`` int64, one dictionary for each row."""
        if not columns:
            return [{} for _ in rows]
        values = self.dataset.select_columns([*columns])[rows]
        by_row = zip(*(values[name] for name in columns), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in by_row]

    def column(self, name: str) -> Any:
        """One column as an Arrow array; values of several types as JSON."""
        return self.dataset.select_columns([name]).with_format("arrow")[:][name]

    def check_present(self, columns: Sequence[str]) -> None:
        """Raise a ValueError that names the rows in which one of ``columns`` is missing."""
        for name in columns:
            values, where = self.column(name), f"{name} in {self.source}"
            check_rows(values.is_null().to_pylist(), where, "is missing", values)


def numeric_column(rows: Rows, name: str) -> Tensor:
    """A column of numbers, or of strings that are all numbers: ``[N]`` float64, NaN where missing.

    Raises:
        ValueError: if there is no such column, or it is not numeric.
    """
    names = rows.dataset.column_names
    values = to_float64(parse_numbers(rows.column(name))) if name in names else None
    if values is None:
        numeric = [
            column for column in names if is_numeric(parse_numbers(rows.column(column)).type)
        ]
        raise ValueError(
            f"{rows.source} has no column {name!r} of numbers; its numeric columns are {numeric}"
        )
    return values


def row_ids(rows: Rows, column: str | None, kept: Any) -> Ids:
    """Ids of the rows ``kept`` ``[n]`` int64: a column, or the row numbers if it is None."""
    if column is None:
        return torch.from_numpy(kept)
    from datasets import Json

    where = f"{column} in {rows.source}"
    if isinstance(rows.dataset.features[column], Json):  # values of several types
        values = rows.dataset[column][:]
        kind = "an integer" if isinstance(values[0], int) else "a string"
        bad = [type(value) is not type(values[0]) for value in values]
        check_rows(bad, where, f"is missing or not {kind}, as in the first row,", values)
    ids = rows.column(column).take(pa.array(kept))
    return ids_from_arrow(validated_ids(ids, where, parse_integers=rows.untyped))


class HubRows(Dataset[dict[str, Any]]):
    """Rows of a Hugging Face dataset or of files, with all columns.

    Args:
        path: file (``.csv``, ``.jsonl``, ``.json``, ``.parquet`` or ``.arrow``, optionally
            compressed), glob pattern, folder of files, folder that ``save_to_disk`` wrote, or name
            on the hub, which is downloaded once and then read offline.
        name: configuration of a dataset that has several.
        split: such as ``train`` or ``test``, also a part such as ``train[:10%]``. A folder that
            ``save_to_disk`` wrote of a dataset without a named split has any split.

    Raises:
        ValueError: if there is no such dataset or split, or a file cannot be read.
    """

    def __init__(self, path: str, *, name: str | None = None, split: str = "train") -> None:
        self.rows = _load(str(path), name, split)
        self.source = self.rows.source

    def __len__(self) -> int:
        return len(self.rows.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows.dataset[index]
        return row


def load_rows(source: Any) -> Rows:
    """The rows of ``source``, at least one.

    Args:
        source: a string or path as ``HubRows`` takes it (split ``train``); or a ``HubRows``, a
            ``datasets.Dataset``, an Arrow table, an object with one as its attribute ``table``
            (``Arithmetic``), or a map-style dataset or iterable of dictionaries.

    Raises:
        ValueError: if there is no such file or dataset, it has no rows, or its items are not
            dictionaries.
    """
    rows = _rows_of(source)
    if len(rows.dataset) == 0:
        raise ValueError(f"{rows.source} has no rows; it must have at least one")
    return rows


def _rows_of(source: Any) -> Rows:
    from datasets import Dataset as ArrowDataset

    if isinstance(source, str | Path):
        return _load(str(source), None, "train")
    if isinstance(source, HubRows):
        return source.rows
    name = str(getattr(source, "source", type(source).__name__))
    if isinstance(source, ArrowDataset):
        arrow_dataset: Any = source
        return Rows(
            source, name, arrow_dataset._fingerprint, in_memory=not arrow_dataset.cache_files
        )
    table: Any = source if isinstance(source, pa.Table) else getattr(source, "table", None)
    if not isinstance(table, pa.Table) and isinstance(source, dict):
        raise ValueError(f"rows cannot be read from a {name}; choose one of its splits")
    if isinstance(table, pa.Table):
        from datasets.table import InMemoryTable

        dataset: Any = ArrowDataset(InMemoryTable(table))
    else:
        dataset = _from_items(_checked_items(_items(source, name), name))
    return Rows(dataset, name, dataset._fingerprint, in_memory=True)


def _from_items(items: Iterable[dict[str, Any]]) -> Any:
    """Dictionaries as a ``datasets.Dataset``, with None where one lacks a column."""
    from datasets import Dataset as ArrowDataset
    from datasets import Json

    rows = list(items)
    names = dict.fromkeys(column for row in rows for column in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    features: Any = ArrowDataset.from_dict(columns, on_mixed_types="use_json").features
    mixed = [name for name, feature in features.items() if _holds_json(feature)]
    for name in mixed:  # encoded here, for `datasets` would take strings for JSON
        columns[name] = [
            None if value is None else json.dumps(value, default=_plain) for value in columns[name]
        ]
    dataset: Any = ArrowDataset.from_dict(columns)
    for name in mixed:
        dataset = dataset.cast_column(name, Json())
    return dataset


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # of numpy or torch
        return value.tolist()
    return str(value)


def _holds_json(feature: Any) -> bool:
    """Whether a column holds values of several types, at any depth."""
    from datasets import Json

    if isinstance(feature, dict):
        return any(map(_holds_json, feature.values()))
    if isinstance(feature, list):
        return _holds_json(feature[0])
    return isinstance(feature, Json) or _holds_json(getattr(feature, "feature", []) or {})


def _items(source: Any, name: str) -> Iterable[Any]:
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return (source[i] for i in range(len(source)))
    if isinstance(source, Iterable):
        return source
    raise ValueError(
        f"rows cannot be read from a {name}; give a .jsonl, .csv or .parquet file, a Hugging Face "
        "dataset, or a list or map-style dataset of dictionaries"
    )


def _checked_items(items: Iterable[Any], name: str) -> list[dict[str, Any]]:
    rows = list(items)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(
                f"row {number} of {name} is a {type(row).__name__}; rows are dictionaries of "
                "columns"
            )
    return rows


# Files, folders and the hub --------------------------------------------------------------------


@contextmanager
def quiet_datasets() -> Generator[None]:
    """No progress bars, log messages or requests that count downloads; failures are raised."""
    import datasets
    from datasets import config

    logging: Any = datasets.utils.logging
    verbosity, bars = logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    counts = config.HF_UPDATE_DOWNLOAD_COUNTS
    config.HF_UPDATE_DOWNLOAD_COUNTS = False
    logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        if bars:
            datasets.enable_progress_bars()


def _load(path: str, name: str | None, split: str) -> Rows:
    import datasets

    dataset: Any
    file = Path(path)
    if _module(path) and file.is_file() and file.stat().st_size == 0:
        raise ValueError(f"{path} is empty and has no rows; it must have at least one")
    saved = any((file / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    try:
        with quiet_datasets():
            if saved:
                dataset = _named_split(datasets.load_from_disk(path), split, path)
            elif _module(path) or has_magic(path) or file.exists():
                return _load_files(path, name, split)
            elif path.startswith((".", "/", "~")) or path.count("/") > 1:
                raise FileNotFoundError("there is no such file or folder")
            else:
                dataset = datasets.load_dataset(path, name, split=split)
    except Exception as error:  # readers of formats raise what they like
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(_explanation(path, error)) from error
    return Rows(dataset, f"{path} ({split})", dataset._fingerprint)


def _module(path: str) -> str | None:
    """The reader of ``datasets`` for a file or pattern, by its suffix."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    while suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return _BUILDERS.get(suffixes[-1]) if suffixes else None


def _load_files(path: str, name: str | None, split: str) -> Rows:
    """Files of this machine, cached apart for each state of the files."""
    import datasets
    from datasets import config

    folder = Path(path).is_dir()
    module = None if folder else _module(path)
    if not folder and module is None:
        raise ValueError(f"{path} ends in {Path(path).suffix!r}; it must be one of {[*_BUILDERS]}")
    if not folder and not has_magic(path) and not Path(path).is_file():
        raise FileNotFoundError("there is no such file")
    key = _state(path)
    arguments: dict[str, Any] = {
        "path": path if module is None else module,
        "name": name,
        "data_files": None if module is None else path,
        "cache_dir": str(Path(config.HF_DATASETS_CACHE) / "lit_adaptive" / key),
    }

    def build(**options: Any) -> Any:
        builder = datasets.load_dataset_builder(**arguments, **options)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)

    kind: Any = datasets.load_dataset_builder(**arguments)
    reader = type(kind).__module__.rpartition(".")[2]  # such as datasets.packaged_modules.csv.csv
    if reader == "csv":
        from pandas.errors import ParserWarning

        strings = _strings(kind.config.data_files)
        with warnings.catch_warnings(action="error", category=ParserWarning):  # a long row
            dataset = build(features=strings, keep_default_na=False, index_col=False)
    elif reader == "json":
        options = {"chunksize": _JSON_CHUNK, "parse_agent_traces": False}
        dataset = build(**options)
        if split in kind.config.data_files and _is_altered(dataset.features):
            dataset = _from_items(_json_items(kind.config.data_files[split]))
    else:
        dataset = build()
    return Rows(
        dataset,
        f"{path} ({split})" if folder else path,
        f"{dataset._fingerprint}-{key}",
        in_memory=not dataset.cache_files,
        untyped=reader == "csv",
    )


def _state(path: str) -> str:
    """Changes with any change of a file: `datasets` goes by its path and modification time alone.

    The time of the last change of a file's status cannot be set back, unlike that of its content.
    """
    root = Path(path)
    if root.is_dir():
        files = sorted(file for file in root.rglob("*") if file.is_file())
    else:
        matches = glob(path, recursive=True) if has_magic(path) else [path]  # noqa: PTH207
        files = [Path(file) for file in sorted(matches)]
    facts: list[Any] = [(str(file.resolve()), *_facts(file)) for file in files]
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _facts(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _strings(data_files: Any) -> Any:
    """Features of a CSV file of which no value is parsed."""
    import csv

    import datasets

    first = next(iter(data_files.values()))[0]
    with _opened(first) as lines:
        names = next(csv.reader(lines), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"more than one column is named {twice}; rename them")
    return datasets.Features({name: datasets.Value("string") for name in names})


def _is_altered(features: Any) -> bool:
    """Whether the JSON reader of ``datasets`` 5 may have changed strings of some column.

    It parses dates, and in a column of several types it reads the string "7" as a number.
    """
    dates = any(pa.types.is_temporal(field.type) for field in features.arrow_schema)
    return dates or any(map(_holds_json, features.values()))


def _json_items(files: Iterable[str]) -> Iterator[Any]:
    for file in files:
        with _opened(file) as lines:
            text = lines.read()
        if text.lstrip().startswith("["):
            yield from json.loads(text)
        else:
            yield from map(json.loads, filter(str.strip, text.splitlines()))


@contextmanager
def _opened(file: str) -> Generator[Any]:
    import fsspec

    with fsspec.open(file, "rt", compression="infer", newline="", encoding="utf-8-sig") as lines:
        yield lines


def _named_split(loaded: Any, split: str, path: str) -> Any:
    splits = [*loaded] if isinstance(loaded, dict) else [str(loaded.split or split)]
    if split not in splits:
        raise ValueError(f"{path} has no split {split!r}; its splits are {splits}")
    return loaded[split] if isinstance(loaded, dict) else loaded


def _explanation(path: str, error: Exception) -> str:
    if ".jsonl" in Path(path).suffixes and Path(path).is_file():
        line = _bad_line(path)
        if line is not None:
            return line
    cause = error
    while cause.__cause__ is not None and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    if "corresponds to no data" in str(cause):
        return f"{path} has no rows; it must have at least one"
    if _module(path) is not None and Path(path).exists():
        message = f"{path} cannot be read as {''.join(Path(path).suffixes)}: {cause}"
        if _module(path) == "json":
            message += (
                f"; if a column changes its type after the first {_JSON_CHUNK >> 20} MiB, or "
                "begins there, write the file as .parquet"
            )
        return message
    if _module(path) is not None and not has_magic(path):
        return f"{path} is not there: give the path of a file, a glob pattern or a folder"
    return (
        f"{path!r} cannot be loaded: it must be a file, a glob pattern, a folder of files, a "
        "folder that save_to_disk wrote, or a name on the Hugging Face hub. "
        f"{type(cause).__name__}: {cause}"
    )


def _bad_line(path: str) -> str | None:
    """The first line of a JSON Lines file that is not an object; None if all are."""
    empty = True
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            empty = False
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                return f"line {number} of {path} is not JSON: {error}"
            if not isinstance(row, dict):
                return f"line {number} of {path} is not a JSON object but {line.strip()!r}"
    return f"{path} has no rows; it must have at least one" if empty else None
