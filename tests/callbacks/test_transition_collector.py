"""TransitionCollector: exploration schedule, and the number of transitions per batch."""

from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
import torch

from callbacks import TransitionCollector


class Replay(list[Any]):
    """A replay that counts transitions."""

    capacity = 1000

    def add(self, observation: Any, action: Any, *rest: Any) -> None:
        self.extend(action.tolist())


def collected_after_each_batch(
    transitions_per_batch: float, num_environments: int, batches: int
) -> list[int]:
    """Transitions collected since the warm-up, after each of some batches."""
    data = SimpleNamespace(
        num_environments=num_environments,
        batch_size=4,
        seed=0,
        replay=Replay(),
        action_space=gymnasium.spaces.Discrete(2),
        make_environment=lambda: gymnasium.make("CartPole-v1"),
    )
    trainer: Any = SimpleNamespace(
        world_size=1, global_rank=0, global_step=1, log_every_n_steps=0, datamodule=data
    )
    module: Any = SimpleNamespace(act=lambda observation: torch.zeros(len(observation)).long())
    callback = TransitionCollector(transitions_per_batch, warmup=4)
    callback.on_train_start(trainer, module)
    warmup = callback.collected
    counts = []
    for batch in range(batches):
        callback.on_train_batch_end(trainer, module, None, None, batch)
        counts.append(callback.collected - warmup)
        assert len(data.replay) == callback.collected
    callback.teardown(trainer, module, "fit")
    return counts


@pytest.mark.parametrize(
    ("transitions_per_batch", "num_environments", "expected"),
    [
        (4, 1, [4, 8, 12]),
        (4, 4, [4, 8, 12]),
        (3, 2, [2, 6, 8, 12]),  # 3, 6, 9 and 12 are due; environments step in pairs
        (0.25, 1, [0, 0, 0, 1, 1, 1, 1, 2]),
        (5, 4, [4, 8, 12, 20]),
    ],
)
def test_a_remainder_of_transitions_is_carried_over_to_the_next_batches(
    transitions_per_batch: float, num_environments: int, expected: list[int]
) -> None:
    counts = collected_after_each_batch(transitions_per_batch, num_environments, len(expected))
    assert counts == expected


def test_epsilon_falls_linearly_with_the_transitions_collected() -> None:
    callback = TransitionCollector(epsilon_start=1.0, epsilon_end=0.1, epsilon_transitions=100)
    assert callback.epsilon == 1.0
    callback.collected = 50
    assert callback.epsilon == pytest.approx(0.55)
    callback.collected = 1000
    assert callback.epsilon == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"transitions_per_batch": 0}, "transitions_per_batch is 0; it must be above 0"),
        ({"epsilon_end": 2.0}, r"epsilon_end is 2.0; a probability lies in \[0, 1\]"),
        ({"epsilon_transitions": 0}, "epsilon_transitions is 0"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TransitionCollector(**options)
