"""Tables on disk: a file of scores, and a CSV, Parquet or JSONL file as a map-style dataset.

Rows are counted from 0, the header not being one. An id is an integer or a string; in a CSV, where
the two look alike, a column of plain integers is read as integers (``007`` is not plain). Files of
scores and datasets still agree on an id that one of them writes as ``7`` and the other as ``"7"``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv, json, parquet
from torch import Tensor

from lit_adaptive.data.sources.columns import (
    ColumnDataset,
    Ids,
    Table,
    arrow,
    arrow_ids,
    is_text,
    numbers,
    plain_ids,
    read_ids,
    refuse_duplicates,
    refuse_missing,
    refuse_rows,
    some,
)
from lit_adaptive.files import write_atomically

_BLOCK = 1 << 24  # bytes; pyarrow's own megabyte is too little for a row with a long text


class Scores(NamedTuple):
    """What a file of scores holds.

    Attributes:
        id: one per row, all different: strings, or ``[N]`` int64.
        score: ``[N]`` float64, finite.
    """

    id: Ids
    score: Tensor


def read_scores(path: str | Path) -> Scores:
    """Scores from a CSV or Parquet file with the columns ``id`` and ``score``.

    Args:
        path: ends in ``.csv`` or ``.parquet``; further columns are passed over.

    Raises:
        ValueError: if there is no such file, it is of another kind, empty or damaged, a column is
            missing, an id is missing or given twice, or a score is no finite number (which rows).
    """
    file = _scores_file(path)
    table = read_table(file, as_text=["id"])
    for name in ("id", "score"):
        refuse_missing(table.column_names, [name], str(file))
    ids = read_ids(table["id"], f"id in {file}", guess=_is_csv(file))
    column = table["score"]
    if is_text(column.type):
        bad = torch.tensor([not _is_number(value) for value in column.to_pylist()])
        refuse_rows(bad, f"score in {file}", "is no number; a score is a finite number", column)
    score = numbers(column)
    if score is None:
        raise ValueError(
            f"score in {file} is of type {column.type}; it must be a column of numbers"
        )
    refuse_rows(~score.isfinite(), f"score in {file}", "is missing or not finite", score)
    return Scores(plain_ids(ids), score)


def write_scores(path: str | Path, id: Ids | Sequence[int], score: Tensor) -> None:  # noqa: A002
    """Write a file that ``read_scores`` reads; one that is there is replaced once all is written.

    Folders on the way to it are made.

    Args:
        path: ends in ``.csv`` or ``.parquet``.
        id: one per row, all different: strings, or ``[N]`` integers.
        score: ``[N]``, finite; written as float64.

    Raises:
        ValueError: if the suffix is another, the lengths differ, an id is given twice or empty, or
            a score is not finite (which rows). Nothing is written then.
    """
    file = _scores_file(path)
    ids = read_ids(pa.chunked_array([arrow_ids(id)]), "id")
    if len(ids) == 0:
        raise ValueError(f"there are no scores to write to {file}; give at least one")
    score = score.detach().to("cpu", torch.float64)
    if score.shape != (len(ids),):
        raise ValueError(
            f"there are {len(ids)} ids, but score has the shape {list(score.shape)}; "
            "give one score to each id"
        )
    refuse_rows(~score.isfinite(), "score", "is not finite", score)
    table = pa.table({"id": ids, "score": score.numpy()})
    with write_atomically(file) as temporary:
        if _is_csv(file):
            csv.write_csv(table, temporary)
        else:
            parquet.write_table(table, temporary)


def aligned_scores(
    scores: Scores, ids: Ids | Sequence[int] | int, *, missing: float | None = None
) -> Tensor:
    """The scores in a dataset's order: ``[N]`` float64.

    Args:
        scores: in any order, as ``read_scores`` gives them.
        ids: the dataset's, in its order (``TableDataset.ids``); or how many rows it has, which
            then go by their number.
        missing: the score of ids that have none; by default they are refused.

    Raises:
        ValueError: naming ids that have a score but are not the dataset's, that are scored twice,
            or that have none while ``missing`` is not given; or if ``missing`` is not finite.
    """
    if missing is not None and not np.isfinite(missing):
        raise ValueError(f"missing is {missing}; it must be a finite score, or null to refuse gaps")
    wanted = arrow_ids(torch.arange(ids) if isinstance(ids, int) else ids)
    given = arrow_ids(scores.id)
    if wanted.type != given.type:
        wanted, given = wanted.cast(pa.large_string()), given.cast(pa.large_string())
    refuse_duplicates(given, "the scores' id")
    known = arrow.is_in(given, value_set=wanted)
    if known.false_count:
        raise ValueError(
            f"the scores name {some(given.filter(arrow.invert(known)))}, which are no ids of the "
            f"dataset (it has {some(wanted)}): use the scores of this dataset"
        )
    place = arrow.index_in(wanted, value_set=given)
    if place.null_count and missing is None:
        raise ValueError(
            f"no score is given for the ids {some(wanted.filter(arrow.is_null(place)))} of the "
            "dataset; score them too, or pass missing= (the score they shall have)"
        )
    found = torch.cat([scores.score, torch.tensor([missing or 0.0], dtype=torch.float64)])
    return found[torch.from_numpy(np.array(place.fill_null(len(given)))).long()]


class TableDataset(ColumnDataset):
    """A CSV, Parquet or JSONL file as a map-style dataset, held in memory.

    An item is ``{"input": [F] float32, "target": int, "text": str}``, of which only what the file
    gives; ``gather`` collates a whole batch at once. Rows go by their number unless ``id`` is
    given.

    Args:
        path: ends in ``.csv``, ``.parquet`` or ``.jsonl``.
        features: numeric columns (true/false count as 1/0) that together make ``input``; a Parquet
            or JSONL column of equally long vectors counts once per component. By default all
            numeric columns but the target and the id, and none where there is a text.
        target: column of classes: integers from 0, or strings, which are numbered in sorted order.
        id: column of distinct integers or strings.
        text: column of strings.
        classes: numbers string classes in this order instead; give it to a validation file that
            may lack some class of the training file. Of integer classes these are the names.

    Raises:
        ValueError: if there is no such file, it is of another kind, empty or damaged, a column is
            missing or of the wrong type, or a value in it is missing (which rows).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        features: list[str] | None = None,
        target: str | None = None,
        id: str | None = None,  # noqa: A002
        text: str | None = None,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__(
            read_table(path, as_text=[name for name in (id, text) if name is not None]),
            features=features,
            target=target,
            text=text,
            id=id,
            classes=classes,
            source=str(path),
            guess_ids=_is_csv(Path(path)),
        )


def read_table(path: str | Path, *, as_text: Sequence[str] = ()) -> Table:
    """A CSV, Parquet or JSONL file as an Arrow table.

    The types of a CSV's columns are told by all of its rows. Nothing is taken for a date in a file
    that does not declare dates.

    Args:
        path: ends in ``.csv``, ``.parquet`` or ``.jsonl``.
        as_text: columns of a CSV that are strings whatever they look like.

    Raises:
        ValueError: if there is no such file, it is of another kind, empty or damaged, or two
            columns share a name.
    """
    file = Path(path)
    read = _READERS.get(file.suffix.lower())
    if read is None:
        raise ValueError(f"{file} ends in {file.suffix!r}; it must be one of {[*_READERS]}")
    if not file.is_file():
        raise ValueError(f"{file} is not there, or no file; give the path of a file that exists")
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty; it must hold a table with at least one row")
    try:
        table = read(file, frozenset(as_text))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as {file.suffix}: {error}") from error
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{file} has more than one column named {twice}; rename them")
    if table.num_rows == 0:
        raise ValueError(f"{file} has the columns {names} but no rows; it must have at least one")
    return table


def _read_csv(file: Path, text: frozenset[str]) -> Table:
    def parse(text: frozenset[str]) -> Table:
        return csv.read_csv(
            file,
            read_options=csv.ReadOptions(block_size=_BLOCK),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string())),
        )

    table = parse(text)
    dates = _dates(table)
    return parse(text | dates) if dates else table


def _read_jsonl(file: Path, _: frozenset[str]) -> Table:
    def parse(text: frozenset[str]) -> Table:
        return json.read_json(
            file,
            read_options=json.ReadOptions(block_size=_BLOCK),
            parse_options=json.ParseOptions(
                explicit_schema=pa.schema([(name, pa.string()) for name in sorted(text)])
            ),
        )

    table = parse(frozenset())
    dates = _dates(table)
    return parse(dates).select(table.column_names) if dates else table


def _read_parquet(file: Path, _: frozenset[str]) -> Table:
    return parquet.read_table(file)


_READERS: dict[str, Callable[[Path, frozenset[str]], Table]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
}


def _is_csv(file: Path) -> bool:
    return file.suffix.lower() == ".csv"


def _dates(table: Table) -> frozenset[str]:
    return frozenset(field.name for field in table.schema if pa.types.is_temporal(field.type))


def _scores_file(path: str | Path) -> Path:
    file = Path(path)
    if file.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(
            f"{file} ends in {file.suffix!r}; a file of scores ends in .csv or .parquet"
        )
    return file


def _is_number(value: str | None) -> bool:
    try:
        float(value or "nan")
    except ValueError:
        return False
    return True
