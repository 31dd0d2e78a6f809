"""Rows in which several answers share one copy of their prompt.

Answers to the same prompt follow it in one row; each attends to the prompt and to itself
(``segment`` says which tokens belong to which answer), and its positions continue from the prompt's
end. The last token of an answer predicts nothing and is left out. Log-probabilities and gradients
are those of one row per answer (Prefix Grouper, Liu et al., 2025, arXiv:2506.05433, proposition 1,
which splits the attention in two where this masks it).

Longer rows cost more attention, since its masked part is computed too. Among 1, 2, 4, ... answers
per row the cheapest number is chosen; for single answers ``attention_cost_ratio`` counts half,
because causal attention without a mask skips later tokens:

    cost = rows * width * (1 + attention_cost_ratio * width)      in tokens
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_adaptive.data.text.packing import Counts, ranges

_PROMPT, _PADDING = 0, -1  # segments; answers are 1, 2, ...


class _Rows(NamedTuple):
    """Position of each answer: its row, tokens before it, and number in the row, ``[B]`` each."""

    row: Counts
    start: Counts
    number: Counts
    width: int

    @property
    def height(self) -> int:
        return int(self.row.max()) + 1


class Answers(NamedTuple):
    """``B`` answers, some of which share a prompt.

    Attributes:
        tokens: ``[length.sum()]`` int32, answer after answer.
        length: ``[B]`` int64, at least 0.
        prompt: ``[B]`` int64, number of each answer's prompt.
        prompt_tokens: tokens of all prompts, flat, int32.
        prompt_start: ``[B]`` int64, where each answer's prompt begins in ``prompt_tokens``.
        prompt_length: ``[B]`` int64, tokens of each answer's prompt, above 0.
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
    """A batch of rows with shared prompts; None if one row per answer is cheaper.

    Args:
        answers: in any order, which the targets keep.
        pad: token id of the padding.
        attention_cost_ratio: cost of one attention pair, in decoder tokens, at least 0.

    Returns:
        The keys of ``packing.collate_packed``, and ``segment`` ``[R, T]`` int64: 0 for prompts,
        1, 2, ... for a row's answers, -1 for padding.
    """
    alone = int((answers.prompt_length + answers.length).max())
    least = len(answers.length) * alone * (1 + attention_cost_ratio / 2 * alone)
    order, number = _within_prompts(answers.prompt)
    chosen, per_row, most = None, 2, int(number.max()) + 1
    while per_row < 2 * most:
        rows = _rows(answers, order, number, min(per_row, most))
        cost = rows.height * rows.width * (1 + attention_cost_ratio * rows.width)
        if cost < least:
            least, chosen = cost, rows
        per_row *= 2
    return None if chosen is None else _fill(answers, chosen, pad)


def _within_prompts(prompt: Counts) -> tuple[Counts, Counts]:
    """The order of answers by prompt, and in this order each answer's number in its prompt."""
    order = np.argsort(prompt, kind="stable")
    first = np.flatnonzero(np.diff(prompt[order], prepend=-1))
    count = np.diff(first, append=len(prompt))
    return order, np.arange(len(prompt)) - np.repeat(first, count)


def _rows(answers: Answers, order: Counts, number: Counts, per_row: int) -> _Rows:
    """Positions with at most ``per_row`` answers per row."""
    fresh = number % per_row == 0
    row = np.cumsum(fresh) - 1
    input_length = _input_lengths(answers)[order]
    before = np.cumsum(input_length) - input_length
    prompt_length = answers.prompt_length[order]
    start = prompt_length + before - before[fresh][row]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return _Rows(
        row[back], start[back], (number % per_row)[back], int((start + input_length).max())
    )


def _input_lengths(answers: Answers) -> Counts:
    """Tokens of each answer that are model input: all but the last."""
    return np.maximum(answers.length - 1, 0)


def _fill(answers: Answers, rows: _Rows, pad: int) -> dict[str, Tensor]:
    shape = (rows.height, rows.width)
    ids, segment = np.full(shape, pad, np.int64), np.full(shape, _PADDING, np.int64)
    positions = np.zeros(shape, np.int64)
    head = np.flatnonzero(rows.number == 0)  # one answer of each row
    prompt_length = answers.prompt_length[head]
    place, within = ranges(rows.row[head] * rows.width, prompt_length)
    source, _ = ranges(answers.prompt_start[head], prompt_length)
    ids.reshape(-1)[place] = answers.prompt_tokens[source]
    segment.reshape(-1)[place] = _PROMPT
    positions.reshape(-1)[place] = within

    begin, input_length = rows.row * rows.width + rows.start, _input_lengths(answers)
    place, within = ranges(begin, input_length)
    source, _ = ranges(np.cumsum(answers.length) - answers.length, input_length)
    ids.reshape(-1)[place] = answers.tokens[source]
    segment.reshape(-1)[place] = np.repeat(rows.number + 1, input_length)
    positions.reshape(-1)[place] = np.repeat(answers.prompt_length, input_length) + within

    place, within = ranges(begin - 1, answers.length)
    last = np.repeat(rows.row * rows.width + answers.prompt_length - 1, answers.length)
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "segment": torch.from_numpy(segment),
        "target": torch.from_numpy(answers.tokens.astype(np.int64)),
        "position": torch.from_numpy(np.where(within == 0, last, place)),
        "sequence": torch.from_numpy(np.repeat(np.arange(len(input_length)), answers.length)),
    }
