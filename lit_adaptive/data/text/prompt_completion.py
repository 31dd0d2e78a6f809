"""Split dataset rows into prompt and completion; errors name the row."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_adaptive.data.sources.columns import check_columns, check_rows
from lit_adaptive.data.sources.rows import Rows
from lit_adaptive.data.text.chat import Chat, Message, Turns
from lit_adaptive.data.text.tokenization import LengthPolicy

Batch = dict[str, list[Any]]

_PERSON = b"lit-adaptive"


@dataclass(frozen=True)
class ColumnSpec:
    """Columns of a dataset by their role, and how they become samples.

    The fields are those of ``DemonstrationDataset``.
    """

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None
    columns: tuple[str, ...] = ()
    chat: bool = False
    system: str | None = None
    turns: Turns = "last"
    max_length: int = 1024
    overlong: LengthPolicy = "error"
    empty: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        pair = self.prompt or self.completion
        kinds = [name for name in (pair, self.messages, self.text) if name]
        if len(kinds) > 1:
            raise ValueError(
                f"columns of several kinds are named, {kinds}; name prompt= and completion=, or "
                "messages=, or text="
            )
        for name, choices in (
            ("overlong", ("truncate_left", "truncate_right", "drop", "error")),
            ("empty", ("error", "drop")),
            ("turns", ("last", "all")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {choices}")

    @property
    def key(self) -> str:
        """Changes with any of the options that samples depend on."""
        return json.dumps(asdict(self) | {"columns": None}, sort_keys=True)

    @property
    def roles(self) -> list[str]:
        """The columns that samples are made from."""
        names = (self.prompt, self.completion, self.messages, self.text)
        return [name for name in names if name is not None]

    def resolve(self, columns: list[str], source: str) -> "ColumnSpec":
        """The same with the default columns that ``source`` has, where none is named.

        Raises:
            ValueError: if a column is missing.
        """
        if not self.roles:
            spec = replace(self, **self._default_roles(columns, source))
        elif self.prompt or self.completion:
            spec = replace(
                self,
                prompt=self.prompt or "prompt",
                completion=self.completion or "completion",
            )
        else:
            spec = self
        check_columns(columns, [*spec.roles, *spec.columns], source)
        return spec

    @staticmethod
    def _default_roles(columns: list[str], source: str) -> dict[str, Any]:
        for names in (("prompt", "completion"), ("messages",), ("text",)):
            if set(names) <= set(columns):
                return {name: name for name in names}
        raise ValueError(
            f"{source} has the columns {columns}; it must have 'prompt' and 'completion', or "
            "'messages', or 'text': name the columns to use instead, such as prompt: question, "
            "completion: answer"
        )


class PromptCompletions(NamedTuple):
    """Prompts and completions of some rows, as text.

    Attributes:
        contexts: for each row the texts before each of its completions; empty for plain text.
        completions: for each row as many texts.
        prompt: for each row the text before its last completion.
        answer: for each row the last completion, without the tokens that end a turn.
    """

    contexts: list[list[str]]
    completions: list[list[str]]
    prompt: list[str]
    answer: list[str]


def split_rows(
    batch: Batch, spec: ColumnSpec, chat: Chat | None, source: str, first: int
) -> PromptCompletions:
    """Prompts and completions of a batch of rows.

    Args:
        batch: columns by name.
        spec: resolved.
        chat: renders conversations; None if there are none.
        source: name of the dataset in errors.
        first: number of the batch's first row.

    Raises:
        ValueError: naming rows in which a value is missing or of the wrong kind.
    """
    if spec.text is not None:
        texts = _strings(batch, spec.text, source, first)
        return PromptCompletions(
            [[] for _ in texts], [[text] for text in texts], ["" for _ in texts], texts
        )
    if spec.messages is not None:
        where = f"{spec.messages} in {source}"
        column = _column(batch, spec.messages, source, first)
        conversations = [_to_messages(value, "") for value in column]
    else:
        prompt, completion = str(spec.prompt), str(spec.completion)
        if chat is None:
            prompts = _strings(batch, prompt, source, first)
            completions = _strings(batch, completion, source, first)
            return PromptCompletions(
                [[text] for text in prompts], [[text] for text in completions], prompts, completions
            )
        where = f"{prompt} and {completion} in {source}"
        conversations = [
            prompt_messages(value, spec.system) + _to_messages(answer, "assistant")
            for value, answer in zip(
                _column(batch, prompt, source, first),
                _column(batch, completion, source, first),
                strict=True,
            )
        ]
    assert chat is not None
    return _render(conversations, chat, where, first)


def has_conversations(rows: Rows, spec: ColumnSpec) -> bool:
    """Whether rows must be rendered by a chat template: they hold messages, or ``chat`` is set."""
    if spec.messages is not None:
        return True
    if spec.text is not None:
        return False
    return spec.chat or any(
        holds_messages(rows, name) for name in (str(spec.prompt), str(spec.completion))
    )


def holds_messages(rows: Rows, column: str) -> bool:
    """Whether a column holds lists of messages, in some rows at least."""
    from datasets import Json, LargeList, List

    feature = rows.dataset.features[column]
    if isinstance(feature, Json):  # values of several types
        return any(isinstance(value, list) for value in rows.dataset[column])
    return isinstance(feature, List | LargeList | list)


def prompt_messages(prompt: Any, system: str | None) -> list[Message]:
    """A prompt as messages; a string as the user's, after the ``system`` message if given."""
    before: list[Message] = []
    if system is not None and isinstance(prompt, str):
        before = [{"role": "system", "content": system}]
    return before + _to_messages(prompt, "user")


def _render(
    conversations: list[list[Message]], chat: Chat, where: str, first: int
) -> PromptCompletions:
    rendered = PromptCompletions([], [], [], [])
    for row, conversation in enumerate(conversations, first):
        _check_messages(conversation, where, row)
        try:
            turns = chat.render(conversation)
        except ValueError as error:
            raise ValueError(f"{where}, row {row} (from 0), {error}") from error
        rendered.contexts.append(turns.contexts)
        rendered.completions.append(turns.completions)
        ahead = zip(turns.contexts, ["", *turns.completions], strict=False)
        rendered.prompt.append("".join(before + context for context, before in ahead))
        rendered.answer.append(turns.answer)
    return rendered


def _check_messages(conversation: list[Message], where: str, row: int) -> None:
    """Raise a ValueError unless ``conversation`` is a list of messages with role and content."""
    bad = [
        message
        for message in conversation
        if not isinstance(message.get("content"), str) or not isinstance(message.get("role"), str)
    ]
    if bad or not conversation:
        raise ValueError(
            f"{where} is not a conversation in row {row} (from 0), where it holds {bad[:1]}; it "
            "must be a list of messages, each with 'role' and 'content' as strings"
        )


def _to_messages(value: Any, role: str) -> list[Message]:
    """A conversation; a string is a message of ``role``, if one is given."""
    if isinstance(value, str) and role:
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        return [{"content": None, "value": value}]
    return [
        {k: v for k, v in message.items() if v is not None or k in ("role", "content")}
        if isinstance(message, dict)
        else {"content": None, "value": message}
        for message in value
    ]


def _column(batch: Batch, name: str, source: str, first: int) -> list[Any]:
    values = batch[name]
    missing = [value is None for value in values]
    check_rows(missing, f"{name} in {source}", "is missing", values, first=first)
    return values


def _strings(batch: Batch, name: str, source: str, first: int) -> list[str]:
    values = _column(batch, name, source, first)
    bad = [not isinstance(value, str) for value in values]
    check_rows(bad, f"{name} in {source}", "is not a string", values, first=first)
    return values


def prompt_hashes(samples: PromptCompletions) -> npt.NDArray[np.uint64]:
    """A hash of each prompt, or of the text where there is no prompt: ``[n]`` uint64."""
    keys = [prompt or answer for prompt, answer in zip(samples.prompt, samples.answer, strict=True)]
    digests = b"".join(
        hashlib.blake2b(
            key.encode("utf-8", "surrogatepass"), digest_size=8, person=_PERSON
        ).digest()
        for key in keys
    )
    return np.frombuffer(digests, np.uint64)
