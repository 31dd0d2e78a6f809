"""Batches of a step's rollouts, as modules are given them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.data.rollouts.layout import Layout, Part, parts
from lit_adaptive.data.text.packing import collate_packed, ranges
from lit_adaptive.data.text.shared_prompts import Answers, collate_shared
from lit_adaptive.replay.rollouts.groups import RolloutGroups, ragged_positions


class MinibatchBuilder:
    """Makes batches of some of a step's rollouts.

    A batch is one of demonstrations (``input_ids``, ``position_ids``, ``position``, ``target``,
    ``sequence``) and has of each token ``behavior_log_probs`` ``[K]`` and of each rollout
    ``advantage``, ``reward`` (NaN: none), ``index`` (of its prompt in the dataset), ``group``
    (its number in the step), ``age`` (policy versions), ``off_policy`` (not from any policy),
    ``trained``, ``weight`` and ``probability`` ``[B]``; ``token_count`` and ``sequence_count`` are
    the update's divisors, ``K`` and ``B`` where one micro-batch is all.

    Args:
        groups: of the step.
        trained: ``[N]`` bool, the rollouts whose tokens count.
        version: of the policy at the step.
        pad: the id that fills up rows.
        pair_cost: see ``data.shared_prompts``; None: a row for each rollout.
        more: further values of each token ``[K]`` by name.
    """

    def __init__(
        self,
        groups: RolloutGroups,
        trained: Tensor,
        version: int,
        *,
        pad: int,
        attention_cost_ratio: float | None = None,
        more: dict[str, Tensor],
    ) -> None:
        self.groups, self.trained, self.version, self.pad = groups, trained, version, pad
        self.attention_cost_ratio, self.more = attention_cost_ratio, more
        self._group = groups.group
        self._prompt_start = groups.prompt_lengths.cumsum(0) - groups.prompt_lengths

    def parts(self, layout: Layout, seed: int) -> Iterator[Part]:
        """See ``data.rollout_layout.parts``."""
        together = self.attention_cost_ratio is not None
        return parts(self.groups, self.trained, layout, seed, together=together)

    def places(self, rollouts: Tensor) -> Tensor:
        """Where the tokens of ``rollouts`` ``[B]`` stand among the step's: ``[K]``."""
        return ragged_positions(self.groups.lengths, rollouts)

    def batch(self, part: Part) -> dict[str, Any]:
        """The batch of a part, which may have no rollouts."""
        groups, rollouts = self.groups, part.rollouts
        group, place = self._group[rollouts], self.places(rollouts)
        batch: dict[str, Any] = self._laid_out(rollouts, group, place)
        batch |= {
            "behavior_log_probs": groups.log_probs[place],
            "advantage": groups.advantage[rollouts],
            "reward": groups.reward[rollouts],
            "index": groups.prompt[group],
            "group": group,
            "age": self.version - groups.version[group],
            "off_policy": groups.demonstration[rollouts],
            "trained": self.trained[rollouts],
            "weight": groups.weight[group],
            "probability": groups.probability[group],
            "token_count": torch.tensor(part.tokens),
            "sequence_count": torch.tensor(part.sequences),
        }
        return batch | {name: value[place] for name, value in self.more.items()}

    def _laid_out(self, rollouts: Tensor, group: Tensor, place: Tensor) -> dict[str, Tensor]:
        groups = self.groups
        if len(rollouts) == 0:  # other ranks have some: forward passes go together
            row = torch.full((1, 2), self.pad)
            none = torch.empty(0, dtype=torch.int64)
            positions = torch.arange(2)[None]
            return {"input_ids": row, "position_ids": positions, "position": none} | {
                "target": none,
                "sequence": none,
            }
        asked, said = groups.prompt_lengths[group], groups.lengths[rollouts]
        if self.attention_cost_ratio is not None:
            answers = Answers(
                groups.tokens[place].numpy(),
                said.numpy(),
                group.numpy(),
                groups.prompt_tokens.numpy(),
                self._prompt_start[group].numpy(),
                asked.numpy(),
            )
            found = collate_shared(
                answers, pad=self.pad, attention_cost_ratio=self.attention_cost_ratio
            )
            if found is not None:
                return found
        length = asked + said
        end = length.cumsum(0)
        flat = torch.empty(int(end[-1]), dtype=torch.int32)
        at, _ = ranges((end - length).numpy(), asked.numpy())
        source = ragged_positions(groups.prompt_lengths, group)
        flat[torch.from_numpy(at)] = groups.prompt_tokens[source]
        at, _ = ranges((end - said).numpy(), said.numpy())
        flat[torch.from_numpy(at)] = ~groups.tokens[place]
        return collate_packed(flat.numpy(), length.numpy(), pad=self.pad, pack_length=None)


def compute_prescores(
    maker: MinibatchBuilder,
    trainer: Any,
    names: frozenset[str],
    layout: Layout,
    seed: int,
    constants: dict[str, Any],
) -> dict[str, Tensor]:
    """What a module says of every token before a step's first update: ``[K]`` each, on all ranks.

    Args:
        maker: of the step's batches.
        trainer: with a module that has ``prescore``.
        names: of what is wanted.
        layout: of one pass over the step.
        seed: of the order in which groups are dealt.
        constants: what batches hold besides.
    """
    found = {name: torch.zeros(len(maker.groups.tokens)) for name in sorted(names)}
    module = trainer.lightning_module
    for part in maker.parts(layout, seed):
        batch = trainer.strategy.batch_to_device(maker.batch(part) | constants)
        for name, values in module.prescore(batch, names).items():
            found[name][maker.places(part.rollouts)] = values.float().cpu()
    if layout.world_size == 1:
        return found
    reduce = trainer.strategy.reduce
    return {
        name: reduce(values.to(module.device), reduce_op="sum").cpu()
        for name, values in found.items()
    }
