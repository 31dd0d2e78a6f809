"""Play complete episodes, several in parallel."""

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
    """Play one episode for each seed; all unfinished ones share one forward pass per step.

    Args:
        act: function from observations ``[n, ...]`` to actions ``[n]`` int64.
        make_environment: builds one environment; its ``reset(seed)`` determines the episode.
        seeds: ``[n]`` int64.
        max_steps: greatest length of an episode, above 0 (half an hour of Atari at 60 Hz).
        keep_going: function from whether this process still plays to whether any does. Where
            ``act`` is a joint computation of processes, those that are done keep calling it.

    Returns:
        Undiscounted returns ``[n]`` float64 and lengths ``[n]`` int64, in the order of the seeds.
    """
    environments = [make_environment() for _ in range(len(seeds))]
    observations = [
        environment.reset(seed=int(seed))[0]
        for environment, seed in zip(environments, seeds, strict=True)
    ]
    returns = torch.zeros(len(seeds), dtype=torch.float64)
    lengths = torch.zeros(len(seeds), dtype=torch.int64)
    playing = list(range(len(seeds)))
    any_playing = keep_going or bool
    while any_playing(bool(playing)):
        # Without an unfinished episode, act on the first one's last observation to stay in step.
        batch = np.stack([observations[i] for i in playing or [0]])
        actions = act(torch.as_tensor(batch))
        unfinished: list[int] = []
        for i, action in zip(playing, actions.tolist(), strict=False):
            observations[i], reward, terminated, truncated, _ = environments[i].step(action)
            returns[i] += float(reward)
            lengths[i] += 1
            if not (terminated or truncated or lengths[i] >= max_steps):
                unfinished.append(i)
        playing = unfinished
    for environment in environments:
        environment.close()
    return returns, lengths
