"""Rows in which several answers share their prompt, so that the model reads it once for them.

Answers to the same prompt stand behind it in one row; each sees the prompt and itself (``segment``
says what is whose), and its positions go on from the prompt's end. The last token of an answer
predicts nothing and is left out. Log-probabilities and gradients are those of a row for each answer
(Prefix Grouper, Liu et al., 2025, arXiv:2506.05433, proposition 1, which splits the attention in
two where this masks it).

What is saved on prompts is paid for by attention over longer rows, whose masked part is computed
as well. Of 1, 2, 4, ... answers in a row the cheapest number is taken; single answers count half of
``attention_cost_ratio``, for attention without a mask leaves out what comes later:

    cost = rows * width * (1 + pair_cost * width)      in tokens
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_adaptive.data.text.packing import Counts, ranges

_PROMPT, _PADDING = 0, -1  # segments; answers are 1, 2, ...


class _Rows(NamedTuple):
    """Where answers stand: row, tokens before it, and number in its row, ``[B]`` each."""

    row: Counts
    start: Counts
    number: Counts
    width: int

    @property
    def height(self) -> int:
        return int(self.row.max()) + 1


class Answers(NamedTuple):
    """``B`` answers of which some share a prompt.

    Attributes:
        tokens: ``[length.sum()]`` int32, answer after answer.
        length: ``[B]`` int64, at least 0.
        prompt: ``[B]`` int64, which prompt each answers.
        prompt_tokens: flat, of all prompts, int32.
        prompt_start: where in it those of each answer's prompt begin: ``[B]`` int64.
        prompt_length: ``[B]`` int64, above 0, alike for the same prompt.
    """

    tokens: npt.NDArray[np.int32]
    length: Counts
    prompt: Counts
    prompt_tokens: npt.NDArray[np.int32]
    prompt_start: Counts
    prompt_length: Counts


def collate_shared(
    answers: Answers, *, pad: int, attention_cost_ratio: float
) -> dict[str, Tensor] | None:
    """A batch of rows with shared prompts; None where a row for each answer is cheaper.

    Args:
        answers: in any order; targets are in this order.
        pad: the id that fills up rows.
        attention_cost_ratio: cost of one attention pair in tokens of the decoder, at least 0.

    Returns:
        As ``packing.collate_packed``, and ``segment`` ``[R, T]`` int64: 0 of prompts, 1, 2, ... of
        a row's answers, -1 of padding.
    """
    alone = int((answers.prompt_length + answers.length).max())
    least = len(answers.length) * alone * (1 + attention_cost_ratio / 2 * alone)
    order, number = _within_prompts(answers.prompt)
    chosen, together, most = None, 2, int(number.max()) + 1
    while together < 2 * most:
        rows = _rows(answers, order, number, min(together, most))
        cost = rows.height * rows.width * (1 + attention_cost_ratio * rows.width)
        if cost < least:
            least, chosen = cost, rows
        together *= 2
    return None if chosen is None else _filled(answers, chosen, pad)


def _within_prompts(prompt: Counts) -> tuple[Counts, Counts]:
    """Answers sorted by prompt, and of each of them (sorted so) its number among its prompt's."""
    order = np.argsort(prompt, kind="stable")
    first = np.flatnonzero(np.diff(prompt[order], prepend=-1))
    count = np.diff(first, append=len(prompt))
    return order, np.arange(len(prompt)) - np.repeat(first, count)


def _rows(answers: Answers, order: Counts, number: Counts, together: int) -> _Rows:
    """At most ``together`` answers a row."""
    fresh = number % together == 0
    row = np.cumsum(fresh) - 1
    read = _read(answers)[order]
    before = np.cumsum(read) - read
    asked = answers.prompt_length[order]
    start = asked + before - before[fresh][row]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return _Rows(row[back], start[back], (number % together)[back], int((start + read).max()))


def _read(answers: Answers) -> Counts:
    """How many tokens of each answer the model is given."""
    return np.maximum(answers.length - 1, 0)


def _filled(answers: Answers, rows: _Rows, pad: int) -> dict[str, Tensor]:
    shape = (rows.height, rows.width)
    ids, segment = np.full(shape, pad, np.int64), np.full(shape, _PADDING, np.int64)
    positions = np.zeros(shape, np.int64)
    head = np.flatnonzero(rows.number == 0)  # one answer of each row
    asked = answers.prompt_length[head]
    place, within = ranges(rows.row[head] * rows.width, asked)
    source, _ = ranges(answers.prompt_start[head], asked)
    ids.reshape(-1)[place] = answers.prompt_tokens[source]
    segment.reshape(-1)[place] = _PROMPT
    positions.reshape(-1)[place] = within

    begin, read = rows.row * rows.width + rows.start, _read(answers)
    place, within = ranges(begin, read)
    source, _ = ranges(np.cumsum(answers.length) - answers.length, read)
    ids.reshape(-1)[place] = answers.tokens[source]
    segment.reshape(-1)[place] = np.repeat(rows.number + 1, read)
    positions.reshape(-1)[place] = np.repeat(answers.prompt_length, read) + within

    place, within = ranges(begin - 1, answers.length)
    last = np.repeat(rows.row * rows.width + answers.prompt_length - 1, answers.length)
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "segment": torch.from_numpy(segment),
        "target": torch.from_numpy(answers.tokens.astype(np.int64)),
        "position": torch.from_numpy(np.where(within == 0, last, place)),
        "sequence": torch.from_numpy(np.repeat(np.arange(len(read)), answers.length)),
    }
