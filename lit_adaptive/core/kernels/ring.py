"""The replay's bookkeeping, compiled: which rows hold which frames, and n-step windows.

A frame lives in a row of the pool for as long as anything points to it: a slot's observation or
next observation, an open window's first observation, or a stream's latest observation. Rows that
nothing points to form a list: each holds the next one, as ``-2 - next``; ``-1`` ends it.

A window begins at every step and closes after n steps or with its episode; then it is a transition.
"""

from typing import NamedTuple

import numpy as np

from lit_adaptive.core.kernels.compiled import compiled
from lit_adaptive.core.kernels.row_copy import Array, all_within

FIRST_FREE, FREE = 0, 1


class Pool(NamedTuple):
    """Who points to which row.

    Attributes:
        references: ``[rows]`` int32, pointers to each row; if negative, a link of the free list.
        free: ``[2]`` int64: first free row (-1: none), number of free rows.
    """

    references: Array
    free: Array


class Slots(NamedTuple):
    """What a slot keeps beside its action.

    Attributes:
        pointer: ``[capacity, 2, k]`` int32 rows of the k frames of observation, next observation.
        reward: ``[capacity]`` float32.
        terminated: ``[capacity]`` bool.
        steps: ``[capacity]`` uint8, or ``[0]`` if all transitions span one step.
    """

    pointer: Array
    reward: Array
    terminated: Array
    steps: Array


class Streams(NamedTuple):
    """What every stream is in the middle of; windows lie in rings of n.

    Attributes:
        latest: ``[E, k]`` int32 rows of what it showed last; -1: nothing yet.
        first: ``[E, n, k]`` int32 rows of each open window's first observation.
        gain: ``[E, n]`` float64 discounted rewards so far.
        begin: ``[E]`` int64, place of the oldest open window.
        open: ``[E]`` int64, number of open windows.
    """

    latest: Array
    first: Array
    gain: Array
    begin: Array
    open: Array


class Step(NamedTuple):
    """One step of B streams.

    Attributes:
        stream: ``[B]`` int64, each once.
        known: ``[B, k]`` which frames of the observation are those the stream showed last.
        repeated: ``[B, k]`` which are the same as the frame before them in the stack.
        moved: ``[B, k]`` which frames of the next observation are the one behind in this one.
        reward: ``[B]`` float32.
        terminated: ``[B]`` bool.
        truncated: ``[B]`` bool.
    """

    stream: Array
    known: Array
    repeated: Array
    moved: Array
    reward: Array
    terminated: Array
    truncated: Array


class Output(NamedTuple):
    """What is to be written; room for the most there can be.

    Attributes:
        slot: ``[E n]`` int64 slots that closed windows went to.
        window: ``[E n]`` int64, number ``stream * n + place`` of each.
        opened: ``[E]`` int64, number of the window each row opened.
        row: ``[2, E k]`` int64, rows for frames of the observations, of the next observations.
        source: ``[2, E k]`` int64, which frames: ``b * k + j``.
    """

    slot: Array
    window: Array
    opened: Array
    row: Array
    source: Array


@compiled
def release(pool: Pool, row: int) -> None:
    """One pointer less to ``row``."""
    pool.references[row] -= 1
    if pool.references[row] == 0:
        pool.references[row] = -2 - pool.free[FIRST_FREE]
        pool.free[FIRST_FREE] = row
        pool.free[FREE] += 1


@compiled
def take(pool: Pool) -> int:
    """A free row, which nothing points to yet; the caller has made sure there is one."""
    row = pool.free[FIRST_FREE]
    pool.free[FIRST_FREE] = -2 - pool.references[row]
    pool.free[FREE] -= 1
    pool.references[row] = 0
    return int(row)


@compiled
def chain(pool: Pool, first: int) -> None:
    """Make the rows from ``first`` to the last free, to be taken in this order."""
    for row in range(pool.references.size - 1, first - 1, -1):
        pool.references[row] = -2 - pool.free[FIRST_FREE]
        pool.free[FIRST_FREE] = row
    pool.free[FREE] += pool.references.size - first


@compiled
def count(pool: Pool, rows: Array) -> None:
    """One pointer more to each of ``rows`` (-1: none); only before ``chain``."""
    for row in rows:
        if row >= 0:
            pool.references[row] += 1


@compiled
def _write(pool: Pool, slots: Slots, streams: Streams, s: int, terminated: bool, slot: int) -> None:
    """Write stream ``s``'s oldest window into ``slot``; its pointers go along."""
    place = streams.begin[s]
    for j in range(streams.latest.shape[1]):
        slots.pointer[slot, 0, j] = streams.first[s, place, j]
        slots.pointer[slot, 1, j] = streams.latest[s, j]
        pool.references[streams.latest[s, j]] += 1
    slots.reward[slot] = streams.gain[s, place]
    slots.terminated[slot] = terminated
    if slots.steps.size > 0:
        slots.steps[slot] = streams.open[s]


@compiled
def _close(
    pool: Pool,
    slots: Slots,
    streams: Streams,
    s: int,
    terminated: bool,
    added: int,
    closed: int,
    skip: int,
    out: Output,
) -> None:
    """Close stream ``s``'s oldest window, the transition number ``added + closed``.

    The first ``skip`` of a call would be overwritten within it, and are not written at all.
    """
    stack, n = streams.latest.shape[1], streams.gain.shape[1]
    slot, place = (added + closed) % slots.reward.size, streams.begin[s]
    if closed >= skip:
        if slot < added:
            for j in range(stack):
                release(pool, slots.pointer[slot, 0, j])
                release(pool, slots.pointer[slot, 1, j])
        _write(pool, slots, streams, s, terminated, slot)
        out.slot[closed - skip], out.window[closed - skip] = slot, s * n + place
    else:
        for j in range(stack):
            release(pool, streams.first[s, place, j])
    streams.begin[s] = (place + 1) % n
    streams.open[s] -= 1


@compiled
def end(stream: Array, pool: Pool, slots: Slots, streams: Streams, added: int, out: Output) -> int:
    """Close all open windows of ``stream``, as truncated; returns how many."""
    total: int = 0
    for s in stream:
        total += int(streams.open[s])
    closed = 0
    skip = max(total - slots.reward.size, 0)
    for s in stream:
        while streams.open[s] > 0:
            _close(pool, slots, streams, s, False, added, closed, skip, out)
            closed += 1
    return closed


@compiled
def _closing(step: Step, streams: Streams) -> int:
    """How many windows this step will close."""
    total: int = 0
    for b in range(step.stream.size):
        open_ = streams.open[step.stream[b]] + 1
        if step.terminated[b] or step.truncated[b]:
            total += int(open_)
        elif open_ == streams.gain.shape[1]:
            total += 1
    return total


@compiled
def _see(
    step: Step, b: int, pool: Pool, streams: Streams, place: int, fresh: Array, out: Output
) -> None:
    """Point the window at ``place``, then the stream's latest, to the frames of this step."""
    s, stack = step.stream[b], streams.latest.shape[1]
    for j in range(stack):
        if step.known[b, j]:
            row = streams.latest[s, j]
        elif step.repeated[b, j]:
            row = streams.first[s, place, j - 1]
        else:
            row = take(pool)
            out.row[0, fresh[0]], out.source[0, fresh[0]] = row, b * stack + j
            fresh[0] += 1
        streams.first[s, place, j] = row
        pool.references[row] += 1
    for j in range(stack):
        if streams.latest[s, j] >= 0:
            release(pool, streams.latest[s, j])
        if step.moved[b, j]:
            row = streams.first[s, place, j + 1]
        else:
            row = take(pool)
            out.row[1, fresh[1]], out.source[1, fresh[1]] = row, b * stack + j
            fresh[1] += 1
        streams.latest[s, j] = row
        pool.references[row] += 1


@compiled
def record(
    step: Step,
    pool: Pool,
    slots: Slots,
    streams: Streams,
    discounts: Array,
    added: int,
    out: Output,
) -> tuple[int, int, int]:
    """Enter one step of B streams, of which the pool has 2 B k rows free.

    Args:
        step: what happened.
        pool: changed.
        slots: changed.
        streams: changed.
        discounts: ``[n + 1]`` float64, powers of gamma.
        added: transitions written before.
        out: receives what is to be written.

    Returns:
        How many windows closed; frames to write of the observations; and of the next observations.
    """
    n = streams.gain.shape[1]
    fresh = np.zeros(2, np.int64)
    closed = 0
    skip = max(_closing(step, streams) - slots.reward.size, 0)
    for b in range(step.stream.size):
        s = step.stream[b]
        place = (streams.begin[s] + streams.open[s]) % n
        _see(step, b, pool, streams, place, fresh, out)
        out.opened[b] = s * n + place
        streams.gain[s, place] = 0.0
        streams.open[s] += 1
        for w in range(streams.open[s]):
            at = (streams.begin[s] + w) % n
            streams.gain[s, at] += discounts[streams.open[s] - 1 - w] * step.reward[b]
        ended = step.terminated[b] or step.truncated[b]
        while streams.open[s] == n or (ended and streams.open[s] > 0):
            terminated = step.terminated[b]
            _close(pool, slots, streams, s, terminated, added, closed, skip, out)
            closed += 1
    return closed, fresh[0], fresh[1]


@compiled
def look_up(
    index: Array,
    length: int,
    slots: Slots,
    discounts: Array,
    row: Array,
    reward: Array,
    terminated: Array,
    discount: Array,
) -> bool:
    """What slots ``index`` ``[B]`` hold; false if one of them is outside ``[0, length)``.

    Args:
        index: int64.
        length: filled slots.
        slots: to look into.
        discounts: ``[n + 1]`` float32, powers of gamma.
        row: ``[2, B, k]`` int64, receives where the frames are.
        reward: ``[B]`` float32, receives.
        terminated: ``[B]`` bool, receives.
        discount: ``[B]`` float32, receives.
    """
    if not all_within(index, length):
        return False
    for b in range(index.size):
        slot = index[b]
        for j in range(row.shape[2]):
            row[0, b, j] = slots.pointer[slot, 0, j]
            row[1, b, j] = slots.pointer[slot, 1, j]
        reward[b] = slots.reward[slot]
        terminated[b] = slots.terminated[slot]
        discount[b] = discounts[slots.steps[slot] if slots.steps.size > 0 else 1]
    return True
