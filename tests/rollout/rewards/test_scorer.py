"""Several rewards, one number: weights, None, GDPO, names, failures, and the config file."""

import math
from typing import Any

import pytest
import torch
from awkward_rewards import Awkward, Calls, Who
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lit_adaptive.rollout.rewards.base import ExactMatch, FunctionReward, NumericMatch, Reward
from lit_adaptive.rollout.rewards.pool import RewardError
from lit_adaptive.rollout.rewards.scorer import Scorer, WeightedReward, normalized
from lit_adaptive.rollout.rewards.verifiers import LengthPenalty

NAN = math.nan


class Given(Reward):
    """What a column says."""

    in_process = True

    def __init__(self, column: str) -> None:
        self.column = column

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return columns[self.column]


def scores(weights: dict[str, float], columns: dict[str, list[Any]], **options: Any) -> Any:
    group = options.pop("group", None)
    rewards = [WeightedReward(Given(name), weight) for name, weight in weights.items()]
    size = len(next(iter(columns.values())))
    return Scorer(rewards, **options)(["p"] * size, ["c"] * size, columns, group)


def same(found: torch.Tensor, expected: list[Any]) -> None:
    wanted = torch.tensor([NAN if each is None else each for each in expected])
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_what_does_not_apply_is_left_out_of_the_sum_and_nan_where_nothing_does() -> None:
    columns = {"a": [1.0, None, 3.0, None], "b": [10.0, 20.0, None, None]}
    found = scores({"a": 2.0, "b": -0.5}, columns)
    same(found.reward, [2 - 5, -10, 6, None])
    same(found.each[0], columns["a"])
    same(found.each[1], columns["b"])
    assert found.reward.dtype == found.each.dtype == torch.float32
    # Of weight 0 it is logged, and still applies.
    same(scores({"a": 1.0, "b": 0.0}, columns).reward, [1, 0, 3, None])


def test_gdpo_normalises_each_reward_in_its_group_before_the_sum() -> None:
    # Liu et al. (2026, arXiv:2601.05242): (r - mean) / (std + 1e-4) by reward and group, then sum.
    columns = {"a": [0.0, 1.0, 5.0, 5.0, 7.0], "b": [100.0, 300.0, None, 1.0, 2.0]}
    group = torch.tensor([3, 3, 0, 0, 1])  # of any numbers, of any sizes
    found = scores(
        {"a": 1.0, "b": 2.0}, columns, aggregate="normalize_then_sum", group=group
    ).reward
    half, b = 0.5 / (math.sqrt(0.5) + 1e-4), 100 / (math.sqrt(20000) + 1e-4)
    same(found, [-half - 2 * b, half + 2 * b, 0, 0, 0])


@given(st.data())
def test_normalized_agrees_with_a_loop(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    number = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 0.1, -3.7]))
    rows = data.draw(
        st.lists(st.lists(number, min_size=size, max_size=size), min_size=1, max_size=3)
    )
    group = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    each = torch.tensor([[NAN if v is None else v for v in row] for row in rows])
    found = normalized(each, torch.tensor(group))
    for r, row in enumerate(rows):
        for n in range(size):
            value = row[n]
            if value is None:
                assert found[r, n].isnan()
                continue
            mine = [v for v, g in zip(row, group, strict=True) if g == group[n] and v is not None]
            mean = sum(mine) / len(mine)
            squares = sum((v - mean) ** 2 for v in mine)
            expected = (value - mean) / (math.sqrt(squares / max(1, len(mine) - 1)) + 1e-4)
            assert found[r, n] == pytest.approx(expected, abs=1e-5)
            if len(set(mine)) == 1:
                assert found[r, n] == 0


def test_logs_by_trls_names_and_leaves_out_what_applies_nowhere() -> None:
    found = scores({"a": 1.0, "b": 1.0}, {"a": [1.0, 3.0, None], "b": [None] * 3}).logged()
    assert found.pop("reward_fn/seconds") > 0
    assert found == {
        "rewards/given/mean": 2,
        "rewards/given/std": pytest.approx(math.sqrt(2)),
        "reward": 2,
        "reward_std": pytest.approx(math.sqrt(2)),
        "reward/not_applicable": pytest.approx(1 / 3),
        "reward_fn/errors": 0,
        "reward_fn/timeouts": 0,
    }
    alone = scores({"a": 1.0}, {"a": [4.0]}).logged()
    assert alone["rewards/given/std"] == alone["reward_std"] == 0


def test_names_are_those_given_or_the_kinds_and_never_twice() -> None:
    scorer = Scorer(
        [
            WeightedReward(ExactMatch()),
            WeightedReward(ExactMatch("label")),
            WeightedReward(NumericMatch(), name="exact_match_2"),
            WeightedReward(FunctionReward("awkward_rewards.plus")),
            WeightedReward(ExactMatch(), name="mine"),
        ]
    )
    assert scorer.names == ("exact_match", "exact_match_3", "exact_match_2", "plus", "mine")
    assert Scorer([ExactMatch(), NumericMatch()]).names == ("exact_match", "numeric_match")
    with pytest.raises(ValueError, match=r"\['x'\] more than once"):
        Scorer([WeightedReward(ExactMatch(), name="x"), WeightedReward(Who(), name="x")])


def test_failures_are_counted_by_call_and_lose_one_reward_of_one_completion() -> None:
    rewards = [WeightedReward(Awkward()), WeightedReward(LengthPenalty(0, 10))]
    with Scorer(rewards, on_error="skip", timeout_s=0.5) as scorer:
        found = scorer(["p"] * 4, ["1", "raise", "hang", "4"])
        same(found.each[0], [1, None, None, 4])
        same(found.reward, [0.9, -0.5, -0.4, 3.9])
        assert (found.errors, found.timeouts) == (1, 1)
        assert {each.sample for each in found.failures["awkward"]} == {1, 2}
        assert [*found.failures] == ["awkward"]
        assert found.seconds >= 1
        again = scorer(["p"], ["1"])
        assert (again.errors, again.timeouts, again.failures) == (0, 0, {})
    with Scorer(rewards) as scorer, pytest.raises(RewardError, match="awkward raised Zero"):
        scorer(["p"] * 2, ["1", "raise"])


def test_rewards_of_different_processes_run_at_the_same_time_and_models_here() -> None:
    import os

    here = Who()
    here.in_process = True
    rewards = [Who(), Who(), here]
    with Scorer(rewards, workers=1) as scorer:
        found = scorer(["p"], ["me"]).each[:, 0].tolist()
        assert found[2] == torch.tensor(float(os.getpid()), dtype=torch.float32)
        assert len(set(found)) == 3
    slow = [WeightedReward(Awkward(), name=name) for name in "abc"]
    with Scorer(slow, workers=1, on_error="zero", timeout_s=0.5) as scorer:
        scorer(["p"], ["1"])
        assert scorer(["p"], ["hang"]).seconds < 1.2  # one after the other: 1.5


def test_a_reward_may_have_its_own_limit_and_be_asked_about_all_at_once() -> None:
    rewards = [WeightedReward(Calls(), chunk=None), WeightedReward(Calls(), timeout_s=3.0)]
    with Scorer(rewards, workers=1) as scorer:
        found = scorer(["p"] * 64, ["1"] * 64)
        assert found.each[0].unique().tolist() == [64]
        assert found.each[1].unique().tolist() == [32]
        assert [pool.timeout_s for pool in scorer.pools] == [10, 3]
        same(found.extras["calls/place"], [1.0] * 64)
        assert found.logged()["rewards/calls_2/place"] == 1


def test_no_completions_are_worth_nothing() -> None:
    found = Scorer([Given("a"), Given("a")])([], [], {"a": []})
    assert found.reward.shape == (0,)
    assert found.each.shape == (2, 0)
    assert "reward" not in found.logged()


def test_a_config_file_names_rewards_and_weights() -> None:
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

    def made(rewards: list[Any]) -> Scorer:
        scorer = {
            "class_path": "lit_adaptive.rollout.Scorer",
            "init_args": {"rewards": rewards, "workers": 0},
        }
        found: Scorer = parser.instantiate_classes(parser.parse_object({"scorer": scorer})).scorer
        return found

    weighted = made([{"reward": exact, "weight": 3.0, "name": "right"}, {"reward": length}])
    found = weighted(["p"] * 2, ["ab", "abcd"], {"x": ["ab", "no"]})
    same(found.reward, [2.5, -1.0])
    assert weighted.names == ("right", "length_penalty")
    same(made([exact, length])(["p"], ["ab"], {"x": ["ab"]}).reward, [0.5])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rewards": []}, "rewards is empty"),
        ({"rewards": [ExactMatch()], "aggregate": "sum"}, "aggregate is 'sum'"),
        ({"rewards": [ExactMatch()], "on_error": "no"}, "on_error is 'no'"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scorer(**wrong)


def test_weights_are_finite_and_groups_are_there_when_needed() -> None:
    with pytest.raises(ValueError, match="weight is inf"):
        WeightedReward(ExactMatch(), math.inf)
    with pytest.raises(ValueError, match="group is None; normalize_then_sum"):
        scores({"a": 1.0}, {"a": [1.0]}, aggregate="normalize_then_sum")
    with pytest.raises(ValueError, match="group has 2 entries for 1 completions"):
        scores({"a": 1.0}, {"a": [1.0]}, group=torch.tensor([0, 0]))
