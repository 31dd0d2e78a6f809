"""Memory per transition of the replay, and the time of its calls.

    python benchmarks/replay_memory.py

No peer. Bookkeeping is all memory beyond a transition's own data (frames, action, reward,
terminated): the ring's pointers and reference counts, and the prioritized sampler's sum tree and
membership flags. Frame bytes are counted after a buffer has been filled twice, and compared with
storing both observations of every transition ("unshared"). Times are medians over 9 rounds of the
mean of 300 calls, one thread, for 8 streams of CartPole-like observations; there is no interval.
"""

import statistics
from typing import Any

import common
import torch

from lit_adaptive.core.sum_tree import SumTree
from lit_adaptive.replay import ReplayBuffer, TransitionRing
from lit_adaptive.samplers import PrioritizedSampler

EPISODE_STEPS = 200
ATARI_FRAME = 84 * 84


def memory(capacity: int, *, frame_stack: int, size: int, n_step: int) -> dict[str, float]:
    """Bytes per slot after two fillings from one stream of ``[frame_stack, size]`` uint8 frames."""
    ring = TransitionRing(capacity, frame_stack=frame_stack, n_step=n_step)
    generator = torch.Generator().manual_seed(0)

    def random_frame() -> torch.Tensor:
        return torch.randint(256, (1, size), generator=generator, dtype=torch.uint8)

    def as_observation(stack: torch.Tensor) -> torch.Tensor:
        return stack[None] if frame_stack > 1 else stack

    stack = random_frame().repeat(frame_stack, 1)
    for step in range(2 * capacity):
        next_stack = torch.cat([stack[1:], random_frame()])
        terminated = step % EPISODE_STEPS == EPISODE_STEPS - 1
        ring.add(as_observation(stack), [0], [0.0], as_observation(next_stack), [terminated])
        stack = random_frame().repeat(frame_stack, 1) if terminated else next_stack
    sampler_bytes = SumTree(capacity).nbytes + capacity  # one membership flag per slot
    return {
        "bookkeeping_bytes_per_slot": (ring.bookkeeping_nbytes + sampler_bytes) / capacity,
        "frame_bytes_per_slot": ring.frames_used * size / capacity,
        "room_bytes_per_slot": ring.num_frames * size / capacity,
        "unshared_bytes_per_slot": 2.0 * frame_stack * size,
    }


def microseconds(function: Any) -> float:
    return statistics.median(common.seconds_per_call(function, calls=300)) * 1e6


def call_times(n_step: int) -> dict[str, float]:
    """Microseconds of ``add``, without and with a prioritized sampler, and of ``get``."""
    streams = 8
    observations = [torch.rand(streams, 4) for _ in range(64)]
    action, reward = torch.zeros(streams, dtype=torch.int64), torch.ones(streams)
    terminated = [torch.rand(streams) < 0.02 for _ in range(64)]
    truncated = torch.zeros(streams, dtype=torch.bool)
    ring = TransitionRing(50_000, num_streams=streams, n_step=n_step)
    buffer = ReplayBuffer(50_000, sampler=PrioritizedSampler, num_streams=streams, n_step=n_step)
    step = 0

    def add(replay: TransitionRing | ReplayBuffer) -> None:
        nonlocal step
        step = (step + 1) % 63
        replay.add(
            observations[step], action, reward, observations[step + 1], terminated[step], truncated
        )

    times = {
        "ring_add": microseconds(lambda: add(ring)),
        "prioritized_buffer_add": microseconds(lambda: add(buffer)),
    }
    for batch in (32, 256):
        index = torch.randint(len(ring), (batch,))
        times[f"get_{batch}"] = microseconds(lambda index=index: ring.get(index))
    return times


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument(
        "--capacity",
        type=int,
        default=20_000,
        help="slots of the measured buffers; a quarter of it for Atari",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "CartPole, 16 bytes": {"frame_stack": 1, "size": 16, "n_step": 1},
        "CartPole, 3 steps": {"frame_stack": 1, "size": 16, "n_step": 3},
        "Atari, stack of 4": {"frame_stack": 4, "size": ATARI_FRAME, "n_step": 1},
    }
    results: dict[str, Any] = {"memory": {}, "microseconds": {}}
    print(f"{'bytes per slot':22} {'bookkeeping':>12} {'frames':>9} {'unshared':>9}")
    for name, setting in settings.items():
        capacity = args.capacity // (4 if setting["size"] == ATARI_FRAME else 1)
        row = results["memory"][name] = memory(capacity, **setting)
        print(
            f"{name:22} {row['bookkeeping_bytes_per_slot']:12.1f} "
            f"{row['frame_bytes_per_slot']:9.1f} {row['unshared_bytes_per_slot']:9.0f}"
        )
    for n_step in (1, 3):
        times = results["microseconds"][f"n_step={n_step}"] = call_times(n_step)
        print(f"n_step={n_step}: " + ", ".join(f"{k} {v:.0f} µs" for k, v in times.items()))
    common.write_results(args.out, "replay_memory.json", results)


if __name__ == "__main__":
    main()
