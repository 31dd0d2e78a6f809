"""Rewards that compare texts, numbers and formats."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.matching import (
    ExactMatch,
    FormatMatch,
    GSM8KMatch,
    NumericMatch,
    final_number,
)
from lit_adaptive.rollout.rewards.pool import RewardPool


def score(reward: Reward, completion: str, **columns: Any) -> float | None:
    """The reward of one completion."""
    return reward(["p"], [completion], **{name: [value] for name, value in columns.items()})[0]


def test_exact_match_ignores_surrounding_whitespace_only() -> None:
    rewards = ExactMatch()(
        ["p"] * 5, ["42", " 42\n", "4 2", "42.", "42"], answer=["42", "42 ", "42", "42", None]
    )
    assert rewards == [1, 1, 0, 0, None]
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
def test_an_integer_is_read_back_in_every_notation(number: int, form: str) -> None:
    assert final_number(form.format(number)) == number


def test_numeric_match_compares_final_numbers_and_needs_an_answer_with_a_number() -> None:
    reward = NumericMatch()
    answers = ["#### 1,000", 1000, "a thousand", None, 1000.0]
    completions = ["it is 1000.", "999.9", "1000", "1000", "no idea"]
    assert reward([""] * 5, completions, answer=answers) == [1, 0, None, None, 0]


def test_numeric_match_accepts_differences_up_to_its_tolerance() -> None:
    assert NumericMatch(tolerance=0.01)([""] * 2, ["99.5", "98"], answer=[100, 100]) == [1, 0]
    assert NumericMatch(tolerance=0.0)([""] * 2, ["0.1", "0.1000001"], answer=[0.1, 0.1]) == [1, 0]
    assert NumericMatch()([""], ["0.0000001"], answer=["0"]) == [1]


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_is_finite_and_not_negative(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance is"):
        NumericMatch(tolerance=tolerance)


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        ("so 70+2=72\n#### 72", 1, 1),
        ("#### 70 no, #### 72", 1, 1),
        ("#### $72.00", 1, 1),
        ("#### 72 clips", 1, 1),
        ("so it is 72", 0, 1),
        ("#### ", 0, 0),
        ("####\n72", 0, 1),  # the number is not on the mark's line
        ("72 #### 71", 0, 0),
        ("#### 71\n72", 0, 0),
        ("", 0, 0),
    ],
)
def test_gsm8k_needs_the_number_after_the_mark_where_strict(
    completion: str, strict: float, lenient: float
) -> None:
    assert score(GSM8KMatch(), completion, answer="72") == strict
    assert score(GSM8KMatch(strict=False), completion, answer="... #### 72") == lenient


def test_gsm8k_does_not_apply_without_an_answer() -> None:
    assert score(GSM8KMatch(), "#### 1", answer=None) is None
    assert score(GSM8KMatch(), "#### 1,234", answer="1234") == 1


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a\nb</think>\n<answer>7</answer>", 1),
        ("  <think></think><answer></answer>\n", 1),
        ("<think>a</think> so <answer>7</answer>", 0),
        ("<answer>7</answer><think>a</think>", 0),
        ("<think>a</think><think>b</think><answer>7</answer>", 0),
        ("<think>a</think><answer>7</answer><answer>8</answer>", 0),
        ("<think>a<think>b</think><answer>7</answer>", 0),
        ("<think>a</think><answer>7", 0),
        ("x <think>a</think><answer>7</answer>", 0),
        ("", 0),
    ],
)
def test_the_default_format_is_a_thought_then_an_answer_each_once(
    completion: str, expected: float
) -> None:
    assert score(FormatMatch(), completion) == expected


def test_a_pattern_matches_the_complete_completion_or_with_search_any_part() -> None:
    assert score(FormatMatch(r"a.b"), " a\nb ") == 1
    assert score(FormatMatch(r"a.b"), "xa b") == 0
    assert score(FormatMatch(r"a.b", search=True), "xa b") == 1


def test_a_pattern_must_be_a_regular_expression() -> None:
    with pytest.raises(ValueError, match=r"pattern is '\(', which is not a regular expression"):
        FormatMatch("(")


def test_a_format_is_matched_in_another_process() -> None:
    with RewardPool(FormatMatch(r"a+"), workers=1) as pool:
        assert pool(["p"] * 2, ["aa", "ab"]) == [1, 0]
