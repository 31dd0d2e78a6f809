"""The loops of the rollout buffer, compiled: records of groups in blocks of words.

A *record* is all that a group has beyond its slot, as words of 4 bytes, one part after another:

    lengths, reward, advantage, flags   one for each rollout (flags: 1 stopped, 2 demonstration)
    prompt's tokens, tokens, log-probs  one for each token

It lies in a chain of blocks. ``follow`` names the next block of a chain; the free ones are a chain
as well, whose first is ``free[0]`` and whose length is ``free[1]``.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_adaptive.core.kernels.compiled import compiled

Array = NDArray[Any]

BLOCK = 64
"""Words in a block: half a block is lost for each group, a 64th for the chain."""


class Blocks(NamedTuple):
    """Where records are.

    Attributes:
        words: ``[blocks * BLOCK]`` int32.
        follow: ``[blocks]`` int32.
        free: ``[2]`` int64.
    """

    words: Array
    follow: Array
    free: Array


class Slots(NamedTuple):
    """What each of ``capacity`` slots holds of its group.

    Attributes:
        prompt: int64.
        version: int64.
        probability: float64.
        weight: float32.
        size: int32, rollouts.
        asked: int32, tokens of the prompt.
        tokens: int64, of all its rollouts.
        first: int32, block of its record.
        last: int32, block of its record.
        key: int64, or -1: nothing is there.
        older: int32, the slot whose group came before it, or -1.
        newer: int32, the slot whose group came after it, or -1.
        item: int32, a permutation of all slots: those in use, then the others.
        place: int32, its inverse.
        ends: ``[3]`` int64: the oldest slot, the newest (-1: none), and how many are in use.
    """

    prompt: Array
    version: Array
    probability: Array
    weight: Array
    size: Array
    asked: Array
    tokens: Array
    first: Array
    last: Array
    key: Array
    older: Array
    newer: Array
    item: Array
    place: Array
    ends: Array


class Content(NamedTuple):
    """The fields of ``RolloutGroups`` as arrays; float32 of rollouts and tokens as int32 words."""

    prompt: Array
    version: Array
    probability: Array
    weight: Array
    size: Array
    prompt_tokens: Array
    prompt_lengths: Array
    tokens: Array
    log_probs: Array
    lengths: Array
    reward: Array
    stopped: Array
    demonstration: Array
    advantage: Array


@compiled
def blocks_needed(size: Array, asked: Array, tokens: Array) -> int:
    """Blocks that records of these sizes take."""
    total = 0
    for g in range(size.size):
        words = 4 * int(size[g]) + int(asked[g]) + 2 * int(tokens[g])
        total += -(-words // BLOCK)
    return total


@compiled
def chain_free(blocks: Blocks, start: int) -> None:
    """Give blocks from ``start`` to the end to the free ones, the first of them in front."""
    count = blocks.follow.size
    for block in range(start, count - 1):
        blocks.follow[block] = block + 1
    if start < count:
        blocks.follow[count - 1] = blocks.free[0]
        blocks.free[0] = start
        blocks.free[1] += count - start


@compiled
def _next_block(blocks: Blocks, block: int) -> int:
    """Take a free block and hang it behind ``block`` (-1: behind none)."""
    taken = blocks.free[0]
    blocks.free[0] = blocks.follow[taken]
    blocks.free[1] -= 1
    blocks.follow[taken] = -1
    if block >= 0:
        blocks.follow[block] = taken
    return int(taken)


@compiled
def _write(
    blocks: Blocks, block: int, at: int, source: Array, low: int, high: int
) -> tuple[int, int]:
    """Append ``source[low:high]`` at word ``at`` of ``block``; returns where it ended."""
    while low < high:
        if at == BLOCK:
            block, at = _next_block(blocks, block), 0
        count = min(BLOCK - at, high - low)
        begin = block * BLOCK + at
        for i in range(count):
            blocks.words[begin + i] = source[low + i]
        at, low = at + count, low + count
    return block, at


@compiled
def _read(
    blocks: Blocks, block: int, at: int, target: Array, low: int, high: int
) -> tuple[int, int]:
    """Fill ``target[low:high]`` from word ``at`` of ``block`` on; returns where it ended."""
    while low < high:
        if at == BLOCK:
            block, at = int(blocks.follow[block]), 0
        count = min(BLOCK - at, high - low)
        begin = block * BLOCK + at
        for i in range(count):
            target[low + i] = blocks.words[begin + i]
        at, low = at + count, low + count
    return block, at


@compiled
def put(blocks: Blocks, slots: Slots, given: Content, slot: Array, key: Array) -> None:
    """Make group g of ``given`` the newest, in the unused ``slot[g]``, for all g in order."""
    prompt_token, rollout, token = 0, 0, 0
    flags = np.empty(given.lengths.size, np.int32)
    for i in range(flags.size):
        flags[i] = np.int32(given.stopped[i]) + 2 * np.int32(given.demonstration[i])
    for g in range(slot.size):
        here = slot[g]
        size, asked = int(given.size[g]), int(given.prompt_lengths[g])
        tokens = 0
        for i in range(rollout, rollout + size):
            tokens += int(given.lengths[i])
        slots.prompt[here], slots.version[here] = given.prompt[g], given.version[g]
        slots.probability[here], slots.weight[here] = given.probability[g], given.weight[g]
        slots.size[here], slots.asked[here], slots.tokens[here] = size, asked, tokens
        slots.key[here] = key[g]
        first = _next_block(blocks, -1)
        block, at = _write(blocks, first, 0, given.lengths, rollout, rollout + size)
        block, at = _write(blocks, block, at, given.reward, rollout, rollout + size)
        block, at = _write(blocks, block, at, given.advantage, rollout, rollout + size)
        block, at = _write(blocks, block, at, flags, rollout, rollout + size)
        end = prompt_token + asked
        block, at = _write(blocks, block, at, given.prompt_tokens, prompt_token, end)
        block, at = _write(blocks, block, at, given.tokens, token, token + tokens)
        block, at = _write(blocks, block, at, given.log_probs, token, token + tokens)
        slots.first[here], slots.last[here] = first, block
        prompt_token, rollout, token = end, rollout + size, token + tokens
        _make_newest(slots, here)
        exchange(slots, int(slots.place[here]), int(slots.ends[2]))
        slots.ends[2] += 1


@compiled
def _make_newest(slots: Slots, slot: int) -> None:
    newest = slots.ends[1]
    slots.older[slot], slots.newer[slot] = newest, -1
    if newest >= 0:
        slots.newer[newest] = slot
    else:
        slots.ends[0] = slot
    slots.ends[1] = slot


@compiled
def exchange(slots: Slots, here: int, there: int) -> None:
    """Exchange two places of the permutation."""
    a, b = slots.item[here], slots.item[there]
    slots.item[here], slots.item[there] = b, a
    slots.place[a], slots.place[b] = there, here


@compiled
def remove(blocks: Blocks, slots: Slots, slot: Array) -> None:
    """Empty slots in use, each given once; their blocks are free again."""
    for here in slot:
        older, newer = slots.older[here], slots.newer[here]
        if older >= 0:
            slots.newer[older] = newer
        else:
            slots.ends[0] = newer
        if newer >= 0:
            slots.older[newer] = older
        else:
            slots.ends[1] = older
        slots.key[here] = -1
        slots.ends[2] -= 1
        exchange(slots, int(slots.place[here]), int(slots.ends[2]))
        words = 4 * int(slots.size[here]) + int(slots.asked[here]) + 2 * int(slots.tokens[here])
        blocks.follow[slots.last[here]] = blocks.free[0]
        blocks.free[0] = slots.first[here]
        blocks.free[1] += -(-words // BLOCK)


@compiled
def oldest(slots: Slots, count: int, leaving: Array) -> Array:
    """The ``count`` oldest slots that are not ``leaving`` ``[capacity]`` bool anyway."""
    found = np.empty(count, np.int64)
    slot = slots.ends[0]
    k = 0
    while k < count:
        if not leaving[slot]:
            found[k] = slot
            k += 1
        slot = slots.newer[slot]
    return found


@compiled
def in_order(slots: Slots) -> Array:
    """All slots in use, the oldest first."""
    found = np.empty(slots.ends[2], np.int64)
    slot = slots.ends[0]
    for k in range(found.size):
        found[k] = slot
        slot = slots.newer[slot]
    return found


@compiled
def counts(slots: Slots, slot: Array) -> tuple[int, int, int]:
    """Rollouts, prompts' tokens and completions' tokens of some slots."""
    rollouts, asked, tokens = 0, 0, 0
    for here in slot:
        rollouts += int(slots.size[here])
        asked += int(slots.asked[here])
        tokens += int(slots.tokens[here])
    return rollouts, asked, tokens


@compiled
def gather(blocks: Blocks, slots: Slots, slot: Array, target: Content) -> None:
    """Fill ``target`` with the groups of some slots, in this order."""
    prompt_token, rollout, token = 0, 0, 0
    words = np.empty(target.lengths.size, np.int32)
    flags = np.empty(target.lengths.size, np.int32)
    for g in range(slot.size):
        here = slot[g]
        size, asked, tokens = int(slots.size[here]), int(slots.asked[here]), int(slots.tokens[here])
        target.prompt[g], target.version[g] = slots.prompt[here], slots.version[here]
        target.probability[g], target.weight[g] = slots.probability[here], slots.weight[here]
        target.size[g], target.prompt_lengths[g] = size, asked
        end = rollout + size
        block, at = _read(blocks, int(slots.first[here]), 0, words, rollout, end)
        block, at = _read(blocks, block, at, target.reward, rollout, end)
        block, at = _read(blocks, block, at, target.advantage, rollout, end)
        block, at = _read(blocks, block, at, flags, rollout, end)
        last = prompt_token + asked
        block, at = _read(blocks, block, at, target.prompt_tokens, prompt_token, last)
        block, at = _read(blocks, block, at, target.tokens, token, token + tokens)
        block, at = _read(blocks, block, at, target.log_probs, token, token + tokens)
        prompt_token, rollout, token = last, end, token + tokens
    for i in range(words.size):
        target.lengths[i] = words[i]
        target.stopped[i] = flags[i] & 1 != 0
        target.demonstration[i] = flags[i] & 2 != 0
