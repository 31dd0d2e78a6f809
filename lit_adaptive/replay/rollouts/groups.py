"""Groups of rollouts: several completions for each prompt, ragged and without padding.

Three levels are stored flat, and lengths give the boundaries:

    group      [P]  one prompt and its completions
    rollout    [N]  one completion; those of group 0, then those of group 1, ...
    token      [K]  completion tokens, in the order of the rollouts

Prompt tokens are stored flat too, once per group, however many completions it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_adaptive.core.segments import segment_count, segment_mean, segment_sum

RaggedLevel = Literal["group", "prompt_token", "rollout", "token"]

FIELDS: dict[str, tuple[torch.dtype, RaggedLevel]] = {
    "prompt": (torch.int64, "group"),
    "version": (torch.int64, "group"),
    "probability": (torch.float64, "group"),
    "weight": (torch.float32, "group"),
    "size": (torch.int64, "group"),
    "prompt_tokens": (torch.int32, "prompt_token"),
    "prompt_lengths": (torch.int64, "group"),
    "tokens": (torch.int32, "token"),
    "log_probs": (torch.float32, "token"),
    "lengths": (torch.int64, "rollout"),
    "reward": (torch.float32, "rollout"),
    "stopped": (torch.bool, "rollout"),
    "demonstration": (torch.bool, "rollout"),
    "advantage": (torch.float32, "rollout"),
}
"""Type of each field, and the level that it has one entry for."""


def ragged_positions(lengths: Tensor, index: Tensor) -> Tensor:
    """Flat positions of the entries of some segments.

    Args:
        lengths: ``[M]`` int64, lengths of all segments, stored end to end.
        index: ``[k]`` int64 in ``[0, M)``, segments in any order; repeats allowed.

    Returns:
        ``[lengths[index].sum()]`` int64, segment after segment.
    """
    selected = lengths[index]
    ends = selected.cumsum(0)
    starts = lengths.cumsum(0)[index] - selected
    total = int(ends[-1]) if len(ends) else 0
    shift = (starts - (ends - selected)).repeat_interleave(selected, output_size=total)
    return shift.add_(torch.arange(total))


@dataclass(frozen=True, eq=False)
class RolloutGroups:
    """P groups of N completions with K tokens in all; every tensor is on the CPU.

    Attributes:
        prompt: ``[P]`` int64, index of the prompt in its dataset.
        version: ``[P]`` int64, version of the policy that generated the group.
        probability: ``[P]`` float64, probability with which the prompt was drawn.
        weight: ``[P]`` float32, factor of the group's loss.
        size: ``[P]`` int64 above 0, number of rollouts; they sum to N.
        prompt_tokens: ``[L]`` int32, flat, group after group.
        prompt_lengths: ``[P]`` int64, tokens of each prompt; they sum to L.
        tokens: ``[K]`` int32, completion tokens, flat, rollout after rollout.
        log_probs: ``[K]`` float32, log-probabilities of ``tokens`` under the policy that generated
            them, at the sampling temperature.
        lengths: ``[N]`` int64, tokens of each completion; they sum to K. May be 0.
        reward: ``[N]`` float32; NaN where no reward applies.
        stopped: ``[N]`` bool, whether a stop token ended the completion.
        demonstration: ``[N]`` bool, whether the completion comes from a dataset.
        advantage: ``[N]`` float32.
    """

    prompt: Tensor
    version: Tensor
    probability: Tensor
    weight: Tensor
    size: Tensor
    prompt_tokens: Tensor
    prompt_lengths: Tensor
    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor
    reward: Tensor
    stopped: Tensor
    demonstration: Tensor
    advantage: Tensor

    def __len__(self) -> int:
        """Number of groups P."""
        return len(self.prompt)

    @property
    def rollouts(self) -> int:
        """Number of completions N."""
        return len(self.lengths)

    @property
    def group(self) -> Tensor:
        """``[N]`` int64 in ``[0, P)``, ascending: the group of each rollout."""
        return torch.arange(len(self)).repeat_interleave(self.size, output_size=self.rollouts)

    @property
    def sequence(self) -> Tensor:
        """``[K]`` int64 in ``[0, N)``, ascending: the rollout of each token."""
        return torch.arange(self.rollouts).repeat_interleave(
            self.lengths, output_size=len(self.tokens)
        )

    @property
    def mean_reward(self) -> Tensor:
        """``[P]`` float32: mean of the rewards that apply; NaN for a group without any."""
        known = ~self.reward.isnan()
        group = self.group[known]
        mean = segment_mean(self.reward[known].double(), group, len(self))
        return mean.masked_fill(segment_count(group, len(self)) == 0, math.nan).float()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(int(value.nbytes) for value in self.state_dict().values())

    def select(self, index: Tensor) -> RolloutGroups:
        """Copies of some groups.

        Args:
            index: ``[k]`` int64 in ``[0, P)``, in any order; repeats allowed.

        Raises:
            ValueError: if an index is out of range.
        """
        outside = (index < 0) | (index >= len(self))
        if bool(outside.any()):
            raise ValueError(
                f"there are no groups {index[outside][:8].tolist()}; indices must lie in "
                f"[0, {len(self)})"
            )
        rollout = ragged_positions(self.size, index)
        positions: dict[RaggedLevel, Tensor] = {
            "group": index,
            "prompt_token": ragged_positions(self.prompt_lengths, index),
            "rollout": rollout,
            "token": ragged_positions(self.lengths, rollout),
        }
        return RolloutGroups(
            **{name: getattr(self, name)[positions[level]] for name, (_, level) in FIELDS.items()}
        )

    def split(self) -> list[RolloutGroups]:
        """Copies of the groups, one by one."""
        tokens = segment_sum(self.lengths, self.group, len(self))
        sizes: dict[RaggedLevel, list[int]] = {
            "group": [1] * len(self),
            "prompt_token": self.prompt_lengths.tolist(),
            "rollout": self.size.tolist(),
            "token": tokens.tolist(),
        }
        fields = [getattr(self, name).split(sizes[level]) for name, (_, level) in FIELDS.items()]
        # Group by group, so that the tensors of one lie side by side in memory.
        return [
            RolloutGroups(*(part.clone() for part in parts)) for parts in zip(*fields, strict=True)
        ]

    @staticmethod
    def cat(parts: Sequence[RolloutGroups]) -> RolloutGroups:
        """Concatenate groups; ``parts`` may be empty."""
        if not parts:
            return RolloutGroups.empty()
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return RolloutGroups(*map(torch.cat, columns))

    @staticmethod
    def empty() -> RolloutGroups:
        """No groups."""
        return RolloutGroups(
            **{name: torch.empty(0, dtype=dtype) for name, (dtype, _) in FIELDS.items()}
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The fields by name; the tensors themselves, not copies."""
        return {name: getattr(self, name) for name in FIELDS}

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> RolloutGroups:
        """The groups of a ``state_dict``.

        Raises:
            ValueError: if fields are missing or unknown, or do not fit together.
        """
        if set(state) != set(FIELDS):
            raise ValueError(
                f"groups of rollouts lack {sorted(set(FIELDS) - set(state))} and have the unknown "
                f"{sorted(set(state) - set(FIELDS))}: the state is another class's, or damaged"
            )
        groups = RolloutGroups(**state)
        groups.check()
        return groups

    def check(self) -> None:
        """Reject fields that do not fit together.

        Raises:
            ValueError: naming the field, its type or length, and the expected one.
        """
        for name, (dtype, _) in FIELDS.items():
            value: Any = getattr(self, name)
            if not (
                isinstance(value, Tensor)
                and value.dtype is dtype
                and value.dim() == 1
                and value.is_cpu
            ):
                description = (
                    f"{value.dtype} of shape {list(value.shape)} on {value.device}"
                    if isinstance(value, Tensor)
                    else repr(value)
                )
                raise ValueError(
                    f"{name} is {description}; it must be a flat tensor of {dtype} on the CPU"
                )
        self._check_counts()
        self._check_lengths()

    def check_finite(self) -> None:
        """Reject rewards, advantages and log-probabilities that cannot be replayed.

        Raises:
            ValueError: naming the field and the prompts.
        """
        fields = (self.reward, self.advantage, self.log_probs)
        if all(bool(field.isfinite().all()) for field in fields):
            return
        group, owner = self.group, self.sequence
        scored = ~self.reward.isnan()
        generated = ~self.demonstration[owner]
        for name, invalid, of in (
            ("reward", self.reward.isinf(), group),
            ("advantage", scored & ~self.advantage.isfinite(), group),
            ("log_probs", generated & ~self.log_probs.isfinite(), group[owner]),
        ):
            if bool(invalid.any()):
                prompts = self.prompt[torch.unique(of[invalid])][:8].tolist()
                raise ValueError(
                    f"{name} of the groups of prompts {prompts} is NaN or infinite; replayed "
                    "values must be finite: check the reward function or the engine. Nothing was "
                    "changed"
                )

    def _check_counts(self) -> None:
        for name, minimum in (("size", 1), ("prompt_lengths", 0), ("lengths", 0)):
            value: Tensor = getattr(self, name)
            wrong = (value < minimum).nonzero().flatten()[:8]
            if len(wrong):
                raise ValueError(
                    f"{name} at {wrong.tolist()} is {value[wrong].tolist()}; it must be at least "
                    f"{minimum}"
                )

    def _check_lengths(self) -> None:
        expected: dict[RaggedLevel, tuple[int, str]] = {
            "group": (len(self), "one per group: prompt has"),
            "prompt_token": (int(self.prompt_lengths.sum()), "prompt_lengths sums to"),
            "rollout": (int(self.size.sum()), "one per rollout: size sums to"),
            "token": (int(self.lengths.sum()), "lengths sums to"),
        }
        for name, (_, level) in FIELDS.items():
            entries = len(getattr(self, name))
            count, reason = expected[level]
            if entries != count:
                raise ValueError(
                    f"{name} has {entries} entries; it must have {count} ({reason} {count})"
                )
