"""A step of policy-gradient training: prompts drawn, answered, judged, mixed with old ones."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lit_adaptive.core.advantages import has_spread
from lit_adaptive.core.corrections import inverse_probability_weights
from lit_adaptive.data.rollouts.collect import RolloutCollector
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.replay.rollouts.groups import RolloutGroups
from lit_adaptive.samplers import IndexSampler, rank_share


@dataclass
class RolloutStep:
    """A step under way; the same on every rank.

    Attributes:
        number: from 0; the policy's version too.
        groups: trained on: fresh ones, then replayed ones.
        fresh: all groups that were written for this step, whether trained on or not.
        keys: ``[replayed]`` int64, of the replayed groups in the replay.
        position: micro-batches that were served.
        more: values of each token ``[K]`` of ``groups``, found before the step began.
        metrics: what the step says of itself.
    """

    number: int
    groups: RolloutGroups
    fresh: RolloutGroups
    keys: Tensor
    position: int = 0
    more: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives."""
        return {
            "number": self.number,
            "groups": self.groups.state_dict(),
            "fresh": self.fresh.state_dict(),
            "keys": self.keys.clone(),
            "position": self.position,
            "more": {name: value.clone() for name, value in self.more.items()},
            "metrics": {n: v for n, v in self.metrics.items() if "seconds" not in n},
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "RolloutStep":
        """A step as it was saved."""
        own = dict(state)
        for name in ("groups", "fresh"):
            own[name] = RolloutGroups.from_state_dict(state[name])
        return cls(**own)


class FreshRollouts(NamedTuple):
    """The fresh groups of a step.

    Attributes:
        groups: all that were written, on all ranks.
        chosen: ``[c]`` int64, those to be trained on.
        took: what it took.
    """

    groups: RolloutGroups
    chosen: Tensor
    took: dict[str, float]


def fresh_groups(
    asking: RolloutCollector,
    sampler: IndexSampler,
    wanted: int,
    *,
    refill: int,
    drop: bool,
    beta: float,
    version: int,
    seed: int,
    rank: int,
    world_size: int,
) -> FreshRollouts:
    """Groups for a step; all ranks must ask together.

    Args:
        asking: how prompts are answered and judged.
        sampler: chooses prompts, alike on every rank.
        wanted: groups of all ranks, above 0.
        refill: times that more prompts are drawn where some groups are uninformative.
        drop: whether uninformative groups are left out at last.
        beta: how much of the sampler's bias weights correct.
        version: of the policy.
        seed: of the step.
        rank: of this process.
        world_size: number of processes.
    """
    found: list[RolloutGroups] = []
    took: dict[str, float] = {}
    informative, lacking = torch.empty(0, dtype=torch.bool), wanted
    while lacking > 0 and len(found) <= refill:
        drawable = sampler.count
        draw = sampler.draw(-(-lacking // world_size) * world_size)
        mine = rank_share(draw, rank, world_size)
        weight = inverse_probability_weights(mine.probability, size=drawable, beta=beta)
        places = range(rank, len(draw.index), world_size)
        seeds = [derive_seed(seed, len(found), place) for place in places]
        groups, cost = asking.answered(mine, weight, version, seeds)
        groups, cost = from_all_ranks(groups, cost, world_size)
        found.append(groups)
        for name, value in cost.items():  # of rewards the last round tells
            took[name] = value + (0 if _is_mean(name) else took.get(name, 0.0))
        spread = has_spread(groups.reward, groups.group, len(groups))
        informative = torch.cat([informative, spread])
        lacking = wanted - int(informative.sum())
    whole = RolloutGroups.cat(found)
    order = torch.arange(len(whole))
    if refill:
        order = torch.argsort((~informative).int(), stable=True)
    chosen = order[:wanted]
    if drop:
        chosen = chosen[informative[chosen]]
    took["filter/rounds"] = float(len(found))
    took["filter/dropped"] = float(len(whole) - len(chosen))
    took["num_tokens"] = float((whole.prompt_lengths * whole.size).sum() + whole.lengths.sum())
    return FreshRollouts(whole, chosen, took)


def from_all_ranks(
    groups: RolloutGroups, took: dict[str, float], world_size: int
) -> tuple[RolloutGroups, dict[str, float]]:
    """The groups of all ranks in the order they were drawn in (rank r drew r, r + W, ...).

    Counts are added up, seconds are the slowest rank's, what else was measured is averaged.
    """
    if world_size == 1:
        return groups, took
    everyone: list[Any] = [None] * world_size
    dist.all_gather_object(everyone, (groups.state_dict(), took))
    parts = [RolloutGroups.from_state_dict(state) for state, _ in everyone]
    whole = RolloutGroups.cat(parts)
    place = torch.cat([torch.arange(len(part)) * world_size + r for r, part in enumerate(parts)])
    names = dict.fromkeys(name for _, each in everyone for name in each)
    merged: dict[str, float] = {}
    for name in names:
        values = [each[name] for _, each in everyone if name in each]
        merged[name] = _over_ranks(name, values)
    return whole.select(place.argsort()), merged


def _over_ranks(name: str, values: list[float]) -> float:
    if "seconds" in name:
        return max(values)
    return sum(values) / (len(values) if _is_mean(name) else 1)


def _is_mean(name: str) -> bool:
    return name.split("/")[0] in ("reward", "reward_std", "rewards")
