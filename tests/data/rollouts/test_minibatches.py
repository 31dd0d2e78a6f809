"""Micro-batches of a step: what is dealt where, the divisors, and the layout of a batch."""

from typing import Any

import pytest
import torch
from rollout_runs import ragged_groups

from lit_adaptive.core.policy_losses import aggregate_losses
from lit_adaptive.data.rollouts.minibatches import MicroBatchBuilder, StepLayout, micro_batches
from lit_adaptive.replay import RolloutGroups


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_micro_batches_cover_each_rollout_once_per_pass_and_divide_by_the_update(
    ranks: int, accumulate: int, minibatches: int
) -> None:
    groups = ragged_groups()
    trained = groups.stopped
    by_rank = [
        list(
            micro_batches(groups, trained, StepLayout(2, minibatches, accumulate, rank, ranks), 11)
        )
        for rank in range(ranks)
    ]
    assert {len(local) for local in by_rank} == {2 * minibatches * accumulate}
    for epoch in range(2):
        for update in range(minibatches):
            start = (epoch * minibatches + update) * accumulate
            update_parts = [part for local in by_rank for part in local[start : start + accumulate]]
            rollouts = torch.cat([part.rollouts for part in update_parts])
            counted = rollouts[trained[rollouts]]
            # Divisors add up over micro-batches and ranks to the whole update's.
            assert sum(part.sequences for part in update_parts) == pytest.approx(len(counted))
            assert sum(part.tokens for part in update_parts) == pytest.approx(
                float(groups.lengths[counted].sum())
            )
            for local in by_rank:
                parts = local[start : start + accumulate]
                group = groups.group[torch.cat([part.rollouts for part in parts])]
                # Groups are not split between ranks.
                assert group.unique(return_counts=True)[1].tolist() == [
                    int(groups.size[g]) for g in group.unique()
                ]
        rollouts = [
            part.rollouts
            for local in by_rank
            for part in local[epoch * minibatches * accumulate :][: minibatches * accumulate]
        ]
        assert torch.cat(rollouts).sort().values.tolist() == [*range(10)]


def test_each_inner_epoch_deals_the_groups_differently() -> None:
    groups = RolloutGroups.cat([ragged_groups()] * 5)
    trained = torch.ones(groups.rollouts, dtype=torch.bool)
    parts = list(micro_batches(groups, trained, StepLayout(3, 2, 1, 0, 1), 11))
    halves = [tuple(sorted(groups.group[part.rollouts].unique().tolist())) for part in parts[::2]]
    assert len(set(halves)) == 3


def test_sharing_prompts_keeps_groups_together_and_puts_the_longest_first() -> None:
    groups = ragged_groups()
    total = groups.prompt_lengths[groups.group] + groups.lengths
    longest = [int(total[groups.group == g].max()) for g in range(len(groups))]
    (part,) = micro_batches(
        groups, torch.ones(10, dtype=torch.bool), StepLayout(1, 1, 1, 0, 1), 0, share_prompts=True
    )
    order = groups.group[part.rollouts].unique_consecutive().tolist()
    assert sorted(order) == [*range(len(groups))]  # each in one run
    assert [longest[g] for g in order] == sorted(longest, reverse=True)
    for g in order:
        members = part.rollouts[groups.group[part.rollouts] == g]
        assert total[members].tolist() == sorted(total[members].tolist(), reverse=True)


def test_a_row_holds_the_prompt_and_then_the_completion() -> None:
    groups = ragged_groups()
    trained = torch.ones(10, dtype=torch.bool)
    values = {"doubled": groups.log_probs * 2}
    builder = MicroBatchBuilder(groups, trained, 4, pad=-1, token_values=values)
    part = next(iter(micro_batches(groups, trained, StepLayout(1, 1, 1, 0, 1), 0)))
    batch = builder.build(part)
    starts = groups.lengths.cumsum(0) - groups.lengths
    prompts = torch.split(groups.prompt_tokens, groups.prompt_lengths.tolist())
    for row, rollout in enumerate(part.rollouts.tolist()):
        group = int(groups.group[rollout])
        completion = groups.tokens[starts[rollout] : starts[rollout] + groups.lengths[rollout]]
        tokens = torch.cat([prompts[group], completion]).long()
        ids = batch["input_ids"][row]
        assert ids[: len(tokens)].equal(tokens)
        assert ids[len(tokens) :].eq(-1).all()
        mask = batch["sequence"] == row
        assert batch["target"][mask].equal(completion.long())
        assert batch["doubled"][mask].equal(batch["behavior_log_probs"][mask] * 2)
        positions = batch["position"][mask] - row * batch["input_ids"].shape[1]
        assert positions.tolist() == [*range(len(prompts[group]) - 1, len(tokens) - 1)]
        assert int(batch["index"][row]) == int(groups.prompt[group])
        assert int(batch["age"][row]) == 4 - int(groups.version[group])
        assert float(batch["weight"][row]) == float(groups.weight[group])


def test_micro_batches_add_up_to_the_update() -> None:
    groups = ragged_groups()
    trained = torch.ones(10, dtype=torch.bool)

    def summed_loss(accumulate: int, ranks: int, loss_type: Any) -> float:
        total = 0.0
        for rank in range(ranks):
            for part in micro_batches(
                groups, trained, StepLayout(1, 1, accumulate, rank, ranks), 0
            ):
                batch = MicroBatchBuilder(groups, trained, 4, pad=0, token_values={}).build(part)
                losses = batch["target"].double().square() + 1
                count = batch["sequence_count" if loss_type == "grpo" else "token_count"]
                sequence, size = batch["sequence"], len(batch["index"])
                loss = aggregate_losses(
                    losses, sequence, size, loss_type=loss_type, count=float(count)
                )
                total += float(loss) / accumulate / ranks
        return total

    for loss_type in ("grpo", "dapo"):
        expected = summed_loss(1, 1, loss_type)
        assert summed_loss(3, 1, loss_type) == pytest.approx(expected)
        assert summed_loss(2, 3, loss_type) == pytest.approx(
            expected
        )  # one rank has an empty micro-batch
