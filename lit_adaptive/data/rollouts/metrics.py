"""What a step of rollouts says of itself, under TRL's names where there are any."""

import torch
from torch import Tensor

from lit_adaptive.core.advantages import has_spread
from lit_adaptive.replay.rollouts.buffer import RolloutBuffer
from lit_adaptive.replay.rollouts.groups import RolloutGroups


def step_metrics(
    fresh: RolloutGroups,
    groups: RolloutGroups,
    trained_fresh: int,
    version: int,
    replay: RolloutBuffer | None,
) -> dict[str, float]:
    """Of lengths, rewards, groups and the replay.

    Args:
        fresh: all groups written for the step.
        groups: those trained on, fresh ones first.
        trained_fresh: how many of ``groups`` are fresh.
        version: of the policy.
        replay: None if there is none.
    """
    found = _lengths(fresh) | _rewards(fresh)
    if replay is not None:
        age = (version - groups.version[trained_fresh:]).double()
        found |= {
            "replay/size": float(len(replay)),
            "replay/fill": len(replay) / replay.capacity,
            "replay/frac_in_batch": len(age) / max(len(groups), 1),
        }
        if len(age):
            found |= {"replay/age_mean": float(age.mean()), "replay/age_max": float(age.max())}
    return found


def _lengths(fresh: RolloutGroups) -> dict[str, float]:
    written = ~fresh.demonstration
    lengths, stopped = fresh.lengths[written].double(), fresh.stopped[written]
    found = {"completions/clipped_ratio": float((~stopped).double().mean())}
    for name, values in (("length", lengths), ("terminated_length", lengths[stopped])):
        if len(values):
            found |= {
                f"completions/mean_{name}": float(values.mean()),
                f"completions/min_{name}": float(values.min()),
                f"completions/max_{name}": float(values.max()),
            }
    return found


def _rewards(fresh: RolloutGroups) -> dict[str, float]:
    mean = fresh.mean_reward.double()
    known = ~mean.isnan()
    spread = has_spread(fresh.reward, fresh.group, len(fresh))
    found = {"frac_reward_zero_std": float((~spread).double().mean())}
    if bool(known.any()):
        found |= {
            "reward": float(mean[known].mean()),
            "reward_std": float(_deviations(fresh)[known].mean()),
            "groups/solved": float((mean[known] >= 1).double().mean()),
            "groups/failed": float((mean[known] <= 0).double().mean()),
        }
    return found


def _deviations(fresh: RolloutGroups) -> Tensor:
    """Standard deviation of each group's rewards: ``[P]``, 0 where fewer than two apply."""
    applies = ~fresh.reward.isnan()
    reward = torch.where(applies, fresh.reward, 0.0).double()
    group, zero = fresh.group, torch.zeros(len(fresh), dtype=torch.float64)
    count = zero.index_add(0, group, applies.double())
    mean = zero.index_add(0, group, reward) / count.clamp(min=1)
    square = torch.where(applies, (reward - mean[group]).square(), 0.0)
    return (zero.index_add(0, group, square) / (count - 1).clamp(min=1)).sqrt()
