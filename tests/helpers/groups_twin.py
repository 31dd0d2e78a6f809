"""Groups of rollouts as Python lists, and a naive rollout buffer that is a list of them."""

import io
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from lit_adaptive.replay.rollouts.buffer import RolloutBuffer
from lit_adaptive.replay.rollouts.groups import FIELDS, RolloutGroups

NAN = math.nan
Group = dict[str, Any]
"""Every field of one group: a number or a list; ``tokens``, ``log_probs``: lists of lists."""


def joined(groups: list[Group]) -> RolloutGroups:
    """The groups as tensors."""
    flat: dict[str, list[Any]] = {name: [] for name in FIELDS}
    for group in groups:
        for name, (_, level) in FIELDS.items():
            value = group[name]
            if level == "group":
                flat[name].append(value)
            elif level == "token":
                flat[name] += [token for rollout in value for token in rollout]
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
    prompt_length = pick(70)
    return {
        "prompt": pick(prompts),
        "version": version,
        "probability": pick(100) / 100,
        "weight": pick(9) / 4,
        "size": size,
        "prompt_tokens": [pick(1000) for _ in range(prompt_length)],
        "prompt_lengths": prompt_length,
        "tokens": [[pick(1000) for _ in range(length)] for length in lengths],
        "log_probs": [[-pick(64) / 8 for _ in range(length)] for length in lengths],
        "lengths": lengths,
        "reward": [rewards[pick(len(rewards))] for _ in range(size)],
        "stopped": [bool(pick(2)) for _ in range(size)],
        "demonstration": [pick(12) == 0 for _ in range(size)],
        "advantage": [(pick(9) - 4) / 4 for _ in range(size)],
    }


def graded_group(prompt: int, *, advantage: float = 1.0, version: int = 0, right: int = 1) -> Group:
    """``right`` rollouts of reward 1 and one of reward 0, of one token each."""
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


def known_rewards(group: Group) -> list[float]:
    return [reward for reward in group["reward"] if not math.isnan(reward)]


def assert_same(actual: RolloutGroups, expected: RolloutGroups) -> None:
    """Compare all fields bit for bit; NaN equals NaN."""
    for name in FIELDS:
        values, others = getattr(actual, name), getattr(expected, name)
        assert values.dtype is others.dtype, name
        torch.testing.assert_close(values, others, rtol=0, atol=0, equal_nan=True, msg=name)


def filled_buffer(count: int, **options: Any) -> RolloutBuffer:
    """A full buffer; group i has prompt i, version i and |A| 1 + i % 5."""
    buffer = RolloutBuffer(count, **options)
    groups = [graded_group(i, advantage=1.0 + i % 5, version=i) for i in range(count)]
    assert buffer.add(joined(groups)) == count
    return buffer


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    """The state after a round trip through a file of tensors and primitives."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def as_primitives(state: Any) -> Any:
    """The state with every tensor as a list, for comparison."""
    if isinstance(state, dict):
        return {name: as_primitives(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


def assert_unchanged(buffer: RolloutBuffer, before: dict[str, Any]) -> None:
    """Compare a buffer with its earlier ``state_dict``."""
    assert repr(as_primitives(buffer.state_dict())) == repr(as_primitives(before))


@dataclass
class BufferTwin:
    """The groups a ``RolloutBuffer`` must hold, the oldest first, and its counters."""

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

    def drop_reason(self, group: Group) -> str | None:
        rewards = known_rewards(group)
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
            if reason := self.drop_reason(group):
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
        return sum(any(group is held for held in self.held) for group in groups)

    def base(self, group: Group) -> float:
        rewards = known_rewards(group)
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
        young = [group for group in self.held if version - group["version"] <= self.max_age]
        self.count("expired", len(self.held) - len(young))
        self.held = young

    def probabilities(self, version: int) -> torch.Tensor:
        """(p exp(-age / tau))^alpha over the sum, with the ages at ``version``."""
        masses = []
        for group in self.held:
            priority = group["base"] + 1e-6
            if self.policy == "fresh":
                priority *= math.exp(-(version - group["version"]) / self.tau)
            masses.append(1.0 if self.policy == "uniform" else priority**self.alpha)
        return torch.tensor(masses, dtype=torch.float64) / (sum(masses) or 1.0)
