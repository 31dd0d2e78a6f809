"""Bytes a slot and microseconds a call of the replay.

    python benchmarks/replay_memory.py

Bookkeeping is what is kept beyond a transition's own data (frames, action, reward, terminated): the
ring's pointers and reference counts, and the prioritized sampler's sum tree and membership. Frames
are counted as they are used after two laps of a full buffer, against storing both observations of
every transition. Times are medians over rounds, for 8 streams of CartPole-like observations.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_adaptive.core.sum_tree import SumTree
from lit_adaptive.replay import ReplayBuffer, TransitionRing
from lit_adaptive.samplers import PrioritizedSampler

EPISODE = 200  # steps
ATARI = 84 * 84


def memory(capacity: int, *, frame_stack: int, size: int, n_step: int) -> dict[str, float]:
    """Two laps of one stream of ``[k, size]`` uint8 observations, in episodes of 200 steps."""
    ring = TransitionRing(capacity, frame_stack=frame_stack, n_step=n_step)
    random = torch.Generator().manual_seed(0)

    def frame() -> torch.Tensor:
        return torch.randint(256, (1, size), generator=random, dtype=torch.uint8)

    stack = frame().repeat(frame_stack, 1)
    for step in range(2 * capacity):
        then = torch.cat([stack[1:], frame()])
        ended = step % EPISODE == EPISODE - 1
        shown = (part[None] if frame_stack > 1 else part for part in (stack, then))
        ring.add(next(shown), [0], [0.0], next(shown), [ended])
        stack = frame().repeat(frame_stack, 1) if ended else then
    tree = SumTree(capacity).nbytes + capacity  # one bool a slot: who is inserted
    return {
        "bookkeeping_bytes_per_slot": (ring.bookkeeping_nbytes + tree) / capacity,
        "frame_bytes_per_slot": ring.frames_used * size / capacity,
        "room_bytes_per_slot": ring.num_frames * size / capacity,
        "unshared_bytes_per_slot": 2.0 * frame_stack * size,
    }


def microseconds(call: Callable[[], Any], calls: int = 300, rounds: int = 9) -> float:
    """Median over rounds of the mean time of a call."""
    times: list[float] = []
    for _ in range(rounds + 1):  # the first warms up
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(times[1:])


def speed(n_step: int) -> dict[str, float]:
    """Times of ``add`` alone and with a sampler, and of ``get``."""
    streams, shown = 8, [torch.rand(8, 4) for _ in range(64)]
    action, reward = torch.zeros(streams, dtype=torch.int64), torch.ones(streams)
    ended, never = [torch.rand(streams) < 0.02 for _ in range(64)], torch.zeros(8, dtype=torch.bool)
    ring = TransitionRing(50_000, num_streams=streams, n_step=n_step)
    buffer = ReplayBuffer(50_000, sampler=PrioritizedSampler, num_streams=streams, n_step=n_step)
    at = 0

    def add(to: TransitionRing | ReplayBuffer) -> None:
        nonlocal at
        at = (at + 1) % 63
        to.add(shown[at], action, reward, shown[at + 1], ended[at], never)

    found = {
        "ring_add": microseconds(lambda: add(ring)),
        "prioritized_buffer_add": microseconds(lambda: add(buffer)),
    }
    for batch in (32, 256):
        index = torch.randint(len(ring), (batch,))
        found[f"get_{batch}"] = microseconds(lambda index=index: ring.get(index))  # type: ignore[misc]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capacity", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {
        "CartPole, 16 bytes": {"frame_stack": 1, "size": 16, "n_step": 1},
        "CartPole, 3 steps": {"frame_stack": 1, "size": 16, "n_step": 3},
        "Atari, stack of 4": {"frame_stack": 4, "size": ATARI, "n_step": 1},
    }
    found: dict[str, Any] = {"memory": {}, "microseconds": {}}
    print(f"{'bytes a slot':22} {'bookkeeping':>12} {'frames':>9} {'unshared':>9}")
    for name, kind in kinds.items():
        capacity = arguments.capacity // (4 if kind["size"] == ATARI else 1)
        row = found["memory"][name] = memory(capacity, **kind)
        print(
            f"{name:22} {row['bookkeeping_bytes_per_slot']:12.1f} "
            f"{row['frame_bytes_per_slot']:9.1f} {row['unshared_bytes_per_slot']:9.0f}"
        )
    for n_step in (1, 3):
        times = found["microseconds"][f"n_step={n_step}"] = speed(n_step)
        print(f"n_step={n_step}: " + ", ".join(f"{k} {v:.0f} µs" for k, v in times.items()))
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "replay_memory.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
