"""Demonstrations as tokens: any source of rows in, batches out."""

import copy
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from lit_adaptive.data.sources.columns import Ids, plain_ids, read_ids, refuse_rows
from lit_adaptive.data.sources.rows import RowSource, read_rows
from lit_adaptive.data.text.chat import Turns, resolve_tokenizer
from lit_adaptive.data.text.encoding import Encoder, Overlong
from lit_adaptive.data.text.packing import Counts, collate_packed, left_padded, ranges
from lit_adaptive.data.text.prompt_completion import Reading
from lit_adaptive.data.text.tokenization import tokenized, tokenizer_key


class DemonstrationDataset(Dataset[dict[str, Any]]):
    """Prompts and completions as tokens, drawn by index; any source, any sampler.

    A batch (``gather``) holds, B being samples and K their completion tokens:

    ``input_ids``, ``position_ids``
        ``[R, T]`` int64, right-padded. There is no attention mask: padding at the right needs none
        under causal attention, and of packed rows transformers makes it from the position ids
        (call the model with ``use_cache=False``).
    ``target``, ``position``, ``sequence``
        ``[K]`` int64: a completion's tokens with its stop token; the flat place in ``[R * T]`` of
        the token before each, whose hidden state predicts it; and the number in [0, B) of its
        sample, ascending.
    ``ref_log_probs``
        ``[K]`` float32, once ``set_reference`` was called.
    ``prompt_ids``, ``prompt_mask``, ``prompt``, and ``columns`` by name
        ``[B, P]`` int64 and bool, left-padded, and lists of strings; with ``prompts`` only.

    Prompts are tokenised on their own, as generation sees them, and completions end with exactly
    one stop token, unless cut. Of a ``text`` all tokens but the first are to be predicted.

    Args:
        source: see ``data.rows.read_rows``: a ``.jsonl``, ``.csv`` or ``.parquet`` file, a Hugging
            Face dataset, ``Arithmetic``, or any dataset of dictionaries.
        tokenizer: of transformers, or a name (``rollout.pretrained.load_tokenizer``).
        prompt: column of strings or of lists of messages.
        completion: column of strings or of lists of messages.
        messages: column of conversations: lists of ``role`` and ``content``.
        text: column of plain texts. By default ``prompt`` and ``completion`` are taken where they
            are there, else ``messages``, else ``text``.
        id: column of distinct integers or strings; where there is none of the default's name, or
            with None, rows go by their number (from 0, dropped rows counted).
        columns: text columns that batches with ``prompts`` hold.
        chat: put prompts and completions that are strings into the chat template, as a message of
            the user and one of the assistant.
        system: system message put before prompts that are strings, in the chat template.
        turns: of conversations, whether the assistant's ``last`` turn or ``all`` are targets.
        chat_template: a Jinja template, or a file of one, instead of the tokenizer's.
        max_length: tokens of a sample.
        overlong: what happens to longer ones: ``truncate_left`` takes away the beginning of the
            prompt (and the end of a completion that does not fit alone), ``truncate_right`` the
            end, ``drop`` the sample, ``error`` refuses. ``counts`` tells how many.
        empty: whether an empty completion is an ``error``, or its sample is left out (``drop``).
        packing: put several samples of a batch into a row.
        pack_length: tokens that a packed row holds; by default ``max_length``.
        prompts: for evaluation: batches hold the prompts, too.
        cache_dir: where tokens are kept, and read from without loading them, so that rows may be
            more than fit in memory; by default they are kept in memory.

    Attributes:
        tokenizer: with a pad token.
        counts: ``rows`` read, ``kept``, ``empty``, ``shortened`` (of their prompts), ``unfinished``
            (without the end of their completion) and ``dropped`` (too long).

    Raises:
        ValueError: if an option is out of range, or rows do not fit (which).
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
        turns: Turns = "last",
        chat_template: str | None = None,
        max_length: int = 1024,
        overlong: Overlong = "error",
        empty: Literal["error", "drop"] = "error",
        packing: bool = False,
        pack_length: int | None = None,
        prompts: bool = False,
        cache_dir: str | Path | None = None,
    ) -> None:
        if pack_length is not None and pack_length < max_length:
            raise ValueError(
                f"pack_length is {pack_length}, max_length {max_length}; a row must hold any sample"
            )
        self.tokenizer = resolve_tokenizer(tokenizer, chat_template)
        reading = Reading(
            prompt=prompt,
            completion=completion,
            messages=messages,
            text=text,
            id=id,
            columns=tuple(columns),
            chat=chat,
            system=system,
            turns=turns,
            max_length=max_length,
            overlong=overlong,
            empty=empty,
        )
        rows = read_rows(source)
        self.source = rows.source
        self.columns = tuple(columns)
        self.prompts = prompts
        self._pack_length = (pack_length or max_length) if packing else None
        self._store = tokenized(rows, self.tokenizer, reading, cache_dir)
        self._rows: Counts = np.arange(len(self._store))
        self._reference: Tensor | None = None
        self.counts: dict[str, int] = self._store.meta["counts"]
        self._tell(max_length)

    def _tell(self, max_length: int) -> None:
        told = {name: self.counts[name] for name in ("empty", "shortened", "unfinished", "dropped")}
        if any(told.values()):
            rank_zero_info(
                f"{self.source}: {self.counts['kept']} of {self.counts['rows']} rows are kept; "
                f"{told['empty']} are empty; with max_length {max_length}, {told['dropped']} are "
                f"dropped, {told['shortened']} lose the beginning of their prompt and "
                f"{told['unfinished']} the end of their completion"
            )

    def subset(self, index: Tensor, *, prompts: bool | None = None) -> "DemonstrationDataset":
        """The samples ``index`` ``[n]`` int64 as a dataset; the tokens are shared, not copied.

        Args:
            index: at least one.
            prompts: whether its batches hold the prompts; by default as here.
        """
        part = copy.copy(self)
        for name in ("lengths", "offsets", "groups", "ids", "fingerprint"):
            part.__dict__.pop(name, None)
        part._rows = self._rows[index.cpu().numpy()]
        part._reference = None
        part.prompts = self.prompts if prompts is None else prompts
        return part

    # What there is of each sample ----------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each sample: ``[N]`` int64."""
        return torch.from_numpy(self._store.arrays["length"][self._rows])

    @cached_property
    def offsets(self) -> Tensor:
        """``[N + 1]`` int64: where each sample's completion tokens begin among those of all."""
        counts = self._store.arrays["target_count"][self._rows]
        return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))

    @cached_property
    def groups(self) -> Tensor:
        """``[N]`` int64: number of the distinct prompt, from 0, in the order they come first."""
        known, first, inverse = np.unique(
            self._store.arrays["group"][self._rows], return_index=True, return_inverse=True
        )
        rank = np.empty(len(known), np.int64)
        rank[np.argsort(first)] = np.arange(len(known))
        return torch.from_numpy(rank[inverse])

    @cached_property
    def ids(self) -> Ids:
        """One for each sample, all different: strings, or ``[N]`` int64."""
        kind = self._store.meta["ids"]
        if kind == "row":
            return torch.from_numpy(self._store.arrays["row"][self._rows])
        column = self._store.ids()
        if kind == "integer":
            column = column.cast(pa.int64())
        guess = self.source.endswith(".csv")
        found = read_ids(column, f"the id in {self.source}", guess=guess)
        return plain_ids(found.take(pa.array(self._rows)))

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any token, with what is a target, with the order and with the tokenizer."""
        digest = hashlib.blake2b(str(self._store.meta["fingerprint"]).encode(), digest_size=16)
        digest.update(tokenizer_key(self.tokenizer).encode())
        digest.update(self._rows.tobytes())
        return digest.hexdigest()

    @property
    def hashes(self) -> Tensor:
        """Of each prompt, in [0, 1), whatever else there is in the file: ``[N]`` float64."""
        return torch.from_numpy(self._store.arrays["group"][self._rows] / 2.0**64)

    def column(self, name: str) -> Tensor:
        """A numeric column, such as a reward or a difficulty: ``[N]`` float64, finite.

        Raises:
            ValueError: if there is none of this name, or a value in it is missing or not finite
                (which rows).
        """
        known = self._store.numbers
        if name not in known:
            raise ValueError(
                f"{self.source} has no column {name!r} of numbers; its numeric columns are "
                f"{[*known]}"
            )
        values = torch.from_numpy(known[name][self._rows])
        where = f"{name} in {self.source}"
        refuse_rows(~values.isfinite(), where, "is missing or not finite", values)
        return values

    def texts(self, index: Tensor) -> list[dict[str, Any]]:
        """``prompt``, ``completion`` and the other columns of ``index`` ``[B]`` int64."""
        return self._store.texts(self._rows[index.cpu().numpy()])

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of prompts as ``texts`` gives them, as in training."""
        return Encoder(self.tokenizer).prompts(prompts)

    def set_reference(self, log_probs: Tensor) -> None:
        """Log-probabilities of all completion tokens by another model: ``[offsets[-1]]`` float32.

        Raises:
            ValueError: if there are more or fewer.
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
        """The batch of ``index`` ``[B]`` int64, as told above."""
        store, pad = self._store, int(self.tokenizer.pad_token_id)
        chosen = self._rows[index.cpu().numpy()]
        start, length = store.start[chosen], store.arrays["length"][chosen]
        place, _ = ranges(start, length)
        batch: dict[str, Any] = collate_packed(
            store.tokens[place], length, pad=pad, pack_length=self._pack_length
        )
        if self._reference is not None:
            begin = self.offsets[index].numpy()
            place, _ = ranges(begin, store.arrays["target_count"][chosen])
            batch["ref_log_probs"] = self._reference[torch.from_numpy(place)]
        if self.prompts:
            length = store.arrays["prompt_length"][chosen]
            place, _ = ranges(start, length)
            batch["prompt_ids"], batch["prompt_mask"] = left_padded(
                store.tokens[place], length, pad=pad
            )
            texts = store.texts(chosen)
            batch["prompt"] = [text["prompt"] for text in texts]
            for name in self.columns:
                batch[name] = [str(text[name]) for text in texts]
        return batch
