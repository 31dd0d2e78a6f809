"""Milliseconds a draw and bytes a token of the rollout buffer, at 1e5 groups.

    python benchmarks/rollout_buffer.py

Each group has a prompt of 64 tokens and 8 rollouts of ``--tokens`` tokens on average, between half
and one and a half times as many. All draws are of 64 groups, with everything a step needs: tokens,
log-probabilities, chances and weights. Groups lie scattered: the buffer has been gone through by
halves, so freed room was used again. Times are medians over draws; ``add`` is of 64 groups that push
out the oldest. Bytes are compared to what the same tensors take when laid end to end. Less than 30 s.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_adaptive.replay.rollouts.buffer import Policy, RolloutBuffer
from lit_adaptive.replay.rollouts.groups import RolloutGroups

DRAWN, ROLLOUTS, PROMPT = 64, 8, 64


def made(first: int, count: int, tokens: int, version: int) -> RolloutGroups:
    """Groups of prompts ``first``, ``first + 1``, ...; half of the rollouts are right."""
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
    """Median and least of ``calls``, after a warm-up."""
    call()
    times: list[float] = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return {"median": statistics.median(times), "least": min(times)}


def measured(policy: Policy, groups: int, tokens: int, storage: str) -> dict[str, Any]:
    """One buffer, filled one and a half times over."""
    buffer = RolloutBuffer(groups, policy=policy, storage=storage)
    version, part = 0, 2000
    for first in range(0, groups + groups // 2, part):
        version += 1
        buffer.add(made(first, part, tokens, version))
    plain = buffer.state_dict()["groups"] if groups <= 20_000 else None
    drawn = buffer.draw(DRAWN, version=version, weight_beta=0.4)
    more = iter([made(10**7 + DRAWN * i, DRAWN, tokens, version) for i in range(32)])
    keys = drawn.key
    return {
        "policy": policy,
        "storage": "memory" if storage == "memory" else "folder",
        "groups": groups,
        "tokens_per_rollout": tokens,
        "draw_ms": milliseconds(lambda: buffer.draw(64, version=version, weight_beta=0.4), 200),
        "draw_megabytes": drawn.groups.nbytes / 1e6,
        "add_ms": milliseconds(lambda: buffer.add(next(more)), 31),
        "update_ms": milliseconds(lambda: buffer.update(keys, torch.rand(DRAWN)), 50),
        "megabytes": buffer.nbytes / 1e6,
        "by_plain_tensors": (
            buffer.nbytes / sum(value.nbytes for value in plain.values()) if plain else None
        ),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--long", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policies: tuple[Policy, ...] = ("uniform", "prioritized", "fresh")
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(each, options.groups, options.tokens, "memory") for each in policies]
        rows.append(measured("fresh", options.groups, options.tokens, folder))
        rows.append(measured("fresh", 4000, options.long, "memory"))
        rows.append(measured("fresh", 4000, options.long, folder))
    for row in rows:
        print(json.dumps(row))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"peak of the process: {peak:.0f} MB")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rollout_buffer.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
