"""Groups of rollouts: several completions of each of some prompts, ragged and without padding.

Three levels lie flat, one after another, and lengths say where each ends:

    group      [P]  one prompt and its completions
    rollout    [N]  one completion; those of group 0, then those of group 1, ...
    token      [K]  of the completions, in the order of the rollouts

Prompts' tokens lie flat as well, once for each group, however many completions it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Level = Literal["group", "prompt_token", "rollout", "token"]

FIELDS: dict[str, tuple[torch.dtype, Level]] = {
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
"""Every field, its type, and what it has one entry for."""


def ragged_positions(lengths: Tensor, index: Tensor) -> Tensor:
    """Where the entries of some pieces lie in the flat row that all pieces make up.

    Args:
        lengths: ``[M]`` int64, of all pieces.
        index: ``[k]`` int64 in ``[0, M)``, the pieces, in any order; repeats allowed.

    Returns:
        ``[lengths[index].sum()]`` int64, piece after piece.
    """
    chosen = lengths[index]
    ends = chosen.cumsum(0)
    starts = lengths.cumsum(0)[index] - chosen
    total = int(ends[-1]) if len(ends) else 0
    shift = (starts - (ends - chosen)).repeat_interleave(chosen, output_size=total)
    return shift.add_(torch.arange(total))


@dataclass(frozen=True, eq=False)
class RolloutGroups:
    """P groups of N completions with K tokens in all; every tensor is on the CPU.

    Attributes:
        prompt: ``[P]`` int64, the prompt's index in its dataset.
        version: ``[P]`` int64, of the policy that generated the group.
        probability: ``[P]`` float64, of the prompt's draw.
        weight: ``[P]`` float32, what the group's loss is multiplied by.
        size: ``[P]`` int64 above 0, rollouts of each group; they sum to N.
        prompt_tokens: ``[L]`` int32, flat; those of group 0 first.
        prompt_lengths: ``[P]`` int64; they sum to L.
        tokens: ``[K]`` int32, of the completions, flat.
        log_probs: ``[K]`` float32, of ``tokens`` under the policy that generated them, at the
            temperature they were sampled at.
        lengths: ``[N]`` int64, tokens of each completion; they sum to K. 0 is an empty one.
        reward: ``[N]`` float32; NaN where no reward applies.
        stopped: ``[N]`` bool, whether a stop token ended it, and not its length.
        demonstration: ``[N]`` bool, whether it came from a dataset and not from a policy.
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
        """``[P]`` float32: mean of the rewards that apply; NaN for a group that has none."""
        told = ~self.reward.isnan()
        group = self.group[told]
        zeros = torch.zeros(len(self), dtype=torch.float64)
        total = zeros.index_add(0, group, self.reward[told].double())
        count = zeros.index_add(0, group, torch.ones(len(group), dtype=torch.float64))
        return (total / count).float()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(int(value.nbytes) for value in self.state_dict().values())

    def select(self, index: Tensor) -> RolloutGroups:
        """The groups at ``index`` ``[k]`` int64 in ``[0, P)``, in that order; repeats allowed.

        Raises:
            ValueError: naming indices that are out of range.
        """
        outside = (index < 0) | (index >= len(self))
        if bool(outside.any()):
            raise ValueError(
                f"there are no groups {index[outside][:8].tolist()}; indices lie in "
                f"[0, {len(self)})"
            )
        rollout = ragged_positions(self.size, index)
        places: dict[Level, Tensor] = {
            "group": index,
            "prompt_token": ragged_positions(self.prompt_lengths, index),
            "rollout": rollout,
            "token": ragged_positions(self.lengths, rollout),
        }
        return RolloutGroups(
            **{name: getattr(self, name)[places[level]] for name, (_, level) in FIELDS.items()}
        )

    def split(self) -> list[RolloutGroups]:
        """Each group separately, copied."""
        tokens = torch.zeros(len(self), dtype=torch.int64).index_add(0, self.group, self.lengths)
        sizes: dict[Level, list[int]] = {
            "group": [1] * len(self),
            "prompt_token": self.prompt_lengths.tolist(),
            "rollout": self.size.tolist(),
            "token": tokens.tolist(),
        }
        fields: list[list[Tensor]] = [
            [part.clone() for part in getattr(self, name).split(sizes[level])]
            for name, (_, level) in FIELDS.items()
        ]
        return [RolloutGroups(*values) for values in zip(*fields, strict=True)]

    @staticmethod
    def cat(parts: Sequence[RolloutGroups]) -> RolloutGroups:
        """All groups of ``parts``, one part after another; of no parts, no groups."""
        if not parts:
            return RolloutGroups.empty()
        return RolloutGroups(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in FIELDS}
        )

    @staticmethod
    def empty() -> RolloutGroups:
        """No groups."""
        return RolloutGroups(
            **{name: torch.empty(0, dtype=dtype) for name, (dtype, _) in FIELDS.items()}
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Every field by its name; the tensors themselves, not copies."""
        return {name: getattr(self, name) for name in FIELDS}

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> RolloutGroups:
        """The groups that ``state_dict`` told, checked.

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
        """Refuse fields that do not fit together.

        Raises:
            ValueError: naming the field, its type or length, and what it must be.
        """
        for name, (dtype, _) in FIELDS.items():
            value: Any = getattr(self, name)
            if not (
                isinstance(value, Tensor)
                and value.dtype is dtype
                and value.dim() == 1
                and value.is_cpu
            ):
                said = value if not isinstance(value, Tensor) else (value.dtype, value.device)
                shape = list(value.shape) if isinstance(value, Tensor) else "none"
                raise ValueError(
                    f"{name} is {said} of shape {shape}; it must be a flat tensor of {dtype} on "
                    "the CPU"
                )
        self._check_counts()
        self._check_lengths()

    def _check_counts(self) -> None:
        for name, least in (("size", 1), ("prompt_lengths", 0), ("lengths", 0)):
            value: Tensor = getattr(self, name)
            if bool((value < least).any()):
                where = (value < least).nonzero().flatten()[:8]
                raise ValueError(
                    f"{name} at {where.tolist()} is {value[where].tolist()}; it must be at least "
                    f"{least}"
                )

    def _check_lengths(self) -> None:
        due: dict[Level, tuple[int, str]] = {
            "group": (len(self), "one for each group: prompt has"),
            "prompt_token": (int(self.prompt_lengths.sum()), "prompt_lengths sum to"),
            "rollout": (int(self.size.sum()), "one for each rollout: size sums to"),
            "token": (int(self.lengths.sum()), "lengths sum to"),
        }
        for name, (_, level) in FIELDS.items():
            found = len(getattr(self, name))
            count, reason = due[level]
            if found != count:
                raise ValueError(
                    f"{name} has {found} entries; it must have {count} ({reason} {count})"
                )
