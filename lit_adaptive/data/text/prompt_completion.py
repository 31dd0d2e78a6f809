"""What of a row is prompt and what is completion, with mistakes named by row."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_adaptive.data.sources.columns import refuse_missing
from lit_adaptive.data.sources.rows import Chunk
from lit_adaptive.data.text.chat import Chat, Message, Turns
from lit_adaptive.data.text.encoding import Overlong

_SHOWN = 5
_PERSON = b"lit-adaptive"


@dataclass(frozen=True)
class Reading:
    """How rows are read; see ``DemonstrationDataset``."""

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None
    id: str | None = "id"
    columns: tuple[str, ...] = ()
    chat: bool = False
    system: str | None = None
    turns: Turns = "last"
    max_length: int = 1024
    overlong: Overlong = "error"
    empty: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        pair = self.prompt or self.completion
        given = [each for each in (pair, self.messages, self.text) if each]
        if len(given) > 1:
            raise ValueError(
                f"columns of several kinds are named, {given}; name prompt= and completion=, or "
                "messages=, or text="
            )
        for name, known in (
            ("overlong", ("truncate_left", "truncate_right", "drop", "error")),
            ("empty", ("error", "drop")),
            ("turns", ("last", "all")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {known}")

    @property
    def key(self) -> str:
        """Changes with any of the options."""
        return json.dumps(asdict(self), sort_keys=True)

    def resolved(self, columns: list[str], source: str) -> "Reading":
        """With the columns that are there, if none was named.

        Raises:
            ValueError: if a column is missing.
        """
        chosen = self
        if not (self.prompt or self.completion or self.messages or self.text):
            chosen = replace(self, **self._kind(columns, source))
        elif self.prompt or self.completion:
            chosen = replace(
                self,
                prompt=self.prompt or "prompt",
                completion=self.completion or "completion",
            )
        roles = (chosen.prompt, chosen.completion, chosen.messages, chosen.text, *chosen.columns)
        refuse_missing(columns, [name for name in roles if name is not None], source)
        if chosen.id is not None and chosen.id not in columns:
            if chosen.id != "id":
                refuse_missing(columns, [chosen.id], source)
            chosen = replace(chosen, id=None)
        return chosen

    @staticmethod
    def _kind(columns: list[str], source: str) -> dict[str, Any]:
        for names in (("prompt", "completion"), ("messages",), ("text",)):
            if set(names) <= set(columns):
                return {name: name for name in names}
        raise ValueError(
            f"{source} has the columns {columns}, of which none is known; it must have 'prompt' "
            "and 'completion', or 'messages', or 'text': name the columns that take their place, "
            "such as prompt: question, completion: answer"
        )


class Samples(NamedTuple):
    """The rows of a chunk.

    Attributes:
        contexts: of each row the texts before its completions; empty of a plain text.
        completions: of each row as many texts.
        prompt: what generation would see.
        answer: the last completion.
    """

    contexts: list[list[str]]
    completions: list[list[str]]
    prompt: list[str]
    answer: list[str]


def samples_of(
    chunk: Chunk, reading: Reading, chat: Chat | None, source: str, first: int
) -> Samples:
    """The samples of a chunk whose first row has the number ``first``.

    Args:
        chunk: columns.
        reading: resolved.
        chat: of conversations.
        source: what errors call it.
        first: number of the chunk's first row.

    Raises:
        ValueError: naming rows in which a value is missing or of the wrong kind.
    """
    if reading.text is not None:
        texts = _strings(chunk, reading.text, source, first)
        return Samples([[] for _ in texts], [[text] for text in texts], ["" for _ in texts], texts)
    if reading.messages is None:
        prompts = _column(chunk, str(reading.prompt), source, first)
        completions = _column(chunk, str(reading.completion), source, first)
        if chat is None and not any(isinstance(each, list) for each in (*prompts, *completions)):
            prompts = _strings(chunk, str(reading.prompt), source, first)
            completions = _strings(chunk, str(reading.completion), source, first)
            return Samples([[p] for p in prompts], [[c] for c in completions], prompts, completions)
        where = f"{reading.prompt} and {reading.completion} in {source}"
        system: list[Message] = []
        if reading.system is not None:
            system = [{"role": "system", "content": reading.system}]
        talks = [
            (system if isinstance(prompt, str) else [])
            + _messages(prompt, "user")
            + _messages(completion, "assistant")
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    else:
        where = f"{reading.messages} in {source}"
        talks = [_messages(each, "") for each in _column(chunk, reading.messages, source, first)]
    assert chat is not None
    return _spoken(talks, chat, where, first)


def needs_chat(chunk: Chunk, reading: Reading) -> bool:
    """Whether a chunk holds conversations."""
    if reading.messages is not None:
        return True
    pair = [name for name in (reading.prompt, reading.completion) if name is not None]
    return bool(pair) and (
        reading.chat or any(isinstance(value, list) for name in pair for value in chunk[name])
    )


def _spoken(talks: list[list[Message]], chat: Chat, where: str, first: int) -> Samples:
    contexts: list[list[str]] = []
    completions: list[list[str]] = []
    prompts: list[str] = []
    answers: list[str] = []
    for row, talk in enumerate(talks, first):
        odd = [each for each in talk if not isinstance(each.get("content"), str)]
        odd += [each for each in talk if not isinstance(each.get("role"), str)]
        if odd or not talk:
            raise ValueError(
                f"{where} is no conversation in row {row} (from 0), where it holds {odd[:1]}; it "
                "must be a list of messages, each with 'role' and 'content' as strings"
            )
        try:
            said = chat.said(talk)
        except ValueError as error:
            raise ValueError(f"{where}, row {row} (from 0), {error}") from error
        contexts.append(said.contexts)
        completions.append(said.completions)
        ahead = zip(said.contexts, ["", *said.completions], strict=False)
        prompts.append("".join(before + context for context, before in ahead))
        answers.append(said.answer)
    return Samples(contexts, completions, prompts, answers)


def _messages(value: Any, role: str) -> list[Message]:
    """A conversation; a string is a message of ``role``."""
    if isinstance(value, str) and role:
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        return [{"content": None, "found": value}]
    return [
        {k: v for k, v in each.items() if v is not None or k in ("role", "content")}
        if isinstance(each, dict)
        else {"content": None, "found": each}
        for each in value
    ]


def _column(chunk: Chunk, name: str, source: str, first: int) -> list[Any]:
    values = chunk.get(name)
    if values is None:  # a later chunk of a JSONL file may lack a column
        refuse_missing([*chunk], [name], f"{source}, from row {first} on,")
    assert values is not None
    refuse_some(
        [value is None for value in values], f"{name} in {source}", "is missing", values, first
    )
    return values


def _strings(chunk: Chunk, name: str, source: str, first: int) -> list[str]:
    values = _column(chunk, name, source, first)
    odd = [not isinstance(value, str) for value in values]
    refuse_some(odd, f"{name} in {source}", "is no string", values, first)
    return values


def refuse_some(bad: list[bool], where: str, what: str, values: list[Any], first: int) -> None:
    """Refuse the rows where ``bad`` holds, each shown with its value."""
    rows = [i for i, each in enumerate(bad) if each]
    if rows:
        shown = [values[i] for i in rows[:_SHOWN]]
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        raise ValueError(
            f"{where} {what} in rows {[first + i for i in rows[:_SHOWN]]}{more} (from 0), where it "
            f"is {shown}; correct these rows or leave them out"
        )


def groups_of(samples: Samples) -> npt.NDArray[np.uint64]:
    """A hash of each prompt, or of the text where there is no prompt: ``[n]`` uint64."""
    keys = [prompt or answer for prompt, answer in zip(samples.prompt, samples.answer, strict=True)]
    found = b"".join(
        hashlib.blake2b(
            key.encode("utf-8", "surrogatepass"), digest_size=8, person=_PERSON
        ).digest()
        for key in keys
    )
    return np.frombuffer(found, np.uint64)


def others_of(
    chunk: Chunk, reading: Reading, source: str, first: int
) -> tuple[list[str], dict[str, npt.NDArray[np.float64]], set[str]]:
    """The other columns of a chunk: as JSON of each row, numbers by name, and those that are none.

    Nested columns are left out, unless ``reading.columns`` names them.

    Raises:
        ValueError: if a column that ``reading.columns`` names lacks a value (in which rows).
    """
    for name in reading.columns:
        _column(chunk, name, source, first)
    roles = (reading.prompt, reading.completion, reading.messages, reading.text)
    numbers: dict[str, npt.NDArray[np.float64]] = {}
    textual: set[str] = set()
    kept: dict[str, list[Any]] = {}
    for name, values in chunk.items():
        nested = any(isinstance(value, (list, dict, bytes)) for value in values)
        if name not in reading.columns and (nested or name in roles):
            continue
        kept[name] = values
        try:
            numbers[name] = np.array([_number(value) for value in values])
        except (TypeError, ValueError, OverflowError):
            textual.add(name)
    size = len(next(iter(chunk.values())))
    rows = zip(*kept.values(), strict=True) if kept else [()] * size
    others = [json.dumps(dict(zip(kept, row, strict=True)), default=str) for row in rows]
    return others, numbers, textual


def _number(value: Any) -> float:
    """NaN where it is missing. In a CSV file numbers are strings."""
    if value is None or value == "":
        return np.nan
    if not isinstance(value, (int, float, str, Decimal)):
        raise TypeError
    return float(value)
