"""Conversations as text, by a tokenizer's chat template."""

import copy
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lit_adaptive.rollout.models.tokenizers import end_of_turn, prepare_tokenizer

Turns = Literal["last", "all"]
Message = dict[str, Any]


class RenderedChat(NamedTuple):
    """A conversation as text.

    Attributes:
        contexts: before each completion, what was not yet said; together with the earlier ones and
            their completions it is what generation would see.
        completions: what the assistant says then, up to the token that ends its turn.
        answer: the content of its last message.
    """

    contexts: list[str]
    completions: list[str]
    answer: str


def with_template(tokenizer: Any, template: str) -> Any:
    """A copy of the tokenizer with another chat template.

    Args:
        tokenizer: any of transformers.
        template: in Jinja, or the path of a file that holds it.

    Raises:
        ValueError: if it is neither a template nor a file.
    """
    if "{" not in template:
        file = Path(template)
        if not file.is_file():
            raise ValueError(
                f"chat_template is {template!r}, which is no file and no Jinja template (it has "
                "no '{'); give the path of a file, or the template itself"
            )
        template = file.read_text()
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def resolve_tokenizer(given: Any, chat_template: str | None) -> Any:
    """A tokenizer, by its name or itself, with a pad token and perhaps another chat template."""
    if isinstance(given, str):
        from lit_adaptive.rollout.models.pretrained import load_tokenizer

        given = load_tokenizer(given)
    found = prepare_tokenizer(given)
    return found if chat_template is None else with_template(found, chat_template)


class Chat:
    """Conversations as a model sees them.

    Args:
        tokenizer: with a chat template.
        turns: what of a conversation is to be learnt: the assistant's ``last`` turn, or ``all``.

    Raises:
        ValueError: if the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, turns: Turns = "last") -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} has no chat "
                "template, which messages need: set chat_template= to a file or a Jinja string, "
                "choose a model of chats, or give prompt and completion as strings"
            )
        self.tokenizer = tokenizer
        self.turns = turns
        self.end = end_of_turn(tokenizer)

    def said(self, messages: list[Message]) -> RenderedChat:
        """A conversation, up to the last message of the assistant.

        Args:
            messages: each with ``role`` and ``content``.

        Raises:
            ValueError: if the assistant says nothing in it, the template refuses it, or changes
                what came earlier.
        """
        spoken = [i for i, each in enumerate(messages) if each["role"] == "assistant"]
        if not spoken:
            raise ValueError("has no message whose role is 'assistant'")
        contexts: list[str] = []
        completions: list[str] = []
        so_far = ""
        for at in spoken if self.turns == "all" else spoken[-1:]:
            asked = self._text(messages[:at], ask=True)
            context = _beyond(so_far, asked)
            answer = self._answer(_beyond(asked, self._text(messages[: at + 1], ask=False)))
            contexts.append(context)
            completions.append(answer)
            so_far = asked + answer
        return RenderedChat(contexts, completions, str(messages[spoken[-1]]["content"]))

    def asked(self, messages: list[Message]) -> str:
        """A conversation as generation sees it, up to where the assistant begins to answer.

        Raises:
            ValueError: if the template refuses it.
        """
        return self._text(messages, ask=True)

    def _text(self, messages: list[Message], *, ask: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=ask
                )
            )
        except Exception as error:  # templates are programs that raise what they like
            raise ValueError(f"is refused by the chat template: {error}") from error

    def _answer(self, text: str) -> str:
        """``text`` without what a template writes after the token that ends a turn."""
        return text.removesuffix(self.end.rest) if self.end.rest else text


def _beyond(start: str, text: str) -> str:
    if not text.startswith(start):
        raise ValueError(
            f"is changed by the chat template as it goes on: after {start[-40:]!r} the text is "
            f"not continued but {text[: len(start)][-40:]!r}; set chat_template= to one that only "
            "appends, or give prompt and completion"
        )
    return text[len(start) :]
