"""Bookkeeping of ``TransitionRing``, compiled: references to frames, and n-step windows.

A frame occupies a row of the frame pool while it is referenced: by a slot's observation or next
observation, by the first observation of an open window, or as a stream's latest observation. Free
rows form a linked list: ``counts`` of a free row is ``-2 - next``, and ``-2 - (-1)`` ends it.

A window opens at every step and closes after n steps or with its episode; then it is a transition.
"""

from typing import NamedTuple

import numpy as np

from lit_adaptive.core.kernels.compiled import compiled
from lit_adaptive.core.kernels.row_copy import Array, all_within

FIRST_FREE, FREE = 0, 1


class FrameReferences(NamedTuple):
    """Reference counts of the rows of a frame pool.

    Attributes:
        counts: ``[rows]`` int32, number of references; if negative, a link of the free list.
        free: ``[2]`` int64: first free row (-1: none), number of free rows.
    """

    counts: Array
    free: Array


class TransitionSlots(NamedTuple):
    """Contents of the slots, except actions.

    Attributes:
        pointer: ``[capacity, 2, k]`` int32, rows of the k frames of observation, next observation.
        reward: ``[capacity]`` float32.
        terminated: ``[capacity]`` bool.
        steps: ``[capacity]`` uint8, or ``[0]`` if all transitions span one step.
    """

    pointer: Array
    reward: Array
    terminated: Array
    steps: Array


class StreamWindows(NamedTuple):
    """Latest observation and open windows of each stream; windows are in rings of n.

    Attributes:
        latest: ``[E, k]`` int32, rows of the latest observation; -1: none yet.
        first: ``[E, n, k]`` int32, rows of each open window's first observation.
        gain: ``[E, n]`` float64, discounted rewards so far.
        begin: ``[E]`` int64, index of the oldest open window.
        open: ``[E]`` int64, number of open windows.
    """

    latest: Array
    first: Array
    gain: Array
    begin: Array
    open: Array


class StepFrames(NamedTuple):
    """One step of B streams, with the frames that need not be stored again.

    Attributes:
        stream: ``[B]`` int64, distinct.
        known: ``[B, k]`` bool, whether the frame equals that of the stream's latest observation.
        repeated: ``[B, k]`` bool, whether the frame equals its predecessor in the stack.
        moved: ``[B, k]`` bool, whether the frame of the next observation equals the successor in
            the observation's stack.
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


class RingWrites(NamedTuple):
    """Preallocated results: the slots and frames that the caller writes.

    Attributes:
        slot: ``[E n]`` int64, slots of the closed windows.
        window: ``[E n]`` int64, number ``stream * n + index`` of each closed window.
        opened: ``[E]`` int64, number of the window that each stream opened.
        row: ``[2, E k]`` int64, rows for frames of the observations, of the next observations.
        source: ``[2, E k]`` int64, index ``b * k + j`` of each of these frames.
    """

    slot: Array
    window: Array
    opened: Array
    row: Array
    source: Array


@compiled
def release(pool: FrameReferences, row: int) -> None:
    """Remove a reference to ``row``."""
    pool.counts[row] -= 1
    if pool.counts[row] == 0:
        pool.counts[row] = -2 - pool.free[FIRST_FREE]
        pool.free[FIRST_FREE] = row
        pool.free[FREE] += 1


@compiled
def take(pool: FrameReferences) -> int:
    """Take a free row without references; the caller has reserved one."""
    row = pool.free[FIRST_FREE]
    pool.free[FIRST_FREE] = -2 - pool.counts[row]
    pool.free[FREE] -= 1
    pool.counts[row] = 0
    return int(row)


@compiled
def chain(pool: FrameReferences, first: int) -> None:
    """Make the rows from ``first`` on free, to be taken in ascending order."""
    for row in range(pool.counts.size - 1, first - 1, -1):
        pool.counts[row] = -2 - pool.free[FIRST_FREE]
        pool.free[FIRST_FREE] = row
    pool.free[FREE] += pool.counts.size - first


@compiled
def count(pool: FrameReferences, rows: Array) -> None:
    """Add a reference to each of ``rows`` (-1: none); only before ``chain``."""
    for row in rows:
        if row >= 0:
            pool.counts[row] += 1


@compiled
def _write(
    pool: FrameReferences,
    slots: TransitionSlots,
    streams: StreamWindows,
    s: int,
    terminated: bool,
    slot: int,
) -> None:
    """Move stream ``s``'s oldest window into ``slot``, references included."""
    place = streams.begin[s]
    for j in range(streams.latest.shape[1]):
        slots.pointer[slot, 0, j] = streams.first[s, place, j]
        slots.pointer[slot, 1, j] = streams.latest[s, j]
        pool.counts[streams.latest[s, j]] += 1
    slots.reward[slot] = streams.gain[s, place]
    slots.terminated[slot] = terminated
    if slots.steps.size > 0:
        slots.steps[slot] = streams.open[s]


@compiled
def _close(
    pool: FrameReferences,
    slots: TransitionSlots,
    streams: StreamWindows,
    s: int,
    terminated: bool,
    added: int,
    closed: int,
    skip: int,
    out: RingWrites,
) -> None:
    """Close stream ``s``'s oldest window, transition number ``added + closed``.

    The first ``skip`` windows of a call would be overwritten within it, and are not written.
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
def end(
    stream: Array,
    pool: FrameReferences,
    slots: TransitionSlots,
    streams: StreamWindows,
    added: int,
    out: RingWrites,
) -> int:
    """Close all open windows of ``stream`` as truncated; returns their number."""
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
def _closing(step: StepFrames, streams: StreamWindows) -> int:
    """Number of windows that this step closes."""
    total: int = 0
    for b in range(step.stream.size):
        open_ = streams.open[step.stream[b]] + 1
        if step.terminated[b] or step.truncated[b]:
            total += int(open_)
        elif open_ == streams.gain.shape[1]:
            total += 1
    return total


@compiled
def _reference_frames(
    step: StepFrames,
    b: int,
    pool: FrameReferences,
    streams: StreamWindows,
    place: int,
    fresh: Array,
    out: RingWrites,
) -> None:
    """Set the frames of the window at ``place``, then of the stream's latest observation."""
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
        pool.counts[row] += 1
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
        pool.counts[row] += 1


@compiled
def record(
    step: StepFrames,
    pool: FrameReferences,
    slots: TransitionSlots,
    streams: StreamWindows,
    discounts: Array,
    added: int,
    out: RingWrites,
) -> tuple[int, int, int]:
    """Record one step of B streams; the pool must have 2 B k free rows.

    Args:
        step: the step.
        pool: changed.
        slots: changed.
        streams: changed.
        discounts: ``[n + 1]`` float64, powers of gamma.
        added: number of transitions written before.
        out: results.

    Returns:
        Number of closed windows, and of frames to write of observations and next observations.
    """
    n = streams.gain.shape[1]
    fresh = np.zeros(2, np.int64)
    closed = 0
    skip = max(_closing(step, streams) - slots.reward.size, 0)
    for b in range(step.stream.size):
        s = step.stream[b]
        place = (streams.begin[s] + streams.open[s]) % n
        _reference_frames(step, b, pool, streams, place, fresh, out)
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
    slots: TransitionSlots,
    discounts: Array,
    row: Array,
    reward: Array,
    terminated: Array,
    discount: Array,
) -> bool:
    """Read slots ``index``; false if one of them is outside ``[0, length)``.

    Args:
        index: ``[B]`` int64.
        length: number of filled slots.
        slots: the slots.
        discounts: ``[n + 1]`` float32, powers of gamma.
        row: ``[2, B, k]`` int64, result: rows of the frames.
        reward: ``[B]`` float32, result.
        terminated: ``[B]`` bool, result.
        discount: ``[B]`` float32, result.
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
