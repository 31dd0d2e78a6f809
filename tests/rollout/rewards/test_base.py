"""The output of any reward becomes plain numbers, or an error that names the reward and sample."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.functions import VerlReward
from lit_adaptive.rollout.rewards.matching import ExactMatch, GSM8KMatch, NumericMatch
from lit_adaptive.rollout.rewards.math import MathVerify
from lit_adaptive.rollout.rewards.pool import RewardPool
from lit_adaptive.rollout.rewards.reasoning_gym import ReasoningGym


class Constant(Reward):
    """Returns the same object for every batch."""

    def __init__(self, output: Any) -> None:
        self.output = output

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        return self.output


def check(output: Any) -> list[float | None]:
    return RewardPool(Constant(output), workers=0, chunk=None)(["p"] * 3, ["c"] * 3)


@pytest.mark.parametrize(
    "output",
    [
        [1, 0.5, None],
        (True, 0.5, None),
        [np.float32(1), np.float64(0.5), None],
        [torch.tensor(1.0), torch.tensor([0.5]), None],
    ],
)
def test_numbers_of_every_type_become_floats(output: Any) -> None:
    rewards = check(output)
    assert rewards == [1.0, 0.5, None]
    assert [type(reward) for reward in rewards] == [float, float, type(None)]


def test_arrays_and_tensors_are_accepted_as_lists() -> None:
    assert check(torch.arange(3)) == check(np.arange(3)) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ([1.0, 2.0], "Constant gave 2 numbers for 3 completions"),
        (1.0, "gave a float; it must give a list"),
        (None, "gave a NoneType"),
        ([1.0, "high", [2.0]], r"gave a str, 'high'; .*: sample 1"),
        ([1.0, math.nan, -math.inf], "gave nan; .*: sample 1"),
        ([1.0, torch.ones(2), 0.0], "gave a Tensor, tensor.*: sample 1"),
        ([1.0, 1 + 2j, 0.0], r"gave a complex, \(1\+2j\); .*: sample 1"),
    ],
)
def test_an_invalid_output_is_named_with_its_sample(output: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(output)


class Misreported(list[float]):
    """A list that says another length."""

    def __len__(self) -> int:
        return 3


def test_a_list_that_lies_about_its_length_is_counted() -> None:
    with pytest.raises(ValueError, match="gave 50 numbers for 3 completions"):
        check(Misreported([1.0] * 50))


@pytest.mark.parametrize("value", [1e39, -1e39, 10**400, 3.4028235677973366e38])
def test_a_number_that_is_infinite_in_float32_is_invalid(value: float) -> None:
    with pytest.raises(ValueError, match="sample 1"):
        check([1.0, value, 0.0])


def test_the_greatest_float32_number_is_valid() -> None:
    greatest = float(np.finfo(np.float32).max)
    assert check([greatest, -greatest, 0.0]) == [greatest, -greatest, 0.0]


@pytest.mark.parametrize(
    "reward",
    [
        ExactMatch(),
        NumericMatch(),
        GSM8KMatch(),
        MathVerify(),
        ReasoningGym(),
        VerlReward("math.floor"),
    ],
    ids=lambda reward: type(reward).__name__,
)
def test_a_missing_column_is_named_with_the_columns_of_the_dataset(reward: Reward) -> None:
    with pytest.raises(ValueError, match=r"needs the column 'answer'.*offers gold, level"):
        reward(["p"], ["c"], level=[1], gold=["x"])
    with pytest.raises(ValueError, match="none beside prompt and completion"):
        reward(["p"], ["c"])
