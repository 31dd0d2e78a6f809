"""Demonstrations as a dataset of tokens: prompts with completions from any source."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.sources.columns import DRAW_KEYS, Ids, check_columns, check_rows
from lit_adaptive.data.sources.rows import Rows, RowSource, load_rows, numeric_column, row_ids
from lit_adaptive.data.text.chat import Chat, Turns, resolve_tokenizer
from lit_adaptive.data.text.packing import Counts, collate_packed, left_pad_ragged, ranges
from lit_adaptive.data.text.prompt_completion import (
    SYSTEM_RULE,
    Batch,
    ColumnSpec,
    PromptCompletions,
    has_conversations,
    prompt_hashes,
    split_rows,
    template_columns,
)
from lit_adaptive.data.text.tokenization import (
    EncodedSamples,
    Encoder,
    LengthPolicy,
    tokenize_rows,
    tokenizer_key,
    truncate,
)
from lit_adaptive.rollout.rewards.base import RESERVED_COLUMNS

_EMPTY, _DROPPED, _SHORTENED, _UNFINISHED = 1, 2, 4, 8  # flags of a row
_BATCH_KEYS = DRAW_KEYS | {
    *("input_ids", "position_ids", "target", "position", "sequence", "ref_log_probs"),
    *("prompt_ids", "prompt_mask"),
}
_REMEDY = "raise max_length, or set overlong to truncate_left, truncate_right or drop"


class DemonstrationDataset(Dataset[dict[str, Any]]):
    """Prompts and completions as tokens, from any source, for any sampler.

    A batch (``gather``) of B samples with K targets (completion tokens) holds:

    ``input_ids``, ``position_ids``
        ``[R, T]`` int64, right-padded. There is no attention mask: right padding needs none under
        causal attention, and for packed rows transformers derives it from the position ids (call
        the model with ``use_cache=False``).
    ``target``, ``position``, ``sequence``
        ``[K]`` int64: the completion tokens including the stop token; the flat position in
        ``[R * T]`` of the token before each, whose hidden state predicts it; and the number of its
        sample in [0, B), ascending.
    ``ref_log_probs``
        ``[K]`` float32, after ``set_reference``.
    ``prompt_ids``, ``prompt_mask``, ``prompt``, and ``columns`` by name
        ``[B, P]`` int64 and bool, left-padded, and lists of strings; with ``prompts`` only.

    Prompts are tokenized on their own, as generation sees them, and completions end with exactly
    one stop token, unless truncated. In a plain ``text`` all tokens but the first are targets. The
    columns ``tools`` and ``chat_template_kwargs``, if there are, go to the chat template; a prompt
    that ends with a message of the assistant is continued.

    Args:
        source: ``.jsonl``, ``.csv`` or ``.parquet`` file, glob pattern, folder or hub name, list of
            dictionaries, or dataset of dictionaries such as ``Arithmetic`` or ``HubRows``.
        tokenizer: ``characters``, ``smollm2``, a folder, a GGUF file or a hub name; or a tokenizer
            of transformers.
        prompt: column of strings or of lists of messages.
        completion: column of strings or of lists of messages.
        messages: column of conversations: lists of messages with ``role`` and ``content``.
        text: column of plain texts. By default ``prompt`` and ``completion`` are read if the source
            has these columns, else ``messages``, else ``text``.
        id: column of distinct integers or strings; None, or "id" where the source has no such
            column, takes the row number (from 0, dropped rows counted).
        columns: columns to include, as strings, in batches with ``prompts``.
        chat: render prompts and completions that are strings by the chat template, as a user's and
            an assistant's message.
        system: system message put before conversations that have none.
        turns: targets of a conversation: the assistant's ``last`` message, or ``all`` of them, but
            none with ``weight: 0`` and none of a ``prompt``. By default the last of ``messages``,
            and all of a ``completion``.
        chat_template: Jinja template, or a file that holds one, instead of the tokenizer's.
        added_tokens: texts that become one token each, such as ``<think>``; completions keep them.
            A pretrained model needs ``resize_embeddings`` for them, unless it has rows to spare.
        max_length: maximum tokens of a sample.
        overlong: treatment of longer samples: ``truncate_left`` removes the beginning of the prompt
            (and the end of a completion that does not fit alone), ``truncate_right`` the end,
            ``drop`` the sample; ``error`` raises. ``counts`` has the numbers.
        empty: treatment of samples with an empty completion: ``error`` raises, ``drop`` removes
            them.
        packing: put several samples of a batch into one row.
        pack_length: maximum tokens of a packed row; by default ``max_length``.
        prompts: include the prompts in batches, for evaluation.
        cache_dir: folder of the cached tokens, which are memory-mapped. By default tokens of files
            and hub datasets are cached in ``HF_DATASETS_CACHE``, others are held in memory.

    Attributes:
        tokenizer: has a pad token.
        added_tokens: see above.
        source: name of the source in errors.
        day: the day that the chat template reads, as an ISO date; None if it reads none.
        counts: number of ``rows`` read, ``kept``, ``empty``, ``shortened`` (prompt truncated),
            ``unfinished`` (completion truncated) and ``dropped`` (too long).

    Raises:
        ValueError: if an option is out of range, or a row cannot be used (naming the rows).
    """

    def __init__(
        self,
        source: RowSource,
        tokenizer: str | Any = "characters",
        *,
        prompt: str | None = None,
        completion: str | None = None,
        messages: str | None = None,
        text: str | None = None,
        id: str | None = "id",  # noqa: A002
        columns: Sequence[str] = (),
        chat: bool = False,
        system: str | None = None,
        turns: Turns | None = None,
        chat_template: str | None = None,
        added_tokens: Sequence[str] = (),
        max_length: int = 1024,
        overlong: LengthPolicy = "error",
        empty: Literal["error", "drop"] = "error",
        packing: bool = False,
        pack_length: int | None = None,
        prompts: bool = False,
        cache_dir: str | Path | None = None,
    ) -> None:
        check_at_least(max_length=(max_length, 1), pack_length=(pack_length, 1))
        if pack_length is not None and pack_length < max_length:
            raise ValueError(
                f"pack_length is {pack_length}, max_length {max_length}; a row must hold any sample"
            )
        self.tokenizer = resolve_tokenizer(tokenizer, chat_template, added_tokens)
        self.added_tokens = tuple(added_tokens)
        spec = ColumnSpec(
            prompt=prompt,
            completion=completion,
            messages=messages,
            text=text,
            columns=tuple(columns),
            chat=chat,
            system=system,
            turns=turns,
            max_length=max_length,
            overlong=overlong,
            empty=empty,
        )
        source_rows = load_rows(source)
        self.source = source_rows.source
        self.columns = tuple(columns)
        self.prompts = prompts
        self.packing = packing
        self._pack_length = (pack_length or max_length) if packing else None
        self._source_rows = source_rows
        names = source_rows.dataset.column_names
        spec = spec.resolve(names, self.source)
        reserved = [name for name in columns if name in RESERVED_COLUMNS]
        if reserved:
            raise ValueError(
                f"columns are {list(columns)}, and {reserved} are names of a reward's own "
                "arguments: rename them"
            )
        taken = [name for name in columns if name in _BATCH_KEYS]
        if taken:
            raise ValueError(
                f"columns are {list(columns)}, and {taken} are names of a batch's own fields: "
                "rename them in the data"
            )
        left_out = {*spec.roles, *RESERVED_COLUMNS}
        self._other_columns = [name for name in names if name not in left_out]
        self._id = id if id in names or id != "id" else None
        check_columns(names, [] if self._id is None else [self._id], self.source)
        source_rows.check_present(self.columns)
        self._spec, self._cache_dir = spec, cache_dir
        self._tokenize(None)
        flags = self._tokenized.numbers["flags"]
        self._rows: Counts = np.flatnonzero(flags & (_EMPTY | _DROPPED) == 0)
        self._reference: Tensor | None = None
        self.counts = {
            "rows": len(flags),
            "kept": len(self._rows),
            "empty": int((flags & _EMPTY != 0).sum()),
            "shortened": int((flags & _SHORTENED != 0).sum()),
            "unfinished": int((flags & _UNFINISHED != 0).sum()),
            "dropped": int((flags & _DROPPED != 0).sum()),
        }
        self._report_counts(max_length)
        if self._id is not None:
            _ = self.ids  # a repeated id is an error now, not after the first epoch

    def _tokenize(self, day: str | None) -> None:
        encode = _SampleEncoder(self._source_rows, self.tokenizer, self._spec, day)
        self.day: str | None = encode.day
        self._tokenized = tokenize_rows(
            self._source_rows,
            encode,
            key=f"{tokenizer_key(self.tokenizer)} {self._spec.key} {encode.day or ''}",
            columns=encode.columns,
            cache_dir=self._cache_dir,
        )

    def set_day(self, day: str) -> None:
        """Let the chat template read another day, as an ISO date, than that of construction."""
        self._tokenize(day)
        for name in ("lengths", "offsets", "groups", "fingerprint"):
            self.__dict__.pop(name, None)

    def _report_counts(self, max_length: int) -> None:
        counts = self.counts
        if counts["kept"] == 0:
            raise ValueError(
                f"none of the {counts['rows']} rows of {self.source} is left: {counts['empty']} "
                f"are empty and {counts['dropped']} longer than max_length {max_length}; {_REMEDY}"
            )
        if any(counts[name] for name in ("empty", "shortened", "unfinished", "dropped")):
            rank_zero_info(
                f"{self.source}: {counts['kept']} of {counts['rows']} rows are kept; "
                f"{counts['empty']} are empty; with max_length {max_length}, {counts['dropped']} "
                f"are dropped, {counts['shortened']} lose the beginning of their prompt and "
                f"{counts['unfinished']} the end of their completion"
            )

    def subset(self, index: Tensor, *, prompts: bool | None = None) -> "DemonstrationDataset":
        """The samples ``index`` ``[n]`` int64 as a dataset that shares the tokens.

        Args:
            index: at least one.
            prompts: whether its batches include the prompts; by default as in this dataset.
        """
        part = copy.copy(self)
        for name in ("lengths", "offsets", "groups", "ids", "fingerprint"):
            part.__dict__.pop(name, None)
        part._rows = self._rows[index.cpu().numpy()]
        part._reference = None
        part.prompts = self.prompts if prompts is None else prompts
        return part

    # Samples -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each sample: ``[N]`` int64."""
        return torch.from_numpy(self._tokenized.lengths("tokens")[self._rows])

    @property
    def prompt_lengths(self) -> Tensor:
        """Tokens before each sample's last completion: ``[N]`` int64."""
        return torch.from_numpy(self._numbers("prompt_length"))

    @cached_property
    def offsets(self) -> Tensor:
        """``[N + 1]`` int64: where each sample's targets begin among those of all samples."""
        counts = self._numbers("target_count")
        return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))

    @cached_property
    def groups(self) -> Tensor:
        """``[N]`` int64: number of the sample's distinct prompt, from 0 in order of appearance."""
        distinct, first, inverse = np.unique(
            self._numbers("prompt_hash"), return_index=True, return_inverse=True
        )
        rank = np.empty(len(distinct), np.int64)
        rank[np.argsort(first)] = np.arange(len(distinct))
        return torch.from_numpy(rank[inverse])

    @cached_property
    def ids(self) -> Ids:
        """One for each sample, all different: strings, or ``[N]`` int64."""
        return row_ids(self._source_rows, self._id, self._rows)

    def content(self) -> Iterator[tuple[str, Any]]:
        """All columns of the source, which identify the rows."""
        return self._source_rows.content(self._rows)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any token, with the choice of targets, with the order and the tokenizer."""
        digest = hashlib.blake2b(self._tokenized.digest("tokens").encode(), digest_size=16)
        digest.update(tokenizer_key(self.tokenizer).encode())
        digest.update(self._rows.tobytes())
        return digest.hexdigest()

    @property
    def hashes(self) -> Tensor:
        """A hash of each prompt in [0, 1), independent of the other rows: ``[N]`` float64."""
        return torch.from_numpy(self._numbers("prompt_hash") / 2.0**64)

    def _numbers(self, name: str) -> Any:
        return self._tokenized.numbers[name][self._rows]

    def column(self, name: str) -> Tensor:
        """A numeric column, such as a reward or a difficulty: ``[N]`` float64, finite.

        Raises:
            ValueError: if there is no such column, it is not numeric, or a value in it is missing
                or not finite (naming the rows).
        """
        values = numeric_column(self._source_rows, name)[torch.from_numpy(self._rows)]
        where = f"{name} in {self.source}"
        check_rows(~values.isfinite(), where, "is missing or not finite", values)
        return values

    def texts(self, index: Tensor) -> list[dict[str, Any]]:
        """``prompt``, ``completion`` and the other columns of the samples ``index`` ``[B]`` int64.

        Prompt and completion are the rendered texts.
        """
        rows = self._rows[index.cpu().numpy()]
        others = self._source_rows.take(rows, self._other_columns)
        texts = self._tokenized.dataset.select_columns(["prompt", "completion"])[rows]
        return [
            other | {"prompt": prompt, "completion": completion}
            for other, prompt, completion in zip(
                others, texts["prompt"], texts["completion"], strict=True
            )
        ]

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens of prompts, given as ``texts`` returns them."""
        return Encoder(self.tokenizer).prompts(prompts)

    def set_reference(self, log_probs: Tensor) -> None:
        """Set the reference model's log-probabilities of all targets: ``[offsets[-1]]`` float32.

        Raises:
            ValueError: if their number is another.
        """
        if log_probs.shape != (int(self.offsets[-1]),):
            raise ValueError(
                f"there are {tuple(log_probs.shape)} reference log-probabilities; {self.source} "
                f"has {int(self.offsets[-1])} completion tokens: score this dataset, in its order"
            )
        self._reference = log_probs.detach().to("cpu", torch.float32)

    # Batches -------------------------------------------------------------------------------------

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.gather(torch.tensor([index]))

    def gather(self, index: Tensor) -> dict[str, Any]:
        """The batch of the samples ``index`` ``[B]`` int64; see the class for its keys."""
        pad, tokenized = int(self.tokenizer.pad_token_id), self._tokenized
        rows = self._rows[index.cpu().numpy()]
        batch: dict[str, Any] = collate_packed(
            tokenized.gather("tokens", rows),
            tokenized.lengths("tokens")[rows],
            pad=pad,
            pack_length=self._pack_length,
        )
        if self._reference is not None:
            start = self.offsets[index].numpy()
            positions, _ = ranges(start, tokenized.numbers["target_count"][rows])
            batch["ref_log_probs"] = self._reference[torch.from_numpy(positions)]
        if self.prompts:
            length = tokenized.numbers["prompt_length"][rows]
            batch["prompt_ids"], batch["prompt_mask"] = left_pad_ragged(
                tokenized.gather("tokens", rows, length), length, pad=pad
            )
            texts = self.texts(index)
            batch["prompt"] = [text["prompt"] for text in texts]
            for name in self.columns:
                batch[name] = [str(text[name]) for text in texts]
        return batch


class _SampleEncoder:
    """Encodes batches of rows as an Arrow table, one row for each of theirs."""

    def __init__(self, rows: Rows, tokenizer: Any, spec: ColumnSpec, day: str | None) -> None:
        self.source = rows.source
        self.spec = spec
        self.encoder = Encoder(tokenizer)
        self.chat: Chat | None = None
        self.columns, self.day = spec.roles, None
        if has_conversations(rows, spec):
            self.chat = Chat(tokenizer, spec.completion_turns, day)
            self.columns = [*spec.roles, *template_columns(rows)]
            self.day = self.chat.day_read
        elif spec.system is not None:
            raise ValueError(f"system is {spec.system!r}, {SYSTEM_RULE}")
        least = max(len(self.encoder.prefix), 1) + 1
        if spec.max_length < least:
            raise ValueError(
                f"max_length is {spec.max_length}; a sample has at least {least} tokens"
            )

    def __call__(self, batch: Batch, rows: list[int]) -> Any:
        """Tokens, lengths, flags and texts of the batch's ``rows``."""
        spec = self.spec
        samples = split_rows(batch, spec, self.chat, self.source, rows[0])
        plain_text = spec.text is not None
        if plain_text:
            encoded = self.encoder.texts(samples.answer)
        else:
            encoded = self.encoder.turns(samples.contexts, samples.completions)
        self._check(encoded, samples, rows[0])
        cut = truncate(
            encoded, spec.max_length, spec.overlong, plain_text=plain_text, kept=~encoded.empty
        )
        flags = (
            np.where(encoded.empty, _EMPTY, 0)
            | np.where(~encoded.empty & ~cut.kept, _DROPPED, 0)
            | np.where(cut.shortened, _SHORTENED, 0)
            | np.where(cut.unfinished, _UNFINISHED, 0)
        )
        ends = np.concatenate([[0], np.cumsum(cut.length)]).astype(np.int32)
        return pa.table(
            {
                "tokens": pa.ListArray.from_arrays(pa.array(ends), pa.array(cut.tokens)),
                "prompt_length": cut.prompt_length,
                "target_count": cut.target_count,
                "prompt_hash": prompt_hashes(samples),
                "flags": flags,
                "prompt": samples.prompt,
                "completion": samples.answer,
            }
        )

    def _check(self, encoded: EncodedSamples, samples: PromptCompletions, first: int) -> None:
        if self.spec.empty == "error":
            where = f"the completion in {self.source}"
            fault = "is empty (empty: drop leaves such rows out)"
            check_rows(encoded.empty.tolist(), where, fault, samples.answer, first=first)
        long = encoded.length > self.spec.max_length
        if self.spec.overlong == "error" and long.any():
            rows = (first + long.nonzero()[0]).tolist()
            raise ValueError(
                f"{len(rows)} of the rows {first} to {first + len(long) - 1} of "
                f"{self.source} have more than max_length {self.spec.max_length} tokens: "
                f"rows {rows[:5]} have {encoded.length[long][:5].tolist()}; {_REMEDY}"
            )
