"""Token log-probabilities computed in tiles, against a log-softmax over all logits at once.

    python benchmarks/log_probs.py                 # about seven minutes; 4 GB
    python benchmarks/log_probs.py --rounds 5      # more rounds
    python benchmarks/log_probs.py --threads 1

One forward and backward pass on the CPU, each variant in a process of its own, in alternation. The
table has the median seconds over rounds (the ratio is the median of the rounds' own ratios, so that
load on the machine cancels) and the largest peak of resident memory above the inputs, gradients
included. Loading and one small pass of warm-up are not timed. Fixed seeds, no interval.

    full        log_softmax((h @ W.T).float(), -1).gather(...)
    compiled    the same under torch.compile
    tiles       token_log_probs
    keep0       token_log_probs(keep=0): the backward pass computes every tile again
    *_frozen    the weight is frozen, as with LoRA

Goals at K = 4096 tokens, V = 49,152, D = 576, float32: at most 0.35 times the memory of ``full`` and
1.1 times its time; gradients equal to 1e-5. Needs Linux.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor

from lit_adaptive.core.log_probs import token_log_probs

LEARNT = ("full", "tiles", "keep0")
FROZEN = ("full_frozen", "tiles_frozen")
SETTINGS: dict[str, tuple[int, int, int, str, tuple[str, ...]]] = {
    "smollm2": (4096, 49_152, 576, "float32", (*LEARNT, "compiled", *FROZEN)),
    "qwen": (1024, 151_936, 896, "float32", (*LEARNT, *FROZEN)),
    "bfloat16": (128, 49_152, 576, "bfloat16", (*LEARNT, *FROZEN)),
}
"""Tokens, vocabulary, width, dtype and variants, by name."""
GOALS = {"memory": 0.35, "time": 1.1, "gradients": 1e-5}


def resident_bytes(key: str) -> int:
    """Resident bytes of this process: ``VmRSS`` now, or ``VmHWM`` at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}: this benchmark needs Linux")


def inputs(name: str, frozen: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, targets and loss weights; the logits have standard deviation 2."""
    tokens, size, width, dtype, _ = SETTINGS[name]
    generator = torch.Generator().manual_seed(0)
    torch_dtype = getattr(torch, dtype)
    hidden = torch.empty(tokens, width, dtype=torch_dtype).normal_(generator=generator)
    weight = torch.empty(size, width, dtype=torch_dtype).normal_(
        std=2 / width**0.5, generator=generator
    )
    target = torch.randint(size, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(not frozen), target, weights


def full(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    log_probs = torch.log_softmax((hidden @ weight.T).float(), -1)
    return log_probs.gather(-1, target[:, None]).squeeze(-1)


def tiles(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return token_log_probs(hidden, weight, target).log_prob


def keep0(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return token_log_probs(hidden, weight, target, keep=0).log_prob


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "full": full,
    "tiles": tiles,
    "keep0": keep0,
}


def measure(name: str, variant: str, threads: int) -> dict[str, float]:
    """Seconds and peak bytes of one forward and backward pass in this process."""
    torch.set_num_threads(threads)
    hidden, weight, target, weights = inputs(name, variant.endswith("_frozen"))
    kind = variant.removesuffix("_frozen")
    function = torch.compile(full) if kind == "compiled" else FUNCTIONS[kind]
    warmup = slice(0, 64 if kind != "compiled" else None)  # compiled code is specific to its shapes
    function(hidden[warmup], weight, target[warmup]).sum().backward()
    hidden.grad = weight.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident_bytes("VmRSS")
    start, cpu_start = time.perf_counter(), time.process_time()
    (function(hidden, weight, target) * weights).mean().backward()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resident_bytes("VmHWM") - before
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "bytes": peak}


def largest_differences(name: str, threads: int) -> dict[str, float]:
    """Largest difference of log-probabilities and of gradients from the full log-softmax."""
    torch.set_num_threads(threads)
    hidden, weight, target, weights = inputs(name)
    tensors: dict[str, list[Tensor]] = {}
    for variant in LEARNT:
        log_prob = FUNCTIONS[variant](hidden, weight, target)
        grads = torch.autograd.grad((log_prob * weights).mean(), (hidden, weight))
        tensors[variant] = [log_prob.detach(), *(grad.float() for grad in grads)]
        del log_prob, grads
    differences: dict[str, float] = {}
    for i, key in enumerate(("log_prob", "hidden", "weight")):
        expected = tensors["full"][i]
        largest = max(float((tensors[variant][i] - expected).abs().max()) for variant in LEARNT)
        differences[key] = largest
        if key != "log_prob":
            differences[f"{key}_relative"] = largest / float(expected.abs().max())
    return differences


def compare(name: str, rounds: int, threads: int) -> dict[str, Any]:
    """Medians of all variants of a setting, and their ratios to ``full``."""
    tokens, vocabulary, width, dtype, variants = SETTINGS[name]
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for round_number in range(rounds):
        for variant in variants if round_number % 2 == 0 else variants[::-1]:
            runs[variant].append(common.run_in_process(measure, name, variant, threads))
    rows: dict[str, dict[str, float]] = {}
    for variant, measurements in runs.items():
        row = {key: statistics.median(run[key] for run in measurements) for key in measurements[0]}
        row["bytes"] = max(run["bytes"] for run in measurements)
        full_variant = "full_frozen" if variant.endswith("_frozen") else "full"
        row["memory_times_full"] = row["bytes"] / rows.get(full_variant, row)["bytes"]
        ratios = [
            run["seconds"] / full_run["seconds"]
            for run, full_run in zip(measurements, runs[full_variant], strict=True)
        ]
        row["time_times_full"] = statistics.median(ratios)
        rows[variant] = row
    return {
        "tokens": tokens,
        "vocabulary": vocabulary,
        "width": width,
        "dtype": dtype,
        "variants": rows,
        "differences": common.run_in_process(largest_differences, name, threads),
    }


def show(name: str, results: dict[str, Any]) -> None:
    print(
        f"\n{name}: K = {results['tokens']}, V = {results['vocabulary']:,}, "
        f"D = {results['width']}, {results['dtype']}"
    )
    print(f"{'':14}{'seconds':>9}{'x full':>8}{'MB':>9}{'x full':>8}")
    for variant, row in results["variants"].items():
        print(
            f"{variant:14}{row['seconds']:9.2f}{row['time_times_full']:8.2f}"
            f"{row['bytes'] / 1e6:9.0f}{row['memory_times_full']:8.2f}"
        )
    print("differences:", ", ".join(f"{k} {v:.1e}" for k, v in results["differences"].items()))


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="passes per variant")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of torch"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SETTINGS,
        default=[*SETTINGS],
        help="settings to run; results are written for all only",
    )
    args = parser.parse_args()
    results: dict[str, Any] = {
        **common.versions(),
        "threads": args.threads,
        "rounds": args.rounds,
        "load_before": os.getloadavg()[0],
        "goals": GOALS,
    }
    for name in args.only:
        results[name] = compare(name, args.rounds, args.threads)
        show(name, results[name])
    results["load_after"] = os.getloadavg()[0]
    if len(args.only) == len(SETTINGS):
        common.write_results(args.out, "log_probs.json", results)


if __name__ == "__main__":
    main()
