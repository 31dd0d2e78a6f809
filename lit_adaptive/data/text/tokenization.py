"""Texts as tokens, as a model sees them when it generates; cached by ``datasets``.

A prompt is tokenized on its own, so that its tokens are those that generation begins with; the
completion's are appended, and closed by exactly one stop token. Both are tokenized without special
tokens: the tokens that the tokenizer puts before a text (bos) are put before each prompt once, and
those it puts behind a text are left out.
"""

import hashlib
import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lit_adaptive.data.sources.rows import Rows, quiet_datasets
from lit_adaptive.data.text.packing import Counts
from lit_adaptive.progress import progress_bar
from lit_adaptive.rollout.models.tokenizers import stop_token_ids

Tokens = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
LengthPolicy = Literal["truncate_left", "truncate_right", "drop", "error"]

_FORMAT = 1  # changes with the columns of the cache
_BATCH = 1000  # rows tokenized at once
_THREADS = "TOKENIZERS_PARALLELISM"
_GUARD = "\n"


class EncodedSamples(NamedTuple):
    """Samples as tokens.

    Attributes:
        tokens: ``[length.sum()]`` int32, sample after sample; ``~token`` for a target.
        length: ``[n]`` int64, tokens of each sample.
        prompt_length: ``[n]`` int64, tokens before the last completion.
        leading: ``[n]`` int64, how many of them the tokenizer puts before a text.
        empty: ``[n]`` bool, whether the last completion consists of stop tokens only.
    """

    tokens: Tokens
    length: Counts
    prompt_length: Counts
    leading: Counts
    empty: Mask


class Truncated(NamedTuple):
    """Samples of a bounded length; those not kept have no tokens.

    Attributes:
        kept: ``[n]`` bool.
        shortened: ``[n]`` bool, whether the sample lost tokens at its beginning.
        unfinished: ``[n]`` bool, whether it lost the end of its completion.
        tokens: ``[length.sum()]`` int32, as in ``EncodedSamples``.
        length: ``[n]`` int64.
        prompt_length: ``[n]`` int64.
        target_count: ``[n]`` int64, above 0 where kept.
    """

    kept: Mask
    shortened: Mask
    unfinished: Mask
    tokens: Tokens
    length: Counts
    prompt_length: Counts
    target_count: Counts


class Encoder:
    """Converts texts to tokens.

    Args:
        tokenizer: a tokenizer of transformers with an eos token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.stops = frozenset(stop_token_ids(tokenizer))
        with_special = list(tokenizer("a")["input_ids"])
        bare = self._ids(["a"])[0]
        at = [i for i in range(len(with_special)) if with_special[i : i + len(bare)] == bare]
        self.prefix: list[int] = with_special[: at[0]] if at else []
        self._guarded = False
        if self._joined("a", "b") != "ab":  # the tokenizer puts a space before any text
            self._guarded = True
            self._guarded = self._joined("a", "b") == "ab"

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of prompts, as they stand at the beginning of samples."""
        return [self._with_prefix(ids) for ids in self._ids(texts)]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts that follow prompts, each closed by a stop token."""
        return [self._closed(ids) for ids in self._continuations(texts)]

    def turns(self, contexts: list[list[str]], completions: list[list[str]]) -> EncodedSamples:
        """Samples of one or more turns, each a context and a completion.

        Args:
            contexts: for each sample the texts before each of its completions.
            completions: for each sample as many texts; only the last is closed.
        """
        count = np.array([len(turns) for turns in contexts])
        with tokenizer_threads():
            first = self._ids([turns[0] for turns in contexts])
            later = iter(self._continuations([text for turns in contexts for text in turns[1:]]))
            answers = self._continuations([*chain.from_iterable(completions)])
        pieces = [piece for answer in answers for piece in ([], answer)]
        starts, ends = 2 * (np.cumsum(count) - count), 2 * np.cumsum(count) - 1
        pieces[::2] = [
            *chain.from_iterable(
                (self._with_prefix(ids), *(next(later) for _ in turns[1:]))
                for ids, turns in zip(first, contexts, strict=True)
            )
        ]
        for end in ends.tolist():
            pieces[end] = self._closed(pieces[end])
        return self._from_pieces(pieces, starts, [len(pieces[end]) for end in ends.tolist()])

    def texts(self, texts: list[str]) -> EncodedSamples:
        """Samples of plain text, in which all tokens but the first are targets."""
        with tokenizer_threads():
            ids = self._ids(texts)
        lead = max(len(self.prefix), 1)
        samples = [self._closed(self._with_prefix(text)) for text in ids]
        pieces = [piece for sample in samples for piece in (sample[:lead], sample[lead:])]
        encoded = self._from_pieces(
            pieces, np.arange(0, len(pieces), 2), [len(sample) - lead for sample in samples]
        )
        empty = [self.stops.issuperset(sample[len(self.prefix) :]) for sample in samples]
        return encoded._replace(empty=np.array(empty))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts that follow another text."""
        if not self._guarded:
            return self._ids(texts)
        guard = self._ids([_GUARD])[0]
        guarded = self._ids([_GUARD + text for text in texts])
        return [
            ids[len(guard) :] if ids[: len(guard)] == guard else self._ids([text])[0]
            for ids, text in zip(guarded, texts, strict=True)
        ]

    def _joined(self, first: str, second: str) -> str:
        ids = self._ids([first])[0] + self._continuations([second])[0]
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _with_prefix(self, ids: list[int]) -> list[int]:
        """``ids`` behind the tokenizer's prefix, which is there once; never empty."""
        if self.prefix and ids[: len(self.prefix)] != self.prefix:
            return self.prefix + ids
        if ids:
            return ids
        bos = self.tokenizer.bos_token_id
        return [self.tokenizer.eos_token_id if bos is None else bos]

    def _closed(self, ids: list[int]) -> list[int]:
        """``ids`` with exactly one stop token at the end."""
        end = len(ids)
        while end and ids[end - 1] in self.stops:
            end -= 1
        return [*ids[:end], ids[end] if end < len(ids) else self.tokenizer.eos_token_id]

    def _from_pieces(
        self, pieces: list[list[int]], starts: Counts, final: list[int]
    ) -> EncodedSamples:
        """Samples from contexts and completions in turn.

        Args:
            pieces: tokens of context, completion, context, completion and so on.
            starts: ``[n]``, number of each sample's first piece.
            final: ``[n]``, tokens of each sample's last completion.
        """
        size = np.array([len(piece) for piece in pieces])
        flat = np.fromiter(chain.from_iterable(pieces), np.int32, int(size.sum()))
        flat ^= -np.repeat(np.arange(len(pieces)) % 2, size).astype(np.int32)
        length = np.add.reduceat(size, starts)
        last, lead = np.array(final), len(self.prefix)
        prefixed = [pieces[i][:lead] == self.prefix for i in starts.tolist()]
        return EncodedSamples(flat, length, length - last, np.array(prefixed) * lead, last < 2)


def truncate(
    encoded: EncodedSamples,
    max_length: int,
    overlong: LengthPolicy,
    *,
    plain_text: bool,
    kept: Mask,
) -> Truncated:
    """Samples of at most ``max_length`` tokens each.

    Args:
        encoded: the samples.
        max_length: tokens, at least 2 more than the tokenizer puts before a text.
        overlong: ``truncate_left`` removes the beginning of the prompt (but not the tokenizer's
            prefix), and the end of a completion that does not fit alone; ``truncate_right`` removes
            the end; ``drop`` removes the sample, as ``truncate_right`` does if no target would be
            left.
        plain_text: whether samples have no prompt, so that ``truncate_left`` may remove any token
            but the first.
        kept: ``[n]`` bool, the samples to consider.
    """
    length = encoded.length
    excess = np.maximum(length - max_length, 0)
    least = np.maximum(encoded.leading, 1)
    left = np.zeros_like(excess)
    if overlong == "drop":
        kept = kept & (excess == 0)
    elif overlong == "truncate_left":
        spare = (length - 1 if plain_text else encoded.prompt_length) - least
        left = np.minimum(excess, np.maximum(spare, 0))
    right = excess - left
    within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    removed = (within >= np.repeat(encoded.leading, length)) & (
        within < np.repeat(encoded.leading + left, length)
    )
    stays = ~removed & (within < np.repeat(length - right, length))
    tokens = encoded.tokens.copy()
    sample = np.repeat(np.arange(len(length)), length)
    new = length - left - right
    first = stays.nonzero()[0][np.cumsum(new) - new]
    tokens[first] ^= tokens[first] >> 31  # a first token is never a target
    targets = np.bincount(sample[stays & (tokens < 0)], minlength=len(length))
    kept = kept & (targets > 0)
    return Truncated(
        kept,
        kept & (left > 0),
        kept & (right > 0),
        tokens[stays & np.repeat(kept, length)],
        np.where(kept, new, 0),
        np.clip(encoded.prompt_length - left, np.minimum(least, new), new),
        targets,
    )


def tokenizer_key(tokenizer: Any) -> str:
    """32 hex digits that change with whatever changes how a tokenizer reads texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:  # padding and truncation remember the last call
        settings = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
        state = json.dumps(settings, sort_keys=True)
    facts = [state, tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None)]
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


# Rows and their tokens -------------------------------------------------------------------------


class TokenizedRows:
    """The result of ``tokenize_rows``: token sequences and numbers by row, in memory or mapped.

    Args:
        dataset: ``datasets.Dataset`` of the columns that were computed.

    Attributes:
        numbers: the numeric columns as arrays ``[N]``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        table = dataset.data.table
        self.numbers: dict[str, npt.NDArray[Any]] = {
            field.name: table[field.name].to_numpy()
            for field in table.schema
            if pa.types.is_integer(field.type)
        }
        self._sequences = {
            field.name: _Sequences(table[field.name])
            for field in table.schema
            if pa.types.is_list(field.type)
        }

    def __len__(self) -> int:
        return len(self.dataset)

    def __reduce__(self) -> Any:  # a worker process maps the files again
        return TokenizedRows, (self.dataset,)

    def lengths(self, name: str) -> Counts:
        """Number of tokens in each row of the column ``name``: ``[N]`` int64."""
        return self._sequences[name].length

    def gather(self, name: str, rows: Counts, length: Counts | None = None) -> Tokens:
        """The tokens of ``rows`` ``[B]``, row after row, int32.

        Args:
            name: column.
            rows: row numbers.
            length: ``[B]``, read only so many tokens of each; by default all.
        """
        return self._sequences[name].gather(rows, length)

    def digest(self, name: str) -> str:
        """A hash of all tokens in the column ``name``, in order, and of their lengths."""
        sequences = self._sequences[name]
        digest = hashlib.blake2b(sequences.length.tobytes(), digest_size=16)
        for chunk in sequences.chunks:
            digest.update(np.ascontiguousarray(chunk).data)
        return digest.hexdigest()


class _Sequences:
    """A column of token lists.

    Attributes:
        chunks: the tokens of each chunk of the column, int32.
        chunk: ``[N]``, number of each row's chunk.
        start: ``[N]``, where the row begins in its chunk.
        length: ``[N]``, tokens of the row.
    """

    def __init__(self, column: Any) -> None:
        parts = [part for part in column.chunks if len(part)]
        offsets = [np.array(part.offsets, np.int64) for part in parts]
        self.chunks: list[Tokens] = [part.values.to_numpy(zero_copy_only=True) for part in parts]
        self.chunk = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self.start = np.concatenate([ends[:-1] for ends in offsets])
        self.length = np.concatenate([np.diff(ends) for ends in offsets])

    def gather(self, rows: Counts, length: Counts | None) -> Tokens:
        if length is None:
            length = self.length[rows]
        places = zip(
            self.chunk[rows].tolist(), self.start[rows].tolist(), length.tolist(), strict=True
        )
        parts = [self.chunks[i][start : start + n] for i, start, n in places]
        return np.concatenate([np.empty(0, np.int32), *parts])


def tokenize_rows(
    rows: Rows,
    encode: Callable[[dict[str, list[Any]], list[int]], Any],
    *,
    key: str,
    columns: Sequence[str],
    cache_dir: str | Path | None = None,
) -> TokenizedRows:
    """Apply ``encode`` to all rows, or load the result from the cache.

    Rows in memory are encoded in memory unless ``cache_dir`` is given. One of several processes
    encodes and the others wait.

    Args:
        rows: the source.
        encode: returns an Arrow table with one row for each of a batch's rows (columns by name)
            whose numbers are given.
        key: changes with whatever ``encode`` depends on.
        columns: of ``rows``, which ``encode`` reads.
        cache_dir: folder of the cache; by default a folder in ``HF_DATASETS_CACHE``.
    """
    from datasets import config
    from filelock import FileLock

    facts = "\n".join([str(_FORMAT), rows.key, key])
    fingerprint = hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()
    file: Path | None = None
    lock: Any = nullcontext()
    if cache_dir is not None or not rows.in_memory:
        folder = Path(cache_dir or Path(config.HF_DATASETS_CACHE) / "lit_adaptive")
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"tokens-{fingerprint}.arrow"
        lock = FileLock(file.with_suffix(".lock"))

    def encoded(advance: Callable[[int], None]) -> TokenizedRows:
        def encode_batch(batch: dict[str, list[Any]], numbers: list[int]) -> Any:
            table = encode(batch, numbers)
            advance(len(numbers))
            return table

        return TokenizedRows(
            rows.dataset.select_columns([*columns]).map(
                encode_batch,
                batched=True,
                batch_size=_BATCH,
                with_indices=True,
                remove_columns=[*columns],
                cache_file_name=None if file is None else str(file),
                keep_in_memory=file is None,
                new_fingerprint=fingerprint,
            )
        )

    with lock, quiet_datasets(), progress_bar("tokenization", len(rows.dataset)) as advance:
        try:
            return encoded(advance)
        except (pa.ArrowException, OSError):
            if file is None or not file.exists():
                raise
            file.unlink()  # the cache is damaged
            return encoded(advance)


_set_here = False


@contextmanager
def tokenizer_threads() -> Generator[None]:
    """Tokenize with all cores, unless the environment says otherwise; not after a fork."""
    global _set_here  # noqa: PLW0603
    _set_here = _set_here or _THREADS not in os.environ
    if _set_here:
        os.environ[_THREADS] = "true"
    try:
        yield
    finally:
        if _set_here:
            os.environ[_THREADS] = "false"
