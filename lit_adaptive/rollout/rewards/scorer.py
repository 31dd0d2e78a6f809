"""Several rewards, one number for each completion.

Each reward runs in processes of its own (``RewardPool``), all of them at the same time. A reward
that does not apply to a completion takes no part in its sum.
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

from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.pool import Failure, OnError, RewardPool

Aggregate = Literal["sum_then_normalize", "normalize_then_sum"]

_EPSILON = 1e-4  # added to a standard deviation, as in TRL


@dataclass
class WeightedReward:
    """A reward and how much it counts.

    Args:
        reward: asked about every completion.
        weight: finite; negative for what is to be avoided, 0 to log it only.
        name: in the logs; by default its class's, or its function's. Names are all different.
        timeout_s: seconds for one call; by default the scorer's.
        chunk: completions asked about at once, or null: all (see ``RewardPool``).

    Raises:
        ValueError: if the weight is not finite.
    """

    reward: Reward
    weight: float = 1.0
    name: str | None = None
    timeout_s: float | None = None
    chunk: int | None = 32

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight is {self.weight}; it must be finite")


@dataclass(frozen=True)
class Scores:
    """What completions are worth.

    Attributes:
        reward: ``[N]`` float32, all rewards together; NaN where none applies.
        each: ``[R, N]`` float32, every reward by itself, unweighted; NaN where it does not apply.
        names: of the R rewards, all different.
        seconds: that it took.
        errors: completions that a reward failed on, all rewards together.
        timeouts: completions that a reward took too long for.
        extras: ``[N]`` float32 by ``reward/number``: what else rewards found; NaN: nothing.
        failures: the last completions lost, by the name of the reward.
    """

    reward: Tensor
    each: Tensor
    names: tuple[str, ...]
    seconds: float
    errors: int
    timeouts: int
    extras: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    failures: dict[str, list[Failure]] = field(default_factory=dict[str, list[Failure]])

    def logged(self) -> dict[str, float]:
        """Means and standard deviations, by TRL's names; nothing for what applies nowhere.

        ``rewards/{name}/mean`` and ``/std`` of each, ``rewards/{name}/{number}`` of its extras,
        ``reward`` and ``reward_std`` of all together, and ours: ``reward/not_applicable`` (a
        share), ``reward_fn/errors``, ``reward_fn/timeouts`` and ``reward_fn/seconds``.
        """
        found: dict[str, float] = {}
        for name, values in zip(self.names, self.each, strict=True):
            found |= _moments(values, f"rewards/{name}/mean", f"rewards/{name}/std")
        for name, values in self.extras.items():
            found |= _moments(values, f"rewards/{name}", None)
        found |= _moments(self.reward, "reward", "reward_std")
        if self.reward.numel():
            found["reward/not_applicable"] = float(self.reward.isnan().float().mean())
        return found | {
            "reward_fn/errors": float(self.errors),
            "reward_fn/timeouts": float(self.timeouts),
            "reward_fn/seconds": self.seconds,
        }


class Scorer:
    r"""Asks several rewards at once and adds them up.

    With ``sum_then_normalize`` the reward of completion i is :math:`r_i = \sum_k w_k r_{k,i}` over
    the rewards that apply; the advantage normalises it afterwards. With ``normalize_then_sum`` each
    reward is normalised within its group first, :math:`r_i = \sum_k w_k (r_{k,i} - \bar r_k) /
    (s_k + 10^{-4})`, so that no reward drowns another by its scale: GDPO (Liu et al. 2026,
    arXiv:2601.05242, its equations of the advantage), in which the sums are then normalised over
    the batch. Mean and standard deviation (of the sample, n - 1) are over those to which the reward
    applies; a group of one, or of equal rewards, gets 0.

    Use it as a context, or call ``close()``: the rewards' processes end then, and in any case with
    this process.

    Args:
        rewards: at least one; a plain reward counts once.
        timeout_s: seconds for a call of a reward (see ``RewardPool``), or null: in this process.
        workers: processes for each reward; 0: in this process.
        on_error: what becomes of a completion that a reward fails on: ``raise`` an error, count it
            as ``zero``, or ``skip`` this reward for it.
        aggregate: ``sum_then_normalize`` or ``normalize_then_sum``.

    Attributes:
        names: of the rewards, all different.
        weights: ``[R]`` float32.
        pools: what the rewards run in.

    Raises:
        ValueError: if there is no reward, two are given the same name, or an argument is out of its
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
            each if isinstance(each, WeightedReward) else WeightedReward(each) for each in rewards
        ]
        self.names = _names(weighted)
        self.weights = torch.tensor([each.weight for each in weighted], dtype=torch.float32)
        self.aggregate = aggregate
        self.pools = [
            RewardPool(
                each.reward,
                workers=workers,
                timeout_s=timeout_s if each.timeout_s is None else each.timeout_s,
                on_error=on_error,
                chunk=each.chunk,
                name=name,
            )
            for each, name in zip(weighted, self.names, strict=True)
        ]

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        group: Tensor | None = None,
    ) -> Scores:
        """What the completions are worth.

        Args:
            prompts: N of them, one for each completion.
            completions: N texts.
            columns: further columns of the dataset by name, each of N rows.
            group: ``[N]`` int64, whose completion each is; needed for ``normalize_then_sum``.

        Raises:
            RewardError: if a reward fails, with ``on_error: raise``.
            ValueError: if lengths differ, or ``group`` is missing.
        """
        if self.aggregate == "normalize_then_sum" and group is None:
            raise ValueError("group is None; normalize_then_sum needs to know whose each is")
        if group is not None and len(group) != len(completions):
            raise ValueError(
                f"group has {len(group)} entries for {len(completions)} completions; give one each"
            )
        before = [(pool.errors, pool.timeouts) for pool in self.pools]
        began = time.perf_counter()
        found = self._asked(prompts, completions, columns or {})
        seconds = time.perf_counter() - began
        each = torch.stack([_tensor(values) for values in found])
        errors, timeouts = (
            sum(getattr(pool, kind) - old[at] for pool, old in zip(self.pools, before, strict=True))
            for at, kind in enumerate(("errors", "timeouts"))
        )
        return Scores(
            reward=self._together(each, group),
            each=each,
            names=self.names,
            seconds=seconds,
            errors=errors,
            timeouts=timeouts,
            extras=self._extras(),
            failures={
                name: lost
                for name, pool in zip(self.names, self.pools, strict=True)
                if (lost := list(pool.lost))
            },
        )

    def close(self) -> None:
        """End the rewards' processes; a later call starts new ones."""
        for pool in self.pools:
            pool.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _asked(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[list[float | None]]:
        """Those in other processes at the same time, those in this one meanwhile."""
        aside = [k for k, pool in enumerate(self.pools) if not pool.in_process]
        here = [k for k in range(len(self.pools)) if k not in aside]
        if not here and len(aside) == 1:
            here, aside = aside, []
        with ThreadPoolExecutor(max(1, len(aside))) as threads:
            asked = {
                k: threads.submit(self.pools[k], prompts, completions, **columns) for k in aside
            }
            found = {k: self.pools[k](prompts, completions, **columns) for k in here}
            found |= {k: each.result() for k, each in asked.items()}
        return [found[k] for k in range(len(self.pools))]

    def _together(self, each: Tensor, group: Tensor | None) -> Tensor:
        applies = ~each.isnan()
        if self.aggregate == "normalize_then_sum":
            assert group is not None
            each = normalized(each, group.to(each.device))
        summed = (each.nan_to_num(nan=0.0) * self.weights[:, None]).sum(0)
        return summed.masked_fill(~applies.any(0), torch.nan)

    def _extras(self) -> dict[str, Tensor]:
        return {
            f"{name}/{extra}": _tensor(values)
            for name, pool in zip(self.names, self.pools, strict=True)
            for extra, values in pool.extras.items()
        }


def normalized(each: Tensor, group: Tensor) -> Tensor:
    """Every reward less its group's mean, divided by its standard deviation plus 1e-4.

    Args:
        each: ``[R, N]`` float; NaN takes no part, and stays NaN.
        group: ``[N]`` int64, not negative.

    Returns:
        ``[R, N]``; 0 in groups in which a reward is always the same, or applies once.
    """
    groups = int(group.max()) + 1 if group.numel() else 0
    applies = ~each.isnan()
    index = group.expand(each.shape)

    def summed(values: Tensor) -> Tensor:
        empty = torch.zeros(len(each), groups, dtype=torch.float64, device=each.device)
        return empty.scatter_add(1, index, values.double())

    count = summed(applies)
    mean = summed(each.nan_to_num(nan=0.0)) / count
    mean = mean.gather(1, index)
    centered = each.double() - mean
    # Equal rewards, whose mean is off by rounding, would come out above 0.
    centered = centered.masked_fill(centered.abs() <= 1e-12 * mean.abs(), 0.0)
    variance = summed(centered.nan_to_num(nan=0.0).square()) / (count - 1).clamp(min=1)
    return (centered / (variance.sqrt().gather(1, index) + _EPSILON)).to(each.dtype)


def _names(rewards: Sequence[WeightedReward]) -> tuple[str, ...]:
    """The names given, and of the others their class's or function's, numbered if need be."""
    given = [each.name for each in rewards if each.name is not None]
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        raise ValueError(f"rewards have the names {twice} more than once; name each differently")
    taken = set(given)
    found: list[str] = []
    for each in rewards:
        name = each.name
        if name is None:
            kind = str(getattr(each.reward, "path", type(each.reward).__name__)).rsplit(".", 1)[-1]
            kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
            kinds = [kind, *(f"{kind}_{number}" for number in range(2, len(rewards) + 2))]
            name = next(each for each in kinds if each not in taken)
            taken.add(name)
        found.append(name)
    return tuple(found)


def _tensor(values: Sequence[float | None]) -> Tensor:
    return torch.tensor(
        [torch.nan if value is None else value for value in values], dtype=torch.float32
    )


def _moments(values: Tensor, mean: str, std: str | None) -> dict[str, float]:
    known = values[~values.isnan()].double()
    if not known.numel():
        return {}
    found = {mean: float(known.mean())}
    if std is not None:
        found[std] = float(known.std()) if len(known) > 1 else 0.0
    return found
