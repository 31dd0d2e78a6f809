"""Complete episodes, several in parallel."""

from functools import partial

import gymnasium
import torch

from lit_adaptive.rollout.environments.episodes import play_episodes
from lit_adaptive.rollout.environments.make import make_environment


def _always_left(observation: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(observation), dtype=torch.int64)


def test_parallel_episodes_equal_those_of_a_single_environment() -> None:
    seeds = torch.tensor([3, 1, 4])
    make = partial(make_environment, "CartPole-v1")
    returns, lengths = play_episodes(_always_left, make, seeds)
    for seed, total, length in zip(seeds.tolist(), returns.tolist(), lengths.tolist(), strict=True):
        single: gymnasium.Env = make()
        single.reset(seed=seed)
        steps = 0
        ended = False
        while not ended:
            _, _, terminated, truncated, _ = single.step(0)
            ended = terminated or truncated
            steps += 1
        assert (total, length) == (steps, steps)


def test_a_finished_rank_keeps_acting_until_all_are_done() -> None:
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


def test_max_steps_limits_an_episode() -> None:
    make = partial(make_environment, "CartPole-v1")
    _, lengths = play_episodes(_always_left, make, torch.tensor([0, 1]), max_steps=4)
    assert lengths.tolist() == [4, 4]
