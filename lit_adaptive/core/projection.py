r"""Random projections of gradients that are never held: a random subset of coordinates, then a map.

    coordinate   c         place of a parameter among all D trainable ones         [0, D), int64
    kept                   whether a coordinate is in the random subset
    keep ratio   r         probability of a coordinate to be kept                  (0, 1]
    projection   :math:`y = (r)^{-1/2} S x_{kept}`                                 [d]

Inner products of projections estimate those of the full vectors without bias, with a standard
deviation of about :math:`\|x\| \|y\| / \sqrt d` from the map and one from the subset, which is
small where no coordinate dominates. Three maps S:

    count_sketch   one entry, 1 or -1, per coordinate, in a random row (Charikar et al., 2002; a
                   sparse Johnson-Lindenstrauss transform with s = 1): cost does not depend on d
    rademacher     entries 1 or -1, divided by the root of d (Achlioptas, 2003)
    gaussian       normal entries, divided by the root of d

Everything random is a hash of the seed and the coordinate, computed when needed: neither the subset
nor S is stored, and neither depends on how a vector is cut, on the device, or on the process. The
sum over coordinates is one of float32 numbers, whose order may differ.

Where this departs from CROPI (arXiv:2510.26491) and its code, and why:
  1. The subset is one of all coordinates. The code draws it from the first 15 million, which are
     rows of the embedding.
  2. Each coordinate is kept independently, so their number varies by about the root of r D. A
     subset of fixed size would have to be stored.
  3. float32 and 64-bit positions. The code's projector reads 32-bit positions, which wrap around:
     beyond 2^32 values in a batch it reads those of other samples.
  4. Normal entries have 4096 values, the quantiles of equal ranges, so that no device's logarithm
     or cosine is involved. Their variance is exactly 1.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.kernels import projection as kernels

ProjectionKind = Literal["count_sketch", "rademacher", "gaussian"]

_KEPT, _MAP = range(2)  # random streams


@dataclass(frozen=True)
class SparseProjection:
    """Projection of vectors with ``size`` coordinates to ``dimensions`` numbers.

    Projections are columns, ``out`` ``[d, B]`` for B samples, and are added to, so that vectors can
    come in parts.

    Args:
        size: number of coordinates D of a full vector, above 0.
        dimensions: d, in [1, 2^31) and below the expected number of kept coordinates.
        keep_ratio: probability of a coordinate to be kept, in (0, 1].
        kind: the map, see above.
        seed: seed of the subset and of the map.

    Raises:
        ValueError: naming an argument that is out of its range.
    """

    size: int
    dimensions: int = 32768
    keep_ratio: float = 0.15
    kind: ProjectionKind = "count_sketch"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(
                f"keep_ratio is {self.keep_ratio}; it is the fraction of coordinates that are kept "
                "and must lie in (0, 1]"
            )
        if self.kind not in get_args(ProjectionKind):
            raise ValueError(
                f"kind is {self.kind!r}; it must be one of {list(get_args(ProjectionKind))}"
            )
        kept = self.keep_ratio * self.size
        if not 1 <= self.dimensions <= min(kept, 2**31 - 1):
            raise ValueError(
                f"dimensions is {self.dimensions}; it must be at least 1 and at most the number of "
                f"kept coordinates, about {kept:.0f} ({self.keep_ratio} of {self.size}): lower "
                "dimensions or raise keep_ratio"
            )

    # The hash ------------------------------------------------------------------------------------

    @cached_property
    def _keys(self) -> tuple[int, int]:
        root = _mix_integer(self.seed % 2**64)
        return _mix_integer(root ^ (_KEPT + 1)), _mix_integer(root ^ (_MAP + 1))

    @property
    def _threshold(self) -> int:
        return math.ceil(self.keep_ratio * 2**53)

    def coordinates(self, start: int, stop: int, *, device: torch.device | str = "cpu") -> Tensor:
        """Kept coordinates in ``[start, stop)``, ascending: ``[k]`` int64."""
        if _has_kernels(torch.device(device)):
            return self._entries(start, 1, stop - start, torch.device(device))[0]
        position = torch.arange(start, stop, device=device)
        return position[self.is_kept(position)]

    def is_kept(self, coordinate: Tensor) -> Tensor:
        """Whether each coordinate (int64, in [0, D)) is kept: bool, of the same shape."""
        return _shift_right(hash_positions(self._keys[_KEPT], coordinate), 11) < self._threshold

    def _entries(
        self, start: int, rows: int, columns: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Kept coordinates of a matrix that begins at ``start``, and their rows and columns."""
        if _has_kernels(device):
            key, threshold = np.uint64(self._keys[_KEPT]), np.uint64(self._threshold)
            arrays = kernels.kept_entries(start, rows, columns, key, threshold)
            return tuple(map(torch.from_numpy, arrays))  # type: ignore[return-value]
        coordinate = self.coordinates(start, start + rows * columns, device=device)
        place = coordinate - start
        return coordinate, place // columns, place % columns

    # Adding to a projection ----------------------------------------------------------------------

    def zeros(self, samples: int, *, device: torch.device | str = "cpu") -> Tensor:
        """An empty projection ``[d, samples]`` float32."""
        return torch.zeros(self.dimensions, samples, device=device)

    def add(self, out: Tensor, values: Tensor, coordinate: Tensor) -> None:
        """Add the values of kept coordinates to a projection.

        Args:
            out: ``[d, B]`` float32.
            values: ``[k, B]`` float32.
            coordinate: ``[k]`` int64, kept coordinates, distinct.
        """
        scale = self.keep_ratio**-0.5
        if self.kind == "count_sketch":
            self._add_sketch(out, values, coordinate, scale)
            return
        step = max(_held(out.device) // self.dimensions, 1)
        rows = values.t().contiguous()  # the product is faster with few rows than few columns
        total = torch.zeros(len(rows), self.dimensions, device=out.device)
        for first in range(0, len(coordinate), step):
            entries = self.entries(coordinate[first : first + step])
            total.addmm_(rows[:, first : first + step], entries)
        out.add_(total.t(), alpha=scale * self.dimensions**-0.5)

    def _add_sketch(self, out: Tensor, values: Tensor, coordinate: Tensor, scale: float) -> None:
        if _has_kernels(out.device):
            key = np.uint64(self._keys[_MAP])
            arrays = out.numpy(), values.numpy(), coordinate.numpy()
            kernels.add_sketch(*arrays, key, np.float32(scale))
            return
        row, sign = self.sketch_entries(coordinate)
        out.index_add_(0, row, values * (sign * scale)[:, None])

    def sketch_entries(self, coordinate: Tensor) -> tuple[Tensor, Tensor]:
        """Row (int64) and sign (float32) of coordinates ``[k]`` in a count sketch: ``[k]`` each."""
        h = hash_positions(self._keys[_MAP], coordinate)
        return _shift_right((h & 0xFFFFFFFF) * self.dimensions, 32), 1.0 - 2.0 * (h < 0).float()

    def entries(self, coordinate: Tensor) -> Tensor:
        """Columns of S before the division by the root of d, dense kinds: ``[k, d]`` float32."""
        if not _has_kernels(coordinate.device):
            return self.hashed_entries(coordinate)
        key, columns = np.uint64(self._keys[_MAP]), -(-self.dimensions // 64) * 64
        entries = torch.empty(len(coordinate), columns)
        if self.kind == "rademacher":
            kernels.fill_signs(entries.view(torch.int32).numpy(), coordinate.numpy(), key)
        else:
            quantiles = _normal_quantiles().numpy()
            kernels.fill_normals(entries.numpy(), coordinate.numpy(), key, quantiles)
        return entries[:, : self.dimensions]

    def hashed_entries(self, coordinate: Tensor) -> Tensor:
        """As ``entries``, with torch operations on any device."""
        signs, device = self.kind == "rademacher", coordinate.device
        shift = torch.arange(63, -1, -1) if signs else torch.arange(0, 64, 16)
        blocks = torch.arange(-(-self.dimensions // len(shift)), device=device)
        own = hash_positions(self._keys[_MAP], coordinate)
        h = hash_positions(own[:, None], blocks)[..., None] >> shift.to(device)
        h = h.flatten(1)[:, : self.dimensions]
        return 1.0 - 2.0 * (h & 1) if signs else _normal_quantiles().to(device)[h & 0xFFF]

    def add_block(self, out: Tensor, values: Tensor, start: int) -> None:
        """Add consecutive coordinates.

        Args:
            out: ``[d, B]`` float32.
            values: ``[n, B]`` float32, of the coordinates from ``start`` on.
            start: first coordinate.
        """
        coordinate = self.coordinates(start, start + len(values), device=values.device)
        self.add(out, values[coordinate - start], coordinate)

    def project(self, vectors: Tensor, start: int = 0) -> Tensor:
        """Projection of vectors, or of a part of them: ``[B, d]`` float32.

        Args:
            vectors: ``[B, n]``, coordinates ``start`` to ``start + n``.
            start: first coordinate.
        """
        out = self.zeros(len(vectors), device=vectors.device)
        held = _held(vectors.device)
        step = max(int(held / (self.keep_ratio * max(len(vectors), 1))), 1)
        for first in range(0, vectors.shape[1], step):
            part = vectors[:, first : first + step]
            begin = start + first
            kept = self.coordinates(begin, begin + part.shape[1], device=vectors.device)
            self.add(out, part[:, kept - begin].float().t().contiguous(), kept)
        return out.t().contiguous()

    def add_rows(
        self, out: Tensor, values: Tensor, row: Tensor, sample: Tensor, start: int
    ) -> None:
        """Add a matrix per sample, to whose rows tokens are added: an embedding's gradient.

        Args:
            out: ``[d, B]`` float32.
            values: ``[K, n]``.
            row: ``[K]`` int64, the row that each token is added to.
            sample: ``[K]`` int64 in [0, B); -1 for tokens that are left out.
            start: coordinate of the matrix's first entry; it is stored row after row.
        """
        samples, columns = out.shape[1], values.shape[1]
        values, row, sample = values[sample >= 0].float(), row[sample >= 0], sample[sample >= 0]
        rows, number = torch.unique(row, return_inverse=True)
        column = torch.arange(columns, device=out.device)
        step = max(_held(out.device) // (columns * samples), 1)
        for first in range(0, len(rows), step):
            own = rows[first : first + step]
            chosen = (number >= first) & (number < first + step)
            total = values.new_zeros(len(own), samples, columns)
            place = number[chosen] - first, sample[chosen]
            total.index_put_(place, values[chosen], accumulate=True)
            coordinate = (start + own[:, None] * columns + column).flatten()
            kept = self.is_kept(coordinate)
            self.add(out, total.mT.flatten(0, 1)[kept], coordinate[kept])

    # Gradients of weights as sums of outer products ----------------------------------------------

    def add_outer_products(
        self, out: Tensor, left: Tensor, right: Tensor, sample: Tensor, start: int
    ) -> None:
        r"""Add a matrix per sample, :math:`\sum_t left_t right_t^\top` over its tokens.

        This is the gradient of a weight ``[m, n]`` with ``left`` the gradients of a layer's output
        and ``right`` its input. Only kept entries are computed (on the CPU; on other devices a few
        rows of the matrices at a time), in groups of 16 samples, so consecutive samples should have
        similar numbers of tokens.

        Args:
            out: ``[d, B]`` float32.
            left: ``[K, m]``.
            right: ``[K, n]``.
            sample: ``[K]`` int64 in [0, B); -1 for tokens that are left out.
            start: coordinate of the matrix's first entry; it is stored row after row.
        """
        left, right, samples = left.float(), right.float(), out.shape[1]
        split = max(kernels.LANES // samples, 1)  # of a sample over lanes that would be idle
        products = _LaneProducts if _has_kernels(out.device) else _DenseProducts
        matrices = products(left, right, sample, samples, split)
        rows, columns = left.shape[1], right.shape[1]
        step = max(int(_held(out.device) / (self.keep_ratio * columns * matrices.width)), 1)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            begin = start + first * columns
            coordinate, row, column = self._entries(begin, count, columns, out.device)
            self.add(out, matrices.entries(row + first, column), coordinate)


def _has_kernels(device: torch.device) -> bool:
    """Whether the kernels run on a device; others run the same operations in torch."""
    return device.type == "cpu"


def _held(device: torch.device) -> int:
    """Values held at once: few enough for a CPU's cache, enough to fill a GPU."""
    return 2**18 if device.type == "cpu" else 2**24


class _LaneProducts:
    """Entries of sums of outer products, by the kernels; see ``kernels.projection``.

    Attributes:
        width: samples or lanes whose entries are held at once.
    """

    def __init__(
        self, left: Tensor, right: Tensor, sample: Tensor, samples: int, split: int
    ) -> None:
        self.shape, self.samples, self.split = (left.shape[1], right.shape[1]), samples, split
        sides = left.contiguous().numpy(), right.contiguous().numpy()
        token, chunks = kernels.assign_lanes(*sides, sample.numpy(), samples, split)
        self.width = len(chunks) * kernels.LANES
        self.packed = [
            [kernels.pack_lanes(side, own, count) for side in sides]
            for own, count in zip(token, chunks.tolist(), strict=True)
        ]

    def entries(self, row: Tensor, column: Tensor) -> Tensor:
        """Entries ``[k, samples]`` of each sample's matrix; rows ascend."""
        values = torch.zeros(len(row), self.width)
        flat, positions = values.view(-1).numpy(), (row.numpy(), column.numpy())
        for group, (left, right) in enumerate(self.packed):
            first = group * kernels.LANES
            kernels.add_kept_products(flat, first, self.width, left, right, *positions, *self.shape)
        values = values[:, : self.samples * self.split]
        if self.split == 1:
            return values
        return values.reshape(len(row), self.samples, self.split).sum(2)


class _DenseProducts:
    """As ``_LaneProducts``, by batched matrix products of a few rows at a time, on any device."""

    def __init__(
        self, left: Tensor, right: Tensor, sample: Tensor, samples: int, split: int = 1
    ) -> None:
        del split
        self.width = samples
        token = ((sample >= 0) & left.ne(0).any(1)).nonzero().flatten()
        sample = sample[token]
        place = sample, _rank_in_segment(sample)
        shape = samples, int(place[1].max()) + 1 if len(token) else 0
        self.left = left.new_zeros(*shape, left.shape[1]).index_put_(place, left[token])
        self.right = right.new_zeros(*shape, right.shape[1]).index_put_(place, right[token])

    def entries(self, row: Tensor, column: Tensor) -> Tensor:
        """Entries ``[k, samples]`` of each sample's matrix; rows ascend."""
        if not len(row):
            return self.left.new_zeros(0, self.width)
        first, last = int(row[0]), int(row[-1]) + 1
        matrices = self.left[:, :, first:last].mT @ self.right
        place = (row - first) * matrices.shape[2] + column
        return matrices.flatten(1)[:, place].t()


def _rank_in_segment(segment: Tensor) -> Tensor:
    """Number of earlier entries of the same segment: ``[K]`` int64."""
    order = segment.argsort(stable=True)
    ordered = segment[order]
    position = torch.arange(len(segment), device=segment.device)
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(fresh, position, 0).cummax(0).values
    return torch.empty_like(position).index_put_((order,), position - first)


def hash_positions(key: int | Tensor, position: Tensor) -> Tensor:
    """64 random bits for each position: int64. SplitMix64 (Steele et al., 2014, section 4).

    The integers wrap around as unsigned ones do, on every device.

    Args:
        key: state of the generator; a tensor is broadcast with ``position``.
        position: int64, at least 0.
    """
    state = _signed(key) if isinstance(key, int) else key
    value = state + position * _signed(kernels.STEP)
    value = (value ^ _shift_right(value, 30)) * _signed(kernels.MIX_1)
    value = (value ^ _shift_right(value, 27)) * _signed(kernels.MIX_2)
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Shift of 64-bit integers that fills with zeros."""
    return (value >> bits) & ((1 << 64 - bits) - 1)


def _signed(value: int) -> int:
    """The int64 with the bits of a 64-bit integer."""
    return value - 2**64 if value >= 2**63 else value


def _mix_integer(value: int) -> int:
    return int(hash_positions(value, torch.ones((), dtype=torch.int64))) % 2**64


@lru_cache(maxsize=1)
def _normal_quantiles() -> Tensor:
    """Normal quantiles of the middles of 4096 equal ranges, scaled to variance 1, float32."""
    middle = (torch.arange(2**12, dtype=torch.float64) + 0.5) / 2**12
    quantile: Tensor = torch.special.ndtri(middle)
    return (quantile / quantile.square().mean().sqrt()).float()
