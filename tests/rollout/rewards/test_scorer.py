"""Several rewards combined: weights, None, GDPO, names, failures, and the config file."""

import math
import time
from typing import Any

import pytest
import torch
from awkward_rewards import Awkward, Calls, ProcessInfo
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.functions import FunctionReward
from lit_adaptive.rollout.rewards.length import LengthPenalty
from lit_adaptive.rollout.rewards.matching import ExactMatch, NumericMatch
from lit_adaptive.rollout.rewards.math import MathVerify
from lit_adaptive.rollout.rewards.pool import RewardError
from lit_adaptive.rollout.rewards.scorer import Scorer, WeightedReward, as_scorer, normalize_rewards

NAN = math.nan


class ColumnReward(Reward):
    """Returns a column."""

    in_process = True

    def __init__(self, column: str) -> None:
        self.column = column

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return columns[self.column]


def scores(weights: dict[str, float], columns: dict[str, list[Any]], **options: Any) -> Any:
    group = options.pop("group", None)
    rewards = [WeightedReward(ColumnReward(name), weight) for name, weight in weights.items()]
    size = len(next(iter(columns.values())))
    return Scorer(rewards, **options)(["p"] * size, ["c"] * size, columns, group)


def assert_rewards(actual: torch.Tensor, expected: list[Any]) -> None:
    values = torch.tensor([NAN if value is None else value for value in expected])
    torch.testing.assert_close(actual, values, equal_nan=True)


def test_a_reward_that_does_not_apply_is_left_out_of_the_sum() -> None:
    columns = {"a": [1.0, None, 3.0, None], "b": [10.0, 20.0, None, None]}
    scored = scores({"a": 2.0, "b": -0.5}, columns)
    assert_rewards(scored.reward, [2 - 5, -10, 6, None])
    assert_rewards(scored.per_reward[0], columns["a"])
    assert_rewards(scored.per_reward[1], columns["b"])
    assert scored.reward.dtype == scored.per_reward.dtype == torch.float32
    # A reward of weight 0 still applies.
    assert_rewards(scores({"a": 1.0, "b": 0.0}, columns).reward, [1, 0, 3, None])


def test_gdpo_normalizes_each_reward_within_its_group_before_the_sum() -> None:
    # Liu et al. (2026, arXiv:2601.05242): (r - mean) / (std + 1e-4) by reward and group, then sum.
    columns = {"a": [0.0, 1.0, 5.0, 5.0, 7.0], "b": [100.0, 300.0, None, 1.0, 2.0]}
    group = torch.tensor([3, 3, 0, 0, 1])  # of any numbers, of any sizes
    scored = scores(
        {"a": 1.0, "b": 2.0}, columns, aggregate="normalize_then_sum", group=group
    ).reward
    half, b = 0.5 / (math.sqrt(0.5) + 1e-4), 100 / (math.sqrt(20000) + 1e-4)
    assert_rewards(scored, [-half - 2 * b, half + 2 * b, 0, 0, 0])


@given(st.data())
def test_normalized_rewards_equal_those_of_a_loop(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    number = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 0.1, -3.7]))
    rows = data.draw(
        st.lists(st.lists(number, min_size=size, max_size=size), min_size=1, max_size=3)
    )
    group = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    per_reward = torch.tensor([[NAN if v is None else v for v in row] for row in rows])
    normalized = normalize_rewards(per_reward, torch.tensor(group))
    for r, row in enumerate(rows):
        for n in range(size):
            value = row[n]
            if value is None:
                assert normalized[r, n].isnan()
                continue
            peers = [v for v, g in zip(row, group, strict=True) if g == group[n] and v is not None]
            mean = sum(peers) / len(peers)
            squares = sum((v - mean) ** 2 for v in peers)
            expected = (value - mean) / (math.sqrt(squares / max(1, len(peers) - 1)) + 1e-4)
            assert normalized[r, n] == pytest.approx(expected, abs=1e-5)
            if len(set(peers)) == 1:
                assert normalized[r, n] == 0


def test_metrics_have_trls_names_and_omit_rewards_that_apply_nowhere() -> None:
    metrics = scores({"a": 1.0, "b": 1.0}, {"a": [1.0, 3.0, None], "b": [None] * 3}).metrics()
    assert metrics.pop("reward_fn/seconds") > 0
    assert metrics == {
        "rewards/column_reward/mean": 2,
        "rewards/column_reward/std": pytest.approx(math.sqrt(2)),
        "reward": 2,
        "reward_std": pytest.approx(math.sqrt(2)),
        "reward/not_applicable": pytest.approx(1 / 3),
        "reward_fn/errors": 0,
        "reward_fn/timeouts": 0,
    }
    single = scores({"a": 1.0}, {"a": [4.0]}).metrics()
    assert single["rewards/column_reward/std"] == single["reward_std"] == 0


def test_names_are_configured_or_those_of_classes_and_unique() -> None:
    scorer = Scorer(
        [
            WeightedReward(ExactMatch()),
            WeightedReward(ExactMatch("label")),
            WeightedReward(NumericMatch(), name="exact_match_2"),
            WeightedReward(FunctionReward("awkward_rewards.plus")),
            WeightedReward(ExactMatch(), name="custom"),
        ]
    )
    assert scorer.names == ("exact_match", "exact_match_3", "exact_match_2", "plus", "custom")
    assert Scorer([ExactMatch(), NumericMatch()]).names == ("exact_match", "numeric_match")


def test_a_repeated_name_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"\['x'\] more than once"):
        Scorer([WeightedReward(ExactMatch(), name="x"), WeightedReward(ProcessInfo(), name="x")])


def test_a_failure_loses_one_reward_of_one_completion_and_is_counted_per_call() -> None:
    rewards = [WeightedReward(Awkward()), WeightedReward(LengthPenalty(0, 10))]
    with Scorer(rewards, on_error="skip", timeout_s=0.5) as scorer:
        scored = scorer(["p"] * 4, ["1", "raise", "hang", "4"])
        assert_rewards(scored.per_reward[0], [1, None, None, 4])
        assert_rewards(scored.reward, [0.9, -0.5, -0.4, 3.9])
        assert (scored.errors, scored.timeouts) == (1, 1)
        assert {failure.sample for failure in scored.failures["awkward"]} == {1, 2}
        assert [*scored.failures] == ["awkward"]
        assert scored.seconds >= 1
        again = scorer(["p"], ["1"])
        assert (again.errors, again.timeouts, again.failures) == (0, 0, {})


def test_with_raise_a_failure_is_an_error() -> None:
    with (
        Scorer([Awkward()]) as scorer,
        pytest.raises(RewardError, match="awkward raised Zero"),
    ):
        scorer(["p"] * 2, ["1", "raise"])


def test_rewards_run_at_the_same_time_in_processes_of_their_own_or_in_this_one() -> None:
    import os

    local = ProcessInfo()
    local.in_process = True
    rewards = [ProcessInfo(), ProcessInfo(), local]
    with Scorer(rewards, workers=1) as scorer:
        processes = scorer(["p"], ["process"]).per_reward[:, 0].tolist()
        assert processes[2] == torch.tensor(float(os.getpid()), dtype=torch.float32)
        assert len(set(processes)) == 3
    slow = [WeightedReward(Awkward(), name=name) for name in "abc"]
    with Scorer(slow, workers=1, on_error="zero", timeout_s=0.5) as scorer:
        scorer(["p"], ["1"])
        assert scorer(["p"], ["hang"]).seconds < 1.2  # one after the other: 1.5


def test_a_reward_may_have_its_own_time_limit_and_chunk() -> None:
    rewards = [WeightedReward(Calls(), chunk=None), WeightedReward(Calls(), timeout_s=3.0)]
    with Scorer(rewards, workers=1) as scorer:
        scored = scorer(["p"] * 64, ["1"] * 64)
        assert scored.per_reward[0].unique().tolist() == [64]
        assert scored.per_reward[1].unique().tolist() == [32]
        assert [pool.timeout_s for pool in scorer.pools] == [10, 3]
        assert_rewards(scored.extras["calls/place"], [1.0] * 64)
        assert scored.metrics()["rewards/calls_2/place"] == 1


def test_without_completions_there_are_no_rewards() -> None:
    scored = Scorer([ColumnReward("a"), ColumnReward("a")])([], [], {"a": []})
    assert scored.reward.shape == (0,)
    assert scored.per_reward.shape == (2, 0)
    assert "reward" not in scored.metrics()


def test_a_config_file_defines_rewards_and_weights() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Scorer, "scorer")
    exact = {
        "class_path": "lit_adaptive.rollout.ExactMatch",
        "init_args": {"column": "x"},
    }
    length = {
        "class_path": "lit_adaptive.rollout.LengthPenalty",
        "init_args": {"free": 0, "limit": 4},
    }

    def build(rewards: list[Any]) -> Scorer:
        options = {
            "class_path": "lit_adaptive.rollout.Scorer",
            "init_args": {"rewards": rewards, "workers": 0},
        }
        config = parser.parse_object({"scorer": options})
        scorer: Scorer = parser.instantiate_classes(config).scorer
        return scorer

    weighted = build([{"reward": exact, "weight": 3.0, "name": "right"}, {"reward": length}])
    scored = weighted(["p"] * 2, ["ab", "abcd"], {"x": ["ab", "no"]})
    assert_rewards(scored.reward, [2.5, -1.0])
    assert weighted.names == ("right", "length_penalty")
    assert_rewards(build([exact, length])(["p"], ["ab"], {"x": ["ab"]}).reward, [0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": []}, "rewards is empty"),
        ({"rewards": [ExactMatch()], "aggregate": "sum"}, "aggregate is 'sum'"),
        ({"rewards": [ExactMatch()], "on_error": "no"}, "on_error is 'no'"),
    ],
)
def test_an_invalid_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scorer(**arguments)


def test_a_weight_must_be_finite() -> None:
    with pytest.raises(ValueError, match="weight is inf"):
        WeightedReward(ExactMatch(), math.inf)


def test_gdpo_needs_the_group_of_each_completion() -> None:
    with pytest.raises(ValueError, match="group is None; normalize_then_sum"):
        scores({"a": 1.0}, {"a": [1.0]}, aggregate="normalize_then_sum")
    with pytest.raises(ValueError, match="group has 2 entries for 1 completions"):
        scores({"a": 1.0}, {"a": [1.0]}, group=torch.tensor([0, 0]))


def test_a_bare_reward_that_hangs_ends_at_its_time_out() -> None:
    # sympy would compute 9^(9^(9^9)) for ever.
    hanging = WeightedReward(MathVerify(), timeout_s=3.0)
    scorer = Scorer([hanging], on_error="skip", workers=1)
    with scorer:
        answers = [r"\boxed{9^{9^{9^9}}}", r"\boxed{7}"]
        start = time.perf_counter()
        assert scorer.judge(["p"] * 2, answers, {"answer": ["7", "7"]}) == [None, 1.0]
        assert time.perf_counter() - start < 60
    bare = as_scorer(MathVerify())
    assert not bare.pools[0].in_process
    assert as_scorer(scorer) is scorer


def test_judge_sums_the_weighted_rewards_that_apply() -> None:
    rewards = [WeightedReward(ExactMatch(), 0.5), WeightedReward(ExactMatch("other"), -2.0)]
    scorer = Scorer(rewards, workers=0, aggregate="normalize_then_sum")
    columns = {"answer": ["a", "a", None], "other": ["a", None, None]}
    assert scorer.judge(["p"] * 3, ["a"] * 3, columns) == [-1.5, 0.5, None]
    assert scorer.columns == {"answer", "other"}
    assert Scorer([LengthPenalty(1, 2, unit="tokens")], workers=0).columns == frozenset()
