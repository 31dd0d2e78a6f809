"""Whole episodes, played side by side."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor


def play_episodes(
    act: Callable[[Tensor], Tensor],
    make_environment: Callable[[], gymnasium.Env[Any, Any]],
    seeds: Tensor,
    *,
    max_steps: int = 108_000,
    keep_going: Callable[[bool], bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """One episode for each seed; all that still run share one forward pass a step.

    Args:
        act: actions ``[n]`` int64 for observations ``[n, ...]``.
        make_environment: builds one environment; its ``reset(seed)`` decides the episode.
        seeds: ``[n]`` int64.
        max_steps: an episode is cut here, above 0 (half an hour of Atari at 60 Hz).
        keep_going: told whether this process still plays, says whether any does. Where ``act`` is
            a joint computation of several processes, those that are done must go on calling it.

    Returns:
        Returns ``[n]`` float64 (undiscounted) and lengths ``[n]`` int64, in the order of the seeds.
    """
    environments = [make_environment() for _ in range(len(seeds))]
    shown = [env.reset(seed=int(seed))[0] for env, seed in zip(environments, seeds, strict=True)]
    returns = torch.zeros(len(seeds), dtype=torch.float64)
    lengths = torch.zeros(len(seeds), dtype=torch.int64)
    playing = list(range(len(seeds)))
    any_plays = keep_going or bool
    while any_plays(bool(playing)):
        # One that has finished shows its last observation again, so that its ranks stay in step.
        asked = playing or [0]
        actions = act(torch.as_tensor(np.stack([shown[i] for i in asked])))
        going: list[int] = []
        for i, action in zip(playing, actions.tolist(), strict=False):
            shown[i], reward, terminated, truncated, _ = environments[i].step(action)
            returns[i] += float(reward)
            lengths[i] += 1
            if not (terminated or truncated or lengths[i] >= max_steps):
                going.append(i)
        playing = going
    for environment in environments:
        environment.close()
    return returns, lengths
