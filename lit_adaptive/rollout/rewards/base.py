"""The interface of rewards, and the check of what they return.

A reward scores a batch, in TRL's signature: ``reward(prompts=..., completions=..., **columns)``
returns a number for each completion, or None where it does not apply. ``columns`` holds the
dataset's other columns, such as the right ``answer``, each a list of the same length, and
``completion_ids``, the tokens of each completion with the one that ends it. Of TRL's arguments,
``trainer_state``, ``log_extra``, ``log_metric`` and ``environments`` are not passed, and prompts
and completions are texts in conversations too, as the chat template renders them.
"""

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from types import MappingProxyType
from typing import Any, TypeAlias

# float32 rounds anything from here on to infinity.
_FLOAT32_OVERFLOW = 2.0**128 - 2.0**103
COMPLETION_IDS = "completion_ids"
RESERVED_COLUMNS = ("prompts", "completions", "self", COMPLETION_IDS)
"""Names of a reward's arguments that columns of a dataset must not have."""

Extras: TypeAlias = dict[str, list[float | None]]


class Reward(ABC):
    """A score for each completion; ``None`` where the reward does not apply.

    Attributes:
        extras: further numbers of the last call to log, by name: lists as long as the completions,
            of numbers and None.
        in_process: True to stay in the calling process, as a model that holds a device must.
    """

    extras: Mapping[str, list[float | None]] = MappingProxyType({})
    in_process: bool = False

    def prepare(self) -> None:  # noqa: B027
        """Load what the first call would load; called once by each pool, before its workers."""

    @abstractmethod
    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        """Return a finite number, or None, for each completion.

        Args:
            prompts: one for each completion.
            completions: generated texts, without the prompt.
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
        """Return 1.0, 0.0 or None for each completion."""
        answers = require_column(columns, self.column, self)
        return [self._score(*pair) for pair in zip(completions, answers, strict=True)]

    @abstractmethod
    def _score(self, completion: str, answer: Any) -> float | None: ...


def reward_name(reward: Reward) -> str:
    """Name of a reward in errors: the path of its function, or its class."""
    return str(getattr(reward, "path", type(reward).__name__))


def require_column(columns: Mapping[str, list[Any]], name: str, reward: Reward) -> list[Any]:
    """Return the column ``name``.

    Raises:
        ValueError: if it is missing; names the reward that needs it.
    """
    if name not in columns:
        raise ValueError(
            f"{type(reward).__name__} needs the column {name!r}, and the dataset offers "
            f"{', '.join(sorted(columns)) or 'none beside prompt and completion'}: name its "
            "column of answers (column: ...)"
        )
    return columns[name]


def resolve_awaitable(value: Any) -> Any:
    """Return ``value``, or its result if it is awaitable, even within a running event loop."""
    if not inspect.isawaitable(value):
        return value
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_wait_for(value))
    with ThreadPoolExecutor(1) as thread:  # a notebook runs an event loop in this thread
        return thread.submit(asyncio.run, _wait_for(value)).result()


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class RewardOutputError(ValueError):
    """The output of a reward is not a list with one entry for each completion."""


def call_reward(
    reward: Reward, prompts: list[str], completions: list[str], columns: Mapping[str, list[Any]]
) -> tuple[list[float | str | None], Extras]:
    """Call a reward once, and convert its output to plain values that ``split_invalid`` checks.

    Returns:
        For each completion a float, None, or the description of a value of another type; and the
        reward's extras.

    Raises:
        RewardOutputError: if the output is not a list of the right length.
        ValueError: if a list in ``extras`` has another length.
    """
    output: Any = resolve_awaitable(reward(prompts=prompts, completions=completions, **columns))
    if hasattr(output, "tolist"):  # a tensor or an array, without an import of torch
        output = output.tolist()
    if not isinstance(output, list | tuple):
        raise RewardOutputError(
            f"gave a {type(output).__name__}; it must give a list with a number or None for each "
            "completion"
        )
    values: list[Any] = [*output]  # a list of its own class may lie about its length
    if len(values) != len(completions):
        raise RewardOutputError(f"gave {len(values)} numbers for {len(completions)} completions")
    extras = {
        name: [None if number is None else float(number) for number in numbers]
        for name, numbers in reward.extras.items()
    }
    for name, numbers in extras.items():
        if len(numbers) != len(values):
            raise ValueError(
                f"gave {len(numbers)} of {name!r} in extras for {len(values)} completions"
            )
    return [_plain_value(value) for value in values], extras


def _plain_value(value: Any) -> float | str | None:
    size = value.numel() if hasattr(value, "numel") else getattr(value, "size", 0)
    if hasattr(value, "item") and size == 1:  # a tensor or array of one number
        value = value.item()
    if value is None:
        return None
    try:
        if isinstance(value, Real):
            return float(value)
        text = repr(value)
    except Exception:
        text = "which cannot be shown"
    return f"a {type(value).__name__}, {text if len(text) <= 60 else text[:57] + '...'}"


def split_invalid(
    values: Sequence[float | str | None],
) -> tuple[list[float | None], dict[int, str]]:
    """Separate valid rewards from invalid ones.

    Args:
        values: as ``call_reward`` returns them.

    Returns:
        Numbers that are finite in float32, and None; and by position the values that are neither,
        for which the first list has None.
    """
    invalid = {
        position: str(value)
        for position, value in enumerate(values)
        if not (
            value is None
            or (isinstance(value, int | float) and abs(value) < _FLOAT32_OVERFLOW)  # not NaN
        )
    }
    valid = [
        None if value is None or position in invalid else float(value)
        for position, value in enumerate(values)
    ]
    return valid, invalid
