"""Environments by name, with the papers' preprocessing."""

import pytest

from lit_adaptive.rollout.environments.make import make_environment


def test_minatar_has_channels_first_and_atari_four_gray_frames() -> None:
    assert make_environment("MinAtar/Breakout-v1").observation_space.shape == (4, 10, 10)
    atari = make_environment("ALE/Breakout-v5", clip_reward=True)
    assert atari.observation_space.shape == (4, 84, 84)
    observation, _ = atari.reset(seed=0)
    assert observation.dtype == "uint8"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("CartPoll-v1", "did you mean CartPole-v1"),
        ("Pendulum-v1", "needs a Discrete space"),
        ("Blackjack-v1", "need a Box"),
        ("MinAtar/Chess-v1", "MinAtar/Chess-v1"),
    ],
)
def test_an_unsuitable_environment_is_named_with_the_reason(environment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_environment(environment)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(ValueError, match=r"does not accept \{'gravity_of_mars': 1\}"):
        make_environment("CartPole-v1", gravity_of_mars=1)
