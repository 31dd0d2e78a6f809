"""Base class of the datasets of questions with an answer."""

import hashlib
import operator
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
from torch import Tensor
from torch.utils.data import Dataset

from lit_adaptive.data.sources.columns import check_columns, numeric_columns, to_float64

Split = Literal["train", "validation", "test"]

BUCKETS: dict[str, Sequence[int]] = {"train": range(8), "validation": (8,), "test": (9,)}
"""Of ``split_bucket``, by split."""

MOST_ROWS = 10_000_000
"""Greatest number of rows that are generated; they are held in memory."""


def check_split(split: str) -> None:
    """Raise a ValueError if ``split`` is none of train, validation and test."""
    if split not in BUCKETS:
        raise ValueError(f"split is {split!r}; it must be one of {[*BUCKETS]}")


def split_bucket(text: str) -> int:
    """Bucket of a question, a hash of its text from 0 to 9."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % 10


class QuestionRows(Dataset[dict[str, Any]]):
    """The rows of an Arrow table as dictionaries.

    Attributes:
        table: has the columns ``id``, ``prompt``, ``answer`` and others.
        ids: list of strings, all different.
        source: name of the table in errors.
    """

    def __init__(self, columns: dict[str, list[Any]], source: str) -> None:
        self.table: Any = pa.table(columns)
        self.ids: list[str] = columns["id"]
        self.source = source

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {self.source}, which has {len(self)} rows")
        row: dict[str, Any] = self.table.slice(number % len(self), 1).to_pylist()[0]
        return row

    def gather(self, index: Tensor) -> dict[str, Any]:
        """The rows ``index`` ``[B]`` int64: texts as lists, numbers as ``[B]`` float64."""
        rows = self.table.take(pa.array(index.cpu().numpy()))
        numeric = numeric_columns(rows)
        return {
            name: to_float64(rows[name]) if name in numeric else rows[name].to_pylist()
            for name in rows.column_names
        }

    def column(self, name: str) -> Tensor:
        """A numeric column, such as a reward or a difficulty: ``[N]`` float64.

        Raises:
            ValueError: if there is no such column, or it is not numeric.
        """
        check_columns(self.table.column_names, [name], self.source)
        values = to_float64(self.table[name])
        if values is None:
            raise ValueError(
                f"{name} in {self.source} is not numeric; numeric columns are "
                f"{numeric_columns(self.table)}"
            )
        return values
