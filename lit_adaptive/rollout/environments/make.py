"""One environment by its Gymnasium id, wrapped as the papers wrap it.

Where an environment differs from its package's own:
  1. MinAtar shows ``[channels, 10, 10]`` (its package: channels last), and a reset forgets the last
     action, so that a seed decides the whole episode (its package lets the sticky action through).
  2. ``ALE/...`` is preprocessed as in Mnih et al. (2015): every 4th frame, the last two of them
     maximised, 84 x 84 grey, up to 30 no-ops at the start, 4 frames stacked. Sticky actions are
     off, as in the papers; ``repeat_action_probability=0.25`` brings them back.
"""

import difflib
import importlib
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import (
    AtariPreprocessing,
    ClipReward,
    FrameStackObservation,
    TransformObservation,
)

Environment = gymnasium.Env[Any, Any]

_EXTRAS = {"MinAtar": ("minatar.gym", "minatar"), "ALE": ("ale_py", "atari")}


def _register(environment: str) -> None:
    """Let Gymnasium know the packages whose environments are asked for."""
    family = environment.partition("/")[0]
    if family not in _EXTRAS or any(known.startswith(family) for known in gymnasium.registry):
        return
    module, extra = _EXTRAS[family]
    try:
        package: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"environment {environment} needs a package that is not installed: "
            f"pip install 'lit-adaptive[{extra}]'"
        ) from error
    register: Callable[[], None] = getattr(package, "register_envs", lambda: None)
    register()  # ale_py registers on import


class _ForgetLastAction(gymnasium.Wrapper[Any, Any, Any, Any]):
    """MinAtar's sticky action must not reach from one episode into the next."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return self.env.reset(seed=seed, options=options)


def _minatar(environment: str, **kwargs: Any) -> Environment:
    made = _ForgetLastAction(gymnasium.make(environment, disable_env_checker=True, **kwargs))
    height, width, channels = made.observation_space.shape or (0, 0, 0)
    boolean: Any = np.bool_  # which Gymnasium's stubs do not know of
    shown = spaces.Box(0, 1, (channels, height, width), boolean)
    return TransformObservation(made, _channels_first, shown)


def _channels_first(observation: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(observation.transpose(2, 0, 1), dtype=np.bool_)


def _atari(
    environment: str,
    *,
    clip_reward: bool = False,
    terminal_on_life_loss: bool = False,
    frame_skip: int = 4,
    frame_stack: int = 4,
    noop_max: int = 30,
    repeat_action_probability: float = 0.0,
    **kwargs: Any,
) -> Environment:
    base = gymnasium.make(
        environment,
        disable_env_checker=True,
        frameskip=1,
        repeat_action_probability=repeat_action_probability,
        **kwargs,
    )
    made: Environment = AtariPreprocessing(
        base,
        noop_max=noop_max,
        frame_skip=frame_skip,
        terminal_on_life_loss=terminal_on_life_loss,
    )
    if clip_reward:
        made = ClipReward(made, -1, 1)
    return FrameStackObservation(made, frame_stack)


def make_environment(environment: str, **kwargs: Any) -> Environment:
    """One environment with discrete actions and array observations.

    Args:
        environment: a Gymnasium id, such as ``CartPole-v1``, ``MinAtar/Breakout-v1`` or
            ``ALE/Breakout-v5``.
        kwargs: for the environment; for ``ALE/...`` also ``clip_reward``, ``frame_skip``,
            ``frame_stack``, ``noop_max`` and ``terminal_on_life_loss``.

    Raises:
        ValueError: if there is no such environment, its package is missing, an argument is not one
            of its own, or its spaces are of another kind.
    """
    _register(environment)
    family = environment.partition("/")[0]
    make: Callable[..., Environment] = _any
    if family in _EXTRAS:
        make = _minatar if family == "MinAtar" else _atari
    try:
        made = make(environment, **kwargs)
    except gymnasium.error.Error as error:
        close = difflib.get_close_matches(environment, gymnasium.registry, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "see gymnasium.pprint_registry()"
        raise ValueError(f"environment {environment!r} cannot be made ({error}): {hint}") from error
    except TypeError as error:
        raise ValueError(
            f"environment {environment} does not take {kwargs}: {error}; mend environment_kwargs"
        ) from error
    return _checked(environment, made)


def _any(environment: str, **kwargs: Any) -> Environment:
    return gymnasium.make(environment, disable_env_checker=True, **kwargs)


def _checked(environment: str, made: Environment) -> Environment:
    if not isinstance(made.action_space, spaces.Discrete):
        raise ValueError(
            f"environment {environment} has actions {made.action_space}; "
            "a Q-network needs a Discrete space: choose another environment or discretise it"
        )
    if made.action_space.start != 0:
        raise ValueError(
            f"environment {environment} numbers its actions from {made.action_space.start}; "
            "they must start at 0: wrap it"
        )
    if not isinstance(made.observation_space, spaces.Box):
        raise ValueError(
            f"environment {environment} shows {made.observation_space}; "
            "the networks here take a Box: wrap it in gymnasium.wrappers.FlattenObservation"
        )
    return made
