"""Sampling and updating priorities: ours against cpprb and, where it loads, TorchRL.

    python benchmarks/sum_tree.py

N items with random priorities. ``sample`` is a draw of B with importance weights; ``update`` gives
B drawn items new priorities. cpprb's ``sample`` also gathers the stored columns, so its buffer has
a single float32, and ours is timed with a gather of such a column too. All take turns in one run;
the medians over the rounds, and their ratios, are printed and written to a JSON file.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpprb
import numpy as np
import torch

from lit_adaptive.core.prioritized import importance_sampling_weights
from lit_adaptive.samplers import PrioritizedSampler

ALPHA, BETA = 0.6, 0.4
BATCHES = (32, 256, 4096)

Steps = dict[str, Callable[[int], Any]]


class Ours:
    """Draw, weights and update of ``PrioritizedSampler``."""

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
        """The same, and a float32 of each item."""
        index, weight = self.sample(batch)
        return index, weight, self.column[index]

    def steps(self, batch: int, priority: torch.Tensor) -> Steps:
        """Calls to be timed, each given its turn."""
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

    def steps(self, batch: int, priority: torch.Tensor) -> Steps:
        """Calls to be timed, each given its turn."""
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
        from torchrl.data.replay_buffers.samplers import PrioritizedSampler as Theirs

        self.storage = LazyTensorStorage(n)
        self.storage.set(range(n), torch.zeros(n))
        self.sampler = Theirs(n, alpha=ALPHA, beta=BETA)
        self.sampler.extend(torch.arange(n))
        self.sampler.update_priority(torch.arange(n), priority.float())

    def steps(self, batch: int, priority: torch.Tensor) -> Steps:
        """Calls to be timed, each given its turn."""
        sampler, storage, rows = self.sampler, self.storage, list(priority.float())
        drawn = [torch.as_tensor(sampler.sample(storage, batch)[0]) for _ in rows]
        return {
            "sample": lambda _: sampler.sample(storage, batch),
            "update": lambda k: sampler.update_priority(drawn[k], rows[k]),
        }


def make_contestants(n: int) -> tuple[list[Any], str]:
    """All that load, and a line on TorchRL."""
    priority = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made: list[Any] = [Ours(n, priority), Cpprb(n, priority)]
    try:
        made.append(TorchRL(n, priority))
    except Exception as error:  # an extension built for another torch fails in many ways
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else ""
        line = (
            f"TorchRL left out: its sum tree does not load here ({type(error).__name__}: {reason})"
        )
        return made, line
    return made, "TorchRL's extension loaded"


def median_times(contestants: list[Any], batch: int, seconds: float) -> dict[str, dict[str, float]]:
    """Median microseconds of each step; everyone takes turns, a few calls at a time."""
    calls = max(2, 4096 // batch)
    generator = torch.Generator().manual_seed(1)
    priority = torch.rand(8 * calls, batch, dtype=torch.float64, generator=generator)
    steps = {c.name: c.steps(batch, priority) for c in contestants}
    times: dict[str, dict[str, list[float]]] = {
        name: {step: [] for step in own} for name, own in steps.items()
    }
    end = time.perf_counter() + seconds
    turn = 0
    while turn < 9 or time.perf_counter() < end:
        first = turn % 8 * calls
        for name, own in steps.items():
            for step, call in own.items():
                begin = time.perf_counter()
                for k in range(first, first + calls):
                    call(k)
                times[name][step].append((time.perf_counter() - begin) / calls * 1e6)
        turn += 1
    return {
        name: {step: statistics.median(t[1:]) for step, t in own.items()}
        for name, own in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--n", type=int, default=1_000_000, help="items in the buffer")
    parser.add_argument("--seconds", type=float, default=8.0, help="per batch size")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/sum_tree.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    contestants, line = make_contestants(args.n)
    print(line)
    sampler = contestants[0].sampler
    per_slot = sampler.nbytes / args.n
    result: dict[str, Any] = {
        "n": args.n,
        "unit": "microseconds, median",
        "torchrl": line,
        "bytes_per_slot": per_slot,
        "machine": f"{platform.machine()} {platform.system()}, python {platform.python_version()}, "
        f"torch {torch.__version__}, 1 thread",
        "batch": {},
    }
    print(f"N = {args.n}; {per_slot:.2f} bytes a slot beyond the data; medians in microseconds\n")
    print(f"{'B':>5} {'step':<14} {'ours':>9} {'peer':>9}  ratio")
    for batch in BATCHES:
        times = median_times(contestants, batch, args.seconds)
        ours = times["lit-adaptive"]
        ratios: dict[str, float] = {}
        for peer, theirs in list(times.items())[1:]:
            for step, own in ours.items():
                other = theirs["update" if step == "update" else "sample"]
                ratios[f"{peer}.{step}"] = other / own
                print(f"{batch:>5} {step:<14} {own:>9.1f} {other:>9.1f}  {other / own:.2f}x {peer}")
        result["batch"][str(batch)] = {"times": times, "peer_over_ours": ratios}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
