"""reasoning-gym's own scorers as a reward, and its metadata as text."""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from lit_adaptive.rollout.rewards.base import Reward, asked_column


class ReasoningGym(Reward):
    """What reasoning-gym's own scorer gives for an answer, in [0, 1].

    The rows are those of ``ReasoningTask``, or others with reasoning-gym's metadata. Needs
    ``pip install lit-adaptive[text]``.

    Args:
        column: holds reasoning-gym's own answers, or None for a task that has several right ones.
        metadata: column of each question's metadata, a dictionary or JSON text. It names the task
            (``source_dataset``), and may hold the task's settings (``task_config``).
        tag: the completion's answer is what stands in the last ``<answer>...</answer>``; None: all
            of it.
        strict: without these tags a completion is worth 0. Else all of it is its answer.

    Raises:
        ModuleNotFoundError: when asked, if reasoning-gym is not installed.
        ValueError: when asked, if the metadata do not name a task that there is.
    """

    def __init__(
        self,
        column: str = "answer",
        metadata: str = "metadata",
        tag: str | None = "answer",
        strict: bool = False,
    ) -> None:
        self.column = column
        self.metadata = metadata
        self.tag = tag
        self.strict = strict

    def prepare(self) -> None:
        """Load the package, which takes seconds."""
        load_reasoning_gym()

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        """A number in [0, 1] for each completion, or None without metadata."""
        answers = asked_column(columns, self.column, self)
        metadata = asked_column(columns, self.metadata, self)
        rows = zip(prompts, completions, answers, metadata, strict=True)
        return [self._one(*row) for row in rows]

    def _one(self, prompt: str, completion: str, answer: Any, metadata: Any) -> float | None:
        if metadata is None:
            return None
        known = dict(unpacked(metadata) if isinstance(metadata, str) else metadata)
        settings = known.pop("task_config", {})
        task = known.get("source_dataset")
        if not isinstance(task, str):
            raise ValueError(
                f"the column {self.metadata!r} has {sorted(known)} but no source_dataset, which "
                "names the task; read the questions with lit_adaptive.data.ReasoningTask"
            )
        entry = {"question": prompt, "answer": answer, "metadata": known}
        scorer = _scorer(task, packed(settings))
        return float(scorer(self._answer(completion), entry))

    def _answer(self, completion: str) -> str | None:
        if self.tag is None:
            return completion.strip()
        tag = re.escape(self.tag)
        found = re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", completion, re.DOTALL)
        if found:
            return str(found[-1]).strip()
        return None if self.strict else completion.strip()


def load_reasoning_gym() -> Any:
    """The package.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Its tasks need the package reasoning-gym: pip install 'lit-adaptive[text]'"
        ) from error
    return reasoning_gym


@lru_cache(256)
def _scorer(task: str, settings: str) -> Callable[[str | None, dict[str, Any]], float]:
    scorer: Callable[[str | None, dict[str, Any]], float]
    scorer = load_reasoning_gym().create_dataset(task, **unpacked(settings)).score_answer
    return scorer


def packed(value: Any) -> str:
    """As JSON, tuples and dictionaries of any keys included; ``unpacked`` gives the same again."""
    return json.dumps(_plain(value))


def unpacked(text: str) -> Any:
    """What ``packed`` packed; other JSON as it is."""
    return json.loads(text, object_hook=_rebuilt)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"__tuple__": [_plain(each) for each in value]}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        if all(isinstance(name, str) for name in value):
            return {name: _plain(each) for name, each in value.items()}
        return {"__items__": [[_plain(name), _plain(each)] for name, each in value.items()]}
    return value


def _rebuilt(found: dict[str, Any]) -> Any:
    if found.keys() == {"__tuple__"}:
        return tuple(found["__tuple__"])
    return dict(found["__items__"]) if found.keys() == {"__items__"} else found
