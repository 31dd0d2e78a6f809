"""Metrics of a step, computed by hand for four small groups."""

from dataclasses import replace

import pytest
import torch
from rollout_runs import ragged_groups

from lit_adaptive.data.rollouts.metrics import step_metrics
from lit_adaptive.replay import RolloutBuffer


def test_rewards_are_averaged_over_groups_and_nan_does_not_apply() -> None:
    nan = torch.nan
    reward = torch.tensor([0.0, 1.0, nan, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, nan])
    metrics = step_metrics(replace(ragged_groups(), reward=reward), ragged_groups(), 4, 4, None)
    assert metrics["reward"] == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    assert metrics["reward_std"] == pytest.approx(0.5**0.5 / 3)  # of 0 and 1, over three groups
    assert metrics["frac_reward_zero_std"] == 0.75
    assert metrics["groups/solved"] == pytest.approx(1 / 3)
    assert metrics["groups/failed"] == pytest.approx(1 / 3)


def test_lengths_are_those_of_completions_and_not_of_demonstrations() -> None:
    demonstration = torch.arange(10) == 9
    groups = replace(ragged_groups(), demonstration=demonstration)
    metrics = step_metrics(groups, groups, 4, 4, None)
    assert metrics["completions/mean_length"] == pytest.approx(22 / 9)
    assert metrics["completions/max_length"] == 5
    # Completions 0, 3 and 6 were truncated; 9 is the demonstration.
    assert metrics["completions/clipped_ratio"] == pytest.approx(3 / 9)
    assert metrics["completions/mean_terminated_length"] == pytest.approx(
        (5 + 2 + 0 + 4 + 1 + 2) / 6
    )


def test_replayed_groups_are_those_behind_the_fresh_ones() -> None:
    groups = ragged_groups()  # of versions 4, 4, 2 and 0
    metrics = step_metrics(groups, groups, 2, 4, RolloutBuffer(8))
    assert metrics["replay/frac_in_batch"] == 0.5
    assert (metrics["replay/age_mean"], metrics["replay/age_max"]) == (3, 4)
    assert (metrics["replay/size"], metrics["replay/fill"]) == (0, 0)
