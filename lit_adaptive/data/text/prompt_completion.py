"""Split dataset rows into prompt and completion; errors name the row."""

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_adaptive.data.sources.columns import check_columns, check_rows
from lit_adaptive.data.sources.rows import Rows
from lit_adaptive.data.text.chat import Chat, Message, Options, Turns
from lit_adaptive.data.text.tokenization import LengthPolicy

Batch = dict[str, list[Any]]

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns whose values go to the chat template; named as in TRL."""

SYSTEM_RULE = (
    "but prompts are strings, which are not put into a chat template: set chat: true, or leave "
    "system out"
)

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
    turns: Turns | None = None
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
            ("turns", (None, "last", "all")),
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

    @property
    def completion_turns(self) -> Turns:
        """The assistant's messages to learn; by default all of a completion, else the last."""
        return self.turns or ("last" if self.messages else "all")

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
        conversations = [(prompt_messages(value, spec.system, role=""), 0) for value in column]
    else:
        prompt, completion = str(spec.prompt), str(spec.completion)
        if chat is None:
            prompts = _strings(batch, prompt, source, first)
            completions = _strings(batch, completion, source, first)
            return PromptCompletions(
                [[text] for text in prompts], [[text] for text in completions], prompts, completions
            )
        where = f"{prompt} and {completion} in {source}"
        conversations = []
        for value, answer in zip(
            _column(batch, prompt, source, first),
            _column(batch, completion, source, first),
            strict=True,
        ):
            ahead = prompt_messages(value, spec.system)
            conversations.append((ahead + to_messages(answer, "assistant"), len(ahead)))
    assert chat is not None
    rendered = PromptCompletions([], [], [], [])
    for number, (conversation, context) in enumerate(conversations):
        with named_row(where, first + number):
            check_messages(conversation)
            options = template_options(batch, number)
            turns = chat.render(conversation, context=context, options=options)
        rendered.contexts.append(turns.contexts)
        rendered.completions.append(turns.completions)
        pieces = zip(["", *turns.completions], turns.contexts, strict=False)
        rendered.prompt.append("".join(before + text for before, text in pieces))
        rendered.answer.append(turns.answer)
    return rendered


def has_conversations(rows: Rows, spec: ColumnSpec) -> bool:
    """Whether rows must be rendered by a chat template: they hold messages, or ``chat`` is set."""
    if spec.messages is not None:
        return True
    if spec.text is not None:
        return False
    return spec.chat or any(
        holds_messages(rows, name) for name in (str(spec.prompt), str(spec.completion))
    )


def template_columns(rows: Rows) -> list[str]:
    """The columns of ``rows`` that go to the chat template."""
    return [name for name in TEMPLATE_COLUMNS if name in rows.dataset.column_names]


def holds_messages(rows: Rows, column: str) -> bool:
    """Whether a column holds lists of messages, in some rows at least."""
    from datasets import Json, LargeList, List

    feature = rows.dataset.features[column]
    if isinstance(feature, Json):  # values of several types
        return any(isinstance(value, list) for value in rows.dataset[column])
    return isinstance(feature, List | LargeList | list)


def prompt_messages(prompt: Any, system: str | None, role: str = "user") -> list[Message]:
    """A prompt as messages.

    Args:
        prompt: string, or sequence of messages.
        system: content of a first message, unless the prompt has one of the system.
        role: of a prompt that is a string; empty if it must not be one.
    """
    messages = to_messages(prompt, role)
    if system is None or (messages and messages[0].get("role") == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def to_messages(value: Any, role: str) -> list[Message]:
    """Messages, without what Arrow adds to their dictionaries; a string is a message of ``role``.

    Content in parts becomes one string. Another value becomes ``{"value": value}``.
    """
    if isinstance(value, str) and role:
        return [{"role": role, "content": value}]
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return [{"value": value}]
    messages = [without_none(message) for message in value]
    return [
        _with_joined_parts(message) if isinstance(message, dict) else {"value": message}
        for message in messages
    ]


def _with_joined_parts(message: Message) -> Message:
    parts: Any = message.get("content")
    if not isinstance(parts, list):
        return message
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        return message
    return message | {"content": "".join(texts)}


def without_none(value: Any) -> Any:
    """``value`` without the None that Arrow puts where a row's dictionary lacks a key."""
    if isinstance(value, dict):
        return {name: without_none(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_none(item) for item in value]
    return value


def check_messages(conversation: list[Message]) -> None:
    """Raise a ValueError that names the first message that cannot be rendered."""
    for message in conversation:
        content = message.get("content")
        usable = isinstance(content, str) or (content is None and message.get("tool_calls"))
        if not isinstance(message.get("role"), str) or not usable:
            raise ValueError(
                f"is not a conversation: it holds {str(message)[:200]}; it must be a list of "
                "messages, each with 'role' and with 'content' (a string, or a list of text "
                "parts) or 'tool_calls'"
            )
        if message.get("weight", 1) not in (0, 1):
            raise ValueError(f"holds a message of weight {message['weight']}; it must be 0 or 1")
    if not conversation:
        raise ValueError("is not a conversation: it holds no message; it must hold at least one")


def template_options(batch: Batch, row: int) -> Options:
    """The arguments of the chat template that a row has in its own columns.

    Raises:
        ValueError: if a column is neither of the right type nor JSON of it.
    """
    options: Options = {}
    for name, kind in (("chat_template_kwargs", dict), ("tools", list)):
        value = batch[name][row] if name in batch else None
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise ValueError(
                    f"has {name} {value[:80]!r}, which is not JSON: {error}"
                ) from error
        value = without_none(value)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"has {name} {value!r}; it must be a {kind.__name__}, or JSON of one")
        if value:
            options |= value if name != "tools" else {"tools": value}
    return options


@contextmanager
def named_row(where: str, row: int) -> Generator[None]:
    """Context that puts the row into errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}, row {row} (from 0), {error}") from error


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
