"""Steps that can be played again, and states compared bit for bit."""

import copy
from typing import Any

import torch

from lit_adaptive.replay import TransitionRing

ARGUMENTS: dict[str, Any] = {
    "capacity": 20,
    "num_streams": 3,
    "n_step": 3,
    "gamma": 0.9,
    "frame_stack": 2,
}


class Play:
    """Reproducible steps of three streams with nested stacks; may be deep-copied midway."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.now = self._frames(2)

    def _frames(self, count: int) -> torch.Tensor:
        return torch.randint(5, (3, count, 2), generator=self.random, dtype=torch.uint8)

    def into(self, ring: TransitionRing, steps: int) -> list[list[int]]:
        written = []
        for _ in range(steps):
            then = torch.cat([self.now[:, 1:], self._frames(1)], 1)
            ended = torch.rand(2, 3, generator=self.random) < 0.08
            action = {"a": torch.randint(4, (3,), generator=self.random)}
            reward = torch.randn(3, generator=self.random)
            pair = ({"x": self.now, "y": (self.now.float(),)}, {"x": then, "y": (then.float(),)})
            written.append(ring.add(pair[0], action, reward, pair[1], *ended).tolist())
            self.now = torch.where(ended.any(0)[:, None, None], self._frames(2), then)
        return written

    def copy(self) -> "Play":
        other = copy.copy(self)
        other.random = torch.Generator()
        other.random.set_state(self.random.get_state())
        return other


def assert_same(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where
