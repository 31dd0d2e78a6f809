"""Batches of token sequences: one sample per row, or several (packed).

A packed row needs no attention mask: position ids restart at 0 with each sample, from which
transformers (4.53 or later, called without attention mask and cache) derives that samples must not
attend to each other. The padding at the end of a row counts as a sample of its own.
"""

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Counts = npt.NDArray[np.int64]


def best_fit_decreasing(lengths: list[int], capacity: int) -> tuple[list[int], list[int]]:
    """Assign samples to rows: the longest first, each to the fullest row that still has room.

    Needs at most 11/9 of the minimum number of rows, plus 6/9 (Johnson, 1973; Dosa, 2007).

    Args:
        lengths: tokens of each of ``B`` samples, in [1, capacity].
        capacity: tokens per row.

    Returns:
        Each sample's row, and the number of tokens before the sample in that row.
    """
    rows, starts = [0] * len(lengths), [0] * len(lengths)
    free: list[tuple[int, int]] = []  # free tokens and number of each row, sorted
    count = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[i]
        at = bisect_left(free, (length, 0))
        if at == len(free):
            room, row, count = capacity, count, count + 1
        else:
            room, row = free.pop(at)
        rows[i], starts[i] = row, capacity - room
        insort(free, (room - length, row))
    return rows, starts


def ranges(start: Counts, length: Counts) -> tuple[Counts, Counts]:
    """Concatenate the ranges ``[start, start + length)``.

    Args:
        start: ``[B]`` int64.
        length: ``[B]`` int64, not negative.

    Returns:
        The elements of the ranges, and their offsets from the start of their range; both
        ``[length.sum()]`` int64.
    """
    before = np.cumsum(length) - length
    within = np.arange(int(length.sum())) - np.repeat(before, length)
    return np.repeat(start, length) + within, within


def collate_packed(
    tokens: npt.NDArray[np.int32], length: Counts, *, pad: int, pack_length: int | None
) -> dict[str, Tensor]:
    """Collate ``B`` samples into rows.

    Args:
        tokens: ``[length.sum()]`` int32, sample after sample; ``~token`` for a target, which the
            first token of a sample never is.
        length: ``[B]`` int64, tokens of each sample, above 0.
        pad: token id of the padding.
        pack_length: maximum tokens of a packed row, or None for one sample per row.

    Returns:
        ``input_ids`` and ``position_ids`` ``[R, T]``; for the ``K`` targets in order ``target``,
        ``position`` (flat position in ``[R * T]`` of the token before the target) and ``sequence``
        (number of its sample), ``[K]``; all int64.
    """
    count = len(length)
    if pack_length is None:
        row, start, width, height = np.arange(count), np.zeros(count, np.int64), length.max(), count
        positions = np.broadcast_to(np.arange(width), (height, width)).copy()
    else:
        row, start = map(np.array, best_fit_decreasing(length.tolist(), pack_length))
        height = int(row.max()) + 1
        filled = np.zeros(height, np.int64)
        np.maximum.at(filled, row, start + length)
        width = filled.max()
        positions = np.arange(width) - filled[:, None]
    place, within = ranges(row * width + start, length)
    ids = np.full((height, int(width)), pad, np.int64)
    ids.reshape(-1)[place] = tokens ^ (tokens >> 31)
    if pack_length is not None:
        positions.reshape(-1)[place] = within
    targets = np.flatnonzero(tokens < 0)
    sequence = np.repeat(np.arange(count), length)[targets]
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "target": torch.from_numpy((~tokens[targets]).astype(np.int64)),
        "position": torch.from_numpy(place[targets] - 1),
        "sequence": torch.from_numpy(sequence),
    }


def left_pad_ragged(
    tokens: npt.NDArray[np.int32], length: Counts, *, pad: int
) -> tuple[Tensor, Tensor]:
    """Left-pad concatenated prompts to ids ``[B, P]`` int64 and a mask ``[B, P]`` bool.

    Args:
        tokens: ``[length.sum()]`` int32, as in ``collate_packed``.
        length: ``[B]`` int64, tokens of each prompt, above 0.
        pad: token id of the padding.
    """
    width = int(length.max())
    place, _ = ranges(np.arange(1, len(length) + 1) * width - length, length)
    ids = np.full((len(length), width), pad, np.int64)
    ids.reshape(-1)[place] = tokens ^ (tokens >> 31)
    mask = np.arange(width) >= (width - length)[:, None]
    return torch.from_numpy(ids), torch.from_numpy(mask)
