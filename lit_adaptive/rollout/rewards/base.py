"""Rewards: what a completion of a prompt is worth.

A reward is asked about a batch, in TRL's signature: ``reward(prompts=..., completions=...,
**columns)`` gives a number for each completion, or None where it does not apply. ``columns`` holds
the dataset's other columns, such as the right ``answer``, each a list of the same length.
"""

import asyncio
import importlib
import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from numbers import Real
from types import MappingProxyType
from typing import Any

_SIGN = "\N{MINUS SIGN}-"  # in this order inside brackets
_NUMBER = re.compile(
    rf"(?:(?<![\w.,)])[+{_SIGN}])?"  # a sign, but not the minus of 5-3
    r"[$€£]?"
    r"((?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+)"
    r"((?:[eE][+-]?\d+)?)"
)
_MARK = re.compile(r"####\s*(?=[$€£.\d+" + _SIGN + "])")  # GSM8K's mark of the final answer


class Reward(ABC):
    """What completions are worth; ``None`` for one that this reward does not apply to.

    Attributes:
        extras: what else was found at the last call, by name: lists as long as the completions, of
            numbers and None. They are logged, and change nothing.
        in_process: stays in the process that asks, as a model does that holds a device.
    """

    extras: Mapping[str, list[float | None]] = MappingProxyType({})
    in_process: bool = False

    def prepare(self) -> None:  # noqa: B027
        """Load what the first call would load; asked once in each pool, before its workers."""

    @abstractmethod
    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        """A finite number, or None, for each completion.

        Args:
            prompts: one for each completion.
            completions: what was written, without the prompt.
            columns: the dataset's other columns, each as long.
        """


class AnswerReward(Reward):
    """Compares each completion with the answer in its row."""

    column: str

    def __call__(
        self,
        prompts: list[str],  # noqa: ARG002
        completions: list[str],
        **columns: list[Any],
    ) -> list[float | None]:
        """1.0 or 0.0 for each completion, or None."""
        answers = asked_column(columns, self.column, self)
        return [self._one(*pair) for pair in zip(completions, answers, strict=True)]

    @abstractmethod
    def _one(self, completion: str, answer: Any) -> float | None: ...


class ExactMatch(AnswerReward):
    """1 where the completion is the answer, else 0; spaces at the ends do not count.

    Args:
        column: holds the answers. None is an answer that is not known: the reward does not apply.
    """

    def __init__(self, column: str = "answer") -> None:
        self.column = column

    def _one(self, completion: str, answer: Any) -> float | None:
        return None if answer is None else float(completion.strip() == str(answer).strip())


class NumericMatch(AnswerReward):
    """1 where the completion's final number is the answer's, else 0.

    The final number is the one after GSM8K's mark ``####``, or else the last in the text. Thousands
    separators (``1,234``), currency signs and exponents are understood. A completion without a
    number is worth 0; where the answer has none, the reward does not apply.

    Args:
        column: holds the answers: numbers or texts.
        tolerance: how far apart equal numbers may be, relative to the greater or absolute; not
            negative.

    Raises:
        ValueError: if ``tolerance`` is negative or not finite.
    """

    def __init__(self, column: str = "answer", tolerance: float = 1e-6) -> None:
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance is {tolerance}; it must not be negative, and finite")
        self.column = column
        self.tolerance = tolerance

    def _one(self, completion: str, answer: Any) -> float | None:
        right = None if answer is None else final_number(str(answer))
        if right is None:
            return None
        found = final_number(completion)
        if found is None:
            return 0.0
        near = math.isclose(found, right, rel_tol=self.tolerance, abs_tol=self.tolerance)
        return float(near)


def final_number(text: str) -> float | None:
    """The number after the last ``####``, or else the last in ``text``; None if there is none."""
    marks = list(_MARK.finditer(text))
    found = _NUMBER.match(text, marks[-1].end()) if marks else None
    if found is None:
        for found in _NUMBER.finditer(text):  # noqa: B007  the last
            pass
    if found is None:
        return None
    number = float(found[1].replace(",", "") + found[2])
    if not math.isfinite(number):
        return None
    return -number if found[0][0] in _SIGN else number


class FunctionReward(Reward):
    """Your own function, by its name. It may take only those columns that it cares for.

    Args:
        path: of the function, such as ``my_package.rewards.length``; it is called with
            ``prompts``, ``completions`` and the columns by name, as TRL calls its own. An
            ``async def`` is awaited.

    Raises:
        ValueError: if there is no such function.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.function = imported_function(path)
        kinds = inspect.signature(self.function).parameters
        everything = any(each.kind is each.VAR_KEYWORD for each in kinds.values())
        self._wanted = None if everything else frozenset(kinds)

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        """What the function says."""
        given = {"prompts": prompts, "completions": completions, **columns}
        if self._wanted is not None:
            given = {name: value for name, value in given.items() if name in self._wanted}
        found: list[float | None] = awaited(self.function(**given))
        return found


def awaited(found: Any) -> Any:
    """``found``, or what it comes to if it is awaitable, even within a running event loop."""
    if not inspect.isawaitable(found):
        return found
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_of(found))
    with ThreadPoolExecutor(1) as elsewhere:  # a notebook has a loop of its own
        return elsewhere.submit(asyncio.run, _of(found)).result()


async def _of(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def imported_function(path: str) -> Callable[..., Any]:
    """What ``path`` names, such as ``package.module.function``.

    Raises:
        ValueError: if there is no such module, or nothing callable of this name in it.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ValueError(
            f"path is {path!r}; a function is named with its module: package.module.function"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"path is {path!r}, but there is no module {error.name!r}: write it as in an import, "
            "and run where it can be imported"
        ) from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        near = get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near and function is None else ""
        what = "no" if function is None else "nothing callable named"
        raise ValueError(f"path is {path!r}, but {module_name} has {what} {name!r}{hint}")
    return function  # type: ignore[no-any-return]


def checked_rewards(
    reward: Reward,
    prompts: list[str],
    completions: list[str],
    columns: dict[str, list[Any]],
    *,
    names: Sequence[Any] | None = None,
) -> list[float | None]:
    """What ``reward`` gives, if it is a finite number or None for each completion.

    Args:
        reward: asked once, about all of them.
        prompts: one for each completion.
        completions: at least one.
        columns: further columns by name, each as long.
        names: what errors call the samples; by default their places.

    Returns:
        Floats and None, in the order of ``completions``.

    Raises:
        ValueError: naming the reward, and how many numbers it gave, or which samples got something
            that is no number, NaN or infinite.
    """
    found: Any = reward(prompts=prompts, completions=completions, **columns)
    name = getattr(reward, "path", type(reward).__name__)
    if hasattr(found, "tolist"):  # a tensor or an array; to import torch for it would take seconds
        found = found.tolist()
    if not isinstance(found, list | tuple):
        raise ValueError(
            f"the reward {name} gave a {type(found).__name__}; it must give a list with a number "
            "or None for each completion"
        )
    if len(found) != len(completions):
        raise ValueError(
            f"the reward {name} gave {len(found)} numbers for {len(completions)} completions: "
            "give one for each, or None where it does not apply"
        )
    values = [plain_number(value) for value in found]
    names = range(len(values)) if names is None else names
    strange = [k for k, value in enumerate(values) if not isinstance(value, Real | None)]
    if strange:
        kinds = sorted({type(values[k]).__name__ for k in strange})
        raise ValueError(
            f"the reward {name} gave {', '.join(kinds)} for the samples "
            f"{[names[k] for k in strange[:8]]}; a reward is a number, or None where it does not "
            "apply"
        )
    rewards = [None if value is None else float(value) for value in values]
    wrong = [k for k, value in enumerate(rewards) if value is not None and not math.isfinite(value)]
    if wrong:
        raise ValueError(
            f"the reward {name} gave {[rewards[k] for k in wrong[:8]]} for the samples "
            f"{[names[k] for k in wrong[:8]]}; a reward is finite: give None where it does not "
            "apply"
        )
    return rewards


def plain_number(value: Any) -> Any:
    """A tensor or array of one number as this number; anything else as it is."""
    size = value.numel() if hasattr(value, "numel") else getattr(value, "size", 0)
    return value.item() if hasattr(value, "item") and size == 1 else value


def asked_column(columns: dict[str, list[Any]], name: str, asker: Reward) -> list[Any]:
    """The column ``name``, or a ValueError that says who needs it."""
    if name not in columns:
        raise ValueError(
            f"{type(asker).__name__} needs the column {name!r}, and the dataset offers "
            f"{', '.join(sorted(columns)) or 'none beside prompt and completion'}: name its "
            "column of answers (column: ...)"
        )
    return columns[name]
