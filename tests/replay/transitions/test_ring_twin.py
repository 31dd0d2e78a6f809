"""The ring against the naive twin: random episodes, streams, subsets, overwrites, checkpoints."""

import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_twin import KEYS, ReplayTwin
from torch import Tensor

from lit_adaptive.replay import TransitionRing


class Episodes:
    """Streams of small integer frames, many of them equal by chance; episodes of random length."""

    def __init__(self, streams: int, frame_stack: int, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.stack = frame_stack
        self.shown = torch.stack([self._begin() for _ in range(streams)])

    def _draw(self, most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=self.random)

    def _frame(self) -> Tensor:
        return self._draw(4, 2).to(torch.uint8)

    def _begin(self) -> Tensor:
        if self.stack == 1:
            return self._frame()
        if self._draw(2, 1):  # as gymnasium's FrameStackObservation: the first frame, repeated
            return self._frame().repeat(self.stack, 1)
        return torch.stack([self._frame() for _ in range(self.stack)])

    def step(self, stream: list[int]) -> dict[str, Tensor]:
        size = len(stream)
        before = self.shown[stream]
        after = torch.stack([self._after(observation) for observation in before])
        ending = self._draw(8, size)
        for row, number in enumerate(stream):
            self.shown[number] = self._begin() if ending[row] < 2 else after[row]
        return {
            "observation": before,
            "action": self._draw(3, size),
            "reward": self._draw(10, size).float() - 4.5,
            "next_observation": after,
            "terminated": ending == 0,
            "truncated": ending == 1,
        }

    def _after(self, before: Tensor) -> Tensor:
        if self.stack == 1:
            return self._frame()
        if not self._draw(12, 1):  # an environment that breaks the stack
            return self._begin()
        return torch.cat([before[1:], self._frame()[None]])


def _assert_holds(ring: TransitionRing, twin: ReplayTwin) -> None:
    assert len(ring) == len(twin.slots)
    if not twin.slots:
        return
    index = torch.arange(len(ring))
    held, expected = ring.get(index), twin.get()
    for key in KEYS:
        assert held[key].dtype == expected[key].dtype, key
        assert torch.equal(held[key], expected[key]), key
    assert torch.equal(ring.serial(index), expected["serial"])
    assert torch.equal(ring.age(index), twin.added - 1 - expected["serial"])


def _through_a_file(ring: TransitionRing, arguments: dict[str, Any]) -> TransitionRing:
    file = io.BytesIO()
    torch.save(ring.state_dict(), file)
    file.seek(0)
    loaded = TransitionRing(**arguments)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    return loaded


@settings(max_examples=150, deadline=None)
@given(
    capacity=st.integers(1, 40),
    num_streams=st.integers(1, 4),
    n_step=st.integers(1, 5),
    frame_stack=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_ring_holds_what_the_twin_holds(
    capacity: int, num_streams: int, n_step: int, frame_stack: int, seed: int, data: st.DataObject
) -> None:
    arguments = {
        "capacity": capacity,
        "num_streams": num_streams,
        "n_step": n_step,
        "gamma": 0.9,
        "frame_stack": frame_stack,
    }
    ring = TransitionRing(**arguments)
    twin = ReplayTwin(capacity, num_streams, n_step, 0.9)
    episodes = Episodes(num_streams, frame_stack, seed)
    subsets = st.none() | st.lists(
        st.integers(0, num_streams - 1), unique=True, max_size=num_streams
    )
    for _ in range(data.draw(st.integers(1, 60))):
        stream = data.draw(subsets)
        which = list(range(num_streams)) if stream is None else stream
        if not which and not twin.added:
            continue
        steps = episodes.step(which) if which else _nothing(episodes)
        written = twin.add(steps, which)
        assert ring.add(**steps, stream=stream).tolist() == written[-capacity:]
        if data.draw(st.integers(0, 9)) == 0:
            ring = _through_a_file(ring, arguments)
        _assert_holds(ring, twin)


def _nothing(episodes: Episodes) -> dict[str, Tensor]:
    steps = Episodes(1, episodes.stack, 0).step([0])
    return {key: part[:0] for key, part in steps.items()}


@pytest.mark.parametrize("frame_stack", [1, 4])
@pytest.mark.parametrize("n_step", [1, 3])
def test_an_idle_stream_keeps_its_open_windows(n_step: int, frame_stack: int) -> None:
    # Stream 1 has open windows while stream 0 overwrites the ring many times.
    ring = TransitionRing(16, num_streams=2, n_step=n_step, gamma=0.9, frame_stack=frame_stack)
    twin = ReplayTwin(16, 2, n_step, 0.9)
    episodes = Episodes(2, frame_stack, 3)
    size = 0
    for time in range(6000):
        stream = [0, 1] if time % 997 < 2 else [0]
        steps = episodes.step(stream)
        assert ring.add(**steps, stream=stream).tolist() == twin.add(steps, stream)
        if time % 50 == 0 or len(stream) == 2:
            _assert_holds(ring, twin)
        if time == 2000:
            size = ring.num_frames
    assert ring.num_frames == size


@pytest.mark.parametrize("frame_stack", [1, 4])
@pytest.mark.parametrize("n_step", [1, 3])
def test_frames_do_not_leak_over_long_runs(n_step: int, frame_stack: int) -> None:
    ring = TransitionRing(200, num_streams=4, n_step=n_step, gamma=0.9, frame_stack=frame_stack)
    episodes = Episodes(4, frame_stack, 5)
    sizes = []
    for time in range(3000):
        ring.add(**episodes.step([0, 1, 2, 3]))
        if time % 1000 == 999:
            sizes.append(ring.num_frames)
    assert sizes[0] == sizes[-1]
    # Episodes of 4 steps on average with up to k frames at their start.
    assert sizes[-1] < 200 * (1 + frame_stack / 3) + 1200
