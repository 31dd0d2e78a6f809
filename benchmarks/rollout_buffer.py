"""Time of draws, additions and updates of the rollout buffer, and its memory.

    python benchmarks/rollout_buffer.py

Two sizes: the paper's 512 groups with 1,000 tokens per rollout, and 100,000 groups with 32. Each
group has a prompt of 64 tokens and 8 rollouts of half to one and a half times the mean length. A draw
takes 64 groups with everything a step needs: tokens, log-probabilities, probabilities and weights.
``add`` stores 64 groups, which evict the oldest. Times are medians in milliseconds, one thread.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_adaptive.replay.rollouts.buffer import DrawPolicy, RolloutBuffer
from lit_adaptive.replay.rollouts.groups import RolloutGroups

DRAWN, ROLLOUTS, PROMPT = 64, 8, 64


def random_groups(first: int, count: int, tokens: int, version: int) -> RolloutGroups:
    """Groups of the prompts ``first``, ``first + 1``, ...; half of the rollouts are right."""
    size = count * ROLLOUTS
    lengths = torch.randint(tokens // 2, tokens + tokens // 2 + 1, (size,))
    total = int(lengths.sum())
    return RolloutGroups(
        prompt=torch.arange(first, first + count),
        version=torch.full((count,), version),
        probability=torch.full((count,), 0.5, dtype=torch.float64),
        weight=torch.ones(count),
        size=torch.full((count,), ROLLOUTS),
        prompt_tokens=torch.zeros(count * PROMPT, dtype=torch.int32),
        prompt_lengths=torch.full((count,), PROMPT),
        tokens=torch.zeros(total, dtype=torch.int32),
        log_probs=torch.zeros(total),
        lengths=lengths,
        reward=(torch.arange(size) % 2).float(),
        stopped=torch.ones(size, dtype=torch.bool),
        demonstration=torch.zeros(size, dtype=torch.bool),
        advantage=torch.rand(size) - 0.5,
    )


def milliseconds(call: Callable[[], Any], calls: int) -> dict[str, float]:
    """Median and minimum over ``calls``, after a warm-up."""
    call()
    times: list[float] = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return {"median": statistics.median(times), "minimum": min(times)}


def measure(policy: DrawPolicy, groups: int, tokens: int) -> dict[str, Any]:
    """One buffer, filled one and a half times over."""
    buffer = RolloutBuffer(groups, policy=policy)
    version, part = 0, max(64, groups // 10)
    for first in range(0, groups + groups // 2, part):
        version += 1
        buffer.add(random_groups(first, part, tokens, version))
    drawn = buffer.draw(DRAWN, version=version, beta=0.4)
    more = iter([random_groups(10**7 + DRAWN * i, DRAWN, tokens, version) for i in range(32)])
    keys = drawn.key
    return {
        "policy": policy,
        "groups": groups,
        "tokens_per_rollout": tokens,
        "draw_ms": milliseconds(lambda: buffer.draw(64, version=version, beta=0.4), 200),
        "draw_megabytes": drawn.groups.nbytes / 1e6,
        "add_ms": milliseconds(lambda: buffer.add(next(more)), 31),
        "update_ms": milliseconds(lambda: buffer.update_priorities(keys, torch.rand(DRAWN)), 50),
        "megabytes": buffer.nbytes / 1e6,
        "relative_to_tensors": buffer.nbytes / buffer.groups().nbytes,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policies: tuple[DrawPolicy, ...] = ("uniform", "prioritized", "fresh")
    sizes = ((512, 1000), (100_000, 32))
    rows = [measure(policy, *size) for size in sizes for policy in policies]
    for row in rows:
        print(json.dumps(row))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"peak of the process: {peak:.0f} MB")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rollout_buffer.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
