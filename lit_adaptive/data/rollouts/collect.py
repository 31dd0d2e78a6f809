"""Collect rollouts: generate completions of prompts, score them, and compute their advantages."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lit_adaptive.core.advantages import has_spread, overlong_penalty
from lit_adaptive.core.corrections import inverse_probability_weights
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.data.text.prompt_dataset import PromptDataset
from lit_adaptive.replay.rollouts.groups import RolloutGroups
from lit_adaptive.replay.trajectories import TrajectoryStore
from lit_adaptive.rollout.engines.base import Engine
from lit_adaptive.rollout.generation import Completions, SamplingParams
from lit_adaptive.rollout.rewards.base import COMPLETION_IDS
from lit_adaptive.rollout.rewards.scorer import RewardScores, Scorer
from lit_adaptive.samplers import Draw, IndexSampler, rank_share


@dataclass(frozen=True)
class RolloutCollector:
    """Turns drawn prompts into groups of scored rollouts.

    Attributes:
        dataset: the prompts.
        engine: generates completions.
        scorer: scores completions.
        sampling: sampling parameters of the engine.
        group_size: rollouts per prompt, demonstrations included.
        demonstrations: demonstrations per group, 0 or 1.
        overlong_cache: number of tokens before ``max_new_tokens`` over which the length penalty
            grows; 0 for none.
        advantages: function of rewards ``[N]``, groups ``[N]`` and the number of groups that
            returns advantages ``[N]``.
    """

    dataset: PromptDataset
    engine: Engine
    scorer: Scorer
    sampling: SamplingParams
    group_size: int
    demonstrations: int
    overlong_cache: int
    advantages: Callable[[Tensor, Tensor, int], Tensor]

    def collect(
        self, draw: Draw, weight: Tensor, version: int, seeds: list[int]
    ) -> tuple[RolloutGroups, dict[str, float], RewardScores]:
        """One group for each prompt drawn on this rank, timings and counts by name, and scores.

        Args:
            draw: the prompts ``[P]``; may be empty.
            weight: ``[P]``, factors of their losses.
            version: version of the policy.
            seeds: ``P`` seeds, one per prompt.
        """
        index = draw.index.cpu()
        prompts = self.dataset.tokens(index)
        samples = self.group_size - self.demonstrations
        start = time.perf_counter()
        completions = self.engine.generate(prompts, samples, self.sampling, seeds)
        seconds = time.perf_counter() - start
        _check_completions(completions, len(prompts) * samples, type(self.engine).__name__)
        groups = self._group(draw, weight, prompts, completions, version)
        scores = self._score(groups, index)
        reward = scores.reward
        if self.overlong_cache:
            penalty = overlong_penalty(
                groups.lengths, max_length=self.sampling.max_new_tokens, cache=self.overlong_cache
            )
            reward = reward + torch.where(groups.demonstration, 0.0, penalty)
        advantage = self.advantages(reward, groups.group, len(groups))
        metrics = {
            "generated_tokens": float(sum(len(tokens) for tokens in completions.tokens)),
            "rollouts": float(len(completions.tokens)),
            "seconds/generation": seconds,
            "reward_fn/seconds": scores.seconds,
        }
        return replace(groups, reward=reward, advantage=advantage), metrics, scores

    def _group(
        self,
        draw: Draw,
        weight: Tensor,
        prompts: list[Tensor],
        completions: Completions,
        version: int,
    ) -> RolloutGroups:
        """Groups without rewards: each prompt's completions, then its demonstration if any."""
        samples = self.group_size - self.demonstrations
        tokens: list[Tensor] = []
        log_probs: list[Tensor] = []
        stopped: list[bool] = []
        for group, prompt in enumerate(draw.index.tolist()):
            rows = slice(group * samples, (group + 1) * samples)
            tokens += [completion.int() for completion in completions.tokens[rows]]
            log_probs += [values.float() for values in completions.log_probs[rows]]
            stopped += [finish == "stop" for finish in completions.finish[rows]]
            for _ in range(self.demonstrations):
                shown = torch.tensor(self.dataset.demonstration(prompt), dtype=torch.int32)
                tokens.append(shown)
                log_probs.append(torch.zeros(len(shown)))  # probability 1 under its author
                stopped.append(True)
        size = torch.full((len(prompts),), self.group_size)
        demonstration = torch.zeros(len(prompts), self.group_size, dtype=torch.bool)
        demonstration[:, samples:] = True
        empty = torch.empty(0)
        return RolloutGroups(
            prompt=draw.index.cpu(),
            version=torch.full((len(prompts),), version),
            probability=draw.probability.cpu().double(),
            weight=weight.cpu().float(),
            size=size,
            prompt_tokens=torch.cat([*prompts, empty.int()]),
            prompt_lengths=torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64),
            tokens=torch.cat([*tokens, empty.int()]),
            log_probs=torch.cat([*log_probs, empty]),
            lengths=torch.tensor([len(completion) for completion in tokens], dtype=torch.int64),
            reward=torch.zeros(len(tokens)),
            stopped=torch.tensor(stopped, dtype=torch.bool),
            demonstration=demonstration.flatten(),
            advantage=torch.zeros(len(tokens)),
        )

    def _score(self, groups: RolloutGroups, index: Tensor) -> RewardScores:
        rows = self.dataset.texts(index)
        group = groups.group
        repeated = [rows[g] for g in group.tolist()]
        names = [name for name in (rows[0] if rows else {}) if name != "prompt"]
        columns = {name: [row[name] for row in repeated] for name in names}
        tokens = torch.split(groups.tokens, groups.lengths.tolist())
        texts = self.dataset.decode_completions(tokens, self.engine.policy.stops())
        columns[COMPLETION_IDS] = [completion.tolist() for completion in tokens]
        return self.scorer([row["prompt"] for row in repeated], texts, columns, group)


def _check_completions(completions: Completions, count: int, engine: str) -> None:
    """Validate what an engine returned."""
    if len(completions.tokens) != count:
        raise ValueError(
            f"{engine} returned {len(completions.tokens)} completions instead of {count}: it must "
            "return `samples` completions per prompt"
        )
    log_probs: list[Any] = [*(completions.log_probs or ())]
    log_probs += [None] * (count - len(log_probs))
    invalid = [
        row
        for row, (tokens, values) in enumerate(zip(completions.tokens, log_probs, strict=True))
        if values is None or len(values) != len(tokens) or not bool(torch.isfinite(values).all())
    ]
    if invalid:
        raise ValueError(
            f"{engine} returned no finite log-probability for each token of the completions "
            f"{invalid[:8]}; without them replayed rollouts would be trained on as if they were "
            "fresh: make it return them at the sampling temperature"
        )


class FreshRollouts(NamedTuple):
    """The fresh groups of a step.

    Attributes:
        groups: all generated groups, of all ranks.
        chosen: ``[C]`` int64, the groups to train on.
        metrics: timings and counts, by name.
    """

    groups: RolloutGroups
    chosen: Tensor
    metrics: dict[str, float]


def collect_fresh_rollouts(
    collector: RolloutCollector,
    sampler: IndexSampler,
    count: int,
    *,
    refill: int,
    drop: bool,
    beta: float,
    version: int,
    seed: int,
    rank: int,
    world_size: int,
) -> FreshRollouts:
    """Draw prompts and collect the fresh groups of a step; all ranks must call it together.

    Args:
        collector: generates and scores the rollouts.
        sampler: draws prompts, the same on every rank.
        count: number of groups over all ranks; with 0 there are no groups and no metrics.
        refill: how many times more prompts may be drawn to replace uninformative groups.
        drop: whether to leave out the uninformative groups that remain.
        beta: strength of the correction of the sampler's bias, in [0, 1].
        version: version of the policy.
        seed: seed of the step.
        rank: rank of this process.
        world_size: number of processes.
    """
    if count == 0:
        empty = RolloutGroups.empty()
        return FreshRollouts(empty, empty.prompt, {})
    rounds: list[RolloutGroups] = []
    scores: list[RewardScores] = []
    metrics: dict[str, float] = {}
    informative, lacking = torch.empty(0, dtype=torch.bool), count
    while lacking > 0 and len(rounds) <= refill:
        drawable = sampler.count
        draw = sampler.draw(-(-lacking // world_size) * world_size)
        weight = inverse_probability_weights(draw.probability, size=drawable, beta=beta)
        groups, values, scored = collect_draw(
            collector,
            draw,
            weight,
            version=version,
            seed=derive_seed(seed, len(rounds)),
            rank=rank,
            world_size=world_size,
        )
        rounds.append(groups)
        scores += scored
        for name, value in values.items():
            metrics[name] = value + metrics.get(name, 0.0)
        spread = has_spread(groups.reward, groups.group, len(groups))
        informative = torch.cat([informative, spread])
        lacking = count - int(informative.sum())
    groups = RolloutGroups.cat(rounds)
    chosen = _choose_groups(informative, count, refilled=refill > 0, drop=drop)
    metrics |= {
        "filter/rounds": float(len(rounds)),
        "filter/dropped": float(len(groups) - len(chosen)),
        "num_tokens": count_tokens(groups),
    }
    return FreshRollouts(groups, chosen, RewardScores.cat(scores).metrics() | metrics)


def _choose_groups(informative: Tensor, count: int, *, refilled: bool, drop: bool) -> Tensor:
    """The groups ``[C]`` to train on, at most ``count``; with refills informative ones first."""
    order = torch.arange(len(informative))
    if refilled:
        order = torch.argsort((~informative).int(), stable=True)
    chosen = order[:count]
    return chosen[informative[chosen]] if drop else chosen


def count_tokens(groups: RolloutGroups) -> float:
    """Number of tokens of prompts, once per rollout, and of completions."""
    return float((groups.prompt_lengths * groups.size).sum() + groups.lengths.sum())


def collect_draw(
    collector: RolloutCollector,
    draw: Draw,
    weight: Tensor,
    *,
    version: int,
    seed: int,
    rank: int,
    world_size: int,
) -> tuple[RolloutGroups, dict[str, float], list[RewardScores]]:
    """The groups of a global draw, rolled out by all ranks together, in the order of the draw.

    Args:
        collector: generates and scores the rollouts.
        draw: the prompts ``[P]`` of all ranks.
        weight: ``[P]``, factors of their losses.
        version: version of the policy.
        seed: seed of the draw.
        rank: rank of this process.
        world_size: number of processes.

    Returns:
        The groups, timings and counts by name, and the scores of each rank.
    """
    seeds = [derive_seed(seed, position) for position in range(len(draw.index))]
    return _collect_seeded(
        collector, draw, weight, seeds, version=version, rank=rank, world_size=world_size
    )


def _collect_seeded(
    collector: RolloutCollector,
    draw: Draw,
    weight: Tensor,
    seeds: list[int],
    *,
    version: int,
    rank: int,
    world_size: int,
) -> tuple[RolloutGroups, dict[str, float], list[RewardScores]]:
    """``collect_draw`` with a seed for each prompt."""
    share = rank_share(draw, rank, world_size)
    part = slice(rank, None, world_size)
    collected = collector.collect(share, weight[part], version, seeds[part])
    return _gather_ranks(*collected, world_size)


def collect_trajectories(
    collector: RolloutCollector,
    store: TrajectoryStore,
    *,
    at_once: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[int]:
    """Collect groups of the prompts that a store lacks, all by one policy; a shard at a time.

    The rollouts of a prompt depend on the policy, the seed and the prompt alone, so that an
    interrupted collection continues with what is missing, also on another number of ranks.

    Args:
        collector: generates and scores the rollouts; its engine has the policy's weights.
        store: where rank 0 writes; all ranks must call it together, and see one folder.
        at_once: prompts per shard and rank, above 0.
        seed: seed of the rollouts.
        rank: rank of this process.
        world_size: number of processes.

    Yields:
        The number of prompts that are still missing: first at the start, then after each shard.
    """
    prompts = torch.arange(len(collector.dataset))
    missing = prompts[~torch.isin(prompts, store.prompts())]
    if world_size > 1:
        dist.barrier()  # before rank 0 writes
    yield len(missing)
    while len(missing):
        index, missing = missing[: at_once * world_size], missing[at_once * world_size :]
        draw = Draw(index, torch.full((len(index),), 1 / len(prompts), dtype=torch.float64))
        seeds = [derive_seed(seed, prompt) for prompt in index.tolist()]
        groups, _, _ = _collect_seeded(
            collector,
            draw,
            torch.ones(len(index)),
            seeds,
            version=0,
            rank=rank,
            world_size=world_size,
        )
        if rank == 0:
            store.add(groups)
        yield len(missing)
    if world_size > 1:
        dist.barrier()  # before other ranks read


def _gather_ranks(
    groups: RolloutGroups, metrics: dict[str, float], scores: RewardScores, world_size: int
) -> tuple[RolloutGroups, dict[str, float], list[RewardScores]]:
    """The groups of all ranks in the order they were drawn (rank r drew r, r + W, ...).

    Also the merged metrics, and the scores of each rank.
    """
    if world_size == 1:
        return groups, metrics, [scores]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, (groups.state_dict(), metrics, replace(scores, failures={})))
    parts = [RolloutGroups.from_state_dict(state) for state, _, _ in gathered]
    drawn = torch.cat([torch.arange(len(part)) * world_size + r for r, part in enumerate(parts)])
    merged = merge_metrics([rank_metrics for _, rank_metrics, _ in gathered])
    ordered = RolloutGroups.cat(parts).select(drawn.argsort())
    return ordered, merged, [rank_scores for _, _, rank_scores in gathered]


def merge_metrics(ranks: list[dict[str, float]]) -> dict[str, float]:
    """Metrics over ranks: counts summed, seconds the maximum."""
    merged: dict[str, float] = {}
    for name in dict.fromkeys(name for metrics in ranks for name in metrics):
        values = [metrics[name] for metrics in ranks if name in metrics]
        merged[name] = max(values) if "seconds" in name else sum(values)
    return merged
