"""Loops of ``core.projection`` on the CPU: hashes, random signs, and products of kept coordinates.

``core.projection`` has the same hashes as torch operations, with which tests compare these.

The products are computed for 16 samples at once: their tokens are stored side by side, in 16 lanes
(``pack_lanes``), so one vector instruction multiplies a pair of entries for all of them. Fewer
samples have several lanes each. Only the kept entries of the outer products are computed.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from lit_adaptive.core.kernels.compiled import compiled, inlined

LANES = 16
"""Samples whose products are computed together."""
TOKENS = 16
"""Tokens of a chunk; the two chunks of a product then fit the cache."""
MIX_1, MIX_2, STEP = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15
"""Constants of SplitMix64."""

Ints = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]

_MIX_1, _MIX_2, _STEP = np.uint64(MIX_1), np.uint64(MIX_2), np.uint64(STEP)
_30, _27, _31, _11, _32 = (np.uint64(shift) for shift in (30, 27, 31, 11, 32))
_LOW = np.uint64(0xFFFFFFFF)
_INDEX = np.uint64(0xFFF)


@inlined
def hash_position(key: np.uint64, position: np.uint64) -> np.uint64:
    """Output ``position`` of SplitMix64 from the state ``key`` (Steele et al., 2014)."""
    value = key + position * _STEP
    value = (value ^ (value >> _30)) * _MIX_1
    value = (value ^ (value >> _27)) * _MIX_2
    return value ^ (value >> _31)


@compiled
def kept_entries(
    start: int, rows: int, columns: int, key: np.uint64, threshold: np.uint64
) -> tuple[Ints, Ints, Ints]:
    """Kept coordinates of a matrix whose first entry is coordinate ``start``; their rows, columns.

    Coordinate c is kept if the upper 53 bits of its hash are below ``threshold``.
    """
    total = rows * columns
    coordinate = np.empty(total, np.int64)
    row, column = np.empty(total, np.int64), np.empty(total, np.int64)
    count = 0
    for i in range(rows):
        first = start + i * columns
        for j in range(columns):
            coordinate[count], row[count], column[count] = first + j, i, j
            kept = hash_position(key, np.uint64(first + j)) >> _11 < threshold
            count += int(kept)
    return coordinate[:count].copy(), row[:count].copy(), column[:count].copy()


@compiled
def add_sketch(
    out: Singles, values: Singles, coordinate: Ints, key: np.uint64, scale: np.float32
) -> None:
    """Add each row of ``values`` ``[k, B]``, with a random sign, to a random row of ``out``."""
    dimensions, size = np.uint64(out.shape[0]), values.shape[1]
    for k in range(coordinate.size):
        h = hash_position(key, np.uint64(coordinate[k]))
        target = out[np.int64(((h & _LOW) * dimensions) >> _32)]
        factor = -scale if h >> np.uint64(63) else scale
        for b in range(size):
            target[b] += factor * values[k, b]


@compiled
def fill_signs(out: npt.NDArray[np.int32], coordinate: Ints, key: np.uint64) -> None:
    """Bits of 1.0 or -1.0 for each coordinate and dimension, ``[k, d]``; one hash has 64 signs.

    d is a multiple of 64. Loops of fixed length become vector instructions.
    """
    sign, one = np.uint32(0x80000000), np.uint32(0x3F800000)
    for k in range(coordinate.size):
        own, row = hash_position(key, np.uint64(coordinate[k])), out[k]
        for block in range(out.shape[1] // 64):
            h, first = hash_position(own, np.uint64(block)), block * 64
            high, low = np.uint32(h >> _32), np.uint32(h & _LOW)
            for b in range(32):
                row[first + b] = np.int32(((high << np.uint32(b)) & sign) | one)
            for b in range(32):
                row[first + 32 + b] = np.int32(((low << np.uint32(b)) & sign) | one)


@compiled
def fill_normals(out: Singles, coordinate: Ints, key: np.uint64, quantiles: Singles) -> None:
    """Quantile of each coordinate and dimension, ``[k, d]``; one hash gives four of 12 bits.

    d is a multiple of 4.
    """
    for k in range(coordinate.size):
        own, row = hash_position(key, np.uint64(coordinate[k])), out[k]
        for block in range(out.shape[1] // 4):
            h = hash_position(own, np.uint64(block))
            for b in range(4):
                row[4 * block + b] = quantiles[np.int64((h >> np.uint64(16 * b)) & _INDEX)]


def _add_lanes(
    _typing: Any, sums: Any, to: Any, stride: Any, x: Any, at: Any, y: Any, where: Any
) -> Any:
    """``add_lanes(sums, to, stride, x, at, y, where)``: add products of two chunks, for 16 samples.

    For each position p of the tuple ``where``, and k its number, add to the 16 elements of the flat
    array ``sums`` from ``to + k * stride`` on the sums over ``TOKENS`` tokens of ``x`` from ``at``
    on times ``y`` from p on. Vectors keep the sums in registers, which loops over arrays do not.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(argument: int, position: Any) -> Any:
            array = context.make_array(signature.args[argument])(context, builder, args[argument])
            return builder.gep(array.data, [position])

        word, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)

        def address(base: Any, offset: Any) -> Any:
            return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

        def load(base: Any, offset: Any) -> Any:
            value = builder.load(address(base, offset))
            value.align = 4
            return value

        count = signature.args[6].count
        left = pointer(3, args[4])
        right = [pointer(5, builder.extract_value(args[6], k)) for k in range(count)]
        target = pointer(0, args[1])
        targets = [builder.mul(args[2], word(k)) for k in range(count)]
        totals = [cast("Any", cgutils).alloca_once(builder, vector) for _ in range(count)]
        for k in range(count):
            builder.store(load(target, targets[k]), totals[k])
        with cast("Any", cgutils).for_range(builder, word(TOKENS)) as loop:
            offset = builder.mul(loop.index, word(LANES))
            shared = load(left, offset)
            for k in range(count):
                product = builder.fmul(shared, load(right[k], offset), flags=("contract",))
                total = builder.fadd(product, builder.load(totals[k]), flags=("contract",))
                builder.store(total, totals[k])
        for k in range(count):
            stored = builder.store(builder.load(totals[k]), address(target, targets[k]))
            stored.align = 4
        return context.get_dummy_value()

    return types.void(sums, to, stride, x, at, y, where), generate


add_lanes = cast("Callable[..., None]", intrinsic(_add_lanes))


@compiled
def _is_zero(row: Singles) -> bool:
    for value in row:  # noqa: SIM110
        if value != 0:
            return False
    return True


@compiled
def assign_lanes(
    left: Singles, right: Singles, sample: Ints, samples: int, split: int
) -> tuple[Ints, Ints]:
    """Assign the tokens whose product is not 0 to lanes, those of a sample in turn to ``split``.

    Args:
        left: ``[K, m]``.
        right: ``[K, n]``.
        sample: ``[K]`` in [0, samples), or -1 for tokens to leave out.
        samples: number of samples.
        split: number of lanes of a sample.

    Returns:
        The token at each place ``[groups, places, LANES]``, -1 for none, and the number of chunks
        of each group of ``LANES`` lanes.
    """
    counts = np.zeros(samples, np.int64)
    relevant = np.zeros(sample.size, np.bool_)
    for k in range(sample.size):
        if sample[k] >= 0 and not _is_zero(left[k]) and not _is_zero(right[k]):
            relevant[k] = True
            counts[sample[k]] += 1
    chunks = np.zeros((samples * split + LANES - 1) // LANES, np.int64)
    for k in range(samples):
        last = k * split // LANES
        places = (counts[k] + split - 1) // split
        chunks[last] = max(chunks[last], (places + TOKENS - 1) // TOKENS)
    token = np.full((chunks.size, chunks.max() * TOKENS, LANES), -1, np.int64)
    counts[:] = 0
    for k in range(sample.size):
        if relevant[k]:
            place, part = divmod(counts[sample[k]], split)
            lane = sample[k] * split + part
            token[lane // LANES, place, lane % LANES] = k
            counts[sample[k]] += 1
    return token, chunks


@compiled
def pack_lanes(values: Singles, token: Ints, chunks: int) -> Singles:
    """Tokens of up to 16 lanes side by side: ``[chunks, n, TOKENS, LANES]``, flat.

    Args:
        values: ``[K, n]``, of all tokens.
        token: ``[places, LANES]``, see ``assign_lanes``.
        chunks: number of chunks.
    """
    n = values.shape[1]
    packed = np.empty((chunks, n, TOKENS, LANES), np.float32)
    for chunk in range(chunks):
        for place in range(TOKENS):
            rows = token[chunk * TOKENS + place]
            for i in range(n):
                for lane in range(LANES):
                    row = rows[lane]
                    packed[chunk, i, place, lane] = values[row, i] if row >= 0 else 0.0
    return packed.reshape(-1)


@compiled
def add_kept_products(
    out: Singles,
    first: int,
    stride: int,
    left: Singles,
    right: Singles,
    row: Ints,
    column: Ints,
    rows: int,
    columns: int,
) -> None:
    """Add the sums over tokens of left[row] * right[column] of 16 samples to a matrix.

    Args:
        out: a matrix of ``k`` rows, flat.
        first: column of the first of the 16 samples.
        stride: columns of the matrix.
        left: of ``pack_lanes``, with n = ``rows``.
        right: of ``pack_lanes``, with n = ``columns``.
        row: ``[k]``, ascending.
        column: ``[k]``.
        rows: entries of a token of ``left``.
        columns: entries of a token of ``right``.
    """
    width = TOKENS * LANES
    for chunk in range(left.size // (rows * width)):
        at, where = chunk * rows, chunk * columns
        k = 0
        while k < row.size:
            x = (at + row[k]) * width
            if k + 4 <= row.size and row[k + 3] == row[k]:
                four = (
                    (where + column[k]) * width,
                    (where + column[k + 1]) * width,
                    (where + column[k + 2]) * width,
                    (where + column[k + 3]) * width,
                )
                add_lanes(out, first + k * stride, stride, left, x, right, four)
                k += 4
            else:
                one = ((where + column[k]) * width,)
                add_lanes(out, first + k * stride, stride, left, x, right, one)
                k += 1
