"""reasoning-gym's own scorers as a reward, and its metadata as JSON."""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from lit_adaptive.rollout.rewards.base import Reward, require_column


class ReasoningGym(Reward):
    """The score of reasoning-gym's own scorer, in [0, 1].

    The rows are those of ``ReasoningTask``, or others with reasoning-gym's metadata. Needs
    ``pip install lit-adaptive[text]``.

    Args:
        column: column of reasoning-gym's own answers; None for a task with several right ones.
        metadata: column of each question's metadata, a dictionary or JSON. It names the task
            (``source_dataset``), and may hold the task's settings (``task_config``).
        tag: name of the tag around the answer: the last ``<answer>...</answer>`` counts; None to
            take the complete completion as the answer.
        strict: True to score a completion without the tag 0; False to take all of it as the answer.

    Raises:
        ModuleNotFoundError: when called, if reasoning-gym is not installed.
        ValueError: when called, if the metadata name no known task.
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
        """Return a number in [0, 1] for each completion, or None without metadata."""
        answers = require_column(columns, self.column, self)
        metadata = require_column(columns, self.metadata, self)
        rows = zip(prompts, completions, answers, metadata, strict=True)
        return [self._score(*row) for row in rows]

    def _score(self, prompt: str, completion: str, answer: Any, metadata: Any) -> float | None:
        if metadata is None:
            return None
        fields = dict(unpack_metadata(metadata) if isinstance(metadata, str) else metadata)
        settings = fields.pop("task_config", {})
        task = fields.get("source_dataset")
        if not isinstance(task, str):
            raise ValueError(
                f"the column {self.metadata!r} has {sorted(fields)} but no source_dataset, which "
                "names the task; read the questions with lit_adaptive.data.ReasoningTask"
            )
        entry = {"question": prompt, "answer": answer, "metadata": fields}
        scorer = _scorer(task, pack_metadata(settings))
        return float(scorer(self._extract_answer(completion), entry))

    def _extract_answer(self, completion: str) -> str | None:
        if self.tag is None:
            return completion.strip()
        tag = re.escape(self.tag)
        answers = re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", completion, re.DOTALL)
        if answers:
            return str(answers[-1]).strip()
        return None if self.strict else completion.strip()


def load_reasoning_gym() -> Any:
    """Import reasoning-gym.

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
    dataset = load_reasoning_gym().create_dataset(task, **unpack_metadata(settings))
    scorer: Callable[[str | None, dict[str, Any]], float] = dataset.score_answer
    return scorer


def pack_metadata(value: Any) -> str:
    """Write JSON that keeps tuples and dictionaries with any keys; see ``unpack_metadata``."""
    return json.dumps(_encoded(value))


def unpack_metadata(text: str) -> Any:
    """Read what ``pack_metadata`` wrote, or any other JSON."""
    return json.loads(text, object_hook=_decoded)


def _encoded(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"__tuple__": [_encoded(item) for item in value]}
    if isinstance(value, list):
        return [_encoded(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(name, str) for name in value):
            return {name: _encoded(item) for name, item in value.items()}
        return {"__items__": [[_encoded(name), _encoded(item)] for name, item in value.items()]}
    return value


def _decoded(value: dict[str, Any]) -> Any:
    if value.keys() == {"__tuple__"}:
        return tuple(value["__tuple__"])
    return dict(value["__items__"]) if value.keys() == {"__items__"} else value
