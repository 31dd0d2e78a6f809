"""Time of draws, additions and updates of the rollout buffer, and its memory.

    python benchmarks/rollout_buffer.py

No peer; the buffer's memory is compared with that of its groups as plain tensors. Two sizes: 512
groups with 1,000 tokens per rollout, as in the paper, and 100,000 groups with 32. Each group has a
prompt of 64 tokens and 8 rollouts of half to one and a half times the mean length. A draw takes 64
groups with everything a step needs: tokens, log-probabilities, probabilities and weights. ``add``
stores 64 groups, which evict the oldest. Times are medians in milliseconds, one thread, seed 0.
"""

import json
import statistics
from collections.abc import Callable
from typing import Any

import common
import torch

from lit_adaptive.replay import RolloutBuffer, RolloutGroups
from lit_adaptive.replay.rollouts.buffer import DrawPolicy

DRAWN_GROUPS, ROLLOUTS, PROMPT_TOKENS = 64, 8, 64


def random_groups(first: int, count: int, tokens: int, version: int) -> RolloutGroups:
    """Groups of the prompts ``first``, ``first + 1``, ...; every second rollout has reward 1."""
    size = count * ROLLOUTS
    lengths = torch.randint(tokens // 2, tokens + tokens // 2 + 1, (size,))
    total = int(lengths.sum())
    return RolloutGroups(
        prompt=torch.arange(first, first + count),
        version=torch.full((count,), version),
        probability=torch.full((count,), 0.5, dtype=torch.float64),
        weight=torch.ones(count),
        size=torch.full((count,), ROLLOUTS),
        prompt_tokens=torch.zeros(count * PROMPT_TOKENS, dtype=torch.int32),
        prompt_lengths=torch.full((count,), PROMPT_TOKENS),
        tokens=torch.zeros(total, dtype=torch.int32),
        log_probs=torch.zeros(total),
        lengths=lengths,
        reward=(torch.arange(size) % 2).float(),
        stopped=torch.ones(size, dtype=torch.bool),
        demonstration=torch.zeros(size, dtype=torch.bool),
        advantage=torch.rand(size) - 0.5,
    )


def milliseconds(function: Callable[[], object], rounds: int) -> dict[str, float]:
    """Median and minimum over ``rounds`` calls, after one call of warm-up."""
    seconds = common.seconds_per_call(function, calls=1, rounds=rounds)
    return {"median": statistics.median(seconds) * 1e3, "minimum": min(seconds) * 1e3}


def measure(policy: DrawPolicy, groups: int, tokens: int) -> dict[str, Any]:
    """Times and memory of a buffer into which one and a half times its capacity was added."""
    buffer = RolloutBuffer(groups, policy=policy)
    version, chunk = 0, max(64, groups // 10)
    for first in range(0, groups + groups // 2, chunk):
        version += 1
        buffer.add(random_groups(first, chunk, tokens, version))
    draw = buffer.draw(DRAWN_GROUPS, version=version, beta=0.4)
    additions = iter(
        [random_groups(10**7 + DRAWN_GROUPS * i, DRAWN_GROUPS, tokens, version) for i in range(32)]
    )
    return {
        "policy": policy,
        "groups": groups,
        "tokens_per_rollout": tokens,
        "draw_ms": milliseconds(lambda: buffer.draw(DRAWN_GROUPS, version=version, beta=0.4), 200),
        "draw_megabytes": draw.groups.nbytes / 1e6,
        "add_ms": milliseconds(lambda: buffer.add(next(additions)), 31),
        "update_ms": milliseconds(
            lambda: buffer.update_priorities(draw.key, torch.rand(DRAWN_GROUPS)), 50
        ),
        "megabytes": buffer.nbytes / 1e6,
        "relative_to_tensors": buffer.nbytes / buffer.groups().nbytes,
    }


def main() -> None:
    args = common.argument_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policies: tuple[DrawPolicy, ...] = ("uniform", "prioritized", "fresh")
    rows = []
    for groups, tokens in ((512, 1000), (100_000, 32)):
        for policy in policies:
            rows.append(measure(policy, groups, tokens))
            print(json.dumps(rows[-1]), flush=True)
    print(f"peak memory of the process: {common.peak_bytes() / 1e6:.0f} MB")
    common.write_results(args.out, "rollout_buffer.json", rows)


if __name__ == "__main__":
    main()
