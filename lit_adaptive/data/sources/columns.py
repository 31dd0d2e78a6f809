"""Arrow columns as tensors, with what is wrong in them named; and a table of them as a dataset.

Rows are counted from 0. An id is an integer or a string.
"""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import torch
from torch import Tensor
from torch.utils.data import Dataset

Ids = list[str] | Tensor
"""One per row, all different: strings, or ``[N]`` int64."""

if TYPE_CHECKING:
    MapDataset: TypeAlias = Dataset[Any]
else:  # jsonargparse takes Dataset[Any] for a class of its own, not for a base of others
    MapDataset = Dataset

# pyarrow ships no types, and makes its functions at run time.
Table: TypeAlias = Any
Column: TypeAlias = Any
DataType: TypeAlias = Any
arrow: Any = compute

_PLAIN_INTEGER = "^(0|-?[1-9][0-9]{0,17})$"
_MOST_CLASSES = 1_000_000
_SHOWN = 5


class Inputs(Protocol):
    """What a row's ``input`` comes from: a tensor, or something slower that is indexed like one."""

    def __getitem__(self, index: Any, /) -> Tensor:
        """One row's input for an integer, a batch ``[B, ...]`` for ``[B]`` int64."""
        ...


class ColumnDataset(Dataset[dict[str, Any]]):
    """The rows of an Arrow table as a map-style dataset; the class behind ``TableDataset``.

    Attributes:
        inputs: ``[N, ...]`` float32, or what is indexed like it; None if there is only text.
        targets: ``[N]`` int64, or None without a target.
        classes: name of each class (integer classes: their digits), or None without a target.
        ids: one per row, all different: strings, or ``[N]`` int64.
        source: what errors call the table.
    """

    def __init__(
        self,
        table: Table,
        *,
        features: Sequence[str] | None = None,
        target: str | None = None,
        text: str | None = None,
        id: str | None = None,  # noqa: A002
        classes: Sequence[str] | None = None,
        inputs: Inputs | None = None,
        source: str = "the table",
        guess_ids: bool = False,
    ) -> None:
        if table.num_rows == 0:
            raise ValueError(f"{source} has no rows; there is nothing to draw from")
        roles = [name for name in (target, text, id) if name is not None]
        if features is None:
            free = [name for name in numeric_columns(table) if name not in roles]
            features = free if text is None and inputs is None else []
        refuse_missing(table.column_names, [*features, *roles], source)
        if not features and text is None and inputs is None:
            raise ValueError(
                f"{source} gives a model no input: none of {table.column_names} is numeric and "
                "free for features; name features= or text="
            )
        self.source = source
        self._table = table
        self.inputs = features_of(table, features, source) if features else inputs
        self.targets: Tensor | None = None
        self.classes: list[str] | None = None
        if target is not None:
            self.targets, self.classes = targets_of(table[target], classes, f"{target} in {source}")
        self._texts = None if text is None else texts_of(table[text], f"{text} in {source}")
        self.ids: Ids = (
            torch.arange(table.num_rows)
            if id is None
            else plain_ids(read_ids(table[id], f"{id} in {source}", guess=guess_ids))
        )

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {at} of {self.source}, which has {len(self)} rows")
        item: dict[str, Any] = {}
        if self.inputs is not None:
            item["input"] = self.inputs[at]
        if self.targets is not None:
            item["target"] = int(self.targets[at])
        if self._texts is not None:
            item["text"] = self._texts[at % len(self)].as_py()
        return item

    def gather(self, index: Tensor) -> dict[str, Any]:
        """The collated batch of the rows ``index`` ``[B]`` int64, each in ``[0, N)``."""
        index = index.cpu()
        batch: dict[str, Any] = {}
        if self.inputs is not None:
            batch["input"] = self.inputs[index]
        if self.targets is not None:
            batch["target"] = self.targets[index]
        if self._texts is not None:
            batch["text"] = self._texts.take(pa.array(index.numpy())).to_pylist()
        return batch

    def column(self, name: str) -> Tensor:
        """A numeric column, such as a difficulty or a score: ``[N]`` float64, finite.

        Raises:
            ValueError: if there is no such column, it is not numeric, or a value in it is missing
                or not finite (which rows).
        """
        refuse_missing(self._table.column_names, [name], self.source)
        values = numbers(self._table[name])
        where = f"{name} in {self.source}"
        if values is None:
            raise ValueError(
                f"{where} is of type {self._table[name].type}, not numeric; numeric columns are "
                f"{numeric_columns(self._table)}"
            )
        refuse_rows(~values.isfinite(), where, "is missing or not finite", values)
        return values


def refuse_missing(columns: Sequence[str], names: Sequence[str], source: str) -> None:
    """Refuse ``names`` that are not among the ``columns`` of ``source``."""
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(
            f"{source} has no column {', '.join(map(repr, missing))}; "
            f"its columns are {list(columns)}"
        )


def refuse_rows(bad: Tensor, where: str, what: str, values: Any) -> None:
    """Refuse the rows where ``bad`` ``[N]`` holds, each shown with its value."""
    rows = bad.nonzero().flatten().tolist()
    if rows:
        shown = [values[row] for row in rows[:_SHOWN]]
        plain = [value.item() if isinstance(value, Tensor) else value.as_py() for value in shown]
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        raise ValueError(
            f"{where} {what} in rows {rows[:_SHOWN]}{more} (from 0), where it is {plain}; "
            "correct these rows or leave them out"
        )


def some(values: Column) -> str:
    """The first few of ``values``, and how many more there are."""
    shown = str(values.slice(0, _SHOWN).to_pylist())
    return shown if len(values) <= _SHOWN else f"{shown} and {len(values) - _SHOWN} more"


def is_numeric(kind: DataType) -> bool:
    """Whether a column of this type can be read as numbers (true/false as 1/0)."""
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
    )


def is_text(kind: DataType) -> bool:
    """Whether a column of this type holds strings."""
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def plain(column: Column) -> Column:
    """One contiguous array, categories written out, strings of any length."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if is_text(column.type):
        column = column.cast(pa.large_string())
    return column.combine_chunks()


def numbers(column: Column) -> Tensor | None:
    """``[N]`` float64, NaN where a value is missing; or None if the column is not numeric."""
    if not is_numeric(column.type):
        return None
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(values))


def read_ids(column: Column, where: str, *, guess: bool = False) -> Column:
    """Ids: int64 or strings, all different, none missing.

    Args:
        column: integers or strings.
        where: what errors call it.
        guess: read strings that are all plain integers as integers.
    """
    values = plain(column)
    if pa.types.is_integer(values.type):
        try:
            values = values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise ValueError(f"{where} is beyond 64 bits; write such ids as strings") from error
        empty = values.is_null()
    elif is_text(values.type):
        empty = arrow.equal(values.fill_null(""), "")
    else:
        raise ValueError(f"{where} is of type {column.type}; ids are integers or strings")
    refuse_rows(torch.from_numpy(np.array(empty)), where, "is missing", values)
    if guess and is_text(values.type):
        integers = arrow.match_substring_regex(values, _PLAIN_INTEGER)
        values = values.cast(pa.int64()) if arrow.all(integers).as_py() else values
    refuse_duplicates(values, where)
    return values


def refuse_duplicates(ids: Column, where: str) -> None:
    """Refuse ids that are given twice."""
    if len(ids) == arrow.count_distinct(ids).as_py():
        return
    counts = ids.value_counts()
    twice = counts.filter(arrow.greater(counts.field("counts"), 1)).field("values")
    raise ValueError(f"{where} holds {some(twice)} more than once; an id names one row")


def arrow_ids(ids: Ids | Sequence[int]) -> Column:
    """``ids`` as an Arrow array of int64 or strings."""
    if isinstance(ids, Tensor):
        if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(
                f"ids are {ids.dtype} of shape {list(ids.shape)}; they must be strings, or one "
                "dimension of integers"
            )
        return pa.array(ids.detach().to("cpu", torch.int64).numpy())
    texts = all(isinstance(value, str) for value in ids)
    if not texts and not all(isinstance(value, int) for value in ids):
        raise ValueError(f"ids are {list(ids)[:_SHOWN]}; they must be all strings or all integers")
    return pa.array(ids, pa.large_string() if texts else pa.int64())


def plain_ids(ids: Column) -> Ids:
    """An Arrow array of ids as a tensor or a list."""
    if pa.types.is_integer(ids.type):
        return torch.from_numpy(np.array(ids))
    found: list[str] = ids.to_pylist()
    return found


def _vectors(column: Column, where: str) -> Tensor | None:
    """``[N, k]`` float64 of numbers (k = 1) or of vectors of one length; or None."""
    scalars = numbers(column)
    if scalars is not None:
        return scalars[:, None]
    types, kind = pa.types, column.type
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not lists or not is_numeric(kind.value_type):
        return None
    values = plain(column)
    lengths = arrow.list_value_length(values).fill_null(-1)
    length = torch.from_numpy(np.array(lengths))
    odd = (length != length.max()) | (length <= 0)
    refuse_rows(odd, where, f"is no vector of {int(length.max())} numbers", values)
    flat = numbers(values.flatten())
    assert flat is not None
    return flat.view(len(values), -1)


def features_of(table: Table, names: Sequence[str], source: str) -> Tensor:
    """Numeric columns side by side: ``[N, F]`` float32, finite."""
    found: list[Tensor] = []
    for name in names:
        where = f"{name} in {source}"
        values = _vectors(table[name], where)
        if values is None:
            raise ValueError(
                f"{where} is of type {table[name].type}; features are numeric. Numeric columns are "
                f"{numeric_columns(table)}"
            )
        single = values.float()
        bad = ~single.isfinite().all(1)
        refuse_rows(bad, where, "is missing or no finite float32", table[name])
        found.append(single)
    return torch.cat(found, 1)


def numeric_columns(table: Table) -> list[str]:
    """Names of the columns that can be read as numbers."""
    return [field.name for field in table.schema if is_numeric(field.type)]


def targets_of(
    column: Column, classes: Sequence[str] | None, where: str
) -> tuple[Tensor, list[str]]:
    """Classes as ``[N]`` int64 from 0, and the name of each."""
    values = plain(column)
    missing = torch.from_numpy(np.array(values.is_null()))
    refuse_rows(missing, where, "is missing", values)
    if classes is not None and len(set(classes)) < len(classes):
        raise ValueError(f"classes are {list(classes)}; they must all differ")
    if is_text(values.type):
        names = sorted(values.unique().to_pylist()) if classes is None else list(classes)
        place = arrow.index_in(values, value_set=pa.array(names, values.type)).fill_null(-1)
        found = torch.from_numpy(np.array(place)).long()
        refuse_rows(found < 0, where, f"is none of the classes {names}", values)
        return found, names
    number = numbers(values)
    if number is None:
        raise ValueError(f"{where} is of type {column.type}; a class is an integer or a string")
    most = _MOST_CLASSES if classes is None else len(classes)
    bad = (number != number.floor()) | (number < 0) | (number >= most)
    refuse_rows(bad, where, f"is no class, an integer from 0 to {most - 1},", values)
    found = number.long()
    return found, list(classes or map(str, range(int(found.max()) + 1)))


def texts_of(column: Column, where: str) -> Column:
    """Strings, none missing."""
    values = plain(column)
    if is_numeric(values.type):
        values = values.cast(pa.large_string())
    if not is_text(values.type):
        raise ValueError(f"{where} is of type {column.type}; a text is a string")
    refuse_rows(torch.from_numpy(np.array(values.is_null())), where, "is missing", values)
    return values
