"""Metrics of a step of rollouts, under TRL's names where TRL has them."""

from lit_adaptive.core.advantages import has_spread
from lit_adaptive.core.segments import segment_std
from lit_adaptive.replay.rollouts.buffer import RolloutBuffer
from lit_adaptive.replay.rollouts.groups import RolloutGroups


def step_metrics(
    fresh: RolloutGroups,
    groups: RolloutGroups,
    trained_fresh: int,
    version: int,
    replay: RolloutBuffer | None,
) -> dict[str, float]:
    """Metrics of completion lengths, rewards, groups and the replay.

    Args:
        fresh: all groups generated for the step.
        groups: groups that are trained on, fresh ones first.
        trained_fresh: number of fresh groups among ``groups``.
        version: version of the policy.
        replay: the replay buffer, if there is one.
    """
    metrics = _length_metrics(fresh) | _reward_metrics(fresh)
    if replay is not None:
        age = (version - groups.version[trained_fresh:]).double()
        metrics |= {
            "replay/size": float(len(replay)),
            "replay/fill": len(replay) / replay.capacity,
            "replay/frac_in_batch": len(age) / max(len(groups), 1),
        }
        if len(age):
            metrics |= {"replay/age_mean": float(age.mean()), "replay/age_max": float(age.max())}
    return metrics


def _length_metrics(fresh: RolloutGroups) -> dict[str, float]:
    generated = ~fresh.demonstration
    lengths, stopped = fresh.lengths[generated].double(), fresh.stopped[generated]
    metrics = {"completions/clipped_ratio": float((~stopped).double().mean())}
    for name, values in (("length", lengths), ("terminated_length", lengths[stopped])):
        if len(values):
            metrics |= {
                f"completions/mean_{name}": float(values.mean()),
                f"completions/min_{name}": float(values.min()),
                f"completions/max_{name}": float(values.max()),
            }
    return metrics


def _reward_metrics(fresh: RolloutGroups) -> dict[str, float]:
    """Metrics over groups; a reward that is NaN does not apply."""
    group, size = fresh.group, len(fresh)
    mean = fresh.mean_reward.double()
    scored = ~mean.isnan()
    spread = has_spread(fresh.reward, group, size)
    metrics = {"frac_reward_zero_std": float((~spread).double().mean())}
    if bool(scored.any()):
        applies = ~fresh.reward.isnan()
        deviation = segment_std(fresh.reward[applies].double(), group[applies], size)
        metrics |= {
            "reward": float(mean[scored].mean()),
            "reward_std": float(deviation[scored].mean()),
            "groups/solved": float((mean[scored] >= 1).double().mean()),
            "groups/failed": float((mean[scored] <= 0).double().mean()),
        }
    return metrics
