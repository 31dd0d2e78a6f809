"""Prompts to be answered: their tokens, and the columns that rewards judge answers by."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from lit_adaptive.data.sources.columns import Ids, numbers, plain_ids, read_ids, refuse_rows
from lit_adaptive.data.sources.rows import RowSource, read_rows
from lit_adaptive.data.text.chat import Chat, resolve_tokenizer
from lit_adaptive.data.text.encoding import Encoder, parallel
from lit_adaptive.data.text.packing import left_padded, ranges
from lit_adaptive.data.text.tokenization import tokenizer_key
from lit_adaptive.rollout.models.tokenizers import stop_token_ids

Overlong = Literal["truncate_left", "drop", "error"]


class PromptDataset(Dataset[dict[str, Any]]):
    """Rows with a prompt, from any source that demonstrations come from.

    All other columns are kept as they are, for rewards. A batch (``gather``) holds left-padded
    ``prompt_ids`` ``[B, P]`` int64 and ``prompt_mask`` ``[B, P]`` bool, ``prompt`` (text as the
    model sees it) and each column as a list.

    Args:
        source: see ``lit_adaptive.data.sources.rows.read_rows``.
        tokenizer: of transformers, or ``characters``, ``smollm2``, a folder, a GGUF file, a name.
        prompt: column of texts, or of conversations (lists of messages).
        id: column of ids, all different; by default the row's number.
        columns: what rewards need; by default there may be any.
        demonstration: column of good answers, texts; a group then may hold one (LUFFY).
        chat: put prompts that are texts into the chat template, as the user's message.
        system: said before, in conversations that are made of texts.
        chat_template: instead of the tokenizer's: Jinja, or a file of it.
        max_length: tokens of a prompt, above 0.
        overlong: what happens to longer ones: ``truncate_left`` takes away the beginning, ``drop``
            the row, ``error`` refuses.

    Attributes:
        tokenizer: with a pad token.
        dropped: rows that were too long.
        shortened: rows that lost the beginning of their prompt.

    Raises:
        ValueError: if a column is missing, an option is out of range, or rows do not fit (which).
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
        max_length: int = 1024,
        overlong: Overlong = "error",
    ) -> None:
        if max_length <= 0:
            raise ValueError(f"max_length is {max_length}; it must be above 0")
        self.tokenizer = resolve_tokenizer(tokenizer, chat_template)
        rows = read_rows(source)
        self.source = rows.source
        self._columns = _read(rows.chunks())
        for name in (prompt, *columns, *([demonstration] if demonstration else [])):
            if name not in self._columns:
                raise ValueError(
                    f"{self.source} has no column {name!r}; it has {[*self._columns]}: name the "
                    "right one, or give rewards another `column`"
                )
        self._ids_column = id if id in self._columns else None
        said = self._columns[prompt]
        asked = [not value for value in said]
        refuse_rows(
            torch.tensor(asked),
            f"{prompt} in {self.source}",
            "is empty",
            pa.array([str(v) for v in said]),
        )
        self._stops = stop_token_ids(self.tokenizer)
        self._prompts = self._texts(said, chat=chat, system=system)
        encoder = Encoder(self.tokenizer)
        with parallel():
            tokens = encoder.prompts(self._prompts)
        self.dropped, self.shortened = 0, 0
        self._rows = [*range(len(tokens))]
        tokens = self._brought_to(tokens, max_length, overlong, len(encoder.prefix))
        self.lengths = torch.tensor([len(each) for each in tokens])
        self._tokens = np.fromiter(chain.from_iterable(tokens), np.int32, int(self.lengths.sum()))
        self._start = (self.lengths.cumsum(0) - self.lengths).numpy()
        self._names = [n for n in self._columns if n not in (prompt, demonstration)]
        self._demonstrations: list[list[int]] | None = None
        if demonstration is not None:
            self._demonstrations = self._answers(demonstration, encoder)

    def _texts(self, said: list[Any], *, chat: bool, system: str | None) -> list[str]:
        """Prompts as the model sees them."""
        talks = [isinstance(value, list) for value in said]
        if not (chat or any(talks)):
            return [str(value) for value in said]
        template = Chat(self.tokenizer)
        before = [] if system is None else [{"role": "system", "content": system}]
        found: list[str] = []
        for row, value in enumerate(said):
            messages = (
                value
                if isinstance(value, list)
                else [*before, {"role": "user", "content": str(value)}]
            )
            try:
                found.append(template.asked(messages))
            except ValueError as error:
                raise ValueError(f"row {row} of {self.source} {error}") from error
        return found

    def _brought_to(
        self, tokens: list[list[int]], most: int, overlong: Overlong, leading: int
    ) -> list[list[int]]:
        long = [row for row, each in enumerate(tokens) if len(each) > most]
        if not long:
            return tokens
        if overlong == "error":
            raise ValueError(
                f"the prompts in rows {long[:8]} of {self.source} ({len(long)} in all) have "
                f"{[len(tokens[row]) for row in long[:8]]} tokens, max_length is {most}: raise "
                "max_length, or set overlong to truncate_left or drop"
            )
        if overlong == "truncate_left":
            self.shortened = len(long)
            for row in long:
                tokens[row] = (
                    tokens[row][:leading] + tokens[row][len(tokens[row]) - most + leading :]
                )
            rank_zero_info(
                f"{self.source}: {len(long)} prompts lose their beginning (max_length {most})"
            )
            return tokens
        self.dropped = len(long)
        kept = sorted(set(range(len(tokens))) - set(long))
        if not kept:
            raise ValueError(
                f"all prompts of {self.source} are longer than {most}: raise max_length"
            )
        self._rows = kept
        self._columns = {n: [v[row] for row in kept] for n, v in self._columns.items()}
        self._prompts = [self._prompts[row] for row in kept]
        rank_zero_info(
            f"{self.source}: {len(long)} of {len(tokens)} prompts are dropped (max_length {most})"
        )
        return [tokens[row] for row in kept]

    def _answers(self, name: str, encoder: Encoder) -> list[list[int]]:
        texts = [str(value or "") for value in self._columns[name]]
        empty = torch.tensor([not text for text in texts])
        refuse_rows(empty, f"{name} in {self.source}", "is empty", pa.array(texts))
        return encoder.answers(texts)

    # What there is of each row -------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def ids(self) -> Ids:
        """One for each row, all different: strings, or ``[N]`` int64."""
        if self._ids_column is None:
            return torch.tensor(self._rows)
        column = pa.array(self._columns[self._ids_column])
        return plain_ids(read_ids(pa.chunked_array([column]), f"the id in {self.source}"))

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any prompt's tokens, with their order and with the tokenizer."""
        digest = hashlib.blake2b(tokenizer_key(self.tokenizer).encode(), digest_size=16)
        digest.update(self._tokens.tobytes())
        digest.update(self.lengths.numpy().tobytes())
        return digest.hexdigest()

    def column(self, name: str) -> Tensor:
        """A numeric column, such as a difficulty: ``[N]`` float64, finite.

        Raises:
            ValueError: if there is none of this name, or a value is missing or not finite.
        """
        values = (
            numbers(pa.chunked_array([pa.array(self._columns[name])]))
            if name in self._columns
            else None
        )
        if values is None:
            raise ValueError(
                f"{self.source} has no column {name!r} of numbers; it has {[*self._columns]}"
            )
        refuse_rows(
            ~values.isfinite(), f"{name} in {self.source}", "is missing or not finite", values
        )
        return values

    @property
    def demonstrated(self) -> bool:
        """Whether it has good answers."""
        return self._demonstrations is not None

    def demonstration(self, index: int) -> list[int]:
        """The tokens of a row's good answer, closed by a stop token."""
        assert self._demonstrations is not None
        return self._demonstrations[index]

    def tokens(self, index: Tensor) -> list[Tensor]:
        """The prompts' tokens of ``index`` ``[n]``: ``[L_i]`` int32 each."""
        flat = torch.from_numpy(self._tokens)
        starts, lengths = self._start[index.numpy()].tolist(), self.lengths[index].tolist()
        return [flat[start : start + n] for start, n in zip(starts, lengths, strict=True)]

    def texts(self, index: Tensor) -> list[dict[str, Any]]:
        """``prompt`` as the model sees it and the other columns of ``index`` ``[n]``."""
        return [
            {"prompt": self._prompts[i]} | {name: self._columns[name][i] for name in self._names}
            for i in index.tolist()
        ]

    def decoded(self, tokens: Sequence[Tensor]) -> list[str]:
        """Completions ``[T_i]`` as text, without the tokens that end them."""
        stops = torch.tensor(self._stops)
        kept = [each[~torch.isin(each, stops)].tolist() for each in tokens]
        found: list[str] = self.tokenizer.batch_decode(kept, skip_special_tokens=True)
        return found

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of prompts as ``texts`` gives them."""
        return Encoder(self.tokenizer).prompts(prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.gather(torch.tensor([index]))

    def gather(self, index: Tensor) -> dict[str, Any]:
        """The batch of ``index`` ``[B]`` int64, as told above."""
        lengths = self.lengths[index].numpy()
        place, _ = ranges(self._start[index.numpy()], lengths)
        ids, mask = left_padded(self._tokens[place], lengths, pad=int(self.tokenizer.pad_token_id))
        chosen = index.tolist()
        return {
            "prompt_ids": ids,
            "prompt_mask": mask,
            "prompt": [self._prompts[i] for i in chosen],
            **{name: [self._columns[name][i] for i in chosen] for name in self._names},
        }


def _read(chunks: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for chunk in chunks:
        for name, values in chunk.items():
            found.setdefault(name, []).extend(values)
    if not found:
        raise ValueError("there are no prompts: the source has no rows")
    return found
