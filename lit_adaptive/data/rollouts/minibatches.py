"""From the groups of a step to the micro-batches of its optimizer updates.

The groups of a step are the same on every rank. Each pass over them deals them into minibatches,
one per optimizer update; each rank takes its share of a minibatch's groups and cuts it into as many
micro-batches as gradients are accumulated over. Groups are not split between minibatches or ranks.
A micro-batch carries the divisors of the whole update, so the update does not depend on the cut.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_adaptive.core.segments import segment_max
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.data.text.packing import collate_packed, ranges
from lit_adaptive.data.text.shared_prompts import Answers, collate_shared
from lit_adaptive.replay.rollouts.groups import RolloutGroups, ragged_positions


class StepLayout(NamedTuple):
    """How a step is cut into micro-batches.

    Attributes:
        inner_epochs: passes over the step's groups.
        minibatches: optimizer updates per pass.
        accumulate: micro-batches per update.
        rank: rank of this process.
        world_size: number of processes.
    """

    inner_epochs: int
    minibatches: int
    accumulate: int
    rank: int
    world_size: int

    @property
    def batches(self) -> int:
        """Micro-batches of a step on each rank."""
        return self.inner_epochs * self.minibatches * self.accumulate


class MicroBatch(NamedTuple):
    """The rollouts of a micro-batch, and the divisors of its update.

    Attributes:
        rollouts: ``[B]`` int64, indices of rollouts in the step; may be empty.
        tokens: trained tokens of the update, per micro-batch and rank.
        sequences: trained rollouts of the update, per micro-batch and rank.
    """

    rollouts: Tensor
    tokens: float
    sequences: float


def micro_batches(
    groups: RolloutGroups,
    trained: Tensor,
    layout: StepLayout,
    seed: int,
    *,
    share_prompts: bool = False,
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of a step, in order.

    The longest rollouts come first: running out of memory shows at once, and the rows of a
    micro-batch have similar lengths.

    Args:
        groups: groups of all ranks.
        trained: ``[N]`` bool, the rollouts whose tokens are trained on.
        layout: how the step is cut.
        seed: seed of the order in which groups are dealt into minibatches.
        share_prompts: keep the rollouts of a group together, and sort groups by their longest.
    """
    total = groups.prompt_lengths[groups.group] + groups.lengths
    share = layout.accumulate * layout.world_size
    for epoch in range(layout.inner_epochs):
        order = torch.arange(len(groups))
        if layout.minibatches > 1:
            generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
            order = torch.randperm(len(groups), generator=generator)
        for minibatch in order.tensor_split(layout.minibatches):
            rollouts = ragged_positions(groups.size, minibatch)
            counted = rollouts[trained[rollouts]]
            tokens = float(groups.lengths[counted].sum()) / share
            sequences = len(counted) / share
            local = ragged_positions(groups.size, minibatch[layout.rank :: layout.world_size])
            local = local[total[local].argsort(descending=True, stable=True)]
            if share_prompts:
                local = local[_longest_group_first(total[local], groups.group[local])]
            for chunk in local.tensor_split(layout.accumulate):
                yield MicroBatch(chunk, tokens, sequences)


def _longest_group_first(length: Tensor, group: Tensor) -> Tensor:
    """Order that puts groups with the longest rollout first and keeps groups together; stable."""
    size = int(group.max()) + 1 if len(group) else 0
    longest = segment_max(length.double(), group, size)[group]
    by_group = group.argsort(stable=True)
    return by_group[longest[by_group].argsort(descending=True, stable=True)]


class MicroBatchBuilder:
    """Builds the batches of a step's rollouts.

    A batch has the keys of a demonstration batch (``input_ids``, ``position_ids``, ``position``,
    ``target``, ``sequence``); per token ``behavior_log_probs`` ``[K]``; per rollout ``[B]``:
    ``advantage``, ``reward`` (NaN: none applies), ``index`` (of its prompt in the dataset),
    ``group`` (its number in the step), ``age`` (in policy versions), ``off_policy`` (true for
    demonstrations), ``trained``, ``weight`` and ``probability``; and the divisors of the update
    ``token_count`` and ``sequence_count``, which are ``K`` and ``B`` if one micro-batch is the
    whole update.

    Args:
        groups: groups of the step.
        trained: ``[N]`` bool, the rollouts whose tokens are trained on.
        version: version of the policy at the step.
        pad: token id of the padding.
        attention_cost_ratio: cost of one attention pair in tokens, see
            ``lit_adaptive.data.text.shared_prompts``; None for one row per rollout.
        token_values: further values per token ``[K]``, by name.
    """

    def __init__(
        self,
        groups: RolloutGroups,
        trained: Tensor,
        version: int,
        *,
        pad: int,
        attention_cost_ratio: float | None = None,
        token_values: dict[str, Tensor],
    ) -> None:
        self.groups, self.trained, self.version, self.pad = groups, trained, version, pad
        self.attention_cost_ratio, self.token_values = attention_cost_ratio, token_values
        self._group = groups.group
        self._prompt_start = groups.prompt_lengths.cumsum(0) - groups.prompt_lengths

    def micro_batches(self, layout: StepLayout, seed: int) -> Iterator[MicroBatch]:
        """See the function ``micro_batches``."""
        share = self.attention_cost_ratio is not None
        return micro_batches(self.groups, self.trained, layout, seed, share_prompts=share)

    def token_positions(self, rollouts: Tensor) -> Tensor:
        """Positions ``[K]`` of the tokens of ``rollouts`` ``[B]`` among the step's tokens."""
        return ragged_positions(self.groups.lengths, rollouts)

    def build(self, micro_batch: MicroBatch) -> dict[str, Any]:
        """The batch of ``micro_batch``, which may have no rollouts."""
        groups, rollouts = self.groups, micro_batch.rollouts
        group, position = self._group[rollouts], self.token_positions(rollouts)
        batch: dict[str, Any] = self._collate(rollouts, group, position)
        batch |= {
            "behavior_log_probs": groups.log_probs[position],
            "advantage": groups.advantage[rollouts],
            "reward": groups.reward[rollouts],
            "index": groups.prompt[group],
            "group": group,
            "age": self.version - groups.version[group],
            "off_policy": groups.demonstration[rollouts],
            "trained": self.trained[rollouts],
            "weight": groups.weight[group],
            "probability": groups.probability[group],
            "token_count": torch.tensor(micro_batch.tokens),
            "sequence_count": torch.tensor(micro_batch.sequences),
        }
        return batch | {name: value[position] for name, value in self.token_values.items()}

    def _collate(self, rollouts: Tensor, group: Tensor, position: Tensor) -> dict[str, Tensor]:
        groups = self.groups
        if len(rollouts) == 0:  # other ranks have rollouts, and sharded forward passes are joint
            empty = torch.empty(0, dtype=torch.int64)
            return {
                "input_ids": torch.full((1, 2), self.pad),
                "position_ids": torch.arange(2)[None],
                "position": empty,
                "target": empty,
                "sequence": empty,
            }
        prompt_length, length = groups.prompt_lengths[group], groups.lengths[rollouts]
        if self.attention_cost_ratio is not None:
            answers = Answers(
                groups.tokens[position].numpy(),
                length.numpy(),
                group.numpy(),
                groups.prompt_tokens.numpy(),
                self._prompt_start[group].numpy(),
                prompt_length.numpy(),
            )
            shared = collate_shared(
                answers, pad=self.pad, attention_cost_ratio=self.attention_cost_ratio
            )
            if shared is not None:
                return shared
        total = prompt_length + length
        end = total.cumsum(0)
        flat = torch.empty(int(end[-1]), dtype=torch.int32)
        prompt_place, _ = ranges((end - total).numpy(), prompt_length.numpy())
        prompt_position = ragged_positions(groups.prompt_lengths, group)
        flat[torch.from_numpy(prompt_place)] = groups.prompt_tokens[prompt_position]
        place, _ = ranges((end - length).numpy(), length.numpy())
        flat[torch.from_numpy(place)] = ~groups.tokens[position]  # inverted bits mark targets
        return collate_packed(flat.numpy(), total.numpy(), pad=self.pad, pack_length=None)


def compute_prescores(
    builder: MicroBatchBuilder,
    trainer: Any,
    names: frozenset[str],
    layout: StepLayout,
    seed: int,
    constants: dict[str, Any],
) -> dict[str, Tensor]:
    """Per-token values ``[K]`` by the policy before a step's first update, equal on all ranks.

    Args:
        builder: builds the step's batches.
        trainer: trainer whose module has ``prescore``.
        names: per-token values to compute (``old_log_probs``, ``entropy``).
        layout: cut of one pass over the step.
        seed: seed of the order in which groups are dealt.
        constants: further entries of the batches.
    """
    token_values = {name: torch.zeros(len(builder.groups.tokens)) for name in sorted(names)}
    module = trainer.lightning_module
    for micro_batch in builder.micro_batches(layout, seed):
        batch = trainer.strategy.batch_to_device(builder.build(micro_batch) | constants)
        position = builder.token_positions(micro_batch.rollouts)
        for name, values in module.prescore(batch, names).items():
            token_values[name][position] = values.float().cpu()
    if layout.world_size == 1:
        return token_values
    reduce = trainer.strategy.reduce  # each rank has computed its share and has zeros elsewhere
    return {
        name: reduce(values.to(module.device), reduce_op="sum").cpu()
        for name, values in token_values.items()
    }
