"""One reader of rows: files, folders, the Hugging Face hub, lists and map-style datasets.

Everything becomes a ``datasets.Dataset``: files are converted to Arrow once, cached under
``HF_DATASETS_CACHE`` and memory-mapped. A row that lacks a column holds None there. The values of a
CSV file stay strings; those of a JSON file are never parsed as dates.
"""

import codecs
import hashlib
import io
import json
import re
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_adaptive.data.sources.columns import (
    Ids,
    MapDataset,
    check_numbers,
    check_rows,
    ids_from_arrow,
    is_numeric,
    parse_numbers,
    to_float64,
    validated_ids,
)
from lit_adaptive.rollout.models.hub import hub_access

if TYPE_CHECKING:
    RowList: TypeAlias = Sequence[dict[str, Any]]
else:  # jsonargparse takes a bad option of a dataset for the only row of a Sequence
    RowList = tuple[dict[str, Any], ...]

RowSource: TypeAlias = MapDataset | str | Path | RowList
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
    ".tsv": "csv",
}
_NO_SPLIT = ("Unknown split", "Unrecognized instruction")  # errors of `datasets`
_DELIMITERS = ",;\t|"
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_HALF_PAIR = re.compile(  # also found where a pair is cut between two blocks
    rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]", re.DOTALL
)
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
        try:
            values = self.dataset.select_columns([*columns])[rows]
        except (OverflowError, ValueError):  # Python's dates end with the year 9999
            values = {name: self._take_column(rows, name) for name in columns}
        by_row = zip(*(values[name] for name in columns), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in by_row]

    def _take_column(self, rows: Any, name: str) -> list[Any]:
        """The values of a column, with the integer of each date that Python has not."""
        one = self.dataset.select_columns([name])
        if not pa.types.is_temporal(one.features.arrow_schema.field(name).type):
            values: list[Any] = one[rows][name]
            return values
        return [_date_or_integer(value) for value in one.with_format("arrow")[rows][name]]

    def column(self, name: str) -> Any:
        """One column as an Arrow array; values of several types as JSON."""
        return self.dataset.select_columns([name]).with_format("arrow")[:][name]

    def content(self, kept: Any) -> Iterator[tuple[str, Any]]:
        """Each column of the rows ``kept`` ``[n]`` int64, as an Arrow array."""
        everything = np.array_equal(kept, np.arange(len(self.dataset)))
        for name in self.dataset.column_names:
            column = self.column(name)
            yield name, column if everything else column.take(pa.array(kept))

    def check_present(self, columns: Sequence[str]) -> None:
        """Raise a ValueError that names the rows in which one of ``columns`` is missing."""
        for name in columns:
            values, where = self.column(name), f"{name} in {self.source}"
            check_rows(values.is_null().to_pylist(), where, "is missing", values)


def _date_or_integer(value: Any) -> Any:
    try:
        return value.as_py()
    except (OverflowError, ValueError):
        return value.value


def numeric_column(rows: Rows, name: str) -> Tensor:
    """A column of numbers, or of strings that are all numbers: ``[N]`` float64, NaN where missing.

    Raises:
        ValueError: if there is no such column, or it is not numeric (naming the rows, if others
            hold numbers).
    """
    names = rows.dataset.column_names
    column = _unquoted(rows, name) if name in names else None
    values = None if column is None else to_float64(parse_numbers(column))
    if values is not None:
        return values
    if column is not None:
        check_numbers(column, f"{name} in {rows.source}")
    numeric = [each for each in names if is_numeric(parse_numbers(rows.column(each)).type)]
    raise ValueError(
        f"{rows.source} has no column {name!r} of numbers; its numeric columns are {numeric}"
    )


def _unquoted(rows: Rows, name: str) -> Any:
    """A column as an Arrow array, with the digits of numbers among values of several types."""
    from datasets import Json

    if not isinstance(rows.dataset.features[name], Json):
        return rows.column(name)
    values = rows.dataset[name][:]
    return pa.array([None if value is None else str(value) for value in values], pa.large_string())


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
        path: file (``.csv``, ``.tsv``, ``.jsonl``, ``.json``, ``.parquet`` or ``.arrow``,
            optionally compressed, texts in UTF-8), glob pattern, folder of files, folder that
            ``save_to_disk`` wrote, or name on the hub, which is downloaded once and then read
            offline. A row of a file that lacks a column of other files holds None there. The
            delimiter of a ``.csv`` file whose header has no comma may be a semicolon, tab or bar.
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
        return self.rows.take([index], self.rows.dataset.column_names)[0]


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
    default = "list" if isinstance(source, list | tuple) else type(source).__name__
    name = str(getattr(source, "source", default))
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
        dataset = _from_items(_checked_items(_items(source, name), name), name)
    return Rows(dataset, name, dataset._fingerprint, in_memory=True)


def _from_items(items: Iterable[dict[str, Any]], source: str) -> Any:
    """Dictionaries as a ``datasets.Dataset``, with None where one lacks a column."""
    rows = list(items)
    names = dict.fromkeys(column for row in rows for column in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        return _to_arrow(columns)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        pass  # such as tuples or arrays beside lists
    columns = {name: _without_arrays(values) for name, values in columns.items()}
    for name, values in columns.items():
        try:
            _to_arrow({name: values})
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            for number, value in enumerate(values):
                _check_text(value, f"row {number} (from 0) of {source}, {name}")
            raise ValueError(f"{name} in {source} cannot be stored: {error}") from error
    return _to_arrow(columns)


def _to_arrow(columns: dict[str, list[Any]]) -> Any:
    from datasets import Dataset as ArrowDataset
    from datasets import Json

    features: Any = ArrowDataset.from_dict(columns, on_mixed_types="use_json").features
    mixed = [name for name, feature in features.items() if _holds_json(feature)]
    columns = columns | {  # encoded here, for `datasets` would take strings for JSON
        name: [
            None if value is None else json.dumps(value, default=_plain) for value in columns[name]
        ]
        for name in mixed
    }
    dataset: Any = ArrowDataset.from_dict(columns)
    for name in mixed:
        dataset = dataset.cast_column(name, Json())
    return dataset


def _without_arrays(value: Any) -> Any:
    """``value`` with lists for tuples and arrays, at any depth."""
    if isinstance(value, dict):
        return {name: _without_arrays(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(item) for item in value]
    return _without_arrays(value.tolist()) if hasattr(value, "shape") else value


def _check_text(value: Any, where: str) -> None:
    """Raise a ValueError if a value holds half of a surrogate pair, which Arrow cannot store."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: the text holds {error.object[error.start]!r}, half of a surrogate pair and "
            "no character: remove it, or write U+FFFD instead"
        ) from error


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
    if path in ("", "."):
        raise ValueError("the source is '', or the current folder: give the path of a file")
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
                with hub_access(path):
                    dataset = datasets.load_dataset(path, name, split=split)
    except Exception as error:  # readers of formats raise what they like
        names = [path, *map(str, _files(path))]
        if isinstance(error, ValueError) and str(error).startswith(tuple(names)):
            raise
        raise ValueError(_explanation(path, split, error)) from error
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

    folder, matches = Path(path).is_dir(), _files(path)
    module = None if folder else _module(str(matches[0]) if has_magic(path) and matches else path)
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

    kind: Any = datasets.load_dataset_builder(**arguments)
    reader = type(kind).__module__.rpartition(".")[2]  # such as datasets.packaged_modules.csv.csv
    files: dict[str, list[str]] = kind.config.data_files
    several = sum(map(len, files.values())) > 1
    if several and (reader == "json" or (reader == "csv" and not _same_headers(files))):
        dataset = _read_apart(reader, arguments, files, split)
    else:
        try:
            dataset = _read(reader, arguments, files, split)
        except Exception as error:
            if not several or str(error).startswith(_NO_SPLIT):
                raise
            dataset = _read_apart(reader, arguments, files, split)
    return Rows(
        dataset,
        f"{path} ({split})" if folder else path,
        f"{dataset._fingerprint}-{key}",
        in_memory=not dataset.cache_files,
        untyped=reader == "csv",
    )


def _read(reader: str, arguments: dict[str, Any], files: dict[str, list[str]], split: str) -> Any:
    """The rows of files of the same columns."""
    import datasets

    options: dict[str, Any] = {}
    if reader == "csv":
        names, delimiter = _header(next(iter(files.values()))[0])
        strings = datasets.Features({name: datasets.Value("string") for name in names})
        options = {"features": strings, "keep_default_na": False, "index_col": False}
        options["sep"] = delimiter
    elif reader == "json":
        options = {"chunksize": _JSON_CHUNK, "parse_agent_traces": False}
    from pandas.errors import ParserWarning

    with warnings.catch_warnings(action="error", category=ParserWarning):  # a long row of a CSV
        builder = datasets.load_dataset_builder(**arguments, **options)
        if reader == "json" and not Path(builder.cache_dir).exists() and _has_half_pair(files):
            return _read_apart(reader, arguments, files, split)
        builder.download_and_prepare()
    dataset: Any = builder.as_dataset(split=split)
    if reader == "json":
        dataset.data.table.validate(full=True)  # the reader accepts texts that are not UTF-8
        if _is_altered(dataset.features):
            return _read_apart(reader, arguments, files, split)
    return dataset


def _read_apart(
    reader: str, arguments: dict[str, Any], files: dict[str, list[str]], split: str
) -> Any:
    """The rows of files whose columns or types differ, with None where a file lacks a column."""
    import datasets

    whole: dict[str, Any] = {}
    for name, paths in files.items():
        own = arguments | {"path": reader, "name": None}
        parts: dict[str, Any] = {}
        for path in paths if reader != "json" or len(paths) > 1 else ():
            one = {name: [path]}
            try:
                parts[path] = _read(reader, own | {"data_files": one}, one, name)
            except Exception as error:
                raise ValueError(f"{path} cannot be read: {_cause(error)}") from error
        if reader == "json" and not _same_types(parts.values()):
            whole[name] = _from_items(_json_items(paths), ", ".join(paths))
        else:
            whole[name] = _joined(parts)
    sizes = {name: len(rows) for name, rows in whole.items()}
    pieces = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    return datasets.concatenate_datasets(
        [whole[piece.splitname].select(range(piece.from_, piece.to)) for piece in pieces]
    )


def _joined(parts: dict[str, Any]) -> Any:
    """The rows of several files, each column in the type that holds the values of all files."""
    import datasets

    schemas: dict[str, Any] = {}
    for path, part in parts.items():
        for field in part.features.arrow_schema:
            one = pa.schema([pa.field(field.name, field.type)])
            known = schemas.get(field.name, one)
            try:
                schemas[field.name] = pa.unify_schemas([known, one], promote_options="permissive")
            except pa.ArrowTypeError as error:
                raise ValueError(
                    f"{path}: the column {field.name!r} is of type {field.type}, but of type "
                    f"{known.field(0).type} in the files before: give it one type in all files"
                ) from error
    aligned: list[Any] = []
    for part in parts.values():
        for name, schema in schemas.items():
            fields = part.features.arrow_schema
            if name in part.column_names and fields.field(name).type != schema.field(0).type:
                feature = datasets.Features.from_arrow_schema(schema)[name]
                part = part.cast_column(name, feature)  # noqa: PLW2901
        aligned.append(part)
    return datasets.concatenate_datasets(aligned)


def _files(path: str) -> list[Path]:
    """The files that ``path`` names: those of a folder, those that match a pattern, or itself."""
    root = Path(path)
    if root.is_dir():
        return sorted(file for file in root.rglob("*") if file.is_file())
    matches = glob(path, recursive=True) if has_magic(path) else [path]  # noqa: PTH207
    return [Path(file) for file in sorted(matches)]


def _state(path: str) -> str:
    """Changes with any change of a file: `datasets` goes by its path and modification time alone.

    The time of the last change of a file's status cannot be set back, unlike that of its content.
    """
    facts: list[Any] = [(str(file.resolve()), *_facts(file)) for file in _files(path)]
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _facts(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _header(file: str) -> tuple[list[str], str]:
    """The names of a CSV file's columns, and its delimiter."""
    import csv

    tabs = ".tsv" in [suffix.lower() for suffix in Path(file).suffixes]
    with _opened(file) as lines:
        text = next((line for line in lines if line.strip()), "")
        while text.count('"') % 2 and (line := lines.readline()):  # a name of several lines
            text += line
    headers = {
        mark: next(csv.reader(io.StringIO(text, newline=""), delimiter=mark), [])
        for mark in ("\t" if tabs else _DELIMITERS)
    }
    several = [mark for mark, names in headers.items() if len(names) > 1]
    delimiter = several[0] if several else next(iter(headers))
    names = headers[delimiter]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{file}: more than one column is named {twice}; rename them")
    if "" in names:
        raise ValueError(
            f"{file}: column {names.index('')} (from 0) has no name; name it, or leave it out "
            "(pandas: to_csv(index=False))"
        )
    return names, delimiter


def _same_headers(files: dict[str, list[str]]) -> bool:
    headers = [_header(file) for paths in files.values() for file in paths]
    return len({(frozenset(names), delimiter) for names, delimiter in headers}) == 1


def _is_altered(features: Any) -> bool:
    """Whether the JSON reader of ``datasets`` 5 may have changed strings of some column.

    It parses dates, and in a column of several types it reads the string "7" as a number.
    """
    dates = any(pa.types.is_temporal(field.type) for field in features.arrow_schema)
    return dates or any(map(_holds_json, features.values()))


def _same_types(parts: Iterable[Any]) -> bool:
    """Whether each column has one type in all files, of which there is one at least."""
    types: dict[str, set[str]] = {}
    for part in parts:
        for field in part.features.arrow_schema:
            types.setdefault(field.name, set()).add(str(field.type))
    return bool(types) and all(len(kinds - {"null"}) <= 1 for kinds in types.values())


def _has_half_pair(files: dict[str, list[str]]) -> bool:
    """Whether JSON files may hold half of a surrogate pair, which ``datasets`` leaves out."""
    import fsspec

    for file in (file for paths in files.values() for file in paths):
        end = b""
        opened: Any = fsspec.open(file, "rb", compression="infer")
        with opened as content:
            while block := content.read(1 << 24):
                if _HALF_PAIR.search(end + block):
                    return True
                end = block[-12:]
    return False


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


def _explanation(path: str, split: str, error: Exception) -> str:
    from datasets import config

    files, module = _files(path), _module(path)
    if module is not None and has_magic(path) and not files:
        return f"{path} matches no file: give the path of a file, a glob pattern or a folder"
    for file in files:
        fault = _text_fault(file) if file.is_file() else None
        if fault is not None:
            return fault
    if str(error).startswith("row "):  # of `_from_items`
        return str(error)
    cause = _cause(error)
    cache = Path(config.HF_DATASETS_CACHE)
    refused = Path(getattr(cause, "filename", None) or ".")
    if refused in (cache, *cache.parents) or cache in refused.parents:
        return (
            f"{path} cannot be cached in {cache} ({cause}): set HF_HOME to a writable folder, or "
            "free space there"
        )
    if "corresponds to no data" in str(cause):
        return f"{path} has no rows; it must have at least one"
    if files and str(cause).startswith(_NO_SPLIT):
        return f"{path} has no split {split!r}: {cause}"
    if module is not None and files and files[0].exists():
        message = f"{path} cannot be read as {''.join(Path(path).suffixes)}: {str(cause).strip()}"
        if module == "json" and isinstance(cause, pa.ArrowException | TypeError):
            message += (
                f"; if a column changes its type after the first {_JSON_CHUNK >> 20} MiB, or "
                "begins there, write the file as .parquet"
            )
        return message
    if module is not None:
        return f"{path} is not there: give the path of a file, a glob pattern or a folder"
    return (
        f"{path!r} cannot be loaded: it must be a file, a glob pattern, a folder of files, a "
        "folder that save_to_disk wrote, or a name on the Hugging Face hub. "
        f"{type(cause).__name__}: {cause}"
    )


def _cause(error: Exception) -> Exception:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _text_fault(file: Path) -> str | None:
    """What is wrong with the first bad line of a CSV or JSON file; None if nothing is."""
    try:
        if _module(str(file)) in ("csv", "json") and (fault := _not_utf8(file)):
            return fault
        if ".jsonl" in [suffix.lower() for suffix in file.suffixes]:
            return _bad_line(str(file))
    except ValueError as error:
        return str(error)
    except (OSError, EOFError):  # a damaged archive
        return None
    return None


def _not_utf8(file: Path) -> str | None:
    import fsspec

    with fsspec.open(str(file), "rb", compression="infer") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                wide = line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
                encoding = "utf-16" if wide else "latin1"
                return (
                    f"line {number} of {file} is not UTF-8 (byte {line[error.start]:#04x}): "
                    f"convert the file, such as by iconv -f {encoding} -t utf-8 {file}"
                )
    return None


def _no_json(constant: str) -> Any:
    raise ValueError(f"it has no {constant}, write null instead")


def _bad_line(path: str) -> str | None:
    """What is wrong with the first bad line of a JSON Lines file; None if nothing is."""
    empty = True
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            array = empty and line.lstrip().startswith("[")  # then it is read as .json
            try:
                row = json.loads(line, parse_constant=_no_json)
            except ValueError as error:
                return None if array else f"line {number} of {path} is not JSON: {error}"
            empty = False
            if array and not any(map(str.strip, lines)):
                return None
            if not isinstance(row, dict):
                shown = line.strip()[:40]
                return f"line {number} of {path} is not a JSON object but {shown!r}"
            for column, value in row.items():
                _check_text(value, f"line {number} of {path}, {column}")
    return f"{path} has no rows; it must have at least one" if empty else None
