"""Cost of ``AdaptiveBatchSampler``, against torch's own samplers and against uniform training.

    python benchmarks/adaptive_sampler.py              # about three minutes; 2.5 GB
    python benchmarks/adaptive_sampler.py --epochs 30  # more epochs of the digits pair

One thread, fixed seeds, three measurements (medians, no interval):

1. N = 1e6, B = 256: ``sample`` (with weights) and ``update``, per drawn sample, against
   ``WeightedRandomSampler`` that draws 1e6 indices at once from fixed weights (goal: at most 5
   times its time) and against ``torch.multinomial`` over all N for each batch (goal: at least 20
   times its speed). Neither peer learns.
2. N = 1e8 in a process of its own: peak memory of the whole process (goal: 3.5 GB), and time of a
   draw and an update relative to N = 1e6 (goal: at most 4 times).
3. Seconds of a training epoch of ``digits_adaptive`` and of ``digits_uniform`` in alternation, with
   all callbacks of the configs and without validation (goal: at most 5 % more).
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch
from torch.utils.data import WeightedRandomSampler

from lit_adaptive.samplers import AdaptiveBatchSampler

BATCH = 256
CONFIGS = Path(__file__).parent.parent / "configs"


def median_seconds(function: Any, calls: int, rounds: int = 9) -> float:
    return statistics.median(common.seconds_per_call(function, calls, rounds))


def sampler_seconds(n: int) -> tuple[float, float, float]:
    """Seconds of ``sample``, of ``update``, and of both in turn, on weights that have adapted."""
    sampler = AdaptiveBatchSampler(n)
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(BATCH, generator=generator)
    for _ in range(400):
        sampler.update(sampler.sample(BATCH)[0], losses)
    batches = [sampler.sample(BATCH)[0] for _ in range(500)]
    calls = iter(range(10**9))
    sample = median_seconds(lambda: sampler.sample(BATCH), 500)
    update = median_seconds(lambda: sampler.update(batches[next(calls) % 500], losses), 500)
    both = median_seconds(lambda: sampler.update(sampler.sample(BATCH)[0], losses), 500)
    return sample, update, both


def compare_with_torch() -> dict[str, float]:
    n = 10**6
    weights = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sample, update, both = sampler_seconds(n)
    ours = both / BATCH
    bulk = median_seconds(lambda: list(WeightedRandomSampler(weights, n)), 1, rounds=5) / n
    tensor = median_seconds(lambda: torch.multinomial(weights, n, replacement=True), 1, 5) / n
    batch = median_seconds(lambda: torch.multinomial(weights, BATCH, replacement=True), 5) / BATCH
    return {
        "sample_us": sample * 1e6,
        "update_us": update * 1e6,
        "both_us": both * 1e6,
        "ours_ns_per_sample": ours * 1e9,
        "weighted_random_sampler_bulk_ns": bulk * 1e9,
        "multinomial_bulk_ns": tensor * 1e9,
        "multinomial_per_batch_ns": batch * 1e9,
        "times_weighted_random_sampler": ours / bulk,
        "times_multinomial_bulk": ours / tensor,
        "faster_than_multinomial_per_batch": batch / ours,
    }


def time_and_memory(n: int) -> dict[str, float]:
    """Call times, and peak memory of this process."""
    torch.set_num_threads(1)
    sample, update, both = sampler_seconds(n)
    return {
        "n": n,
        "sample_us": sample * 1e6,
        "update_us": update * 1e6,
        "both_us": both * 1e6,
        "peak_gb": common.peak_bytes() / 1e9,
    }


def compare_digits(epochs: int, rounds: int) -> dict[str, Any]:
    """Seconds per epoch of 200 batches of both configs; the first epoch of each run is left out."""
    common.silence()
    seconds: dict[str, list[float]] = {"digits_uniform": [], "digits_adaptive": []}
    for round_number in range(rounds):
        for name in sorted(seconds, reverse=bool(round_number % 2)):
            seconds[name] += epoch_seconds(name, epochs + 1)[1:]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    overhead = medians["digits_adaptive"] / medians["digits_uniform"] - 1
    return {"epoch_seconds": medians, "overhead": overhead, "epochs_each": epochs * rounds}


def epoch_seconds(config: str, epochs: int) -> list[float]:
    """Train a config through the command line; seconds of each epoch."""
    from lightning.pytorch.callbacks import LambdaCallback

    from lit_adaptive.cli.main import AdaptiveCLI

    class BuildOnly(AdaptiveCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            """Leave the training to the caller, who adds a clock first."""

    starts: list[float] = []
    seconds: list[float] = []
    clock = LambdaCallback(
        on_train_epoch_start=lambda *_: starts.append(time.perf_counter()),
        on_train_epoch_end=lambda *_: seconds.append(time.perf_counter() - starts[-1]),
    )
    with tempfile.TemporaryDirectory() as runs:
        cli = BuildOnly(
            [
                *("fit", "--config", str(CONFIGS / f"{config}.yaml"), f"--runs={runs}"),
                "--trainer.enable_progress_bar=false",
                "--trainer.enable_model_summary=false",
                "--trainer.limit_val_batches=0",
                f"--trainer.max_epochs={epochs}",
                "--data.batches_per_epoch=200",
            ]
        )
        cli.trainer.callbacks.append(clock)
        cli.trainer.fit(cli.model, cli.datamodule)
    return seconds


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--epochs", type=int, default=4, help="measured epochs per training run")
    parser.add_argument("--rounds", type=int, default=6, help="training runs of each config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    times = compare_with_torch()
    for name, value in times.items():
        print(f"{name:36}{value:12.2f}")
    small = common.run_in_process(time_and_memory, 10**6)
    large = common.run_in_process(time_and_memory, 10**8)
    ratio = large["both_us"] / small["both_us"]
    print(f"N = 1e8: {ratio:.2f} times the time of N = 1e6, peak memory {large['peak_gb']:.2f} GB")
    pair = compare_digits(args.epochs, args.rounds)
    print(f"digits: an adaptive epoch takes {100 * pair['overhead']:+.1f} % more time")
    results = {
        **common.versions(),
        "torch_samplers": times,
        "huge": {"small": small, "large": large, "times": ratio},
        "digits": pair,
    }
    common.write_results(args.out, "adaptive_sampler.json", results)


if __name__ == "__main__":
    main()
