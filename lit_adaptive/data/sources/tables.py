"""Tables of numbers, texts and images as map-style datasets."""

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_adaptive.data.sources.columns import (
    Ids,
    Table,
    almost_numbers,
    check_columns,
    check_numbers,
    check_rows,
    class_targets,
    feature_matrix,
    ids_from_arrow,
    numeric_columns,
    parse_numbers,
    text_column,
    to_float64,
    validated_ids,
)
from lit_adaptive.data.sources.rows import HubRows, Rows, load_rows

# Not ``-> Tensor``, which jsonargparse would take for a factory of tensors.
Transform = Callable[[Any], Any]


class Inputs(Protocol):
    """Inputs by row: a tensor, or a slower container that is indexed like one."""

    def __getitem__(self, index: Any, /) -> Tensor:
        """One row's input for an integer, a batch ``[B, ...]`` for ``[B]`` int64."""
        ...


class ColumnDataset(Dataset[dict[str, Any]]):
    """The rows of an Arrow table as a map-style dataset; the class behind ``TableDataset``.

    Attributes:
        inputs: ``[N, ...]`` float32, or a container indexed like it; None if there is only text.
        targets: ``[N]`` int64, or None without a target.
        feature_names: columns that make the inputs, in their order.
        categories: by column of strings among them, the values that it is one-hot encoded by.
        classes: name of each class (integer classes: their digits), or None without a target.
        ids: one per row, all different: strings, or ``[N]`` int64.
        source: name of the table in errors.
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
        parse_integer_ids: bool = False,
    ) -> None:
        if table.num_rows == 0:
            raise ValueError(f"{source} has no rows; it must have at least one")
        roles = [name for name in (target, text, id) if name is not None]
        if features is None:
            chosen = text is None and inputs is None
            features = _default_features(table, roles, source) if chosen else []
        check_columns(table.column_names, [*features, *roles], source)
        if not features and text is None and inputs is None:
            raise ValueError(
                f"{source} has no input for a model: none of {table.column_names} is numeric and "
                "free for features; name features= or text="
            )
        self.source = source
        self._table = table
        self.feature_names = list(features)
        self.inputs = inputs
        self.categories: dict[str, list[str]] = {}
        if features:
            self.inputs, self.categories = feature_matrix(table, features, source)
        self.targets: Tensor | None = None
        self.classes: list[str] | None = None
        if target is not None:
            where = f"{target} in {source}"
            self.targets, self.classes = class_targets(table[target], classes, where)
        self._texts = None if text is None else text_column(table[text], f"{text} in {source}")
        self.ids: Ids = torch.arange(table.num_rows)
        if id is not None:
            where = f"{id} in {source}"
            ids = validated_ids(table[id], where, parse_integers=parse_integer_ids)
            self.ids = ids_from_arrow(ids)

    def set_categories(self, categories: dict[str, list[str]]) -> None:
        """Encode the columns of strings by the categories of another table of the same columns.

        Raises:
            ValueError: if a value is none of them (naming the column, the rows and the values).
        """
        if self.categories and categories != self.categories:
            self.inputs, self.categories = feature_matrix(
                self._table, self.feature_names, self.source, categories
            )

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = operator.index(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {self.source}, which has {len(self)} rows")
        item: dict[str, Any] = {}
        if self.inputs is not None:
            item["input"] = self.inputs[row]
        if self.targets is not None:
            item["target"] = int(self.targets[row])
        if self._texts is not None:
            item["text"] = self._texts[row % len(self)].as_py()
        return item

    def content(self) -> Iterator[tuple[str, Any]]:
        """The columns that identify the rows: all but images."""
        columns = {name: self._table[name] for name in self._table.column_names}
        if isinstance(self.inputs, Tensor):
            columns["input"] = self.inputs
        yield from columns.items()

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
                or not finite (naming the rows).
        """
        check_columns(self._table.column_names, [name], self.source)
        values = to_float64(self._table[name])
        where = f"{name} in {self.source}"
        if values is None:
            check_numbers(self._table[name], where)
            raise ValueError(
                f"{where} is of type {self._table[name].type}, not numeric; numeric columns are "
                f"{numeric_columns(self._table)}"
            )
        check_rows(~values.isfinite(), where, "is missing or not finite", values)
        return values


def _default_features(table: Table, roles: list[str], source: str) -> list[str]:
    """The numeric columns without another role; warns of others.

    Raises:
        ValueError: if a column would be numeric but for a few rows.
    """
    free = [name for name in table.column_names if name not in roles]
    numeric = [name for name in numeric_columns(table) if name in free]
    others = [name for name in free if name not in numeric]
    for name in others:
        bad = almost_numbers(table[name])
        if bad is not None:
            fault = "is not a number, unlike the others of this feature,"
            check_rows(bad, f"{name} in {source}", fault, table[name])
    if others and numeric:
        warnings.warn(
            f"{source}: the columns {others} are not numeric and no features; name features, those "
            f"of strings are one-hot encoded, or leave them out by features: {numeric}",
            stacklevel=2,
        )
    return numeric


class TableDataset(ColumnDataset):
    """Columns of a file or Hugging Face dataset as a map-style dataset.

    An item is ``{"input": float32, "target": int, "text": str}``, with the keys whose columns are
    named; ``gather`` collates a whole batch at once.

    Args:
        path: file, glob pattern, folder or hub name, as ``HubRows`` takes it.
        features: columns that together make ``input`` ``[F]``: numbers (true/false count as 1/0),
            vectors of one length (once per component), and strings or categories, which are
            one-hot encoded (once per category, sorted; ``AdaptiveDataModule`` encodes its other
            sets by the categories of the training set). By default all numeric columns without
            another role (with a warning that names the others); none if there is a ``text`` or an
            ``image``.
        target: column of classes: class labels, integers from 0, or strings, which are numbered in
            sorted order.
        id: column of distinct integers or strings; by default the row's number.
        text: column of strings.
        image: column of images, which make ``input`` instead of ``features``.
        transform: converts a PIL image to a tensor; by default ``[C, H, W]`` float32 in [0, 1].
        classes: names of the classes in order; for a validation file that may lack some class of
            the training file.
        name: configuration of a dataset that has several.
        split: such as ``train`` or ``test``.

    Raises:
        ValueError: if there is no such dataset or split, it is empty or damaged, a column is
            missing or of the wrong type, or a value in it is missing (naming the rows).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        features: list[str] | None = None,
        target: str | None = None,
        id: str | None = None,  # noqa: A002
        text: str | None = None,
        image: str | None = None,
        transform: Transform | None = None,
        classes: list[str] | None = None,
        name: str | None = None,
        split: str = "train",
    ) -> None:
        if image is not None and features:
            raise ValueError(
                f"image is {image!r} and features are {features}; only one can be the input"
            )
        rows = load_rows(HubRows(str(path), name=name, split=split))
        columns = [*(features or []), *(c for c in (target, text, id, image) if c is not None)]
        check_columns(rows.dataset.column_names, columns, rows.source)
        labels = getattr(rows.dataset.features[target], "names", None) if target else None
        super().__init__(
            _to_table(rows, columns, image, strings=[text, id]),
            features=features,
            target=target,
            text=text,
            id=id,
            classes=labels if classes is None else classes,
            inputs=None if image is None else _Images(rows.dataset, image, transform or _pixels),
            source=rows.source,
            parse_integer_ids=rows.untyped,
        )


def _to_table(rows: Rows, named: list[str], image: str | None, strings: list[str | None]) -> Table:
    """The named columns and all that are not nested, as Arrow; the numbers of a CSV are parsed."""
    from datasets import Json

    mixed = [name for name in named if isinstance(rows.dataset.features[name], Json)]
    if mixed:
        raise ValueError(
            f"{mixed[0]} in {rows.source} holds values of several types; give the column one type"
        )
    kept = [
        field.name
        for field in rows.dataset.features.arrow_schema
        if field.name != image and (field.name in named or not pa.types.is_nested(field.type))
    ]
    if not kept:  # Arrow counts no rows where there are no columns
        return pa.table({"row": range(len(rows.dataset))})
    table = rows.dataset.select_columns(kept).with_format("arrow")[:]
    if not rows.untyped:
        return table
    parsed = {name: table[name] if name in strings else parse_numbers(table[name]) for name in kept}
    return pa.table(parsed)


class _Images:
    """A column of images, decoded when indexed."""

    def __init__(self, dataset: Any, column: str, transform: Transform) -> None:
        self.dataset = dataset.select_columns([column])
        self.column = column
        self.transform = transform

    def __getitem__(self, index: Any, /) -> Tensor:
        if isinstance(index, Tensor):
            return torch.stack([self[i] for i in index.tolist()])
        tensor: Tensor = self.transform(self.dataset[index][self.column])
        return tensor


def _pixels(image: Any) -> Tensor:
    """A PIL image of 8 bits per channel as ``[C, H, W]`` float32 in [0, 1]."""
    pixels = torch.from_numpy(np.array(image))
    if pixels.dtype != torch.uint8:
        raise ValueError(
            f"an image has mode {image.mode}, not 8 bits per channel; "
            "pass transform= to convert it to a tensor"
        )
    return (pixels.movedim(-1, 0) if pixels.dim() == 3 else pixels[None]).float() / 255
