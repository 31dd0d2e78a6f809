"""Groups of rollouts as lists of plain Python, and a rollout buffer that is a list of them."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from lit_adaptive.replay.rollouts.groups import FIELDS, RolloutGroups

NAN = math.nan
Group = dict[str, Any]
"""Every field of one group: a number or a list; ``tokens``, ``log_probs``: lists of lists."""


def joined(groups: list[Group]) -> RolloutGroups:
    """The tensors that these groups make up."""
    flat: dict[str, list[Any]] = {name: [] for name in FIELDS}
    for group in groups:
        for name, (_, level) in FIELDS.items():
            value = group[name]
            if level == "group":
                flat[name].append(value)
            elif level == "token":
                flat[name] += [each for rollout in value for each in rollout]
            else:
                flat[name] += value
    return RolloutGroups(
        **{name: torch.tensor(flat[name], dtype=dtype) for name, (dtype, _) in FIELDS.items()}
    )


def random_group(random: torch.Generator, *, prompts: int = 6, version: int = 0) -> Group:
    """A ragged group of 1 to 4 rollouts of 0 to 80 tokens, often with tied or missing rewards."""

    def pick(most: int) -> int:
        return int(torch.randint(most, (1,), generator=random))

    size = 1 + pick(4)
    rewards = [(0.0, 1.0), (0.0,), (1.0,), (0.0, 1.0, NAN), (NAN,), (-0.5, 0.5, 2.0)][pick(6)]
    lengths = [(0, 1, 2, 3, 80)[pick(5)] for _ in range(size)]
    asked = pick(70)
    return {
        "prompt": pick(prompts),
        "version": version,
        "probability": pick(100) / 100,
        "weight": pick(9) / 4,
        "size": size,
        "prompt_tokens": [pick(1000) for _ in range(asked)],
        "prompt_lengths": asked,
        "tokens": [[pick(1000) for _ in range(length)] for length in lengths],
        "log_probs": [[-pick(64) / 8 for _ in range(length)] for length in lengths],
        "lengths": lengths,
        "reward": [rewards[pick(len(rewards))] for _ in range(size)],
        "stopped": [bool(pick(2)) for _ in range(size)],
        "demonstration": [pick(12) == 0 for _ in range(size)],
        "advantage": [(pick(9) - 4) / 4 for _ in range(size)],
    }


def graded(prompt: int, *, advantage: float = 1.0, version: int = 0, right: int = 1) -> Group:
    """Two to four rollouts of a token each, of which ``right`` have reward 1; |A| as given."""
    size = right + 1
    return {
        "prompt": prompt,
        "version": version,
        "probability": 0.5,
        "weight": 1.0,
        "size": size,
        "prompt_tokens": [prompt],
        "prompt_lengths": 1,
        "tokens": [[prompt]] * size,
        "log_probs": [[-1.0]] * size,
        "lengths": [1] * size,
        "reward": [1.0] * right + [0.0],
        "stopped": [True] * size,
        "demonstration": [False] * size,
        "advantage": [advantage, -advantage] * (size // 2) + [advantage] * (size % 2),
    }


def told(group: Group) -> list[float]:
    return [reward for reward in group["reward"] if not math.isnan(reward)]


def assert_same(found: RolloutGroups, due: RolloutGroups) -> None:
    """Field by field, bit for bit, but NaN equals NaN."""
    for name in FIELDS:
        here, there = getattr(found, name), getattr(due, name)
        assert here.dtype is there.dtype, name
        torch.testing.assert_close(here, there, rtol=0, atol=0, equal_nan=True, msg=name)


@dataclass
class BufferTwin:
    """What the buffer must hold and count, the oldest first."""

    capacity: int
    policy: str
    signal: str
    alpha: float
    tau: float
    tolerance: float
    max_age: int | None
    deduplicate: bool
    held: list[Group] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, number: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + number

    def why_not(self, group: Group) -> str | None:
        rewards = told(group)
        if any(group["demonstration"]):
            return None
        if rewards and min(rewards) >= 0 and max(rewards) <= 1:
            mean = sum(rewards) / len(rewards)
            if mean <= self.tolerance:
                return "dropped_failed"
            if mean >= 1 - self.tolerance:
                return "dropped_solved"
        return "dropped_flat" if len(set(rewards)) < 2 else None

    def add(self, groups: list[Group]) -> int:
        for group in groups:
            if reason := self.why_not(group):
                self.count(reason)
                continue
            same = [old for old in self.held if old["prompt"] == group["prompt"]]
            if self.deduplicate and same:
                self.count("replaced")
                self.held.remove(same[0])
            group["base"] = self.base(group)
            self.held.append(group)
        while len(self.held) > self.capacity:
            self.count("evicted")
            self.held.pop(0)
        return sum(any(group is each for each in self.held) for group in groups)

    def base(self, group: Group) -> float:
        rewards = told(group)
        if not rewards:
            return 0.0
        if self.signal == "learnability":
            mean = sum(rewards) / len(rewards)
            return sum((reward - mean) ** 2 for reward in rewards) / len(rewards)
        pairs = zip(group["advantage"], group["reward"], strict=True)
        counted = [abs(advantage) for advantage, reward in pairs if not math.isnan(reward)]
        return sum(counted) / len(counted)

    def expire(self, version: int) -> None:
        if self.max_age is None:
            return
        young = [each for each in self.held if version - each["version"] <= self.max_age]
        self.count("expired", len(self.held) - len(young))
        self.held = young

    def probabilities(self, version: int) -> torch.Tensor:
        """(p exp(-age / tau))^alpha by the sum of all, with today's ages."""
        masses = []
        for group in self.held:
            priority = group["base"] + 1e-6
            if self.policy == "fresh":
                priority *= math.exp(-(version - group["version"]) / self.tau)
            masses.append(1.0 if self.policy == "uniform" else priority**self.alpha)
        return torch.tensor(masses, dtype=torch.float64) / (sum(masses) or 1.0)
