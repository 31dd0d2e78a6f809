"""Streams of environments, and exact resumption from a checkpoint."""

from functools import partial

import pytest
import torch

from lit_adaptive.rollout.environments.make import make_environment
from lit_adaptive.rollout.environments.streams import EnvironmentStreams

MINATAR = [
    f"MinAtar/{game}-v1" for game in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
]


def _play(
    streams: EnvironmentStreams, steps: int, generator: torch.Generator
) -> list[torch.Tensor]:
    observations = []
    for _ in range(steps):
        action = torch.randint(2, (streams.total,), generator=generator)
        step = streams.step(action[streams.streams])
        streams.record(action, step.terminated | step.truncated)
        observations.append(streams.observation.clone())
    return observations


@pytest.mark.parametrize("environment", ["CartPole-v1", "Acrobot-v1", *MINATAR, "ALE/Breakout-v5"])
def test_streams_resume_exactly_in_the_middle_of_their_episodes(environment: str) -> None:
    make = partial(make_environment, environment)
    first = EnvironmentStreams(make, range(3), total=3, seed=5)
    generator = torch.Generator().manual_seed(0)
    _play(first, 37, generator)
    state, random_state = first.state_dict(), generator.get_state()
    second = EnvironmentStreams(make, range(3), total=3, seed=99)
    second.load_state_dict(state)
    assert second.observation.equal(first.observation)
    expected = _play(first, 25, generator)
    generator.set_state(random_state)
    assert all(a.equal(b) for a, b in zip(expected, _play(second, 25, generator), strict=True))
    first.close()
    second.close()


def test_streams_in_separate_processes_have_the_same_observations() -> None:
    make = partial(make_environment, "CartPole-v1")
    runs = []
    for vectorization in ("sync", "async"):
        streams = EnvironmentStreams(make, range(2), total=2, seed=1, vectorization=vectorization)
        runs.append(_play(streams, 30, torch.Generator().manual_seed(0)))
        streams.close()
    assert all(a.equal(b) for a, b in zip(*runs, strict=True))


def test_a_truncated_episode_is_not_terminated_and_returns_its_last_observation() -> None:
    make = partial(make_environment, "CartPole-v1", max_episode_steps=3)
    streams = EnvironmentStreams(make, [0], total=1, seed=0)
    for number in range(3):
        step = streams.step(torch.tensor([number % 2]))
        streams.record(torch.tensor([number % 2]), step.terminated | step.truncated)
    assert step.truncated.tolist() == [True]
    assert step.terminated.tolist() == [False]
    assert not streams.observation.equal(step.next_observation)  # a new episode has begun
    streams.close()


def test_the_state_of_another_number_of_streams_is_rejected() -> None:
    make = partial(make_environment, "CartPole-v1")
    single, double = (EnvironmentStreams(make, range(n), total=n, seed=0) for n in (1, 2))
    with pytest.raises(ValueError, match="holds 1 environment streams and this run has 2"):
        double.load_state_dict(single.state_dict())
