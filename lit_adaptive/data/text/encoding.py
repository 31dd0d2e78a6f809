"""Prompts and completions as tokens: how a model sees them when it generates, and where it stops.

A prompt is tokenised on its own, so its tokens are those that generation begins with; the
completion's are appended, and closed by exactly one stop token. Both are tokenised without special
tokens; what the tokenizer puts before a text (a bos token) is put before each prompt once, what it
puts behind a text is left out.
"""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_adaptive.data.text.packing import Counts
from lit_adaptive.data.text.token_store import Tokens
from lit_adaptive.rollout.models.tokenizers import stop_token_ids

Mask = npt.NDArray[np.bool_]
Overlong = Literal["truncate_left", "truncate_right", "drop", "error"]

_THREADS = "TOKENIZERS_PARALLELISM"
_GUARD = "\n"


class Encoded(NamedTuple):
    """Samples as tokens.

    Attributes:
        tokens: ``[length.sum()]`` int32; ``~token`` where it is to be predicted.
        length: ``[n]`` int64.
        prompt_length: ``[n]`` int64, tokens before the last completion.
        leading: ``[n]`` int64, of them what the tokenizer puts before a text.
        empty: ``[n]`` bool, whose last completion says nothing before it stops.
    """

    tokens: Tokens
    length: Counts
    prompt_length: Counts
    leading: Counts
    empty: Mask


class Truncated(NamedTuple):
    """Samples brought to a length.

    Attributes:
        kept: ``[n]`` bool, those that are left.
        shortened: how many of them lost tokens at the beginning.
        unfinished: how many of them lost the end of their completion.
        tokens: of those kept, as in ``Encoded``.
        length: ``[kept]`` int64.
        prompt_length: ``[kept]`` int64.
        target_count: ``[kept]`` int64, above 0.
    """

    kept: Mask
    shortened: int
    unfinished: int
    tokens: Tokens
    length: Counts
    prompt_length: Counts
    target_count: Counts


class Encoder:
    """Makes tokens of texts.

    Args:
        tokenizer: any of transformers with an eos token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.stops = frozenset(stop_token_ids(tokenizer))
        with_special = list(tokenizer("a")["input_ids"])
        bare = self._ids(["a"])[0]
        at = [i for i in range(len(with_special)) if with_special[i : i + len(bare)] == bare]
        self.prefix: list[int] = with_special[: at[0]] if at else []
        self._guarded = False
        if self._joined("a", "b") != "ab":  # it puts a space before any text
            self._guarded = True
            self._guarded = self._joined("a", "b") == "ab"

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
        found: list[list[int]] = encoded["input_ids"]
        return found

    def _continued(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts that follow others."""
        if not self._guarded:
            return self._ids(texts)
        guard = self._ids([_GUARD])[0]
        found = self._ids([_GUARD + text for text in texts])
        return [
            ids[len(guard) :] if ids[: len(guard)] == guard else self._ids([text])[0]
            for ids, text in zip(found, texts, strict=True)
        ]

    def _joined(self, first: str, second: str) -> str:
        ids = self._ids([first])[0] + self._continued([second])[0]
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _begun(self, ids: list[int]) -> list[int]:
        """With what the tokenizer puts before a text, once; never empty."""
        if self.prefix and ids[: len(self.prefix)] != self.prefix:
            return self.prefix + ids
        if ids:
            return ids
        bos = self.tokenizer.bos_token_id
        return [self.tokenizer.eos_token_id if bos is None else bos]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Prompts alone, as they stand at the beginning of samples."""
        return [self._begun(ids) for ids in self._ids(texts)]

    def _closed(self, ids: list[int]) -> list[int]:
        """With exactly one stop token at the end."""
        end = len(ids)
        while end and ids[end - 1] in self.stops:
            end -= 1
        return [*ids[:end], ids[end] if end < len(ids) else self.tokenizer.eos_token_id]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts that follow prompts, each closed by a stop token."""
        return [self._closed(ids) for ids in self._continued(texts)]

    def turns(self, contexts: list[list[str]], completions: list[list[str]]) -> Encoded:
        """Samples of one or more turns, each a context and what is to be said then.

        Args:
            contexts: of each sample the text before each of its completions.
            completions: of each sample as many texts; only the last is closed.
        """
        count = np.array([len(own) for own in contexts])
        with parallel():
            first = self._ids([own[0] for own in contexts])
            later = iter(self._continued([text for own in contexts for text in own[1:]]))
            said = self._continued([*chain.from_iterable(completions)])
        pieces = [piece for answer in said for piece in ([], answer)]
        starts, ends = 2 * (np.cumsum(count) - count), 2 * np.cumsum(count) - 1
        pieces[::2] = [
            *chain.from_iterable(
                (self._begun(ids), *(next(later) for _ in own[1:]))
                for ids, own in zip(first, contexts, strict=True)
            )
        ]
        for end in ends.tolist():
            pieces[end] = self._closed(pieces[end])
        return self._of_pieces(pieces, starts, [len(pieces[end]) for end in ends.tolist()])

    def texts(self, texts: list[str]) -> Encoded:
        """Texts of which all tokens but the first are to be predicted."""
        with parallel():
            found = self._ids(texts)
        lead = max(len(self.prefix), 1)
        wholes = [self._closed(self._begun(ids)) for ids in found]
        pieces = [piece for ids in wholes for piece in (ids[:lead], ids[lead:])]
        encoded = self._of_pieces(
            pieces, np.arange(0, len(pieces), 2), [len(ids) - lead for ids in wholes]
        )
        silent = [self.stops.issuperset(ids[len(self.prefix) :]) for ids in wholes]
        return encoded._replace(empty=np.array(silent))

    def _of_pieces(self, pieces: list[list[int]], starts: Counts, final: list[int]) -> Encoded:
        """Contexts and completions by turns; a sample's pieces begin at ``starts``."""
        size = np.array([len(piece) for piece in pieces])
        flat = np.fromiter(chain.from_iterable(pieces), np.int32, int(size.sum()))
        flat ^= -np.repeat(np.arange(len(pieces)) % 2, size).astype(np.int32)
        length = np.add.reduceat(size, starts)
        last, lead = np.array(final), len(self.prefix)
        begun = [pieces[i][:lead] == self.prefix for i in starts.tolist()]
        return Encoded(flat, length, length - last, np.array(begun) * lead, last < 2)


def truncate(
    encoded: Encoded, most: int, overlong: Overlong, *, whole_text: bool, kept: Mask
) -> Truncated:
    """Samples of at most ``most`` tokens each.

    Args:
        encoded: the samples.
        most: tokens, at least 2 more than the tokenizer puts before a text.
        overlong: ``truncate_left`` removes the beginning of the prompt (what the tokenizer puts
            before it stays), and the end of a completion that does not fit alone;
            ``truncate_right`` removes the end; ``drop`` removes the sample, as ``truncate_right``
            does if no completion would be left.
        whole_text: of ``truncate_left``: there is no prompt, so any beginning may go.
        kept: ``[n]`` bool, the samples that are wanted at all.
    """
    length = encoded.length
    excess = np.maximum(length - most, 0)
    least = np.maximum(encoded.leading, 1)
    left = np.zeros_like(excess)
    if overlong == "drop":
        kept = kept & (excess == 0)
    elif overlong == "truncate_left":
        spare = (length - 1 if whole_text else encoded.prompt_length) - least
        left = np.minimum(excess, np.maximum(spare, 0))
    right = excess - left
    within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    gone = (within >= np.repeat(encoded.leading, length)) & (
        within < np.repeat(encoded.leading + left, length)
    )
    stays = ~gone & (within < np.repeat(length - right, length))
    tokens = encoded.tokens.copy()
    sample = np.repeat(np.arange(len(length)), length)
    new = length - left - right
    first = stays.nonzero()[0][np.cumsum(new) - new]
    tokens[first] ^= tokens[first] >> 31  # nothing predicts a first token
    targets = np.bincount(sample[stays & (tokens < 0)], minlength=len(length))
    kept = kept & (targets > 0)
    return Truncated(
        kept,
        int((kept & (left > 0)).sum()),
        int((kept & (right > 0)).sum()),
        tokens[stays & np.repeat(kept, length)],
        new[kept],
        np.clip(encoded.prompt_length - left, np.minimum(least, new), new)[kept],
        targets[kept],
    )


_ours = False


@contextmanager
def parallel() -> Generator[None]:
    """Tokenise with all cores now, unless the environment says otherwise; never after a fork."""
    global _ours  # noqa: PLW0603
    _ours = _ours or _THREADS not in os.environ
    if _ours:
        os.environ[_THREADS] = "true"
    try:
        yield
    finally:
        if _ours:
            os.environ[_THREADS] = "false"
