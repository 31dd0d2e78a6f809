"""Prioritized sampling and priority updates, against cpprb and, where it loads, TorchRL.

    python benchmarks/sum_tree.py

N items with random priorities. ``sample`` draws B items with importance-sampling weights; ``update``
gives B drawn items new priorities. cpprb's ``sample`` also gathers the stored columns, so its buffer
has a single float32 column, and ``sample_gather`` is ours with such a column gathered too. All
libraries take turns in one process on one thread, with fixed seeds; the medians of 9 rounds or more
and the ratio peer / ours (higher is faster) are printed and saved. There is no interval.
"""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import common
import cpprb
import numpy as np
import torch

from lit_adaptive.core.prioritized import importance_sampling_weights
from lit_adaptive.samplers import PrioritizedSampler

ALPHA, BETA = 0.6, 0.4
BATCHES = (32, 256, 4096)

Calls = dict[str, Callable[[int], Any]]
"""Functions to time, by name; the argument is the row of drawn items and new priorities to use."""


class Ours:
    """``lit_adaptive.samplers.PrioritizedSampler``."""

    name = "lit-adaptive"

    def __init__(self, n: int, priority: torch.Tensor) -> None:
        self.sampler = PrioritizedSampler(n, alpha=ALPHA)
        self.sampler.update(torch.arange(n), priority)
        self.column = torch.zeros(n)

    def sample(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices and weights."""
        draw = self.sampler.draw(batch)
        weight = importance_sampling_weights(draw.probability, beta=BETA)
        return draw.index, weight

    def gather(self, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Indices, weights, and a float32 column of the items."""
        index, weight = self.sample(batch)
        return index, weight, self.column[index]

    def calls(self, batch: int, priority: torch.Tensor) -> Calls:
        """Functions to time at this batch size."""
        drawn = [self.sample(batch)[0] for _ in range(len(priority))]
        return {
            "sample": lambda _: self.sample(batch),
            "sample_gather": lambda _: self.gather(batch),
            "update": lambda k: self.sampler.update(drawn[k], priority[k]),
        }


class Cpprb:
    """``cpprb.PrioritizedReplayBuffer`` with a single column."""

    name = "cpprb"

    def __init__(self, n: int, priority: torch.Tensor) -> None:
        self.buffer = cpprb.PrioritizedReplayBuffer(n, {"x": {"dtype": np.float32}}, alpha=ALPHA)
        self.buffer.add(x=np.zeros(n, dtype=np.float32), priorities=priority.numpy())

    def calls(self, batch: int, priority: torch.Tensor) -> Calls:
        """Functions to time at this batch size."""
        buffer, rows = self.buffer, list(priority.numpy())
        drawn = [buffer.sample(batch, beta=BETA)["indexes"] for _ in rows]
        return {
            "sample": lambda _: buffer.sample(batch, beta=BETA),
            "update": lambda k: buffer.update_priorities(drawn[k], rows[k]),
        }


class TorchRL:
    """TorchRL's ``PrioritizedSampler``; raises where its extension does not load."""

    name = "TorchRL"

    def __init__(self, n: int, priority: torch.Tensor) -> None:
        from torchrl.data import LazyTensorStorage
        from torchrl.data.replay_buffers.samplers import PrioritizedSampler as TorchRLSampler

        self.storage = LazyTensorStorage(n)
        self.storage.set(range(n), torch.zeros(n))
        self.sampler = TorchRLSampler(n, alpha=ALPHA, beta=BETA)
        self.sampler.extend(torch.arange(n))
        self.sampler.update_priority(torch.arange(n), priority.float())

    def calls(self, batch: int, priority: torch.Tensor) -> Calls:
        """Functions to time at this batch size."""
        sampler, storage, rows = self.sampler, self.storage, list(priority.float())
        drawn = [torch.as_tensor(sampler.sample(storage, batch)[0]) for _ in rows]
        return {
            "sample": lambda _: sampler.sample(storage, batch),
            "update": lambda k: sampler.update_priority(drawn[k], rows[k]),
        }


def make_contestants(n: int) -> tuple[list[Any], str]:
    """The libraries that load, and a line that says whether TorchRL is among them."""
    priority = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    contestants: list[Any] = [Ours(n, priority), Cpprb(n, priority)]
    try:
        contestants.append(TorchRL(n, priority))
    except Exception as error:  # an extension built for another torch fails in many ways
        reason = str(error).strip().partition("\n")[0][:160]
        return contestants, (
            f"TorchRL left out: its sum tree does not load here ({type(error).__name__}: {reason})"
        )
    return contestants, "TorchRL's extension loaded"


def median_times(contestants: list[Any], batch: int, seconds: float) -> dict[str, dict[str, float]]:
    """Median microseconds of each call; the libraries take turns, a few calls at a time."""
    repeats = max(2, 4096 // batch)
    generator = torch.Generator().manual_seed(1)
    priority = torch.rand(8 * repeats, batch, dtype=torch.float64, generator=generator)
    calls = {c.name: c.calls(batch, priority) for c in contestants}
    times: dict[str, dict[str, list[float]]] = {
        library: {name: [] for name in functions} for library, functions in calls.items()
    }
    end = time.perf_counter() + seconds
    turn = 0
    while turn < 9 or time.perf_counter() < end:
        first = turn % 8 * repeats
        for library, functions in calls.items():
            for name, function in functions.items():
                start = time.perf_counter()
                for k in range(first, first + repeats):
                    function(k)
                times[library][name].append((time.perf_counter() - start) / repeats * 1e6)
        turn += 1
    return {
        library: {name: statistics.median(values[1:]) for name, values in functions.items()}
        for library, functions in times.items()
    }


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--n", type=int, default=1_000_000, help="items in the buffer")
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="measuring time for each batch size"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    contestants, torchrl_line = make_contestants(args.n)
    print(torchrl_line)
    bytes_per_slot = contestants[0].sampler.nbytes / args.n
    results: dict[str, Any] = {
        "n": args.n,
        "unit": "microseconds, median",
        "torchrl": torchrl_line,
        "bytes_per_slot": bytes_per_slot,
        "machine": f"{platform.machine()} {platform.system()}, python {platform.python_version()}, "
        f"torch {torch.__version__}, 1 thread",
        "batch": {},
    }
    print(f"N = {args.n}; {bytes_per_slot:.2f} bytes per slot beyond the data; microseconds\n")
    print(f"{'B':>5} {'call':<14} {'ours':>9} {'peer':>9}  speed")
    for batch in BATCHES:
        times = median_times(contestants, batch, args.seconds)
        ratios: dict[str, float] = {}
        for peer in list(times)[1:]:
            for name, ours in times["lit-adaptive"].items():
                theirs = times[peer]["update" if name == "update" else "sample"]
                ratio = ratios[f"{peer}.{name}"] = theirs / ours
                print(f"{batch:>5} {name:<14} {ours:>9.1f} {theirs:>9.1f}  {ratio:.2f}x {peer}")
        results["batch"][str(batch)] = {"times": times, "peer_over_ours": ratios}
    common.write_results(args.out, "sum_tree.json", results)


if __name__ == "__main__":
    main()
