"""Answers compared as mathematics, by math-verify."""

import logging
import sys
import threading
from typing import Any

import pytest

from lit_adaptive.rollout.rewards import math
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.math import MathVerify, last_boxed
from lit_adaptive.rollout.rewards.pool import RewardPool


def score(reward: Reward, completion: str, **columns: Any) -> float | None:
    """The reward of one completion."""
    return reward(["p"], [completion], **{name: [value] for name, value in columns.items()})[0]


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"thus \boxed{\frac{1}{2}}", "0.5", 1),
        (r"thus $\dfrac12$.", r"\frac{1}{2}", 1),
        ("it is 1/2", r"\frac{1}{2}", 1),
        (r"\boxed{-\frac{1}{\sqrt{3}}}", r"-\frac{\sqrt{3}}{3}", 1),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1),
        (r"\boxed{1,234}", "1234", 1),
        (r"\boxed{x = 4}", "4", 1),
        (r"\boxed{\{2, 1\}}", r"\{1,2\}", 1),
        (r"\boxed{(1, 2)}", "(2, 1)", 0),
        (r"\boxed{3}", "4", 0),
        ("no idea", "4", 0),
        ("", "4", 0),
        (r"\boxed{", "4", 0),
        (r"\boxed{4}", "", None),
        (r"\boxed{4}", None, None),
        (r"\boxed{4}", r"$4$", 1),
        (r"\boxed{4}", r"so \boxed{4}", 1),
        (r"\boxed{4}", 4, 1),
    ],
)
def test_answers_are_compared_as_mathematics(
    completion: str, answer: Any, expected: float | None
) -> None:
    assert score(MathVerify(), completion, answer=answer) == expected


def test_boxed_accepts_only_the_last_box() -> None:
    strict = MathVerify(boxed=True)
    assert score(strict, "the answer is $4$", answer="4") == 0
    assert score(strict, r"\boxed{3}, no: \boxed{4}", answer="4") == 1
    assert score(strict, r"\boxed{4}, no: \boxed{3}", answer="4") == 0
    assert score(strict, r"\boxed{\frac{1}{2}} {", answer="0.5") == 1
    assert score(strict, r"\boxed{} and $4$", answer="4") == 0
    assert last_boxed(r"a \boxed {b{c}d} \boxed{e") == "b{c}d"
    assert last_boxed("nothing") is None


def test_precision_is_the_number_of_decimal_places_compared() -> None:
    assert score(MathVerify(precision=2), r"\boxed{3.14159}", answer="3.1416") == 1
    assert score(MathVerify(precision=6), r"\boxed{3.14159}", answer="3.1416") == 0


def test_a_negative_precision_is_rejected() -> None:
    with pytest.raises(ValueError, match="precision is -1"):
        MathVerify(precision=-1)


def test_it_runs_outside_the_main_thread_without_warnings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rewards: list[float | None] = []
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(
            target=lambda: rewards.append(score(MathVerify(), r"\boxed{1}", answer="1"))
        )
        thread.start()
        thread.join()
    assert rewards == [1]
    assert not caplog.records


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    math._math_verify.cache_clear()
    math._parsed_answer.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ModuleNotFoundError, match=r"lit-adaptive\[math\]"):
        score(MathVerify(), "1", answer="1")


def test_an_endless_computation_is_killed() -> None:
    with RewardPool(MathVerify(), timeout_s=1.5, on_error="zero", chunk=4) as pool:
        endless = r"\boxed{99999999!}"
        rewards = pool(["p"] * 3, [r"\boxed{1}", endless, r"\boxed{2}"], answer=["1", "3", "2"])
        assert rewards == [1, 0, 1]
        assert pool.timeouts == 1
