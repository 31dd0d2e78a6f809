"""A naive replay in plain Python: a dict of slots and an n-step loop."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

KEYS = ("observation", "action", "reward", "next_observation", "terminated", "discount")


@dataclass
class ReplayTwin:
    """The contents that a ``TransitionRing`` must have."""

    capacity: int
    num_streams: int
    n_step: int
    gamma: float
    slots: dict[int, dict[str, Any]] = field(default_factory=dict)
    added: int = 0

    def __post_init__(self) -> None:
        self.windows: list[deque[list[Any]]] = [deque() for _ in range(self.num_streams)]

    def add(self, steps: dict[str, Tensor], stream: list[int]) -> list[int]:
        written = []
        for row, number in enumerate(stream):
            window = self.windows[number]
            window.append([steps["observation"][row], steps["action"][row], 0.0, 0])
            for entry in window:
                entry[2] += self.gamma ** entry[3] * float(steps["reward"][row])
                entry[3] += 1
            ended = bool(steps["terminated"][row] or steps["truncated"][row])
            while window and (ended or window[0][3] == self.n_step):
                observation, action, reward, k = window.popleft()
                slot = self.added % self.capacity
                self.slots[slot] = {
                    "observation": observation,
                    "action": action,
                    "reward": torch.tensor(reward, dtype=torch.float32),
                    "next_observation": steps["next_observation"][row],
                    "terminated": steps["terminated"][row],
                    "discount": torch.tensor(self.gamma**k, dtype=torch.float32),
                    "serial": torch.tensor(self.added),
                }
                written.append(slot)
                self.added += 1
        return written

    def get(self) -> dict[str, Tensor]:
        rows = [self.slots[slot] for slot in range(len(self.slots))]
        return {key: torch.stack([row[key] for row in rows]) for key in (*KEYS, "serial")}
