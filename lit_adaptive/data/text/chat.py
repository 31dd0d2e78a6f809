"""Conversations as text, rendered by a tokenizer's chat template."""

import copy
import json
import re
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lit_adaptive.rollout.models.tokenizers import end_of_turn, prepare_tokenizer

Turns = Literal["last", "all"]
Message = dict[str, Any]
Options = dict[str, Any]

_STRFTIME = re.compile(r"""\bstrftime_now\(\s*(['"])(.*?)\1\s*\)""")


class RenderedChat(NamedTuple):
    """A conversation as text.

    Attributes:
        contexts: the text before each completion, from the end of the completion before it.
            Contexts and completions joined in turn are the text that generation would see.
        completions: the assistant's messages, each up to the token that ends its turn.
        answer: content of the last completion; its text where it has no content.
    """

    contexts: list[str]
    completions: list[str]
    answer: str


def with_template(tokenizer: Any, template: str) -> Any:
    """A copy of the tokenizer with another chat template.

    Args:
        tokenizer: a tokenizer of transformers.
        template: Jinja source, or the path of a file that holds it.

    Raises:
        ValueError: if it is neither a template nor a file.
    """
    if "{" not in template:
        file = Path(template)
        if not file.is_file():
            raise ValueError(
                f"chat_template is {template!r}, which is neither a file nor a Jinja template (it "
                "has no '{'); give the path of a file, or the template itself"
            )
        template = file.read_text(encoding="utf-8")
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def resolve_tokenizer(
    tokenizer: Any, chat_template: str | None, added_tokens: Sequence[str] = ()
) -> Any:
    """A tokenizer with a pad token.

    Args:
        tokenizer: a tokenizer of transformers, or a name that ``load_tokenizer`` knows.
        chat_template: Jinja source or file that replaces the tokenizer's template.
        added_tokens: texts that become one token each; those that are one already stay it.

    Raises:
        ValueError: if an added token is empty.
    """
    if isinstance(added_tokens, str) or not all(added_tokens):
        raise ValueError(
            f"added_tokens is {added_tokens!r}; it must be a list of texts that are not empty"
        )
    if isinstance(tokenizer, str):
        from lit_adaptive.rollout.models.pretrained import load_tokenizer

        tokenizer = load_tokenizer(tokenizer)
    padded = prepare_tokenizer(tokenizer)
    if added_tokens:
        from tokenizers import AddedToken

        padded = copy.deepcopy(padded)
        padded.add_tokens([AddedToken(token, normalized=False) for token in added_tokens])
    return padded if chat_template is None else with_template(padded, chat_template)


class Chat:
    """Renders conversations as a model sees them.

    Templates that read the date (``strftime_now('...')``) get one day, at 0:00, for all
    conversations.

    Args:
        tokenizer: has a chat template.
        turns: which of the assistant's messages are completions: the ``last``, or ``all``; never
            those whose ``weight`` is 0.
        day: the day that templates read, as an ISO date; by default today.

    Attributes:
        day_read: the day that the template reads, as an ISO date; None if it reads none.

    Raises:
        ValueError: if the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, turns: Turns = "last", day: str | None = None) -> None:
        template: Any = getattr(tokenizer, "chat_template", None)
        if not template:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} has no chat "
                "template, which messages need: set chat_template= to a file or a Jinja string, "
                "choose a chat model, or give prompt and completion as strings"
            )
        self.tokenizer = tokenizer
        self.turns = turns
        self.end = end_of_turn(tokenizer)
        self.day_read = (day or str(date.today())) if "strftime_now" in str(template) else None

    def render(
        self, messages: list[Message], *, context: int = 0, options: Options | None = None
    ) -> RenderedChat:
        """A conversation, up to its last completion.

        Args:
            messages: each with ``role``, and ``content`` or ``tool_calls``.
            context: number of messages at the beginning that are no completions. If the last of
                them and the next are the assistant's, the next continues it.
            options: further arguments of the template, such as ``tools``.

        Raises:
            ValueError: if it has no completion, or the template rejects it or changes an earlier
                message as the conversation goes on.
        """
        answers = [
            i
            for i, message in enumerate(messages)
            if i >= context and message["role"] == "assistant" and message.get("weight", 1)
        ]
        if not answers:
            raise ValueError(
                f"has no message{' in its completion' if context else ''} whose role is "
                "'assistant' and whose weight is not 0"
            )
        if self.turns == "last":
            answers = answers[-1:]
        start = 0
        if 0 < context < len(messages):
            start = context if messages[context - 1]["role"] == "assistant" else 0
            start = start if messages[context]["role"] == "assistant" else 0
        answer = str(messages[answers[-1]].get("content") or "")
        prefilled = self.render_prompt(messages[:start], options) if start else ""
        if start:
            joined = _joined(*messages[start - 1 : start + 1])
            messages = [*messages[: start - 1], joined, *messages[start + 1 :]]
            answers = [i - 1 for i in answers]
        contexts: list[str] = []
        completions: list[str] = []
        rendered = ""
        for i in answers:
            if start and i == start - 1:
                prompt = prefilled
            else:
                prompt = self._apply(messages[:i], options, add_generation_prompt=True)
            contexts.append(_continuation(rendered, prompt))
            turn = _continuation(prompt, self._apply(messages[: i + 1], options))
            completions.append(turn.removesuffix(self.end.rest))
            rendered = prompt + completions[-1]
        answer = answer or completions[-1].removesuffix(self.end.closing)
        return RenderedChat(contexts, completions, answer)

    def render_prompt(self, messages: list[Message], options: Options | None = None) -> str:
        """A conversation as generation sees it, up to where the assistant's answer begins.

        A last message of the assistant is the beginning of that answer.

        Args:
            messages: as for ``render``.
            options: further arguments of the template, such as ``tools``.

        Raises:
            ValueError: if the template rejects it.
        """
        continued = messages[-1]["role"] == "assistant"
        how = "continue_final_message" if continued else "add_generation_prompt"
        return self._apply(messages, options, **{how: True})

    def _apply(self, messages: list[Message], options: Options | None, **how: bool) -> str:
        arguments: Options = {**(options or {}), **how}
        if self.day_read is not None:
            template = self.tokenizer.get_chat_template(None, arguments.get("tools"))
            day = datetime.fromisoformat(self.day_read)
            arguments["chat_template"] = _STRFTIME.sub(
                lambda match: json.dumps(day.strftime(match[2])), template
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{k: v for k, v in message.items() if k != "weight"} for message in messages],
                    tokenize=False,
                    **arguments,
                )
            )
        except Exception as error:  # templates are programs that raise what they like
            raise ValueError(f"is rejected by the chat template: {error}") from error


def _joined(message: Message, following: Message) -> Message:
    """A message and one that continues it, as one."""
    content = "".join(str(part.get("content") or "") for part in (message, following))
    return message | following | {"content": content}


def _continuation(start: str, text: str) -> str:
    """``text`` after ``start``, with which it must begin."""
    if not text.startswith(start):
        raise ValueError(
            f"is changed by the chat template as it goes on: after {start[-40:]!r} the text is "
            f"not continued but {text[: len(start)][-40:]!r}; set chat_template= to one that only "
            "appends, or give prompt and completion"
        )
    return text[len(start) :]
