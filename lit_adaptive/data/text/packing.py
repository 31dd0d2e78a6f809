"""Samples of tokens laid out as a batch: one a row, or several in a row (packed).

A packed row needs no attention mask: position ids restart at 0 with each sample, by which
transformers (from 4.53 on, without an attention mask and a cache) keeps samples from seeing each
other. The padding at its end counts as a sample of its own.
"""

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Counts = npt.NDArray[np.int64]


def best_fit_decreasing(lengths: list[int], capacity: int) -> tuple[list[int], list[int]]:
    """Rows for samples: the longest first, each into the fullest row that still has room.

    At most 11/9 of the least possible number of rows, and 6/9 of one more (Johnson, 1973; Dosa,
    2007).

    Args:
        lengths: of ``B`` samples, each in [1, capacity].
        capacity: tokens that a row holds.

    Returns:
        The row of each sample, and how many tokens of it stand before the sample.
    """
    rows, starts = [0] * len(lengths), [0] * len(lengths)
    free: list[tuple[int, int]] = []  # room and number of each row, sorted
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
    """``[start, start + length)`` of each, behind one another; and how far into its range each is.

    Args:
        start: ``[B]`` int64.
        length: ``[B]`` int64, not negative.

    Returns:
        Both ``[length.sum()]`` int64.
    """
    before = np.cumsum(length) - length
    within = np.arange(int(length.sum())) - np.repeat(before, length)
    return np.repeat(start, length) + within, within


def collate_packed(
    tokens: npt.NDArray[np.int32], length: Counts, *, pad: int, pack_length: int | None
) -> dict[str, Tensor]:
    """A batch of ``B`` samples.

    Args:
        tokens: ``[length.sum()]`` int32, sample after sample; ``~token`` where it is to be
            predicted, which the first of a sample never is.
        length: ``[B]`` int64, above 0.
        pad: the id that fills up rows.
        pack_length: tokens that a packed row holds, or None for one sample a row.

    Returns:
        ``input_ids`` and ``position_ids`` ``[R, T]``; of the ``K`` targets in order ``target``,
        ``position`` (flat place in ``[R * T]`` of the token before it) and ``sequence`` (number of
        its sample), ``[K]``; all int64.
    """
    count = len(length)
    if pack_length is None:
        row, start, width, height = np.arange(count), np.zeros(count, np.int64), length.max(), count
        positions = np.broadcast_to(np.arange(width), (height, width)).copy()
    else:
        found = best_fit_decreasing(length.tolist(), pack_length)
        row, start = np.array(found[0]), np.array(found[1])
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


def left_padded(
    tokens: npt.NDArray[np.int32], length: Counts, *, pad: int
) -> tuple[Tensor, Tensor]:
    """Prompts that end together: ids ``[B, P]`` int64 and mask ``[B, P]`` bool.

    Args:
        tokens: ``[length.sum()]`` int32, as in ``collate_packed``.
        length: ``[B]`` int64, above 0.
        pad: the id that fills up rows.
    """
    width = int(length.max())
    place, _ = ranges(np.arange(1, len(length) + 1) * width - length, length)
    ids = np.full((len(length), width), pad, np.int64)
    ids.reshape(-1)[place] = tokens ^ (tokens >> 31)
    mask = np.arange(width) >= (width - length)[:, None]
    return torch.from_numpy(ids), torch.from_numpy(mask)
