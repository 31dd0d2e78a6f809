"""A Hugging Face dataset, from disk or the hub, as a map-style dataset."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lit_adaptive.data.sources.columns import ColumnDataset, refuse_missing

# Not ``-> Tensor``, which jsonargparse would take for a factory of tensors.
Transform = Callable[[Any], Any]

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # name, or owner/name
_BUILDERS = {
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}


class HubDataset(ColumnDataset):
    """A Hugging Face dataset with numeric, text or image columns, as a map-style dataset.

    An item is ``{"input": float32, "target": int, "text": str}``, of which only what is named;
    ``gather`` collates a whole batch at once. Needs ``pip install lit-adaptive[hub]``.

    Args:
        path: a folder that ``save_to_disk`` wrote, a folder or file of data, or a dataset's name on
            the hub (which is downloaded once and kept).
        name: its configuration on the hub, if it has several.
        split: such as ``train`` or ``test``, on the hub also ``train[:10%]``. A folder that holds
            one dataset of no named split is taken as it is.
        features: numeric columns that together make ``input``, a column of equally long vectors
            (such as embeddings) once per component. By default all numbers that have no other
            role; none if there is an ``image`` or a ``text``.
        target: column of classes: class labels, integers from 0, or strings (in sorted order).
        text: column of strings.
        id: column of distinct integers or strings; by default rows go by their number.
        image: column of images, which make ``input`` instead of ``features``.
        transform: makes a tensor of a PIL image; by default ``[C, H, W]`` float32 in [0, 1].

    Raises:
        ModuleNotFoundError: if ``datasets`` is not installed.
        ValueError: if there is no such dataset or split, it is empty, a column is missing or of the
            wrong type, or a value in it is missing (which rows).
    """

    def __init__(
        self,
        path: str,
        *,
        name: str | None = None,
        split: str = "train",
        features: list[str] | None = None,
        target: str | None = None,
        text: str | None = None,
        id: str | None = None,  # noqa: A002
        image: str | None = None,
        transform: Transform | None = None,
    ) -> None:
        if image is not None and features:
            raise ValueError(
                f"image is {image!r} and features are {features}; only one can be the input"
            )
        source = f"{path} ({split})"
        dataset = load_hub(str(path), name, split)
        named = [*(features or []), *(c for c in (target, text, id, image) if c is not None)]
        refuse_missing(dataset.column_names, named, source)
        kept = [
            field.name
            for field in dataset.features.arrow_schema
            if field.name != image and (field.name in named or not pa.types.is_nested(field.type))
        ]
        # All of these columns, as Arrow: of an uncut dataset on disk this copies nothing.
        table = dataset.select_columns(kept).with_format("arrow")[:]
        if not kept:  # Arrow counts no rows where there are no columns
            table = pa.table({"row": range(len(dataset))})
        super().__init__(
            table,
            features=features,
            target=target,
            text=text,
            id=id,
            classes=getattr(dataset.features[target], "names", None) if target else None,
            inputs=None if image is None else _Images(dataset, image, transform or _as_tensor),
            source=source,
        )


class _Images:
    """A column of images, decoded when asked for."""

    def __init__(self, dataset: Any, column: str, transform: Transform) -> None:
        self.dataset = dataset.select_columns([column])
        self.column = column
        self.transform = transform

    def __getitem__(self, index: Any, /) -> Tensor:
        if isinstance(index, Tensor):
            return torch.stack([self[i] for i in index.tolist()])
        made: Tensor = self.transform(self.dataset[index][self.column])
        return made


def _as_tensor(image: Any) -> Tensor:
    """``[C, H, W]`` float32 in [0, 1] of a PIL image of 8 bits a channel."""
    pixels = torch.from_numpy(np.array(image))
    if pixels.dtype != torch.uint8:
        raise ValueError(
            f"an image is of mode {image.mode}, not of 8 bits a channel; "
            "pass transform= to make a tensor of it"
        )
    return (pixels.movedim(-1, 0) if pixels.dim() == 3 else pixels[None]).float() / 255


def load_hub(path: str, name: str | None, split: str) -> Any:
    """One split, as ``datasets.Dataset``."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Hugging Face datasets need the package `datasets`: pip install 'lit-adaptive[hub]'"
        ) from error
    folder = Path(path)
    saved = [file for file in ("state.json", "dataset_dict.json") if (folder / file).is_file()]
    try:
        if saved:
            return _of_split(datasets.load_from_disk(path), split, path)
        if folder.is_file():
            builder = _BUILDERS.get(folder.suffix.lower())
            if builder is None:
                raise ValueError(
                    f"{path} ends in {folder.suffix!r}; it must be one of {[*_BUILDERS]}"
                )
            return datasets.load_dataset(builder, data_files=path, split=split)
        if not folder.exists() and not _HUB_NAME.fullmatch(path):
            raise FileNotFoundError("There is no such folder or file")
        return datasets.load_dataset(path, name, split=split)
    except (OSError, DatasetsError) as error:
        raise ValueError(
            f"{path!r} cannot be loaded: it must be a folder that save_to_disk wrote, a file or "
            f"folder of data, or a name on the Hugging Face hub. {type(error).__name__}: {error}"
        ) from error


def _of_split(loaded: Any, split: str, path: str) -> Any:
    splits = [*loaded] if isinstance(loaded, dict) else [str(loaded.split or split)]
    if split not in splits:
        raise ValueError(f"{path} has no split {split!r}; its splits are {splits}")
    return loaded[split] if isinstance(loaded, dict) else loaded
