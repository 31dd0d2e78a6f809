"""Files of scores, one for each id of a dataset.

An id is an integer or a string. In a CSV file, where the two look alike, a column of integers
without leading zeros is read as integers. Scores and datasets still agree on an id that one of them
writes as ``7`` and the other as ``"7"``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv, parquet
from torch import Tensor

from lit_adaptive.data.sources.columns import (
    Ids,
    arrow,
    check_columns,
    check_rows,
    check_unique,
    ids_from_arrow,
    ids_to_arrow,
    is_text,
    parse_numbers,
    preview,
    to_float64,
    validated_ids,
)
from lit_adaptive.data.sources.rows import load_rows
from lit_adaptive.files import write_atomically


class Scores(NamedTuple):
    """Scores by id.

    Attributes:
        id: one per row, all different: strings, or ``[N]`` int64.
        score: ``[N]`` float64, finite.
    """

    id: Ids
    score: Tensor


def read_scores(path: str | Path) -> Scores:
    """Read scores from a CSV or Parquet file with the columns ``id`` and ``score``.

    Args:
        path: ends in ``.csv`` or ``.parquet``; further columns are ignored.

    Raises:
        ValueError: if there is no such file, its format is another, it is empty or damaged, a
            column is missing, an id is missing or repeated, or a score is not a finite number
            (naming the rows).
    """
    file = _scores_file(path)
    rows = load_rows(file)
    check_columns(rows.dataset.column_names, ["id", "score"], str(file))
    table = rows.dataset.select_columns(["id", "score"]).with_format("arrow")[:]
    ids = validated_ids(table["id"], f"id in {file}", parse_integers=rows.untyped)
    where = f"score in {file}"
    column = parse_numbers(table["score"])
    if is_text(column.type):
        bad = [not _is_number(value) for value in column.to_pylist()]
        check_rows(bad, where, "is not a number; a score is a finite number", column)
    score = to_float64(column)
    if score is None:
        raise ValueError(f"{where} is of type {column.type}; it must be a column of numbers")
    check_rows(~score.isfinite(), where, "is missing or not finite", score)
    return Scores(ids_from_arrow(ids), score)


def write_scores(path: str | Path, id: Ids | Sequence[int], score: Tensor) -> None:  # noqa: A002
    """Write a file that ``read_scores`` reads, replacing an existing one once complete.

    Missing folders are created.

    Args:
        path: ends in ``.csv`` or ``.parquet``.
        id: one per row, all different: strings, or ``[N]`` integers.
        score: ``[N]``, finite; written as float64.

    Raises:
        ValueError: if the suffix is another, the lengths differ, an id is repeated or empty, or
            a score is not finite (naming the rows). Nothing is written then.
    """
    file = _scores_file(path)
    ids = validated_ids(pa.chunked_array([ids_to_arrow(id)]), "id")
    if len(ids) == 0:
        raise ValueError(f"there are no scores to write to {file}; give at least one")
    score = score.detach().to("cpu", torch.float64)
    if score.shape != (len(ids),):
        raise ValueError(
            f"there are {len(ids)} ids, but score has the shape {list(score.shape)}; "
            "give one score to each id"
        )
    check_rows(~score.isfinite(), "score", "is not finite", score)
    table = pa.table({"id": ids, "score": score.numpy()})
    with write_atomically(file) as temporary:
        if file.suffix.lower() == ".csv":
            csv.write_csv(table, temporary)
        else:
            parquet.write_table(table, temporary)


def aligned_scores(
    scores: Scores, ids: Ids | Sequence[int] | int, *, missing: float | None = None
) -> Tensor:
    """The scores in a dataset's order: ``[N]`` float64.

    Args:
        scores: in any order, as ``read_scores`` returns them.
        ids: the dataset's ids in its order (``TableDataset.ids``); or its number of rows, if the
            ids are the row numbers.
        missing: score of ids that have none, finite; None rejects such ids.

    Raises:
        ValueError: if a scored id is not the dataset's or is scored twice, an id has no score and
            ``missing`` is None, or ``missing`` is not finite.
    """
    if missing is not None and not np.isfinite(missing):
        raise ValueError(f"missing is {missing}; it must be a finite score, or null to reject gaps")
    known = ids_to_arrow(torch.arange(ids) if isinstance(ids, int) else ids)
    scored = ids_to_arrow(scores.id)
    if known.type != scored.type:
        known, scored = known.cast(pa.large_string()), scored.cast(pa.large_string())
    check_unique(scored, "the scores' id")
    in_dataset = arrow.is_in(scored, value_set=known)
    if in_dataset.false_count:
        raise ValueError(
            f"the scores name {preview(scored.filter(arrow.invert(in_dataset)))}, which are not "
            f"ids of the dataset (it has {preview(known)}): use the scores of this dataset"
        )
    position = arrow.index_in(known, value_set=scored)
    if position.null_count and missing is None:
        raise ValueError(
            f"there is no score for the ids {preview(known.filter(arrow.is_null(position)))} of "
            "the dataset; score them too, or pass missing= (their score)"
        )
    padded = torch.cat([scores.score, torch.tensor([missing or 0.0], dtype=torch.float64)])
    return padded[torch.from_numpy(np.array(position.fill_null(len(scored)))).long()]


def _scores_file(path: str | Path) -> Path:
    file = Path(path)
    if file.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(
            f"{file} ends in {file.suffix!r}; a file of scores ends in .csv or .parquet"
        )
    return file


def _is_number(value: str | None) -> bool:
    try:
        float(value or "")
    except ValueError:
        return False
    return True
