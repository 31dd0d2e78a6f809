"""Rewards in TRL's signature: exact and numeric matches, your own function, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.rollout.rewards.base import (
    ExactMatch,
    FunctionReward,
    NumericMatch,
    Reward,
    checked_rewards,
    final_number,
)


def shortness(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """TRL's form: it takes whatever columns there are."""
    assert "answer" in columns
    return [-float(len(c)) for c in completions]


def close_to(completions: list[str], answer: list[int]) -> list[float | None]:
    """Takes only what it cares for."""
    return [-abs(float(c) - a) for c, a in zip(completions, answer, strict=True)]


not_callable = 7


class Given(Reward):
    """Gives what it was given."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        return self.found


def test_exact_match_forgives_spaces_at_the_ends_only() -> None:
    found = ExactMatch()(
        ["p"] * 5, ["42", " 42\n", "4 2", "42.", "42"], answer=["42", "42 ", "42", "42", None]
    )
    assert found == [1, 1, 0, 0, None]
    assert ExactMatch("label")(["p"], ["7"], label=[7]) == [1]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so she has 42 apples left.", 42),
        ("3 + 4 = 7", 7),
        ("#### 72\nCheck: 70 and 2", 72),  # GSM8K's mark wins over what follows
        ("#### 5 ... no, #### 6", 6),
        ("#### none, or 5", 5),
        ("$1,234.50", 1234.5),
        ("#### $-1,000", -1000),
        ("#### -$1,000", -1000),
        ("2,000,000 people", 2e6),
        ("the numbers 1,2,3", 3),
        ("12,34", 34),
        ("x=-3", -3),
        ("\N{MINUS SIGN}7", -7),
        ("5-3", 3),
        ("(1)-3", 3),
        ("+4", 4),
        ("1.5e3 m", 1500),
        (".5", 0.5),
        ("007", 7),
        ("nothing", None),
        ("", None),
        ("1e999", None),
    ],
)
def test_the_final_number_of_a_text(text: str, number: float | None) -> None:
    assert final_number(text) == number


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "is {}.", "1 or #### {:,}!"]))
def test_any_integer_is_read_back_however_it_is_written(number: int, form: str) -> None:
    assert final_number(form.format(number)) == number


def test_numeric_match() -> None:
    reward = NumericMatch()
    answers = ["#### 1,000", 1000, "a thousand", None, 1000.0]
    completions = ["it is 1000.", "999.9", "1000", "1000", "no idea"]
    assert reward([""] * 5, completions, answer=answers) == [1, 0, None, None, 0]
    assert NumericMatch(tolerance=0.01)([""] * 2, ["99.5", "98"], answer=[100, 100]) == [1, 0]
    assert NumericMatch(tolerance=0.0)([""] * 2, ["0.1", "0.1000001"], answer=[0.1, 0.1]) == [1, 0]
    assert reward([""], ["0.0000001"], answer=["0"]) == [1]
    for tolerance in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance is"):
            NumericMatch(tolerance=tolerance)


def test_a_missing_column_is_named_with_those_there_are() -> None:
    for reward in (ExactMatch(), NumericMatch()):
        with pytest.raises(ValueError, match=r"needs the column 'answer'.*offers gold, level"):
            reward(["p"], ["c"], level=[1], gold=["x"])
        with pytest.raises(ValueError, match="none beside prompt and completion"):
            reward(["p"], ["c"])


def test_a_function_is_found_by_name_and_given_what_it_takes() -> None:
    own = FunctionReward(f"{__name__}.shortness")
    assert own(["p", "q"], ["abc", "a"], answer=[1, 2]) == [-3, -1]
    own = FunctionReward(f"{__name__}.close_to")
    assert own(["p"], ["5"], answer=[7], level=["easy"]) == [-2]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("shortness", "package.module.function"),
        ("no_such_package.rewards.f", "no module 'no_such_package'"),
        (f"{__name__}.shortnes", "did you mean 'shortness'"),
        (f"{__name__}.not_callable", "nothing callable named 'not_callable'"),
    ],
)
def test_a_function_that_is_none_is_refused_by_name(path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FunctionReward(path)


def ask(found: Any, **options: Any) -> list[float | None]:
    return checked_rewards(Given(found), ["p"] * 3, ["c"] * 3, {}, **options)


@pytest.mark.parametrize(
    "found",
    [
        [1, 0.5, None],
        (True, 0.5, None),
        [np.float32(1), np.float64(0.5), None],
        [torch.tensor(1.0), torch.tensor([0.5]), None],
    ],
)
def test_numbers_of_every_kind_become_floats(found: Any) -> None:
    rewards = ask(found)
    assert rewards == [1.0, 0.5, None]
    assert [type(each) for each in rewards] == [float, float, type(None)]


def test_arrays_and_tensors_are_taken_too() -> None:
    assert ask(torch.arange(3)) == ask(np.arange(3)) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([1.0, 2.0], "Given gave 2 numbers for 3 completions"),
        (1.0, "gave a float; it must give a list"),
        (None, "gave a NoneType"),
        ([1.0, "high", [2.0]], r"gave list, str for the samples \[1, 2\]"),
        ([1.0, math.nan, -math.inf], r"gave \[nan, -inf\] for the samples \[1, 2\]"),
        ([1.0, torch.ones(2), 0.0], r"gave Tensor for the samples \[1\]"),
        ([1.0, 1 + 2j, 0.0], r"gave complex for the samples \[1\]"),
    ],
)
def test_what_is_no_reward_is_refused_by_name(found: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ask(found)


def test_errors_call_samples_by_their_names_and_functions_by_their_path() -> None:
    with pytest.raises(ValueError, match=r"for the samples \[70\]"):
        ask([1.0, 2.0, math.nan], names=[5, 6, 70])
    own = FunctionReward(f"{__name__}.close_to")
    own.function = lambda **_: [1.0]
    with pytest.raises(ValueError, match=r"test_rewards\.close_to gave 1 numbers"):
        checked_rewards(own, ["p"] * 2, ["c"] * 2, {"answer": [1, 2]})
