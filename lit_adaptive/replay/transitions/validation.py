"""One step of every stream, checked before anything is changed."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.kernels.row_copy import Array, all_finite
from lit_adaptive.replay.transitions.nested import NestedLayout

_SHOWN = 8  # offenders that an error lists


class TransitionLayouts(NamedTuple):
    """What observations and actions look like."""

    observation: NestedLayout
    action: NestedLayout


class StreamSteps(NamedTuple):
    """One step of B streams: leaves ``[B, ...]`` on the ring's device, the rest in main memory.

    Attributes:
        stream: ``[B]`` int64, each once.
        observation: leaves.
        next_observation: leaves.
        action: leaves.
        reward: ``[B]`` float32, finite.
        terminated: ``[B]`` bool.
        truncated: ``[B]`` bool.
    """

    stream: Array
    observation: list[Tensor]
    next_observation: list[Tensor]
    action: list[Tensor]
    reward: Array
    terminated: Array
    truncated: Array


def first_layouts(observation: Any, action: Any, frame_stack: int) -> TransitionLayouts:
    """The layouts that the first step sets.

    Raises:
        ValueError: if a leaf has no batch axis, or the observations are no stacks of frames.
    """
    layouts = TransitionLayouts(
        NestedLayout(observation, "observation"),
        NestedLayout(action, "action", widen_integers=True),
    )
    for path, shape, _ in layouts.observation.leaves:
        if frame_stack > 1 and (not shape or shape[0] != frame_stack):
            raise ValueError(
                f"observation{path} has shape {list(shape)} per stream; with "
                f"frame_stack={frame_stack} its first axis stacks {frame_stack} frames"
            )
    return layouts


def read_streams(stream: Any, num_streams: int) -> Array:
    """``stream`` as ``[E]`` int64.

    Raises:
        ValueError: if a stream does not exist or comes twice.
    """
    which = np.array(_on_host(stream))
    if which.size == 0:
        which = which.astype(np.int64)
    good = which.ndim == 1 and which.dtype.kind in "iu" and len(np.unique(which)) == which.size
    if not good or bool(((which < 0) | (which >= num_streams)).any()):
        raise ValueError(
            f"stream is {which.tolist()}; pass [E] integers in [0, {num_streams}), each once: "
            "num_streams is the number of environments"
        )
    return which.astype(np.int64)


def read_steps(
    given: tuple[Any, Any, Any, Any, Any, Any],
    which: Array,
    layouts: TransitionLayouts,
    device: torch.device,
) -> StreamSteps:
    """Check and flatten what ``TransitionRing.add`` was given, in the order of its arguments.

    Raises:
        ValueError: naming what is wrong.
    """
    observation, action, reward, next_observation, terminated, truncated = given
    batch = which.size
    observed = layouts.observation.flatten(observation, batch, "observation")
    arrived = layouts.observation.flatten(next_observation, batch, "next_observation")
    acted = layouts.action.flatten(action, batch, "action")
    rewards = _per_stream(reward, batch, np.float32, "reward")
    if not all_finite(rewards):
        wrong = ~np.isfinite(rewards)
        raise ValueError(
            f"the reward of streams {which[wrong][:_SHOWN].tolist()} is "
            f"{rewards[wrong][:_SHOWN].tolist()}; rewards are finite: look into the environment"
        )
    ended = _per_stream(terminated, batch, np.bool_, "terminated")
    if truncated is False:
        cut: Array = np.zeros(batch, np.bool_)
    else:
        cut = _per_stream(truncated, batch, np.bool_, "truncated")
    if device.type != "cpu":
        observed, arrived, acted = (
            [leaf.to(device) for leaf in leaves] for leaves in (observed, arrived, acted)
        )
    return StreamSteps(which, observed, arrived, acted, rewards, ended, cut)


def _on_host(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach() if value.requires_grad else value
    return (value if value.is_cpu else value.cpu()).numpy()


def _per_stream(value: Any, batch: int, dtype: type[np.generic], name: str) -> Array:
    array: Array = np.array(_on_host(value), dtype=dtype)
    if array.shape != (batch,):
        raise ValueError(
            f"{name} has shape {list(array.shape)}; expected [{batch}], one for each stream"
        )
    return array
