"""Rewards that compare texts: with the answer, its final number, or a regular expression."""

import math
import re
from typing import Any

from lit_adaptive.rollout.rewards.base import AnswerReward, Reward

_SIGN = "\N{MINUS SIGN}-"  # in this order inside brackets
_NUMBER = re.compile(
    rf"(?:(?<![\w.,)])[+{_SIGN}])?"  # a sign, but not the minus of 5-3
    r"[$€£]?"
    r"((?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+)"
    r"((?:[eE][+-]?\d+)?)"
)
_MARK = re.compile(r"####\s*(?=[$€£.\d+" + _SIGN + "])")  # GSM8K's mark of the final answer
_MARKED_LINE = re.compile(r"####([^\n]*)")
_THINK_THEN_ANSWER = r"<think>(?:(?!</?think>).)*</think>\s*<answer>(?:(?!</?answer>).)*</answer>"


class ExactMatch(AnswerReward):
    """1 where the completion equals the answer, else 0; surrounding whitespace is ignored.

    Args:
        column: column of answers. Where the answer is None, the reward does not apply.
    """

    def __init__(self, column: str = "answer") -> None:
        self.column = column

    def _score(self, completion: str, answer: Any) -> float | None:
        return None if answer is None else float(completion.strip() == str(answer).strip())


class NumericMatch(AnswerReward):
    """1 where the completion's final number equals the answer's, else 0.

    The final number is the one after GSM8K's mark ``####``, or else the last in the text. Thousands
    separators (``1,234``), currency signs and exponents are understood. A completion without a
    number scores 0; where the answer has none, the reward does not apply.

    Args:
        column: column of answers, numbers or texts.
        tolerance: greatest difference between equal numbers, relative to the greater one or
            absolute; not negative.

    Raises:
        ValueError: if ``tolerance`` is negative or not finite.
    """

    def __init__(self, column: str = "answer", tolerance: float = 1e-6) -> None:
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance is {tolerance}; it must be finite and not negative")
        self.column = column
        self.tolerance = tolerance

    def _score(self, completion: str, answer: Any) -> float | None:
        expected = None if answer is None else final_number(str(answer))
        if expected is None:
            return None
        number = final_number(completion)
        if number is None:
            return 0.0
        equal = math.isclose(number, expected, rel_tol=self.tolerance, abs_tol=self.tolerance)
        return float(equal)


class GSM8KMatch(NumericMatch):
    """1 where the number after GSM8K's mark ``####`` equals the answer's, else 0.

    Cobbe et al. (2021, arXiv:2110.14168): a solution ends with a line ``#### 72``.

    Args:
        column: column of answers: numbers, or texts with a final number (complete solutions too).
        tolerance: greatest difference between equal numbers, relative to the greater one or
            absolute; not negative.
        strict: True to require the mark and a number after it; False to accept the last number of
            a completion without the mark.
    """

    def __init__(
        self, column: str = "answer", tolerance: float = 1e-6, strict: bool = True
    ) -> None:
        super().__init__(column, tolerance)
        self.strict = strict

    def _score(self, completion: str, answer: Any) -> float | None:
        if self.strict:
            marked = _MARKED_LINE.findall(completion)
            completion = f"#### {marked[-1]}" if marked else ""
        return super()._score(completion, answer)


def final_number(text: str) -> float | None:
    """Return the number after the last ``####``, or else the last in ``text``; None without one."""
    marks = list(_MARK.finditer(text))
    match = _NUMBER.match(text, marks[-1].end()) if marks else None
    if match is None:
        for match in _NUMBER.finditer(text):  # noqa: B007  the last
            pass
    if match is None:
        return None
    number = float(match[1].replace(",", "") + match[2])
    if not math.isfinite(number):
        return None
    return -number if match[0][0] in _SIGN else number


class FormatMatch(Reward):
    """1 where the completion matches a regular expression, else 0.

    Args:
        pattern: matched against the completion without surrounding whitespace; a dot matches line
            ends too. By default ``<think>...</think> <answer>...</answer>``, each once and in this
            order (DeepSeek-AI 2025, arXiv:2501.12948, section 2.2.2).
        search: True to accept a match anywhere in the completion, not only of all of it.

    Raises:
        ValueError: if ``pattern`` is not a regular expression.
    """

    def __init__(self, pattern: str = _THINK_THEN_ANSWER, search: bool = False) -> None:
        try:
            self._compiled = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(
                f"pattern is {pattern!r}, which is not a regular expression: {error}"
            ) from error
        self.pattern = pattern
        self.search = search

    def __call__(
        self,
        prompts: list[str],  # noqa: ARG002
        completions: list[str],
        **columns: list[Any],  # noqa: ARG002
    ) -> list[float | None]:
        """Return 1.0 or 0.0 for each completion."""
        match = self._compiled.search if self.search else self._compiled.fullmatch
        return [float(match(completion.strip()) is not None) for completion in completions]
