"""Make an environment by its Gymnasium id, with the papers' preprocessing.

Where an environment differs from its package's:
  1. MinAtar's observations are ``[channels, 10, 10]`` (in its package channels are last), and a
     reset clears the last action, so that a seed determines the complete episode (in its package
     the sticky action reaches into the next one).
  2. ``ALE/...`` is preprocessed as in Mnih et al. (2015): every 4th frame, the maximum of the last
     two, 84 x 84 gray, up to 30 no-ops at the start, 4 frames stacked. Sticky actions are off, as
     in the papers; ``repeat_action_probability=0.25`` enables them.
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
    """Register the package of the environment with Gymnasium."""
    family = environment.partition("/")[0]
    if family not in _EXTRAS or any(name.startswith(family) for name in gymnasium.registry):
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


class _ClearLastAction(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Clears MinAtar's sticky action at the start of an episode."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return self.env.reset(seed=seed, options=options)


def _minatar(environment: str, **kwargs: Any) -> Environment:
    base = _ClearLastAction(gymnasium.make(environment, disable_env_checker=True, **kwargs))
    height, width, channels = base.observation_space.shape or (0, 0, 0)
    boolean: Any = np.bool_  # missing in Gymnasium's stubs
    space = spaces.Box(0, 1, (channels, height, width), boolean)
    return TransformObservation(base, _channels_first, space)


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
    preprocessed: Environment = AtariPreprocessing(
        base,
        noop_max=noop_max,
        frame_skip=frame_skip,
        terminal_on_life_loss=terminal_on_life_loss,
    )
    if clip_reward:
        preprocessed = ClipReward(preprocessed, -1, 1)
    return FrameStackObservation(preprocessed, frame_stack)


def make_environment(environment: str, **kwargs: Any) -> Environment:
    """Make an environment with discrete actions and array observations.

    Args:
        environment: a Gymnasium id, such as ``CartPole-v1``, ``MinAtar/Breakout-v1`` or
            ``ALE/Breakout-v5``.
        kwargs: arguments of the environment; for ``ALE/...`` also ``clip_reward``, ``frame_skip``,
            ``frame_stack``, ``noop_max`` and ``terminal_on_life_loss``.

    Raises:
        ValueError: if there is no such environment, its package is missing, it does not accept an
            argument, or its spaces are of another type.
    """
    _register(environment)
    family = environment.partition("/")[0]
    make: Callable[..., Environment] = _plain
    if family in _EXTRAS:
        make = _minatar if family == "MinAtar" else _atari
    try:
        instance = make(environment, **kwargs)
    except gymnasium.error.Error as error:
        close = difflib.get_close_matches(environment, gymnasium.registry, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "see gymnasium.pprint_registry()"
        raise ValueError(f"environment {environment!r} cannot be made ({error}): {hint}") from error
    except TypeError as error:
        raise ValueError(
            f"environment {environment} does not accept {kwargs}: {error}; "
            "correct environment_kwargs"
        ) from error
    _check_spaces(environment, instance)
    return instance


def _plain(environment: str, **kwargs: Any) -> Environment:
    return gymnasium.make(environment, disable_env_checker=True, **kwargs)


def _check_spaces(environment: str, instance: Environment) -> None:
    action_space, observation_space = instance.action_space, instance.observation_space
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(
            f"environment {environment} has actions {action_space}; "
            "a Q-network needs a Discrete space: choose another environment or discretize it"
        )
    if action_space.start != 0:
        raise ValueError(
            f"environment {environment} numbers its actions from {action_space.start}; "
            "they must start at 0: wrap it"
        )
    if not isinstance(observation_space, spaces.Box):
        raise ValueError(
            f"environment {environment} has observations {observation_space}; "
            "the networks here need a Box: wrap it in gymnasium.wrappers.FlattenObservation"
        )
