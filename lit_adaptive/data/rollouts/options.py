"""Which options of rollouts go together."""

from typing import Any

import torch

from lit_adaptive.rollout.rewards.base import ExactMatch, NumericMatch, Reward
from lit_adaptive.rollout.rewards.scorer import Scorer


def check_options(module: Any) -> None:
    """Refuse options of a ``RolloutDataModule`` that are out of range.

    Raises:
        ValueError: naming the option, the rule and the remedy.
    """
    for name, value, least in (
        ("group_size", module.group_size, 1 + module.demonstrations),
        ("inner_epochs", module.inner_epochs, 1),
        ("minibatches", module.minibatches, 1),
        ("refill", module.refill, 0),
        ("overlong_cache", module.overlong_cache, 0),
        ("steps_per_epoch", 1 if module.steps_per_epoch is None else module.steps_per_epoch, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if module.minibatches > module.batch_size:
        raise ValueError(
            f"minibatches is {module.minibatches}, a step has {module.batch_size} groups on a "
            "rank (batch_size): groups are not split, so lower minibatches"
        )
    if module.sampling.temperature <= 0:
        raise ValueError(
            f"temperature is {module.sampling.temperature}; greedy answers of a prompt are all "
            "equal, so nothing can be learnt from them: set it above 0"
        )
    if not 0 <= module.replay_fraction < 1:
        raise ValueError(
            f"replay_fraction is {module.replay_fraction}; it must lie in [0, 1): some groups "
            "must be fresh"
        )
    if not 0 <= module.replay_beta <= 1:
        raise ValueError(f"replay_beta is {module.replay_beta}; it must lie in [0, 1]")
    if module.replay_fraction > 0 and module.replay is None:
        raise ValueError(
            f"replay_fraction is {module.replay_fraction}, but there is no replay: give one "
            "(replay: lit_adaptive.replay.RolloutBuffer), or set replay_fraction to 0"
        )
    if module.overlong_cache > module.sampling.max_new_tokens:
        raise ValueError(
            f"overlong_cache is {module.overlong_cache}; answers have at most "
            f"{module.sampling.max_new_tokens} tokens (max_new_tokens)"
        )


def check_objective(model: Any, group_size: int) -> None:
    """Have ``model`` make advantages of a group.

    Raises:
        ValueError: if it refuses groups of this size.
    """
    try:
        model.advantages(torch.zeros(group_size), torch.zeros(group_size, dtype=torch.int64), 1)
    except ValueError as error:
        raise ValueError(
            f"group_size is {group_size}, and the objective refuses such groups: {error}"
        ) from error


def scorer_of(rewards: Reward | Scorer | None) -> Scorer:
    """A scorer of one reward; by default whether an answer equals the column ``answer``."""
    if isinstance(rewards, Scorer):
        return rewards
    ours = rewards is None or isinstance(rewards, ExactMatch | NumericMatch)
    return Scorer([rewards or ExactMatch()], workers=0 if ours else 2)  # ours neither hang nor die
