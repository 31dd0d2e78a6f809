"""What a checkpoint holds of samplers, replay, predictors and callbacks, as tables and pictures."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pyarrow as pa
import torch
from pyarrow import csv, parquet
from torch import Tensor

from lit_adaptive.report.text import visible

_LEFT_OUT = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "tokenizer")
_SHOWN = 60  # characters of a value

TableFormat = Literal["csv", "parquet"]


class StateEntry(NamedTuple):
    """A value of a checkpoint.

    Attributes:
        path: keys down to it, joined by dots.
        kind: its type, and for a tensor dtype and shape.
        value: the value, or of a tensor the least, mean and greatest one.
        size: bytes of a tensor, else 0.
    """

    path: str
    kind: str
    value: str
    size: int


def state_entries(checkpoint: dict[str, Any]) -> list[StateEntry]:
    """All that a checkpoint holds beside weights, optimizers and loops, which are counted.

    Args:
        checkpoint: as ``read_checkpoint`` returns it.
    """
    weights: dict[str, Any] = checkpoint["state_dict"]
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    count = sum(tensor.numel() for tensor in tensors)
    entries = [
        StateEntry("state_dict", f"{len(weights)} tensors", f"{count:,} numbers", _bytes(tensors))
    ]
    for path, value in _leaves(_beside_weights(checkpoint)):
        if isinstance(value, Tensor):
            kind = f"{str(value.dtype).removeprefix('torch.')} {[*value.shape]}"
            entries.append(StateEntry(path, kind, _range(value), _bytes([value])))
        else:
            entries.append(StateEntry(path, type(value).__name__, visible(value, _SHOWN), 0))
    return entries


def state_tables(checkpoint: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Vectors of equal length with the same parent, such as the priorities of all samples.

    Returns:
        By the parent's path (with the length, if it has vectors of several lengths) the vectors
        ``[N]`` by name, N at least 2. States of random generators are left out.
    """
    found: dict[tuple[str, int], dict[str, Tensor]] = {}
    for path, value in _leaves(_beside_weights(checkpoint)):
        parent, _, name = path.rpartition(".")
        vector = isinstance(value, Tensor) and value.dim() == 1 and len(value) > 1
        if vector and value.dtype != torch.uint8:
            found.setdefault((parent, len(value)), {})[name] = value
    parents = [parent for parent, _ in found]
    return {
        parent if parents.count(parent) == 1 else f"{parent}.{length}": columns
        for (parent, length), columns in found.items()
    }


def write_state(checkpoint: dict[str, Any], folder: Path, table_format: TableFormat) -> list[Path]:
    """Write ``state`` and each of the ``state_tables``, with a PNG of their distributions.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = state_entries(checkpoint)
    columns = zip(*entries, strict=True)
    tables = {"state": pa.table(dict(zip(StateEntry._fields, map(list, columns), strict=True)))}
    files: list[Path] = []
    for name, vectors in state_tables(checkpoint).items():
        stem = re.sub(r"[^\w.-]+", "_", name).strip(".") or "unnamed"  # keys may be paths
        tables[stem] = pa.table({key: vector.numpy() for key, vector in vectors.items()})
        files.append(folder / f"{stem}.png")
        _draw(name, vectors, files[-1])
    for stem, table in tables.items():
        files.append(folder / f"{stem}.{table_format}")
        if table_format == "csv":
            csv.write_csv(table, files[-1])
        else:
            parquet.write_table(table, files[-1])
    return files


def _beside_weights(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in checkpoint.items() if name not in _LEFT_OUT}


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each tensor and primitive; long lists of primitives are one value."""
    if isinstance(node, dict):
        for key, value in node.items():
            name = str(key).partition("{")[0] or str(key)  # Lightning appends a callback's options
            yield from _leaves(value, f"{path}.{visible(name, _SHOWN)}".removeprefix("."))
    elif isinstance(node, (list, tuple)) and any(
        isinstance(each, (dict, list, tuple, Tensor)) for each in cast("list[Any]", node)
    ):
        for place, value in enumerate(cast("list[Any]", node)):
            yield from _leaves(value, f"{path}.{place}")
    else:
        yield path, node


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _range(value: Tensor) -> str:
    if not value.numel() or value.is_complex():
        return ""
    numbers = value.double()
    if value.numel() == 1:
        return f"{float(numbers):.6g}"
    known = numbers[numbers.isfinite()]
    if not len(known):
        return "no finite number"
    text = f"{float(known.min()):.4g} … {float(known.mean()):.4g} … {float(known.max()):.4g}"
    left = value.numel() - len(known)
    return f"{text}, {left} not finite" if left else text


def _draw(title: str, vectors: dict[str, Tensor], out: Path) -> None:
    """Histograms of the vectors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(vectors), 2.8), layout="constrained")
    panels = figure.subplots(1, len(vectors), squeeze=False)[0]
    for axes, (name, vector) in zip(panels, vectors.items(), strict=True):
        numbers = vector.double()
        axes.hist(numbers[numbers.isfinite()].numpy(), bins=40)
        axes.set_yscale("symlog")
        axes.set_title(name, fontsize=9, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}: {len(next(iter(vectors.values())))} each", fontsize=9)
    figure.savefig(out, dpi=100)
