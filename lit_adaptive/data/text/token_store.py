"""Tokens of many samples behind one another, in memory or in memory-mapped files.

A token that is to be predicted is stored as ``~token`` (hence negative), so one read gives tokens
and mask. On disk a store is a folder; what is not finished has another name and is never read.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Tokens = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]

FORMAT = 1  # of the files; a store of another one is made anew
TEXTS = ("prompt", "completion", "other", "id")
SCHEMA: Any = pa.schema([(name, pa.large_string()) for name in TEXTS])
PER_ROW = ("length", "target_count", "prompt_length", "row", "group")


class Part(NamedTuple):
    """Some samples, ready to be stored.

    Attributes:
        tokens: ``[total]`` int32, sample after sample; ``~token`` where it is to be predicted.
        length: ``[n]`` int64, tokens of each sample.
        target_count: ``[n]`` int64, of them to be predicted, above 0.
        prompt_length: ``[n]`` int64, tokens before the last completion.
        row: ``[n]`` int64, number of the row in the source.
        group: ``[n]`` uint64, hash of the prompt.
        texts: of each its prompt, its completion, the JSON of all other columns, and its id.
        numbers: float64 ``[n]`` by column, NaN where missing.
        textual: columns that hold more than numbers.
    """

    tokens: Tokens
    length: Counts
    target_count: Counts
    prompt_length: Counts
    row: Counts
    group: npt.NDArray[np.uint64]
    texts: tuple[list[str], list[str], list[str], list[str]]
    numbers: dict[str, npt.NDArray[np.float64]]
    textual: set[str]


class TokenStore:
    """Samples by number, whether in memory or on disk.

    Attributes:
        tokens: ``[total]`` int32, as in ``Part``.
        start: ``[N + 1]`` int64, where each sample begins.
        arrays: all that ``Part`` has one of for each sample, ``[N]`` each.
        numbers: numeric columns, ``[N]`` float64 each.
        meta: ``fingerprint`` of tokens and lengths, and what was counted when it was made.
    """

    def __init__(
        self,
        tokens: Tokens,
        rows: Any,
        arrays: dict[str, Any],
        meta: dict[str, Any],
        folder: Path | None = None,
    ) -> None:
        self.tokens = tokens
        self.meta = meta
        self.folder = folder
        self.arrays = {name: arrays[name] for name in PER_ROW}
        self.numbers = {name: arrays[f"number {i}"] for i, name in enumerate(meta["numbers"])}
        self.start = np.concatenate([[0], np.cumsum(self.arrays["length"])])
        self._buffer = rows
        self._reader = pa.ipc.open_file(rows)
        sizes = [self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)]
        self._first_of_batch = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return len(self.start) - 1

    def __reduce__(self) -> Any:
        if self.folder is not None:  # a worker process maps the files again
            return opened, (self.folder,)
        arrays = dict(self.arrays)
        arrays |= {f"number {i}": each for i, each in enumerate(self.numbers.values())}
        return TokenStore, (self.tokens, self._buffer, arrays, self.meta)

    def texts(self, index: Counts) -> list[dict[str, Any]]:
        """Prompt, completion and the other columns of ``index`` ``[B]``."""
        found: list[dict[str, Any]] = []
        batches = np.searchsorted(self._first_of_batch, index, "right") - 1
        opened = {int(each): self._reader.get_batch(int(each)) for each in np.unique(batches)}
        for number, at in zip(batches.tolist(), index.tolist(), strict=True):
            batch, place = opened[number], at - int(self._first_of_batch[number])
            prompt, completion, other, _ = (column[place].as_py() for column in batch.columns)
            found.append({**json.loads(other), "prompt": prompt, "completion": completion})
        return found

    def ids(self) -> Any:
        """The ids as an Arrow column of strings."""
        batches = [self._reader.get_batch(i) for i in range(self._reader.num_record_batches)]
        return pa.chunked_array([batch["id"] for batch in batches], pa.large_string())


def opened_store(folder: Path) -> TokenStore | None:
    """The store in ``folder``; None if there is none, or one of another format or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["format"] != FORMAT:
            return None
        store = opened(folder)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    return store if len(store.tokens) == store.start[-1] else None


def opened(folder: Path) -> TokenStore:
    """The store in ``folder``, which is known to be whole."""
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        arrays = dict(file)
    # Copy on write: nobody writes, but torch wants to be allowed to.
    tokens = np.memmap(folder / "tokens.bin", np.int32, "c")
    rows = pa.memory_map(str(folder / "rows.arrow"))
    return TokenStore(tokens, rows, arrays, meta, folder)
