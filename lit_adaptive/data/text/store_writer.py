"""Writes token stores: in memory, or into a folder that has its name once it is whole."""

import hashlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lit_adaptive.data.text.token_store import (
    FORMAT,
    PER_ROW,
    SCHEMA,
    Part,
    TokenStore,
    opened,
)


class StoreWriter:
    """Writes a store part by part, to ``folder``, or to memory without one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._partial: Path | None = None
        self._sink: Any = io.BytesIO()
        rows: Any = pa.BufferOutputStream()
        if folder is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            name = tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent)
            self._partial = Path(name)
            self._sink = (self._partial / "tokens.bin").open("wb")
            rows = pa.OSFile(str(self._partial / "rows.arrow"), "wb")
        self._rows = rows
        self._texts = pa.ipc.new_file(rows, SCHEMA)
        self._digest = hashlib.blake2b(digest_size=16)
        self._arrays: dict[str, list[Any]] = {name: [] for name in PER_ROW}
        self._numbers: dict[str, list[Any]] = {}
        self._texts_only: set[str] = set()
        self._size = 0

    def add(self, part: Part) -> None:
        """Append ``part``."""
        self._digest.update(part.tokens.data)
        self._sink.write(part.tokens.data)
        for name in PER_ROW:
            self._arrays[name].append(getattr(part, name))
        self._texts.write_batch(pa.record_batch([*part.texts], schema=SCHEMA))
        self._texts_only |= part.textual
        size = len(part.length)
        for name, values in part.numbers.items():
            before = self._numbers.setdefault(name, [np.full(self._size, np.nan)])
            before.append(values)
        for name, parts in self._numbers.items():
            if name not in part.numbers:
                parts.append(np.full(size, np.nan))
        self._size += size

    def close(self, **meta: Any) -> TokenStore:
        """Finish; a folder gets its name only now."""
        self._texts.close()
        numbers = [name for name in self._numbers if name not in self._texts_only]
        arrays = {name: np.concatenate(parts) for name, parts in self._arrays.items()}
        for i, name in enumerate(numbers):
            arrays[f"number {i}"] = np.concatenate(self._numbers[name])
        for name in ("length", "target_count", "prompt_length"):
            self._digest.update(arrays[name].tobytes())
        meta |= {"fingerprint": self._digest.hexdigest(), "numbers": numbers}
        if self._partial is None:
            tokens = np.frombuffer(self._sink.getbuffer(), np.int32)
            return TokenStore(tokens, self._rows.getvalue(), arrays, meta)
        self._sink.close()
        self._rows.close()
        savez: Any = np.savez  # whose further arguments are arrays by name
        savez(self._partial / "arrays.npz", **arrays)
        (self._partial / "meta.json").write_text(json.dumps(meta | {"format": FORMAT}))
        assert self.folder is not None
        shutil.rmtree(self.folder, ignore_errors=True)
        self._partial.rename(self.folder)
        return opened(self.folder)

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self._partial is not None:
            self._sink.close()
            shutil.rmtree(self._partial, ignore_errors=True)
