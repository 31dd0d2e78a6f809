"""Rewards that ship: of sums, mathematics, reasoning tasks, form and length; and verl's functions.

None of them loads its packages before it is asked. What a package takes long for, or crashes on, is
for the ``RewardPool`` to end.
"""

import asyncio
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from numbers import Real
from pathlib import Path
from typing import Any, Literal, cast

from lit_adaptive.rollout.rewards.base import (
    AnswerReward,
    NumericMatch,
    Reward,
    asked_column,
    awaited,
    imported_function,
)
from lit_adaptive.rollout.rewards.reasoning_gym import ReasoningGym

__all__ = [
    "FormatMatch",
    "GSM8KMatch",
    "LengthPenalty",
    "MathVerify",
    "ReasoningGym",
    "VerlReward",
    "last_boxed",
]

_MARKED = re.compile(r"####([^\n]*)")
_THINK_THEN_ANSWER = r"<think>(?:(?!</?think>).)*</think>\s*<answer>(?:(?!</?answer>).)*</answer>"


class GSM8KMatch(NumericMatch):
    """1 where the number after GSM8K's mark ``####`` is the answer's, else 0.

    Cobbe et al. (2021, arXiv:2110.14168): a solution ends with a line ``#### 72``.

    Args:
        column: holds the answers: numbers, or texts with a final number (whole solutions too).
        tolerance: how far apart equal numbers may be, relative to the greater or absolute.
        strict: the completion must have the mark, and a number behind it. Else, without it, its
            last number counts.
    """

    def __init__(
        self, column: str = "answer", tolerance: float = 1e-6, strict: bool = True
    ) -> None:
        super().__init__(column, tolerance)
        self.strict = strict

    def _one(self, completion: str, answer: Any) -> float | None:
        if self.strict:
            marked = _MARKED.findall(completion)
            completion = f"#### {marked[-1]}" if marked else ""
        return super()._one(completion, answer)


class MathVerify(AnswerReward):
    r"""1 where the completion's answer equals the right one as mathematics, else 0.

    By the package math-verify, as most papers on reasoning do: ``\frac{1}{2}``, ``0.5`` and ``1/2``
    are equal. Its own time-outs are off, since they need the main thread: put it in a
    ``RewardPool``, which kills what hangs. Needs ``pip install lit-adaptive[math]``.

    Args:
        column: holds the answers, in LaTeX or plain, with or without ``$`` or ``\boxed``. Where one
            cannot be understood, or is None, the reward does not apply.
        boxed: only what stands in ``\boxed{...}`` counts; else also the last formula or number.
        precision: decimal places in which numbers are compared, not negative.

    Raises:
        ModuleNotFoundError: when asked, if math-verify is not installed.
        ValueError: if ``precision`` is negative.
    """

    def __init__(self, column: str = "answer", boxed: bool = False, precision: int = 6) -> None:
        if precision < 0:
            raise ValueError(f"precision is {precision}; it must not be negative")
        self.column = column
        self.boxed = boxed
        self.precision = precision

    def prepare(self) -> None:
        """Load the package, and let it build its tables."""
        self._one(r"\boxed{\frac{1}{2}}", r"\frac{2}{4}")

    def _one(self, completion: str, answer: Any) -> float | None:
        right = () if answer is None else _right_answer(str(answer))
        if not right:
            return None
        if self.boxed:
            inside = last_boxed(completion)
            if inside is None:
                return 0.0
            completion = rf"\boxed{{{inside}}}"
        package = _math_verify()
        found = package.parse(completion, parsing_timeout=None)
        equal = package.verify(
            list(right), found, float_rounding=self.precision, timeout_seconds=None
        )
        return float(bool(equal))


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}`` whose braces match; None without one."""
    for start in reversed([found.end() for found in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for at in range(start, len(text)):
            depth += (text[at] == "{") - (text[at] == "}")
            if depth == 0:
                return text[start:at]
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
def _right_answer(answer: str) -> tuple[Any, ...]:
    """What an answer may mean; nothing if it cannot be understood."""
    parse = _math_verify().parse
    marked = "$" in answer or r"\boxed" in answer
    found = parse(answer if marked else f"${answer}$", parsing_timeout=None)
    return tuple(found or parse(answer, parsing_timeout=None))


class FormatMatch(Reward):
    """1 where the completion has the form that a regular expression tells, else 0.

    Args:
        pattern: of the whole completion but for spaces at its ends; a dot matches line ends too. By
            default ``<think>...</think> <answer>...</answer>``, each once and in this order
            (DeepSeek-AI 2025, arXiv:2501.12948, section 2.2.2).
        search: it is enough that the pattern is found somewhere.

    Raises:
        ValueError: if ``pattern`` is no regular expression.
    """

    def __init__(self, pattern: str = _THINK_THEN_ANSWER, search: bool = False) -> None:
        try:
            self._compiled = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(
                f"pattern is {pattern!r}, which is no regular expression: {error}"
            ) from error
        self.pattern = pattern
        self.search = search

    def __call__(
        self,
        prompts: list[str],  # noqa: ARG002
        completions: list[str],
        **columns: list[Any],  # noqa: ARG002
    ) -> list[float | None]:
        """1.0 or 0.0 for each completion."""
        match = self._compiled.search if self.search else self._compiled.fullmatch
        return [float(match(completion.strip()) is not None) for completion in completions]


class LengthPenalty(Reward):
    """0 up to a length that is free, then falling linearly to -1, which longer ones get too.

    Args:
        free: characters or tokens that cost nothing, not negative.
        limit: from here on it is -1; above ``free``.
        unit: ``characters``, or ``tokens``, which the column tells.
        column: the tokens of each completion, or how many they are; TRL's name for them.

    Raises:
        ValueError: if ``free`` is negative, ``limit`` is not above it, or ``unit`` is unknown.
    """

    def __init__(
        self,
        free: int,
        limit: int,
        unit: Literal["characters", "tokens"] = "characters",
        column: str = "completion_ids",
    ) -> None:
        if not 0 <= free < limit:
            raise ValueError(
                f"free is {free}, limit is {limit}; free must not be negative, and limit above it"
            )
        if unit not in ("characters", "tokens"):
            raise ValueError(f"unit is {unit!r}; it must be 'characters' or 'tokens'")
        self.free = free
        self.limit = limit
        self.unit = unit
        self.column = column

    def __call__(
        self,
        prompts: list[str],  # noqa: ARG002
        completions: list[str],
        **columns: list[Any],
    ) -> list[float | None]:
        """A number in [-1, 0] for each completion."""
        counted = (
            completions if self.unit == "characters" else asked_column(columns, self.column, self)
        )
        lengths = [each if isinstance(each, int) else len(each) for each in counted]
        width = self.limit - self.free
        return [-min(1.0, max(0.0, (length - self.free) / width)) for length in lengths]


class VerlReward(Reward):
    """A reward function of verl: one sample at a time.

    It is called as ``compute_score(data_source=, solution_str=, ground_truth=, extra_info=)`` and
    gives a number, or a dictionary with ``score``, whose other numbers are logged, or a tuple whose
    first is the score. An ``async def`` is awaited.

    Args:
        path: of the function: ``package.module.compute_score``, or ``folder/file.py:compute_score``
            as verl has it.
        ground_truth: column of right answers.
        data_source: column that names the data set; without such a column it is an empty string.
        extra_info: column of dictionaries, or of JSON; without such a column it is None.
        keywords: further arguments of the function, the same at every call.

    Raises:
        ValueError: if there is no such function.
    """

    def __init__(
        self,
        path: str,
        ground_truth: str = "answer",
        data_source: str = "data_source",
        extra_info: str = "extra_info",
        keywords: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.function = _function_of_file(path) if ".py:" in path else imported_function(path)
        self.ground_truth = ground_truth
        self.data_source = data_source
        self.extra_info = extra_info
        self.keywords = keywords or {}

    def __call__(
        self,
        prompts: list[str],  # noqa: ARG002
        completions: list[str],
        **columns: list[Any],
    ) -> list[float | None]:
        """The score of each completion, None where the function gives None."""
        right = asked_column(columns, self.ground_truth, self)
        sources = columns.get(self.data_source, [""] * len(completions))
        extra = columns.get(self.extra_info, [None] * len(completions))
        found = [
            self.function(
                data_source=source,
                solution_str=completion,
                ground_truth=answer,
                extra_info=json.loads(info) if isinstance(info, str) else info,
                **self.keywords,
            )
            for source, completion, answer, info in zip(
                sources, completions, right, extra, strict=True
            )
        ]
        if inspect.iscoroutinefunction(self.function):
            found = awaited(_together(found))
        scores: list[float | None] = []
        extras: dict[str, list[float | None]] = {}
        for at, each in enumerate(found):
            score, others = self._read(each)
            scores.append(score)
            for name, value in others.items():
                extras.setdefault(name, [None] * len(completions))[at] = value
        self.extras = extras
        return scores

    def __getstate__(self) -> dict[str, Any]:
        """In another process a file's function is loaded again."""
        kept = dict(vars(self))
        if ".py:" in self.path:
            del kept["function"]
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if "function" not in state:
            self.function = _function_of_file(self.path)

    def _read(self, found: Any) -> tuple[float | None, Mapping[str, float]]:
        if isinstance(found, dict):
            known = cast("dict[str, Any]", found)
            if "score" not in known:
                raise ValueError(
                    f"{self.path} gave a dictionary of {sorted(known)}; it must have a 'score'"
                )
            others = {
                name: float(value)
                for name, value in known.items()
                if name != "score" and isinstance(value, Real) and math.isfinite(value)
            }
            return known["score"], others
        return (found[0] if isinstance(found, tuple | list) else found), {}


async def _together(found: list[Any]) -> list[Any]:
    return list(await asyncio.gather(*found))


def _function_of_file(path: str) -> Callable[..., Any]:
    file, _, name = path.rpartition(":")
    if not Path(file).is_file():
        raise ValueError(f"path is {path!r}, but there is no file {file!r}")
    spec = spec_from_file_location(f"_verl_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"path is {path!r}, but {file} has nothing callable named {name!r}")
    return cast("Callable[..., Any]", function)
