"""Environments, and streams of them that come back exactly."""

from functools import partial

import gymnasium
import pytest
import torch

from lit_adaptive.rollout.environments.episodes import play_episodes
from lit_adaptive.rollout.environments.make import make_environment
from lit_adaptive.rollout.environments.streams import EnvironmentStreams

MINATAR = [
    f"MinAtar/{game}-v1" for game in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
]


def _play(
    streams: EnvironmentStreams, steps: int, generator: torch.Generator
) -> list[torch.Tensor]:
    shown = []
    for _ in range(steps):
        action = torch.randint(2, (streams.total,), generator=generator)
        step = streams.step(action[streams.streams])
        streams.record(action, step.terminated | step.truncated)
        shown.append(streams.observation.clone())
    return shown


@pytest.mark.parametrize("environment", ["CartPole-v1", "Acrobot-v1", *MINATAR, "ALE/Breakout-v5"])
def test_streams_come_back_exactly_in_the_middle_of_their_episodes(environment: str) -> None:
    make = partial(make_environment, environment)
    one = EnvironmentStreams(make, range(3), total=3, seed=5)
    generator = torch.Generator().manual_seed(0)
    _play(one, 37, generator)
    state, dice = one.state_dict(), generator.get_state()
    other = EnvironmentStreams(make, range(3), total=3, seed=99)
    other.load_state_dict(state)
    assert other.observation.equal(one.observation)
    ahead = _play(one, 25, generator)
    generator.set_state(dice)
    assert all(a.equal(b) for a, b in zip(ahead, _play(other, 25, generator), strict=True))
    one.close()
    other.close()


def test_streams_in_processes_of_their_own_show_the_same() -> None:
    make = partial(make_environment, "CartPole-v1")
    shown = []
    for how in ("sync", "async"):
        streams = EnvironmentStreams(make, range(2), total=2, seed=1, vectorization=how)
        shown.append(_play(streams, 30, torch.Generator().manual_seed(0)))
        streams.close()
    assert all(a.equal(b) for a, b in zip(*shown, strict=True))


def test_a_truncated_episode_is_not_terminated_and_shows_its_last_observation() -> None:
    make = partial(make_environment, "CartPole-v1", max_episode_steps=3)
    streams = EnvironmentStreams(make, [0], total=1, seed=0)
    for number in range(3):
        step = streams.step(torch.tensor([number % 2]))
        streams.record(torch.tensor([number % 2]), step.terminated | step.truncated)
    assert step.truncated.tolist() == [True]
    assert step.terminated.tolist() == [False]
    assert not streams.observation.equal(step.next_observation)  # a new episode has begun
    streams.close()


def test_refuses_the_state_of_another_number_of_streams() -> None:
    make = partial(make_environment, "CartPole-v1")
    one, two = (EnvironmentStreams(make, range(n), total=n, seed=0) for n in (1, 2))
    with pytest.raises(ValueError, match="holds 1 environment streams and this run has 2"):
        two.load_state_dict(one.state_dict())


def test_minatar_shows_channels_first_and_atari_four_grey_frames() -> None:
    assert make_environment(MINATAR[1]).observation_space.shape == (4, 10, 10)
    atari = make_environment("ALE/Breakout-v5", clip_reward=True)
    assert atari.observation_space.shape == (4, 84, 84)
    observation, _ = atari.reset(seed=0)
    assert observation.dtype == "uint8"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ("CartPoll-v1", "did you mean CartPole-v1"),
        ("Pendulum-v1", "needs a Discrete space"),
        ("Blackjack-v1", "take a Box"),
        ("MinAtar/Chess-v1", "MinAtar/Chess-v1"),
    ],
)
def test_names_what_cannot_be_made(environment: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_environment(environment)


def test_names_an_argument_the_environment_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"does not take \{'gravity_of_mars': 1\}"):
        make_environment("CartPole-v1", gravity_of_mars=1)


def _always_left(observation: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(observation), dtype=torch.int64)


def test_episodes_are_those_of_one_environment_played_alone() -> None:
    seeds = torch.tensor([3, 1, 4])
    make = partial(make_environment, "CartPole-v1")
    returns, lengths = play_episodes(_always_left, make, seeds)
    for seed, gained, length in zip(
        seeds.tolist(), returns.tolist(), lengths.tolist(), strict=True
    ):
        alone: gymnasium.Env = make()
        alone.reset(seed=seed)
        steps = 0
        over = False
        while not over:
            _, _, terminated, truncated, _ = alone.step(0)
            over = terminated or truncated
            steps += 1
        assert (gained, length) == (steps, steps)


def test_a_finished_rank_goes_on_acting_until_all_are_done() -> None:
    calls: list[int] = []

    def act(observation: torch.Tensor) -> torch.Tensor:
        calls.append(len(observation))
        return _always_left(observation)

    _, lengths = play_episodes(
        act,
        partial(make_environment, "CartPole-v1"),
        torch.tensor([0]),
        keep_going=lambda playing: playing or len(calls) < 20,
    )
    assert int(lengths[0]) < 20
    assert len(calls) == 20


def test_max_steps_cuts_an_episode() -> None:
    make = partial(make_environment, "CartPole-v1")
    _, lengths = play_episodes(_always_left, make, torch.tensor([0, 1]), max_steps=4)
    assert lengths.tolist() == [4, 4]
