"""Rewards that compare mathematical expressions."""

import re
from functools import lru_cache
from importlib import import_module
from typing import Any

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.rollout.rewards.base import AnswerReward


class MathVerify(AnswerReward):
    r"""1 where the completion's answer equals the right one as mathematics, else 0.

    By the package math-verify, as most papers on reasoning do: ``\frac{1}{2}``, ``0.5`` and ``1/2``
    are equal. Its own time-outs are off, since they need the main thread: put it in a
    ``RewardPool``, which kills it instead. Needs ``pip install lit-adaptive[math]``.

    Args:
        column: column of answers, in LaTeX or plain, with or without ``$`` or ``\boxed``. Where one
            is None or cannot be parsed, the reward does not apply.
        boxed: True to accept only the content of ``\boxed{...}``; False to accept the last formula
            or number too.
        precision: decimal places in which numbers are compared, not negative.

    Raises:
        ModuleNotFoundError: when called, if math-verify is not installed.
        ValueError: if ``precision`` is negative.
    """

    def __init__(self, column: str = "answer", boxed: bool = False, precision: int = 6) -> None:
        check_at_least(100, precision=(precision, 0))
        self.column = column
        self.boxed = boxed
        self.precision = precision

    def prepare(self) -> None:
        """Load the package, and let it build its tables."""
        self._score(r"\boxed{\frac{1}{2}}", r"\frac{2}{4}")

    def _score(self, completion: str, answer: Any) -> float | None:
        expected = () if answer is None else _parsed_answer(str(answer))
        if not expected:
            return None
        if self.boxed:
            content = last_boxed(completion)
            if content is None:
                return 0.0
            completion = rf"\boxed{{{content}}}"
        package = _math_verify()
        parsed = package.parse(completion, parsing_timeout=None)
        equal = package.verify(
            list(expected), parsed, float_rounding=self.precision, timeout_seconds=None
        )
        return float(bool(equal))


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{...}`` with balanced braces; None without one."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[start:end]
    return None


@lru_cache(1)
def _math_verify() -> Any:
    try:
        import math_verify  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "MathVerify needs the package math-verify: pip install 'lit-adaptive[math]'"
        ) from error
    for name in ("parser", "grader"):  # each would warn that its time-out is off
        setattr(import_module(f"math_verify.{name}"), "TIMEOUT_WARNING_SHOWN", True)  # noqa: B010
    return math_verify


@lru_cache(4096)  # a prompt has several completions
def _parsed_answer(answer: str) -> tuple[Any, ...]:
    """Return the parsed forms of an answer; empty if it cannot be parsed."""
    parse = _math_verify().parse
    marked = "$" in answer or r"\boxed" in answer
    parsed = parse(answer if marked else f"${answer}$", parsing_timeout=None)
    return tuple(parsed or parse(answer, parsing_timeout=None))
