"""From rows to a store of tokens, chunk by chunk, kept in a cache if wished."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from filelock import FileLock

from lit_adaptive.data.sources.rows import Chunk, Rows
from lit_adaptive.data.text.chat import Chat
from lit_adaptive.data.text.encoding import Encoded, Encoder, truncate
from lit_adaptive.data.text.prompt_completion import (
    Reading,
    Samples,
    groups_of,
    needs_chat,
    others_of,
    refuse_some,
    samples_of,
)
from lit_adaptive.data.text.store_writer import StoreWriter
from lit_adaptive.data.text.token_store import Part, TokenStore, opened_store

_REMEDY = "raise max_length, or set overlong to truncate_left, truncate_right or drop"


def tokenizer_key(tokenizer: Any) -> str:
    """Changes with whatever makes a tokenizer read texts differently: 32 hex digits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        known = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:  # what a call leaves behind does not count
        told = json.loads(backend.to_str())
        known = json.dumps({**told, "padding": None, "truncation": None}, sort_keys=True)
    told = [known, tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None)]
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


def tokenized(
    rows: Rows, tokenizer: Any, reading: Reading, cache_dir: str | Path | None
) -> TokenStore:
    """The store of ``rows``: made now, or found in ``cache_dir`` (one folder for each content).

    Of several processes one makes it and the others wait.

    Raises:
        ValueError: if a row does not fit, or none is left.
    """
    if cache_dir is None:
        return _DatasetTokenizer(rows, tokenizer, reading).store(None)
    told = "\n".join([rows.key(), tokenizer_key(tokenizer), reading.key])
    name = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    folder = Path(cache_dir) / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        found = opened_store(folder)
        return _DatasetTokenizer(rows, tokenizer, reading).store(folder) if found is None else found


class _DatasetTokenizer:
    """Reads chunk after chunk, and counts."""

    def __init__(self, rows: Rows, tokenizer: Any, reading: Reading) -> None:
        self.rows = rows
        self.tokenizer = tokenizer
        self.reading = reading
        self.resolved: Reading | None = None
        self.encoder = Encoder(tokenizer)
        least = max(len(self.encoder.prefix), 1) + 1
        if reading.max_length < least:
            raise ValueError(
                f"max_length is {reading.max_length}; a sample has at least {least} tokens"
            )
        self.chat: Chat | None = None
        self.counts: Counter[str] = Counter()
        self.id_kind = "row"

    def store(self, folder: Path | None) -> TokenStore:
        writer = StoreWriter(folder)
        try:
            first = 0
            for chunk in self.rows.chunks():
                size = len(next(iter(chunk.values())))
                part = self._part(chunk, first, size)
                first += size
                if len(part.length):
                    writer.add(part)
                self.counts["kept"] += len(part.length)
            self._refuse_nothing(first)
            names = ("kept", "empty", "shortened", "unfinished", "dropped")
            counts = {"rows": first} | {name: self.counts[name] for name in names}
            return writer.close(counts=counts, ids=self.id_kind)
        except BaseException:
            writer.abandon()
            raise

    def _refuse_nothing(self, rows: int) -> None:
        if rows == 0:
            raise ValueError(f"{self.rows.source} has no rows; it must have at least one")
        if self.counts["kept"] == 0:
            raise ValueError(
                f"of the {rows} rows of {self.rows.source} none is left: "
                f"{self.counts['empty']} are empty and {self.counts['dropped']} longer than "
                f"max_length {self.reading.max_length}; {_REMEDY}"
            )

    def _part(self, chunk: Chunk, first: int, size: int) -> Part:
        if self.resolved is None:
            self.resolved = self.reading.resolved([*chunk], self.rows.source)
        reading = self.resolved
        if self.chat is None and needs_chat(chunk, reading):
            self.chat = Chat(self.tokenizer, reading.turns)
        samples = samples_of(chunk, reading, self.chat, self.rows.source, first)
        whole = reading.text is not None
        if whole:
            encoded = self.encoder.texts(samples.answer)
        else:
            encoded = self.encoder.turns(samples.contexts, samples.completions)
        self._refuse(encoded, samples, first)
        wanted = ~encoded.empty
        cut = truncate(encoded, reading.max_length, reading.overlong, whole_text=whole, kept=wanted)
        self.counts["empty"] += int(encoded.empty.sum())
        self.counts["dropped"] += int((wanted & ~cut.kept).sum())
        self.counts["shortened"] += cut.shortened
        self.counts["unfinished"] += cut.unfinished
        others, numbers, textual = others_of(chunk, reading, self.rows.source, first)
        ids = self._ids(chunk, first, size)
        kept = cut.kept.nonzero()[0]
        prompt, answer, other, own = (
            [values[i] for i in kept] for values in (samples.prompt, samples.answer, others, ids)
        )
        return Part(
            cut.tokens,
            cut.length,
            cut.target_count,
            cut.prompt_length,
            first + kept,
            groups_of(samples)[kept],
            (prompt, answer, other, own),
            {name: values[kept] for name, values in numbers.items()},
            textual,
        )

    def _refuse(self, encoded: Encoded, samples: Samples, first: int) -> None:
        assert self.resolved is not None
        if self.resolved.empty == "error" and encoded.empty.any():
            where = f"the completion in {self.rows.source}"
            refuse_some(
                encoded.empty.tolist(), where, "is empty (or empty: drop)", samples.answer, first
            )
        long = encoded.length > self.resolved.max_length
        if self.resolved.overlong == "error" and long.any():
            rows = (first + long.nonzero()[0]).tolist()
            raise ValueError(
                f"{len(rows)} of the rows {first} to {first + len(long) - 1} of "
                f"{self.rows.source} have more than max_length {self.resolved.max_length} tokens: "
                f"rows {rows[:5]} have {encoded.length[long][:5].tolist()}; {_REMEDY}"
            )

    def _ids(self, chunk: Chunk, first: int, size: int) -> list[str]:
        assert self.resolved is not None
        name = self.resolved.id
        if name is None:
            return [""] * size
        values: list[Any] = chunk.get(name, [None] * size)
        kinds = {"integer": int, "string": str}
        if self.id_kind == "row":
            self.id_kind = "integer" if isinstance(values[0], int) else "string"
        odd = [type(value) is not kinds[self.id_kind] or value == "" for value in values]
        what = f"is missing or no {self.id_kind}, as the first row's is,"
        refuse_some(odd, f"{name} in {self.rows.source}", what, values, first)
        return [*map(str, values)]
