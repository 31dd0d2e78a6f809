"""Rewards that compare texts, numbers and formats."""

import math
import time
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
        ("the numbers 1, 2, 3", 3),
        ("x=-3", -3),
        ("\N{MINUS SIGN}7", -7),
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
    read = final_number(text)
    assert (read and read.value) == number


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "is {}.", "1 or #### {:,}!"]))
def test_an_integer_is_read_back_in_every_notation(number: int, form: str) -> None:
    read = final_number(form.format(number))
    assert read is not None
    assert read.value == number


def test_numeric_match_compares_final_numbers_and_needs_an_answer_with_a_number() -> None:
    reward = NumericMatch()
    answers = ["#### 1,000", 1000, "a thousand", None, 1000.0]
    completions = ["it is 1000.", "999.9", "1000", "1000", "no idea"]
    assert reward([""] * 5, completions, answer=answers) == [1, 0, None, None, 0]


def test_numeric_match_accepts_differences_up_to_its_tolerance() -> None:
    reward = NumericMatch(tolerance=0.01)
    assert reward([""] * 4, ["0.749", "0.75", "0.77", "1.01"], answer=[0.75] * 4) == [1, 1, 0, 0]
    assert reward([""] * 2, ["99.995", "99.5"], answer=[100, 100]) == [1, 0]
    assert NumericMatch(tolerance=5)([""] * 2, ["99", "4/5"], answer=[100, "3/4"]) == [0, 0]
    assert NumericMatch(tolerance=0.0)([""] * 2, ["0.1", "0.1000001"], answer=[0.1, 0.1]) == [1, 0]


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_is_finite_and_not_negative(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance is"):
        NumericMatch(tolerance=tolerance)


# Completion, answer, whether they state the same number: by hand.
MATCHES: list[tuple[str, Any, bool]] = [
    # Whole numbers are equal or not, however large.
    ("#### 1000000", "1000000", True),
    ("#### 1000001", "1000000", False),
    ("#### 1000001.0", "1000000", False),
    ("#### 1000000.0", "1000000", True),
    ("#### 1000000.5", "1000000", False),
    ("#### 12345678901234567890", "12345678901234567891", False),
    ("#### 12345678901234567890", "12345678901234567890", True),
    ("9007199254740993", "9007199254740992", False),  # equal as floats
    ("so 99999999", 100000000, False),
    ("0", "1", False),
    ("-0", "0", True),
    ("007", "7", True),
    ("+4", "4", True),
    # Signs.
    ("-5", "5", False),
    ("x = -5", "-5", True),
    ("x = - 5", "-5", True),
    ("#### - 5", "-5", True),
    ("\N{MINUS SIGN}5", "-5", True),
    ("\N{EN DASH}5", "-5", True),
    ("-$5", "-5", True),
    ("$-5", "-5", True),
    ("- 5 apples", "5", True),  # an item of a list
    ("GPT-4", "4", True),
    # Separators of thousands.
    ("1,000", "1000", True),
    ("1{,}000", "1000", True),
    ("1000", "1{,}000", True),
    (r"1\,000", "1000", True),
    ("1 000 000", "1000000", True),
    ("1\N{NARROW NO-BREAK SPACE}000", "1000", True),
    ("1'000", "1000", True),
    ("1_000", "1000", True),
    ("12,34,567", "1234567", True),  # India
    ("1,234,567.89", "1234567.89", True),
    ("1{,}000", "0", False),
    ("1{,}000", "1", False),
    ("12,34", "34", False),
    ("1,2,3", "3", False),
    ("1, 2, 3", "3", True),
    ("1.000.000", "0", False),
    # Fractions.
    ("3/4", "3/4", True),
    ("3/4", "0.75", True),
    ("0.75", "3/4", True),
    ("3/4", "4", False),
    ("4", "3/4", False),
    ("3", "3/4", False),
    ("6/8", "3/4", True),
    ("-3/4", "-0.75", True),
    ("10 / 5", "2", True),
    (r"\frac{3}{4}", "3/4", True),
    (r"\dfrac34", "0.75", True),
    (r"-\frac{3}{4}", "-3/4", True),
    (r"\frac{-3}{4}", "-3/4", True),
    (r"\boxed{\frac{3}{4}}", "0.75", True),
    (r"\frac{3}{4}", "4", False),
    ("1 1/2", "1.5", True),
    (r"1\frac{1}{2}", "3/2", True),
    ("½", "0.5", True),
    ("2½", "5/2", True),
    ("1 1/2", "1/2", False),
    ("1/3", "0.333333", True),
    ("0.3333333333", "1/3", True),
    ("0.3333", "1/3", False),
    ("1/3", "333333/1000000", False),
    ("5/0", "0", False),
    ("6/3/2020", "2020", False),  # a date
    # Decimals.
    ("0.1", 0.1, True),
    ("0.3", 0.1 + 0.2, True),
    ("0.30001", "0.3", False),
    (".5", "0.5", True),
    ("-.5", "-0.5", True),
    ("42.", "42", True),
    ("3.140", "3.14", True),
    ("3.14", "3.1", False),
    ("3.14159", "22/7", False),
    ("0.0000001", "0.0000002", False),
    ("0.0000001", "0", False),
    ("1.6e-19", "9.1e-31", False),
    ("123456.78", "123456.79", False),
    # Powers of ten.
    ("1.5e3", "1500", True),
    ("1.5E+3", "1500", True),
    ("2e-3", "0.002", True),
    (r"2 \times 10^3", "2000", True),
    (r"2.5\cdot10^{-2}", "0.025", True),
    ("3 \N{MULTIPLICATION SIGN} 10⁸", "300000000", True),
    ("6x10^2", "600", True),
    ("10^3", "3", False),
    ("10³", "10", False),
    (r"10^{3}", "10", False),
    ("1e999999999", "1", False),
    # Equations and expressions.
    ("4*5=20", "20", True),
    ("#### 4*5=20", "20", True),
    ("#### 4*5=20", "4", False),
    ("20", "4*5=20", True),
    ("20", "#### 4*5=20", True),
    ("4", "#### 4*5=20", False),
    ("#### 20 = 4*5", "20", True),
    ("#### x = 5", "5", True),
    ("#### 3 apples + 4 apples = 7 apples", "7", True),
    ("#### 6 (= 2*3)", "6", True),
    ("#### 22/7 ≈ 3.14", "3.14", True),
    ("2+2=4.", "4", True),
    (r"$4 \cdot 5 = 20$", "20", True),
    ("#### 4*5", "4", False),
    ("4*5", "5", False),
    ("5-3", "3", False),
    ("5 - 3", "3", False),
    ("8 -3", "-3", False),
    ("3 x 4", "4", False),
    ("3(4)", "4", False),
    ("2**3", "3", False),
    ("3:4", "4", False),
    ("10:30", "30", False),
    ("2024-01-02", "2", False),
    ("2π", "2", False),
    (r"2\pi", "2", False),
    (r"\sqrt{2}", "2", False),
    (r"3\sqrt{2}", "2", False),
    (r"3\sqrt{2}", "3", False),
    ("±5", "5", False),
    (r"0.\overline{3}", "3", False),
    ("0.(3)", "3", False),
    # Units, marks and words around a number.
    ("#### $72.00", "72", True),
    (r"\$1{,}000", "1000", True),
    ("#### 72 clips", "72", True),
    ("#### **72**", "72", True),
    ("the total of 5 is **42**", "42", True),
    (r"\(x = 7\)", "7", True),
    (r"\text{Answer: } 7", "7", True),
    ("50%", "50", True),
    (r"50\%", "50", True),
    ("USD 5", "5", True),
    ("Rs.5000", "5000", True),
    ("the area is 25 m^2", "25", True),
    ("25 m²", "25", True),
    ("25 cm2", "25", True),
    ("25°", "25", True),
    ("7 g of H2O", "7", True),
    ("\N{FULLWIDTH DIGIT SEVEN}", "7", True),
    ("1) 5", "5", True),
    ("答案是5", "5", True),
    ("#### 5 ... no, #### 6", "6", True),
    ("#### 72\nCheck: 70 and 2", "72", True),
    ("#### Step 1\nso it is 72", "72", True),
    ("no number", "0", False),
    ("", "0", False),
]


@pytest.mark.parametrize(("completion", "answer", "equal"), MATCHES)
def test_numeric_match_accepts_the_same_number_only(
    completion: str, answer: Any, equal: bool
) -> None:
    assert score(NumericMatch(), completion, answer=answer) == equal
    assert score(GSM8KMatch(strict=False), completion, answer=answer) == equal
    if "#### " in completion:
        marked = completion.rsplit("#### ", 1)[1]
        assert score(GSM8KMatch(), completion, answer=answer) == (
            equal and not marked.startswith("Step")
        )


@pytest.mark.parametrize("text", sorted({text for text, _, _ in MATCHES}))
def test_completion_and_answer_are_read_alike(text: str) -> None:
    assert score(NumericMatch(), text, answer=text) in (1, None)


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "1,",
        "1 ",
        "1/",
        "1+",
        "a",
        "a1 ",
        "####",
        "#### $",
        "(",
        " ",
        "-",
        "=",
        "\\",
        r"\frac{",
        r"\US",
        "½",
        "1.",
        "$1",
        "- ",
        "**",
        "1e" + "9" * 30_000,
        "1" + " " * 30_000,
    ],
    ids=lambda text: text[:8],
)
def test_a_number_is_found_in_linear_time(text: str) -> None:
    text *= -(-30_000 // len(text))
    start = time.perf_counter()
    final_number(text)
    assert time.perf_counter() - start < 2


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
