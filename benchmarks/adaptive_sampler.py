"""The cost of choosing: draw with weights, and update, against torch's own samplers.

    python benchmarks/adaptive_sampler.py             # about three minutes; 2.5 GB
    python benchmarks/adaptive_sampler.py --epochs 30 # more rounds of the digits pair

Three measures, in one run, on one thread:
1. N = 1e6, B = 256: ``AdaptiveBatchSampler.sample`` + ``update`` per sample, against
   ``WeightedRandomSampler`` drawing 1e6 indices in bulk from fixed weights (goal: at most 5 times
   its time per sample), and against ``torch.multinomial`` over all N for each batch (goal: at least
   20 times as fast). Neither of the two learns anything.
2. N = 1e8: the memory of the whole process at its peak (goal: 3.5 GB), and the time of draw and
   update relative to N = 1e6 (goal: at most 4 times), in a process of its own.
3. ``digits_adaptive`` against ``digits_uniform``, epochs in turns: what an epoch costs more (goal:
   at most 5 %), with all the callbacks of the configs.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import WeightedRandomSampler

from lit_adaptive.samplers import AdaptiveBatchSampler

BATCH = 256
CONFIGS = Path(__file__).parent.parent / "configs"


def per_call(function: Callable[[], Any], calls: int, rounds: int = 9) -> float:
    """Median over rounds of the seconds of one call."""
    taken: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        taken.append((time.perf_counter() - began) / calls)
    return statistics.median(taken)


def choosing(n: int) -> tuple[float, float, float]:
    """Seconds of ``sample``, of ``update``, and of both in turns as a loop does; weights mixed."""
    sampler = AdaptiveBatchSampler(n)
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(BATCH, generator=generator)
    for _ in range(400):
        sampler.update(sampler.sample(BATCH)[0], losses)
    drawn = [sampler.sample(BATCH)[0] for _ in range(500)]
    turn = iter(range(10**9))
    sample = per_call(lambda: sampler.sample(BATCH), 500)
    update = per_call(lambda: sampler.update(drawn[next(turn) % 500], losses), 500)

    def both() -> None:
        sampler.update(sampler.sample(BATCH)[0], losses)

    return sample, update, per_call(both, 500)


def against_torch() -> dict[str, float]:
    n = 10**6
    weights = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sample, update, both = choosing(n)
    ours = both / BATCH
    bulk = per_call(lambda: list(WeightedRandomSampler(weights, n)), 1, rounds=5) / n  # type: ignore[arg-type]
    tensor = per_call(lambda: torch.multinomial(weights, n, replacement=True), 1, rounds=5) / n
    each = per_call(lambda: torch.multinomial(weights, BATCH, replacement=True), 5) / BATCH
    return {
        "sample_us": sample * 1e6,
        "update_us": update * 1e6,
        "both_us": both * 1e6,
        "ours_ns_per_sample": ours * 1e9,
        "weighted_random_sampler_bulk_ns": bulk * 1e9,
        "multinomial_bulk_ns": tensor * 1e9,
        "multinomial_per_batch_ns": each * 1e9,
        "times_weighted_random_sampler": ours / bulk,
        "times_multinomial_bulk": ours / tensor,
        "faster_than_multinomial_per_batch": each / ours,
    }


def huge(n: int) -> dict[str, float]:
    """In a process of its own: time and peak memory."""
    sample, update, both = choosing(n)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"n": n, "sample_us": sample * 1e6, "update_us": update * 1e6, "both_us": both * 1e6,
            "peak_gb": peak}  # fmt: skip


def in_own_process(n: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--huge", str(n)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


class Clock:
    """Seconds of each training epoch."""

    def __init__(self) -> None:
        from lightning.pytorch import Callback

        clock = self
        self.epochs: list[float] = []

        class Watch(Callback):
            needs = provides = frozenset()

            def on_train_epoch_start(self, *_: Any) -> None:
                clock.began = time.perf_counter()

            def on_train_epoch_end(self, *_: Any) -> None:
                clock.epochs.append(time.perf_counter() - clock.began)

        self.callback = Watch()


def digits(epochs: int, rounds: int) -> dict[str, Any]:
    """The pair in turns: seconds of an epoch of 200 batches, the first of each run left out."""
    warnings.filterwarnings("ignore")
    seconds: dict[str, list[float]] = {"digits_uniform": [], "digits_adaptive": []}
    for turn in range(rounds):
        order = sorted(seconds, reverse=bool(turn % 2))
        for name in order:
            clock = Clock()
            with tempfile.TemporaryDirectory() as runs:
                shut = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
                        "--trainer.limit_val_batches=0", f"--trainer.max_epochs={epochs + 1}",
                        "--data.batches_per_epoch=200"]  # fmt: skip
                cli = build(name, runs, shut)
                cli.trainer.callbacks.append(clock.callback)
                cli.trainer.fit(cli.model, cli.datamodule)
            seconds[name] += clock.epochs[1:]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    overhead = medians["digits_adaptive"] / medians["digits_uniform"] - 1
    return {"epoch_seconds": medians, "overhead": overhead, "epochs_each": epochs * rounds}


def build(name: str, runs: str, more: list[str]) -> Any:
    from lit_adaptive.cli.main import AdaptiveCLI

    class Built(AdaptiveCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            """Only built: the clock goes in first."""

    return Built(["fit", "--config", str(CONFIGS / f"{name}.yaml"), f"--runs={runs}", *more])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--huge", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.huge:
        print(json.dumps(huge(options.huge)))
        return
    results: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__}
    results["torch_samplers"] = found = against_torch()
    for name, value in found.items():
        print(f"{name:36}{value:12.2f}")
    small, large = in_own_process(10**6), in_own_process(10**8)
    ratio = large["both_us"] / small["both_us"]
    results["huge"] = {"small": small, "large": large, "times": ratio}
    print(f"1e8 against 1e6: {ratio:.2f} times the time, peak {large['peak_gb']:.2f} GB")
    results["digits"] = pair = digits(options.epochs, options.rounds)
    print(f"digits: adaptive epochs cost {100 * pair['overhead']:+.1f} % ({pair['epoch_seconds']})")
    (options.out / "adaptive_sampler.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
