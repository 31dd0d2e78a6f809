"""Log-probabilities of tokens in tiles, against a log-softmax over all logits at once.

    python benchmarks/log_probs.py                 # about seven minutes; 4 GB
    python benchmarks/log_probs.py --rounds 5      # more rounds
    python benchmarks/log_probs.py --threads 1

Forward and backward pass on the CPU, each variant in a process of its own, in turns; the table has
the median over rounds of the seconds, and the greatest peak of memory above the inputs (resident
set; the gradients are part of it).

    full        log_softmax((h @ W.T).float(), -1).gather(...)
    compiled    the same under torch.compile
    tiles       token_log_probs
    keep0       token_log_probs(keep=0): every tile is made anew in the backward pass
    *_frozen    the weight is frozen, as with LoRA

Goals at K = 4096 tokens, V = 49,152, D = 576, float32: memory at most 0.35 times that of ``full``,
time at most 1.1 times, gradients equal to 1e-5.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.log_probs import token_log_probs

# Name: tokens, vocabulary, width, dtype, variants.
LEARNT = ("full", "tiles", "keep0")
FROZEN = ("full_frozen", "tiles_frozen")
SETTINGS: dict[str, tuple[int, int, int, str, tuple[str, ...]]] = {
    "smollm2": (4096, 49_152, 576, "float32", (*LEARNT, "compiled", *FROZEN)),
    "qwen": (1024, 151_936, 896, "float32", (*LEARNT, *FROZEN)),
    "bfloat16": (128, 49_152, 576, "bfloat16", (*LEARNT, *FROZEN)),
}
GOALS = {"memory": 0.35, "time": 1.1, "gradients": 1e-5}


def resident(key: str) -> int:
    """Bytes of this process: ``VmRSS`` now, or ``VmHWM`` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}: this benchmark needs Linux")


def inputs(name: str, frozen: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, target, and the gradient that comes in: logits of spread 2."""
    tokens, size, width, dtype, _ = SETTINGS[name]
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    hidden = torch.empty(tokens, width, dtype=kind).normal_(generator=generator)
    weight = torch.empty(size, width, dtype=kind).normal_(std=2 / width**0.5, generator=generator)
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


PATHS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "full": full, "tiles": tiles, "keep0": keep0
}  # fmt: skip


def once(name: str, variant: str) -> dict[str, float]:
    """Seconds and peak bytes of one forward and backward pass."""
    hidden, weight, target, weights = inputs(name, variant.endswith("_frozen"))
    kind = variant.removesuffix("_frozen")
    path = torch.compile(full) if kind == "compiled" else PATHS[kind]
    few = slice(0, 64 if kind != "compiled" else None)  # compiled is made for its shape
    path(hidden[few], weight, target[few]).sum().backward()
    hidden.grad = weight.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    began, busy = time.perf_counter(), time.process_time()
    (path(hidden, weight, target) * weights).mean().backward()
    taken, busy = time.perf_counter() - began, time.process_time() - busy
    return {"seconds": taken, "cpu_seconds": busy, "bytes": resident("VmHWM") - before}


def differences(name: str) -> dict[str, float]:
    """Greatest difference of log-probabilities and of gradients from the full path."""
    hidden, weight, target, weights = inputs(name)
    found: dict[str, list[Tensor]] = {}
    for variant in LEARNT:
        log_prob = PATHS[variant](hidden, weight, target)
        grads = torch.autograd.grad((log_prob * weights).mean(), (hidden, weight))
        found[variant] = [log_prob.detach(), *(grad.float() for grad in grads)]
        del log_prob, grads
    worst = {
        key: max(float((found[variant][at] - found["full"][at]).abs().max()) for variant in LEARNT)
        for at, key in enumerate(("log_prob", "hidden", "weight"))
    }
    for at, key in ((1, "hidden"), (2, "weight")):
        worst[f"{key}_relative"] = worst[key] / float(found["full"][at].abs().max())
    return worst


def in_own_process(*arguments: str, threads: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, f"--threads={threads}", "--child", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def setting(name: str, rounds: int, threads: int) -> dict[str, Any]:
    variants = SETTINGS[name][-1]
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for turn in range(rounds):
        for variant in variants if turn % 2 == 0 else variants[::-1]:
            runs[variant].append(in_own_process(name, variant, threads=threads))
    rows: dict[str, dict[str, float]] = {}
    for variant, measured in runs.items():
        row = {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        row["bytes"] = max(run["bytes"] for run in measured)
        against = rows.get("full_frozen" if variant.endswith("_frozen") else "full", row)
        row["memory_times_full"] = row["bytes"] / against["bytes"]
        # Each round's own ratio, so that a load that comes and goes cancels.
        rival = runs["full_frozen" if variant.endswith("_frozen") else "full"]
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(measured, rival, strict=True)]
        row["time_times_full"] = statistics.median(ratios)
        rows[variant] = row
    tokens, size, width, dtype, _ = SETTINGS[name]
    shape = {"tokens": tokens, "vocabulary": size, "width": width, "dtype": dtype}
    return {**shape, "variants": rows, "differences": in_own_process(name, threads=threads)}


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: K = {found['tokens']}, V = {found['vocabulary']:,}, D = {found['width']}, "
          f"{found['dtype']}")  # fmt: skip
    print(f"{'':14}{'seconds':>9}{'x full':>8}{'MB':>9}{'x full':>8}")
    for variant, row in found["variants"].items():
        print(f"{variant:14}{row['seconds']:9.2f}{row['time_times_full']:8.2f}"
              f"{row['bytes'] / 1e6:9.0f}{row['memory_times_full']:8.2f}")  # fmt: skip
    print("differences:", ", ".join(f"{k} {v:.1e}" for k, v in found["differences"].items()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=SETTINGS, default=None)
    parser.add_argument("--child", nargs="+", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        name, *variant = options.child
        print(json.dumps(once(name, variant[0]) if variant else differences(name)))
        return
    results: dict[str, Any] = {
        "machine": platform.machine(), "torch": torch.__version__, "threads": options.threads,
        "rounds": options.rounds, "load_before": os.getloadavg()[0], "goals": GOALS,
    }  # fmt: skip
    for name in [options.only] if options.only else SETTINGS:
        results[name] = found = setting(name, options.rounds, options.threads)
        show(name, found)
    results["load_after"] = os.getloadavg()[0]
    if not options.only:
        (options.out / "log_probs.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
