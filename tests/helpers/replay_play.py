"""Reproducible steps, and bitwise comparison of states."""

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


class StepSource:
    """Reproducible steps of three streams with nested frame stacks; ``copy`` continues alike."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.now = self._frames(2)

    def _frames(self, count: int) -> torch.Tensor:
        return torch.randint(5, (3, count, 2), generator=self.random, dtype=torch.uint8)

    def add_to(self, ring: TransitionRing, steps: int) -> list[list[int]]:
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

    def copy(self) -> "StepSource":
        source = copy.copy(self)
        source.random = torch.Generator()
        source.random.set_state(self.random.get_state())
        return source


def assert_same(actual: Any, expected: Any, path: str = "") -> None:
    """Compare nested states bit for bit."""
    assert type(actual) is type(expected), path
    if isinstance(actual, torch.Tensor):
        assert actual.dtype == expected.dtype, path
        assert torch.equal(actual, expected), path
    elif isinstance(actual, dict):
        assert list(actual) == list(expected), path
        for key in actual:
            assert_same(actual[key], expected[key], f"{path}.{key}")
    elif isinstance(actual, (list, tuple)):
        assert len(actual) == len(expected), path
        for i, (value, expected_value) in enumerate(zip(actual, expected, strict=True)):
            assert_same(value, expected_value, f"{path}[{i}]")
    else:
        assert actual == expected, path
