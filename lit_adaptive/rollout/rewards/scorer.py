"""Several rewards, combined into one number for each completion.

Each reward runs in processes of its own (``RewardPool``), all of them at the same time. A reward
that does not apply to a completion is left out of its sum.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.segments import center_segments, segment_std
from lit_adaptive.rollout.rewards._host import Failure
from lit_adaptive.rollout.rewards.base import COMPLETION_IDS, Reward, reward_name
from lit_adaptive.rollout.rewards.length import LengthPenalty
from lit_adaptive.rollout.rewards.matching import ExactMatch, NumericMatch
from lit_adaptive.rollout.rewards.pool import OnError, RewardPool

Aggregate = Literal["sum_then_normalize", "normalize_then_sum"]

_EPSILON = 1e-4  # added to a standard deviation, as in TRL


@dataclass
class WeightedReward:
    """A reward and its weight in the sum.

    Args:
        reward: called with every completion.
        weight: factor of the reward, finite; negative for a penalty, 0 to log it only.
        name: name in the logs, unique; by default that of its class or function.
        timeout_s: greatest duration of one call, in seconds; by default the scorer's.
        chunk: greatest number of completions per call, or null for all (see ``RewardPool``).

    Raises:
        ValueError: if an argument is out of range.
    """

    reward: Reward
    weight: float = 1.0
    name: str | None = None
    timeout_s: float | None = None
    chunk: int | None = 32

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight is {self.weight}; it must be finite")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(
                f"timeout_s is {self.timeout_s}; it must be above 0, or null for the scorer's"
            )
        check_at_least(chunk=(self.chunk, 1))


@dataclass(frozen=True)
class RewardScores:
    """The rewards of a batch of completions.

    Attributes:
        reward: ``[N]`` float32, the aggregate of all rewards; NaN where none applies.
        per_reward: ``[R, N]`` float32, each reward, unweighted; NaN where it does not apply.
        names: the R names of the rewards.
        seconds: duration of the call.
        errors: number of completions lost to errors, over all rewards.
        timeouts: number of completions lost to time-outs, over all rewards.
        extras: ``[N]`` float32 by ``reward/number``: the rewards' further numbers; NaN for none.
        failures: the completions lost, by name of the reward.
    """

    reward: Tensor
    per_reward: Tensor
    names: tuple[str, ...]
    seconds: float
    errors: int
    timeouts: int
    extras: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    failures: dict[str, list[Failure]] = field(default_factory=dict[str, list[Failure]])

    @classmethod
    def cat(cls, parts: Sequence["RewardScores"]) -> "RewardScores":
        """Scores of several calls as those of one, without failures; ``seconds`` are summed."""
        extras: dict[str, list[Tensor]] = {}
        for part in parts:
            for name, values in part.extras.items():
                extras.setdefault(name, []).append(values)
        return cls(
            reward=torch.cat([part.reward for part in parts]),
            per_reward=torch.cat([part.per_reward for part in parts], 1),
            names=parts[0].names,
            errors=sum(part.errors for part in parts),
            timeouts=sum(part.timeouts for part in parts),
            seconds=sum(part.seconds for part in parts),
            extras={name: torch.cat(values) for name, values in extras.items()},
        )

    def metrics(self) -> dict[str, float]:
        """Means and standard deviations, by TRL's names; none for a reward that applies nowhere.

        ``rewards/{name}/mean`` and ``/std`` of each reward, ``rewards/{name}/{number}`` of its
        extras, ``reward`` and ``reward_std`` of the aggregate, and ours: ``reward/not_applicable``
        (a fraction), ``reward_fn/errors``, ``reward_fn/timeouts`` and ``reward_fn/seconds``.
        """
        metrics: dict[str, float] = {}
        for name, values in zip(self.names, self.per_reward, strict=True):
            metrics |= _moments(values, f"rewards/{name}/mean", f"rewards/{name}/std")
        for name, values in self.extras.items():
            metrics |= _moments(values, f"rewards/{name}", None)
        metrics |= _moments(self.reward, "reward", "reward_std")
        if self.reward.numel():
            metrics["reward/not_applicable"] = float(self.reward.isnan().float().mean())
        return metrics | {
            "reward_fn/errors": float(self.errors),
            "reward_fn/timeouts": float(self.timeouts),
            "reward_fn/seconds": self.seconds,
        }


class Scorer:
    r"""Calls several rewards at the same time and combines them.

    With ``sum_then_normalize`` the reward of completion i is :math:`r_i = \sum_k w_k r_{k,i}` over
    the rewards that apply; the advantage normalizes it afterwards. With ``normalize_then_sum`` each
    reward is normalized within its group first, :math:`r_i = \sum_k w_k (r_{k,i} - \bar r_k) /
    (s_k + 10^{-4})`, so that rewards of different scales count alike: GDPO (Liu et al. 2026,
    arXiv:2601.05242), in which the sums are then normalized over the batch. Mean and standard
    deviation (of the sample, n - 1) are over the completions to which the reward applies; in a
    group of one, or of equal rewards, the normalized reward is 0.

    Use it as a context, or call ``close()`` to end the rewards' processes; they end with this
    process in any case.

    Args:
        rewards: at least one; a plain reward has weight 1.
        timeout_s: greatest duration of a call of a reward, in seconds (see ``RewardPool``), or
            null to run in this process.
        workers: number of processes for each reward; 0 to run in this process.
        on_error: for a completion that a reward fails on: ``raise`` an error, count it as ``zero``,
            or ``skip`` this reward.
        aggregate: ``sum_then_normalize`` or ``normalize_then_sum``.

    Attributes:
        names: unique names of the rewards.
        weights: ``[R]`` float32.
        pools: the pools that run the rewards.

    Raises:
        ValueError: if there is no reward, two have the same name, or an argument is out of its
            range.
    """

    def __init__(
        self,
        rewards: Sequence[WeightedReward] | Sequence[Reward],
        *,
        timeout_s: float | None = 10.0,
        workers: int = 2,
        on_error: OnError = "raise",
        aggregate: Aggregate = "sum_then_normalize",
    ) -> None:
        if not rewards:
            raise ValueError("rewards is empty; give at least one")
        if aggregate not in ("sum_then_normalize", "normalize_then_sum"):
            raise ValueError(
                f"aggregate is {aggregate!r}; it must be 'sum_then_normalize' or "
                "'normalize_then_sum'"
            )
        weighted = [
            reward if isinstance(reward, WeightedReward) else WeightedReward(reward)
            for reward in rewards
        ]
        self.names = _unique_names(weighted)
        self._factors = [reward.weight for reward in weighted]
        self.weights = torch.tensor([reward.weight for reward in weighted], dtype=torch.float32)
        self.aggregate = aggregate
        self.pools = [
            RewardPool(
                reward.reward,
                workers=workers,
                timeout_s=timeout_s if reward.timeout_s is None else reward.timeout_s,
                on_error=on_error,
                chunk=reward.chunk,
                name=name,
            )
            for reward, name in zip(weighted, self.names, strict=True)
        ]

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        group: Tensor | None = None,
    ) -> RewardScores:
        """Score completions.

        Args:
            prompts: N of them, one for each completion.
            completions: N texts.
            columns: further columns of the dataset by name, each of N rows.
            group: ``[N]`` int64, the group of each completion; needed for ``normalize_then_sum``.

        Raises:
            RewardError: if a reward fails, with ``on_error: raise``.
            ValueError: if lengths differ, or ``group`` is missing.
        """
        if self.aggregate == "normalize_then_sum" and group is None:
            raise ValueError("group is None; normalize_then_sum needs the group of each completion")
        if group is not None and len(group) != len(completions):
            raise ValueError(
                f"group has {len(group)} entries for {len(completions)} completions; give one each"
            )
        start = time.perf_counter()
        values = self._call_pools(prompts, completions, columns or {})
        seconds = time.perf_counter() - start
        per_reward = torch.stack([_tensor(row) for row in values])
        lost = {name: pool.lost for name, pool in zip(self.names, self.pools, strict=True)}
        timeouts = sum(failure.timeout for failures in lost.values() for failure in failures)
        return RewardScores(
            reward=self._combine(per_reward, group),
            per_reward=per_reward,
            names=self.names,
            seconds=seconds,
            errors=sum(map(len, lost.values())) - timeouts,
            timeouts=timeouts,
            extras={
                f"{name}/{extra}": _tensor(numbers)
                for name, pool in zip(self.names, self.pools, strict=True)
                for extra, numbers in pool.extras.items()
            },
            failures={name: list(failures) for name, failures in lost.items() if failures},
        )

    @property
    def columns(self) -> frozenset[str]:
        """Columns of a dataset without which a reward cannot be called."""
        names = {getattr(pool.reward, "column", None) for pool in self.pools}
        return frozenset(name for name in names if name not in (None, COMPLETION_IDS))

    def judge(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float | None]:
        """The weighted sum of the rewards of each completion, None where none applies.

        For evaluation: no reward is normalized within a group. See ``__call__`` for the arguments.

        Raises:
            RewardError: if a reward fails, with ``on_error: raise``.
        """
        by_reward = self._call_pools(prompts, completions, columns)
        sums: list[float | None] = []
        for values in zip(*by_reward, strict=True):
            known = [
                factor * value
                for factor, value in zip(self._factors, values, strict=True)
                if value is not None
            ]
            sums.append(sum(known) if known else None)
        return sums

    def close(self) -> None:
        """End the rewards' processes; a later call starts new ones."""
        for pool in self.pools:
            pool.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call_pools(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[list[float | None]]:
        """Call pools with processes in threads, and meanwhile the others in this one."""
        remote = [k for k, pool in enumerate(self.pools) if not pool.in_process]
        local = [k for k, pool in enumerate(self.pools) if pool.in_process]
        if not local and len(remote) == 1:
            local, remote = remote, []
        with ThreadPoolExecutor(max(1, len(remote))) as threads:
            futures = {
                k: threads.submit(self.pools[k], prompts, completions, **columns) for k in remote
            }
            values = {k: self.pools[k](prompts, completions, **columns) for k in local}
            values |= {k: future.result() for k, future in futures.items()}
        return [values[k] for k in range(len(self.pools))]

    def _combine(self, per_reward: Tensor, group: Tensor | None) -> Tensor:
        applies = ~per_reward.isnan()
        if self.aggregate == "normalize_then_sum":
            assert group is not None
            per_reward = normalize_rewards(per_reward, group.to(per_reward.device))
        total = (per_reward.nan_to_num(nan=0.0) * self.weights[:, None]).sum(0)
        return total.masked_fill(~applies.any(0), torch.nan)


def as_scorer(rewards: Reward | Scorer | None) -> Scorer:
    """A scorer of ``rewards``, by default of ``ExactMatch``.

    Rewards that only compare texts cannot hang, and need no processes of their own.
    """
    if isinstance(rewards, Scorer):
        return rewards
    reward = rewards or ExactMatch()
    in_process = isinstance(reward, ExactMatch | NumericMatch | LengthPenalty)
    return Scorer([reward], workers=0 if in_process else 2)


def normalize_rewards(per_reward: Tensor, group: Tensor) -> Tensor:
    """Subtract from each reward its group's mean, and divide by the standard deviation plus 1e-4.

    Args:
        per_reward: ``[R, N]`` float; NaN is left out, and stays NaN.
        group: ``[N]`` int64, not negative.

    Returns:
        ``[R, N]``; 0 in groups in which a reward is always the same, or applies once.
    """
    size = int(group.max()) + 1 if group.numel() else 0
    normalized = per_reward.clone()
    for row in normalized:
        known = ~row.isnan()
        value, index = row[known].double(), group[known]
        deviation = segment_std(value, index, size)[index]
        row[known] = (center_segments(value, index, size) / (deviation + _EPSILON)).to(row.dtype)
    return normalized


def _unique_names(rewards: Sequence[WeightedReward]) -> tuple[str, ...]:
    """The configured names; for the others, names of class or function, numbered if need be."""
    configured = [reward.name for reward in rewards if reward.name is not None]
    repeated = sorted({name for name in configured if configured.count(name) > 1})
    if repeated:
        raise ValueError(f"rewards have the names {repeated} more than once; name each differently")
    used = set(configured)
    names: list[str] = []
    for reward in rewards:
        name = reward.name
        if name is None:
            default = reward_name(reward.reward).rsplit(".", 1)[-1]
            default = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", default).lower()
            numbered = (f"{default}_{number}" for number in range(2, len(rewards) + 2))
            name = next(each for each in (default, *numbered) if each not in used)
            used.add(name)
        names.append(name)
    return tuple(names)


def _tensor(values: Sequence[float | None]) -> Tensor:
    return torch.tensor(
        [torch.nan if value is None else value for value in values], dtype=torch.float32
    )


def _moments(values: Tensor, mean: str, std: str | None) -> dict[str, float]:
    known = values[~values.isnan()].double()
    if not known.numel():
        return {}
    moments = {mean: float(known.mean())}
    if std is not None:
        moments[std] = float(known.std()) if len(known) > 1 else 0.0
    return moments
