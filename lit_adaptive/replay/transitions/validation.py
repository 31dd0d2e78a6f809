"""Validate one step of each stream before the ring is changed."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.kernels.row_copy import Array, all_finite
from lit_adaptive.replay.transitions.nested import NestedLayout

_SHOWN = 8  # greatest number of values listed in an error


class TransitionLayouts(NamedTuple):
    """Structure, shapes and types of observations and actions."""

    observation: NestedLayout
    action: NestedLayout


class StreamSteps(NamedTuple):
    """One validated step of B streams: leaves on the ring's device, the rest in main memory.

    Attributes:
        stream: ``[B]`` int64, distinct.
        observation: leaves, each ``[B, ...]``.
        next_observation: leaves, each ``[B, ...]``.
        action: leaves, each ``[B, ...]``.
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
    """Layouts of the first step, which all later steps must have.

    Args:
        observation: the first observation, ``[E, ...]``.
        action: the first action, ``[E, ...]``.
        frame_stack: number of frames in each observation's second axis, if above 1.

    Raises:
        ValueError: if a leaf has no batch axis, or an observation is not a stack of frames.
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
        ValueError: if a stream does not exist or is repeated.
    """
    streams = np.array(_on_host(stream))
    if streams.size == 0:
        streams = streams.astype(np.int64)
    valid = (
        streams.ndim == 1 and streams.dtype.kind in "iu" and len(np.unique(streams)) == streams.size
    )
    if not valid or bool(((streams < 0) | (streams >= num_streams)).any()):
        raise ValueError(
            f"stream is {streams.tolist()}; pass [E] distinct integers in [0, {num_streams}): "
            "num_streams is the number of environments"
        )
    return streams.astype(np.int64)


def read_steps(
    step: tuple[Any, Any, Any, Any, Any, Any],
    streams: Array,
    layouts: TransitionLayouts,
    device: torch.device,
) -> StreamSteps:
    """Validate and flatten the arguments of ``TransitionRing.add``.

    Args:
        step: observation, action, reward, next_observation, terminated, truncated.
        streams: ``[B]`` int64.
        layouts: layouts of the first step.
        device: device of the ring.

    Raises:
        ValueError: naming the invalid argument.
    """
    observation, action, reward, next_observation, terminated, truncated = step
    batch = streams.size
    observation_leaves = layouts.observation.flatten(observation, batch, "observation")
    next_leaves = layouts.observation.flatten(next_observation, batch, "next_observation")
    action_leaves = layouts.action.flatten(action, batch, "action")
    rewards = _per_stream(reward, batch, np.float32, "reward")
    if not all_finite(rewards):
        wrong = ~np.isfinite(rewards)
        raise ValueError(
            f"the reward of streams {streams[wrong][:_SHOWN].tolist()} is "
            f"{rewards[wrong][:_SHOWN].tolist()}; rewards must be finite: check the environment"
        )
    terminations = _per_stream(terminated, batch, np.bool_, "terminated")
    if truncated is False:
        truncations: Array = np.zeros(batch, np.bool_)
    else:
        truncations = _per_stream(truncated, batch, np.bool_, "truncated")
    if device.type != "cpu":
        observation_leaves, next_leaves, action_leaves = (
            [leaf.to(device) for leaf in leaves]
            for leaves in (observation_leaves, next_leaves, action_leaves)
        )
    return StreamSteps(
        streams, observation_leaves, next_leaves, action_leaves, rewards, terminations, truncations
    )


def _on_host(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach() if value.requires_grad else value
    return (value if value.is_cpu else value.cpu()).numpy()


def _per_stream(value: Any, batch: int, dtype: type[np.generic], name: str) -> Array:
    array: Array = np.array(_on_host(value), dtype=dtype)
    if array.shape != (batch,):
        raise ValueError(
            f"{name} has shape {list(array.shape)}; expected [{batch}], one per stream"
        )
    return array
