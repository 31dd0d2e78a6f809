"""Projections of gradients on the CPU, against the projectors of TRAK and dattri.

    python benchmarks/projection.py

16 gradients of a model with 10 million parameters, projected to 4096 numbers on one thread. The
peers draw their matrix anew for each call, some columns at a time, so their time grows with the
number of columns: one block of 100 is timed, and multiplied by the number of blocks. Ours is timed
in full, once with all coordinates as the peers have, and once with 15 % of them, as CROPI has. Each
runs in a process of its own, whose peak memory beyond the gradients is reported.
"""

import platform
import time
from collections.abc import Callable
from typing import Any

import common
import torch

from lit_adaptive.core import SparseProjection

BATCH, BLOCK = 16, 100


def timed(
    make: Callable[[], Callable[[torch.Tensor], Any]], size: int, factor: float, name: str
) -> dict[str, Any]:
    """Seconds per gradient, and bytes beyond the gradients at the peak."""
    gradients = torch.randn(BATCH, size)
    before = common.peak_bytes()
    project = make()
    start = time.perf_counter(), time.process_time()
    project(gradients)
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    return {
        "name": name,
        "seconds": seconds[0] * factor / BATCH,
        "processor_seconds": seconds[1] * factor / BATCH,
        "peak_bytes": common.peak_bytes() - before,
    }


def ours(size: int, dimensions: int, ratio: float, kind: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    projection = SparseProjection(size, dimensions, ratio, kind)
    SparseProjection(1000, 64, 1.0, kind).project(torch.randn(BATCH, 1000))  # compile
    return timed(lambda: projection.project, size, 1.0, f"lit-adaptive {kind}, keep {ratio:g}")


def trak(size: int, dimensions: int, kind: str) -> dict[str, Any]:
    from trak.projectors import BasicProjector, ProjectionType

    torch.set_num_threads(1)

    def make() -> Callable[[torch.Tensor], Any]:
        block = min(BLOCK, dimensions)
        projector: Any = BasicProjector(
            size, block, 0, ProjectionType(kind), torch.device("cpu"), block_size=block
        )
        # A single block is drawn once for all calls; with 4096 columns it is drawn in each.
        return lambda gradients: (
            projector.generate_sketch_matrix(projector.generator_states[0]),
            projector.project(gradients, model_id=0),
        )

    return timed(make, size, dimensions / min(BLOCK, dimensions), f"TRAK {kind}")


def dattri(size: int, dimensions: int, kind: str) -> dict[str, Any]:
    from dattri.func.projection import BasicProjector, ProjectionType

    torch.set_num_threads(1)

    def make() -> Callable[[torch.Tensor], Any]:
        block = min(BLOCK, dimensions)
        projector: Any = BasicProjector(
            size, block, 0, ProjectionType(kind), torch.device("cpu"), block_size=block
        )
        return lambda gradients: projector.project(gradients, ensemble_id=1)  # draws its matrix

    return timed(make, size, dimensions / min(BLOCK, dimensions), f"dattri {kind}")


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--size", type=int, default=10_000_000, help="parameters")
    parser.add_argument("--dimensions", type=int, default=4096)
    args = parser.parse_args()
    shape = args.size, args.dimensions
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for kind in ("rademacher", "normal"):
        for peer in (trak, dattri):
            try:
                rows.append(common.run_in_process(peer, *shape, kind))
            except ImportError as error:
                left_out.append(f"{peer.__name__} left out: {error}")
    rows += [
        common.run_in_process(ours, *shape, ratio, kind)
        for kind in ("rademacher", "gaussian", "count_sketch")
        for ratio in (1.0, 0.15)
    ]
    for line in left_out:
        print(line)
    print(f"{'projector':<36} {'s/gradient':>11} {'cpu s':>9} {'peak MB':>9}")
    for row in rows:
        print(
            f"{row['name']:<36} {row['seconds']:>11.4f} {row['processor_seconds']:>9.4f} "
            f"{row['peak_bytes'] / 1e6:>9.1f}"
        )
    by_name = {row["name"]: row["processor_seconds"] for row in rows}
    pairs = {"rademacher": "rademacher", "normal": "gaussian"}
    ratios = {
        f"{peer} {theirs} / lit-adaptive {mine}, keep {ratio:g}": by_name[f"{peer} {theirs}"]
        / by_name[f"lit-adaptive {mine}, keep {ratio:g}"]
        for peer in ("TRAK", "dattri")
        for theirs, mine in pairs.items()
        for ratio in (1.0, 0.15)
        if f"{peer} {theirs}" in by_name
    }
    for name, value in ratios.items():
        print(f"{value:>8.1f}x  {name}")
    results = {
        "parameters": args.size,
        "dimensions": args.dimensions,
        "gradients": BATCH,
        "rows": rows,
        "left_out": left_out,
        "peer_over_ours": ratios,
        "machine": f"{platform.machine()}, torch {torch.__version__}, 1 thread",
    }
    common.write_results(args.out, "projection.json", results)


if __name__ == "__main__":
    main()
