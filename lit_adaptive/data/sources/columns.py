"""Arrow columns as tensors, ids and classes; errors name the rows at fault, counted from 0."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import Dataset

Ids = list[str] | Tensor
"""One per row, all different: strings, or ``[N]`` int64."""

if TYPE_CHECKING:
    MapDataset: TypeAlias = Dataset[Any]
else:  # jsonargparse takes Dataset[Any] for a class of its own, not for a base class
    MapDataset = Dataset

# pyarrow ships no types, and creates its functions at run time.
Table: TypeAlias = Any
Column: TypeAlias = Any
DataType: TypeAlias = Any
arrow: Any = compute

DRAW_KEYS = frozenset({"index", "probability", "weight", "counted", "scored"})
"""Keys that a datamodule adds to each batch; a dataset must not have them."""

_CANONICAL_INTEGER = "^(0|-?[1-9][0-9]{0,17})$"
_MISSING = ["", "NA", "N/A", "NULL", "null", "NaN", "nan"]  # in a CSV column of numbers
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_MAX_CLASSES = 1_000_000
_MAX_CATEGORIES = 1_000  # of a column: each is a component of the input
_SHOWN = 5  # values in an error
_WIDTH = 200  # characters of each


# Checks ----------------------------------------------------------------------------------------


def check_columns(columns: Sequence[str], names: Sequence[str], source: str) -> None:
    """Raise a ValueError if ``source``, which has ``columns``, lacks one of ``names``."""
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(
            f"{source} has no column {', '.join(map(repr, missing))}; "
            f"its columns are {list(columns)}"
        )


def check_rows(
    bad: Tensor | Sequence[bool], where: str, fault: str, values: Any, *, first: int = 0
) -> None:
    """Raise a ValueError that shows the rows at fault with their values, if there are any.

    Args:
        bad: ``[N]`` bool, True where a row is at fault.
        where: name of the column in the error.
        fault: what is wrong with these rows, such as ``is missing``.
        values: ``[N]`` values, as a tensor, an Arrow column or a list.
        first: number of the first of these rows.
    """
    rows = [row for row, fails in enumerate(bad) if fails]
    if rows:
        shown = ", ".join(_shortened(_python_value(values[row])) for row in rows[:_SHOWN])
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        raise ValueError(
            f"{where} {fault} in rows {[first + row for row in rows[:_SHOWN]]}{more} (from 0), "
            f"where it is [{shown}]; correct these rows or leave them out"
        )


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH // 2]} ... {text[-_WIDTH // 2 :]}"


def check_unique(ids: Column, where: str) -> None:
    """Raise a ValueError if an id occurs more than once."""
    if len(ids) == arrow.count_distinct(ids).as_py():
        return
    counts = ids.value_counts()
    repeated = counts.filter(arrow.greater(counts.field("counts"), 1)).field("values")
    raise ValueError(f"{where} holds {preview(repeated)} more than once; an id names one row")


def preview(values: Column) -> str:
    """The first few of ``values``, and how many more there are."""
    shown = str(values.slice(0, _SHOWN).to_pylist())
    return shown if len(values) <= _SHOWN else f"{shown} and {len(values) - _SHOWN} more"


def _python_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return value.as_py() if isinstance(value, pa.Scalar) else value


# Types and conversions -------------------------------------------------------------------------


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


def numeric_columns(table: Table) -> list[str]:
    """Names of the columns that can be read as numbers."""
    return [field.name for field in table.schema if is_numeric(field.type)]


def contiguous(column: Column) -> Column:
    """A column as one array, with categories written out and strings as ``large_string``."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if is_text(column.type):
        column = column.cast(pa.large_string())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def parse_numbers(column: Column) -> Column:
    """Strings as integers, else as floats, else as true/false; unchanged if some are neither."""
    if not is_text(column.type):
        return column
    values = arrow.if_else(arrow.is_in(column, pa.array(_MISSING, column.type)), None, column)
    if values.null_count < len(values):
        for kind in (pa.int64(), pa.float64(), pa.bool_()):
            try:
                return values.cast(kind)
            except pa.ArrowInvalid:
                continue
    return column


def almost_numbers(column: Column) -> Tensor | None:
    """Rows ``[N]`` that keep a column of strings from being numbers; None unless they are few.

    A single ``?`` or ``1,000`` would otherwise turn a column of numbers into one of strings.
    """
    bad, number = _read_numbers(column)
    return bad if int(number.sum()) > int(bad.sum()) > 0 else None


def check_numbers(column: Column, where: str) -> None:
    """Raise a ValueError that names the rows that are no numbers, if others are."""
    bad, number = _read_numbers(column)
    if bool(number.any()):
        check_rows(bad, where, "is not a number", column)


def _read_numbers(column: Column) -> tuple[Tensor, Tensor]:
    """Rows ``[N]`` of strings that are neither numbers nor missing, and rows that are numbers."""
    if not is_text(column.type):
        return torch.zeros(len(column), dtype=torch.bool), torch.zeros(0, dtype=torch.bool)
    text = arrow.utf8_trim_whitespace(contiguous(column))
    number = arrow.match_substring_regex(text, _NUMBER)
    missing = arrow.is_in(text, pa.array([*_MISSING, None], text.type))
    bad = arrow.invert(arrow.or_(number.fill_null(True), missing))
    return torch.from_numpy(np.array(bad)), torch.from_numpy(np.array(number.fill_null(False)))


def to_float64(column: Column) -> Tensor | None:
    """``[N]`` float64, NaN where a value is missing; None if the column is not numeric."""
    if not is_numeric(column.type):
        return None
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(values))


def feature_matrix(
    table: Table,
    names: Sequence[str],
    source: str,
    categories: dict[str, list[str]] | None = None,
) -> tuple[Tensor, dict[str, list[str]]]:
    """Columns side by side ``[N, F]`` float32, finite; and the categories of those of strings.

    Args:
        table: the columns.
        names: numeric columns, and columns of strings, which are one-hot encoded.
        source: name of the table in errors.
        categories: by column of strings, the values in their order; by default sorted.
    """
    matrices: list[Tensor] = []
    used: dict[str, list[str]] = {}
    for name in names:
        where = f"{name} in {source}"
        if is_text(contiguous(table[name]).type):
            bad = almost_numbers(table[name])
            if bad is not None:
                fault = "is not a number, unlike the others of this feature,"
                check_rows(bad, where, fault, table[name])
            fixed = None if categories is None else categories.get(name)
            matrix, used[name] = _one_hot(table[name], fixed, where)
            matrices.append(matrix)
            continue
        values = _to_vectors(table[name], where)
        if values is None:
            raise ValueError(
                f"{where} is of type {table[name].type}; features are numbers or strings. Numeric "
                f"columns are {numeric_columns(table)}"
            )
        single = values.float()
        bad = ~single.isfinite().all(1)
        check_rows(bad, where, "is missing or not a finite float32", table[name])
        matrices.append(single)
    return torch.cat(matrices, 1), used


def _one_hot(column: Column, categories: list[str] | None, where: str) -> tuple[Tensor, list[str]]:
    """``[N, K]`` float32, 1 at the category of each row; and the K categories."""
    values = contiguous(column)
    check_rows(_blank(values), where, "is missing", values)
    fault = "is no category of the training set"
    if categories is None:
        categories = sorted(values.unique().to_pylist())
        if len(categories) > _MAX_CATEGORIES:
            raise ValueError(
                f"{where} has {len(categories)} different values, each of which would be an input; "
                f"a categorical column has at most {_MAX_CATEGORIES}: leave it out of features"
            )
    number = _positions(values, categories)
    check_rows(number < 0, where, f"{fault} ({preview(pa.array(categories))})", values)
    return one_hot(number, len(categories)).float(), categories


def _positions(values: Column, names: Sequence[str]) -> Tensor:
    """Number ``[N]`` int64 of each string in ``names``; -1 where it is none of them."""
    position = arrow.index_in(values, value_set=pa.array(names, values.type)).fill_null(-1)
    return torch.from_numpy(np.array(position)).long()


def _blank(values: Column) -> Tensor:
    """``[N]`` bool: rows without a value, or with an empty string."""
    absent = values.is_null()
    if is_text(values.type):
        blank = arrow.equal(arrow.utf8_trim_whitespace(values), "")
        absent = arrow.or_(absent, blank.fill_null(True))
    return torch.from_numpy(np.array(absent))


def _to_vectors(column: Column, where: str) -> Tensor | None:
    """``[N, k]`` float64 from numbers (k = 1) or vectors of one length; None for other types."""
    scalars = to_float64(column)
    if scalars is not None:
        return scalars[:, None]
    types, kind = pa.types, column.type
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not lists or not is_numeric(kind.value_type):
        return None
    values = contiguous(column)
    length = torch.from_numpy(np.array(arrow.list_value_length(values).fill_null(-1)))
    bad = (length != length.max()) | (length <= 0)
    check_rows(bad, where, f"is not a vector of {int(length.max())} numbers", values)
    flat = to_float64(values.flatten())
    assert flat is not None
    return flat.view(len(values), -1)


def class_targets(
    column: Column, classes: Sequence[str] | None, where: str
) -> tuple[Tensor, list[str]]:
    """Class numbers ``[N]`` int64 from 0, and the name of each class.

    Args:
        column: integers from 0, or strings.
        classes: names of the classes in order; by default strings are numbered in sorted order.
        where: name of the column in errors.
    """
    values = contiguous(column)
    check_rows(_blank(values), where, "is missing", values)
    if classes is not None and len(set(classes)) < len(classes):
        raise ValueError(f"classes are {list(classes)}; they must all differ")
    if is_text(values.type):
        names = sorted(values.unique().to_pylist()) if classes is None else list(classes)
        targets = _positions(values, names)
        check_rows(targets < 0, where, f"is none of the classes {names}", values)
        return targets, names
    number = to_float64(values)
    if number is None:
        raise ValueError(f"{where} is of type {column.type}; a class is an integer or a string")
    count = _MAX_CLASSES if classes is None else len(classes)
    bad = (number != number.floor()) | (number < 0) | (number >= count)
    check_rows(bad, where, f"is not a class, an integer from 0 to {count - 1},", values)
    targets = number.long()
    return targets, list(classes or map(str, range(int(targets.max()) + 1)))


def text_column(column: Column, where: str) -> Column:
    """Strings, none missing; numbers as their digits."""
    values = contiguous(column)
    if is_numeric(values.type):
        values = values.cast(pa.large_string())
    if not is_text(values.type):
        raise ValueError(f"{where} is of type {column.type}; a text is a string")
    check_rows(torch.from_numpy(np.array(values.is_null())), where, "is missing", values)
    return values


# Ids -------------------------------------------------------------------------------------------


def validated_ids(column: Column, where: str, *, parse_integers: bool = False) -> Column:
    """Ids as int64 or strings, all different, none missing.

    Args:
        column: integers or strings.
        where: name of the column in errors.
        parse_integers: read strings as integers if all are integers without leading zeros.
    """
    values = contiguous(column)
    if pa.types.is_integer(values.type):
        try:
            values = values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise ValueError(f"{where} exceeds 64 bits; write such ids as strings") from error
        missing = values.is_null()
    elif is_text(values.type):
        missing = arrow.equal(values.fill_null(""), "")
    else:
        raise ValueError(f"{where} is of type {column.type}; ids are integers or strings")
    check_rows(torch.from_numpy(np.array(missing)), where, "is missing", values)
    if parse_integers and is_text(values.type):
        integers = arrow.match_substring_regex(values, _CANONICAL_INTEGER)
        values = values.cast(pa.int64()) if arrow.all(integers).as_py() else values
    check_unique(values, where)
    return values


def ids_to_arrow(ids: Ids | Sequence[int]) -> Column:
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


def ids_from_arrow(ids: Column) -> Ids:
    """An Arrow array of ids as a tensor of integers or a list of strings."""
    if pa.types.is_integer(ids.type):
        return torch.from_numpy(np.array(ids))
    strings: list[str] = ids.to_pylist()
    return strings
