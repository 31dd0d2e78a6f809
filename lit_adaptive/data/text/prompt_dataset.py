"""Prompts to answer: their tokens, and the columns that rewards read."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
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
from lit_adaptive.data.text.chat import Chat, resolve_tokenizer
from lit_adaptive.data.text.packing import Counts, left_pad_ragged
from lit_adaptive.data.text.prompt_completion import (
    SYSTEM_RULE,
    Batch,
    check_messages,
    holds_messages,
    named_row,
    prompt_messages,
    template_columns,
    template_options,
)
from lit_adaptive.data.text.tokenization import (
    Encoder,
    tokenize_rows,
    tokenizer_key,
    tokenizer_threads,
)
from lit_adaptive.rollout.models.tokenizers import decode_completions, stop_token_ids
from lit_adaptive.rollout.rewards.base import RESERVED_COLUMNS

PromptLengthPolicy = Literal["truncate_left", "drop", "error"]

_BATCH_KEYS = DRAW_KEYS | {"prompt_ids", "prompt_mask", "input_ids"}


class PromptDataset(Dataset[dict[str, Any]]):
    """Prompts from any source that demonstrations come from.

    All other columns are kept as they are, for rewards; a row that lacks one holds None there. A
    batch (``gather``) holds left-padded ``prompt_ids`` ``[B, P]`` int64 and ``prompt_mask``
    ``[B, P]`` bool, ``prompt`` (the rendered texts) and each other column, as lists. The columns
    ``tools`` and ``chat_template_kwargs``, if there are, go to the chat template too; a prompt that
    ends with a message of the assistant is continued.

    Args:
        source: ``.jsonl``, ``.csv`` or ``.parquet`` file, glob pattern, folder or hub name, list of
            dictionaries, or dataset of dictionaries such as ``Arithmetic`` or ``HubRows``.
        tokenizer: ``characters``, ``smollm2``, a folder, a GGUF file or a hub name; or a tokenizer
            of transformers.
        prompt: column of strings or of conversations (lists of messages).
        id: column of distinct integers or strings; the row number where there is no such column.
        columns: columns that must exist because rewards read them.
        demonstration: column of good answers, as strings, one of which may join each group (LUFFY).
        chat: render prompts that are strings by the chat template, as a user's message.
        system: system message put before prompts that have none.
        chat_template: Jinja template, or a file that holds one, instead of the tokenizer's.
        added_tokens: texts that become one token each, such as ``<think>``; completions keep them.
            A pretrained model needs ``resize_embeddings`` for them, unless it has rows to spare.
        max_length: maximum tokens of a prompt, above 0.
        overlong: treatment of longer prompts: ``truncate_left`` removes the beginning, ``drop`` the
            row; ``error`` raises.

    Attributes:
        tokenizer: has a pad token.
        added_tokens: see above.
        source: name of the source in errors.
        id_column: column of the ids; None if they are row numbers.
        day: the day that the chat template reads, as an ISO date; None if it reads none.
        dropped: number of rows dropped because their prompt was too long.
        shortened: number of prompts that lost their beginning.

    Raises:
        ValueError: if a column is missing, an option is out of range, or a row cannot be used
            (naming the rows).
    """

    def __init__(
        self,
        source: RowSource,
        tokenizer: str | Any = "characters",
        *,
        prompt: str = "prompt",
        id: str | None = "id",  # noqa: A002
        columns: Sequence[str] = (),
        demonstration: str | None = None,
        chat: bool = False,
        system: str | None = None,
        chat_template: str | None = None,
        added_tokens: Sequence[str] = (),
        max_length: int = 1024,
        overlong: PromptLengthPolicy = "error",
    ) -> None:
        check_at_least(max_length=(max_length, 1))
        self.tokenizer = resolve_tokenizer(tokenizer, chat_template, added_tokens)
        self.added_tokens = tuple(added_tokens)
        self._source_rows = load_rows(source)
        self.source = self._source_rows.source
        names = self._source_rows.dataset.column_names
        read = [prompt] if demonstration is None else [prompt, demonstration]
        check_columns(names, [*read, *columns], self.source)
        reserved = [name for name in names if name in RESERVED_COLUMNS and name not in read]
        if reserved:
            raise ValueError(
                f"{self.source} has columns {reserved}, which are names of a reward's own "
                "arguments: rename them"
            )
        taken = [name for name in names if name in _BATCH_KEYS and name not in read]
        if taken:
            raise ValueError(
                f"{self.source} has columns {taken}, which are names of a batch's own fields: "
                "rename or remove them"
            )
        self.id_column = id if id in names else None
        self._other_columns = [name for name in names if name not in read]
        self._roles = (prompt, demonstration, chat, system)
        self._tokenize(None)
        self._stops = stop_token_ids(self.tokenizer)
        self._max_length = max_length
        self.demonstrated = demonstration is not None
        self.dropped, self.shortened = 0, 0
        self._rows: Counts = np.arange(len(self._tokenized))
        self._limit_lengths(overlong)
        if self.id_column is not None:
            _ = self.ids  # a repeated id is an error now, not in the first refresh

    def _tokenize(self, day: str | None) -> None:
        encode = _PromptEncoder(self._source_rows, self.tokenizer, *self._roles, day)
        self.day: str | None = encode.day
        self._prefix_length = len(encode.encoder.prefix)
        self._tokenized = tokenize_rows(
            self._source_rows,
            encode,
            key=f"{tokenizer_key(self.tokenizer)} {encode.key}",
            columns=encode.columns,
        )

    def set_day(self, day: str) -> None:
        """Let the chat template read another day, as an ISO date, than that of construction."""
        self._tokenize(day)
        for name in ("lengths", "fingerprint"):
            self.__dict__.pop(name, None)

    def _limit_lengths(self, overlong: PromptLengthPolicy) -> None:
        length = self._tokenized.lengths("tokens")
        most, long = self._max_length, np.flatnonzero(length > self._max_length)
        if len(long) == 0:
            return
        if overlong == "error":
            raise ValueError(
                f"the prompts in rows {long[:8].tolist()} of {self.source} ({len(long)} in all) "
                f"have {length[long[:8]].tolist()} tokens, max_length is {most}: raise max_length, "
                "or set overlong to truncate_left or drop"
            )
        if overlong == "truncate_left":
            self.shortened = len(long)
            rank_zero_info(
                f"{self.source}: {len(long)} prompts lose their beginning (max_length {most})"
            )
            return
        self.dropped = len(long)
        self._rows = np.flatnonzero(length <= most)
        if len(self._rows) == 0:
            raise ValueError(
                f"all prompts of {self.source} are longer than {most}: raise max_length"
            )
        rank_zero_info(
            f"{self.source}: {len(long)} of {len(length)} prompts are dropped (max_length {most})"
        )

    # Rows ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each prompt: ``[N]`` int64."""
        length = self._tokenized.lengths("tokens")[self._rows]
        return torch.from_numpy(np.minimum(length, self._max_length))

    @cached_property
    def ids(self) -> Ids:
        """One for each row, all different: strings, or ``[N]`` int64."""
        return row_ids(self._source_rows, self.id_column, self._rows)

    def content(self) -> Iterator[tuple[str, Any]]:
        """All columns of the source, which identify the rows."""
        return self._source_rows.content(self._rows)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any prompt's tokens, with their order and with the tokenizer."""
        digest = hashlib.blake2b(tokenizer_key(self.tokenizer).encode(), digest_size=16)
        digest.update(self._tokenized.digest("tokens").encode())
        digest.update(self._rows.tobytes())
        digest.update(self.lengths.numpy().tobytes())
        return digest.hexdigest()

    def column(self, name: str) -> Tensor:
        """A numeric column, such as a difficulty: ``[N]`` float64, finite.

        Raises:
            ValueError: if there is no such column, it is not numeric, or a value in it is missing
                or not finite (naming the rows).
        """
        values = numeric_column(self._source_rows, name)[torch.from_numpy(self._rows)]
        where = f"{name} in {self.source}"
        check_rows(~values.isfinite(), where, "is missing or not finite", values)
        return values

    def demonstration(self, index: int) -> list[int]:
        """The tokens of a row's good answer, closed by a stop token."""
        tokens: list[int] = self._tokenized.gather("answer", self._rows[[index]]).tolist()
        return tokens

    @property
    def demonstration_lengths(self) -> Tensor:
        """Tokens of each row's good answer, stop token included: ``[N]`` int64."""
        return torch.from_numpy(self._tokenized.lengths("answer")[self._rows]).long()

    @property
    def prompt_lengths(self) -> Tensor:
        """The same as ``lengths``: a sample is a prompt."""
        return self.lengths

    def tokens(self, index: Tensor) -> list[Tensor]:
        """The prompts' tokens of the rows ``index`` ``[n]``: ``[L_i]`` int32 each."""
        flat = torch.from_numpy(self._flat_tokens(index))
        return [*torch.split(flat, self.lengths[index].tolist())]

    def _flat_tokens(self, index: Tensor) -> Any:
        """The prompts' tokens of the rows ``index``, one prompt after another."""
        rows = self._rows[index.numpy()]
        tokens = self._tokenized.gather("tokens", rows)
        length = self._tokenized.lengths("tokens")[rows]
        excess = np.maximum(length - self._max_length, 0)
        if not excess.any():
            return tokens
        within = np.arange(len(tokens)) - np.repeat(np.cumsum(length) - length, length)
        removed = (within >= self._prefix_length) & (
            within < self._prefix_length + np.repeat(excess, length)
        )
        return tokens[~removed]

    def texts(self, index: Tensor) -> list[dict[str, Any]]:
        """The rendered ``prompt`` and the other columns of the rows ``index`` ``[n]``."""
        rows = self._rows[index.numpy()]
        others = self._source_rows.take(rows, self._other_columns)
        prompts = self._tokenized.dataset.select_columns(["prompt"])[rows]["prompt"]
        return [other | {"prompt": prompt} for other, prompt in zip(others, prompts, strict=True)]

    def decode_completions(self, tokens: Sequence[Tensor], stops: Sequence[int] = ()) -> list[str]:
        """Completions ``[T_i]`` as text, without the tokens that end them.

        Args:
            tokens: of each completion.
            stops: of the model's generation config, beside the tokenizer's.
        """
        ids = [completion.tolist() for completion in tokens]
        return decode_completions(self.tokenizer, ids, {*self._stops, *stops})

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens of prompts, given as ``texts`` returns them."""
        return Encoder(self.tokenizer).prompts(prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.gather(torch.tensor([index]))

    def gather(self, index: Tensor) -> dict[str, Any]:
        """The batch of the rows ``index`` ``[B]`` int64; see the class for its keys."""
        ids, mask = left_pad_ragged(
            self._flat_tokens(index),
            self.lengths[index].numpy(),
            pad=int(self.tokenizer.pad_token_id),
        )
        texts = self.texts(index)
        names = ["prompt", *self._other_columns]
        columns = {name: [text[name] for text in texts] for name in names}
        return {"prompt_ids": ids, "prompt_mask": mask, **columns}


class _PromptEncoder:
    """Encodes batches of rows as an Arrow table, one row for each of theirs."""

    def __init__(
        self,
        rows: Rows,
        tokenizer: Any,
        prompt: str,
        demonstration: str | None,
        chat: bool,
        system: str | None,
        day: str | None,
    ) -> None:
        self.source = rows.source
        self.prompt = prompt
        self.demonstration = demonstration
        self.system = system
        self.encoder = Encoder(tokenizer)
        self.chat: Chat | None = None
        self.day: str | None = None
        self.columns = [prompt] if demonstration is None else [prompt, demonstration]
        if chat or holds_messages(rows, prompt):
            self.chat = Chat(tokenizer, day=day)
            self.day = self.chat.day_read
            self.columns += template_columns(rows)
        elif system is not None:
            raise ValueError(f"system is {system!r}, {SYSTEM_RULE}")

    @property
    def key(self) -> str:
        """Changes with whatever the tokens depend on, besides rows and tokenizer."""
        return repr([self.prompt, self.demonstration, self.system, self.chat is not None, self.day])

    def __call__(self, batch: Batch, rows: list[int]) -> Any:
        """Tokens and texts of the batch's ``rows``."""
        values = batch[self.prompt]
        where = f"{self.prompt} in {self.source}"
        check_rows([not value for value in values], where, "is empty", values, first=rows[0])
        texts = self._render(batch, rows, where)
        with tokenizer_threads():
            columns: dict[str, Any] = {
                "prompt": texts,
                "tokens": _to_lists(self.encoder.prompts(texts)),
            }
            if self.demonstration is not None:
                columns["answer"] = self._answers(batch[self.demonstration], rows[0])
        return pa.table(columns)

    def _render(self, batch: Batch, rows: list[int], where: str) -> list[str]:
        """Prompts as the model sees them."""
        values = batch[self.prompt]
        if self.chat is None:
            return [str(value) for value in values]
        texts: list[str] = []
        for number, value in enumerate(values):
            prompt = str(value) if isinstance(value, int | float) else value
            messages = prompt_messages(prompt, self.system)
            with named_row(where, rows[number]):
                check_messages(messages)
                texts.append(self.chat.render_prompt(messages, template_options(batch, number)))
        return texts

    def _answers(self, values: list[Any], first: int) -> Any:
        texts = [str(value or "") for value in values]
        where = f"{self.demonstration} in {self.source}"
        check_rows([not text for text in texts], where, "is empty", values, first=first)
        return _to_lists(self.encoder.answers(texts))


def _to_lists(sequences: list[list[int]]) -> Any:
    """Token lists as an Arrow array of int32 lists."""
    ends = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])])
    tokens = np.fromiter(chain.from_iterable(sequences), np.int32, int(ends[-1]))
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(tokens))
