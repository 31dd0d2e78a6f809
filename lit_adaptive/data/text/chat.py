"""Conversations as text, rendered by a tokenizer's chat template."""

import copy
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lit_adaptive.rollout.models.tokenizers import end_of_turn, prepare_tokenizer

Turns = Literal["last", "all"]
Message = dict[str, Any]


class RenderedChat(NamedTuple):
    """A conversation as text.

    Attributes:
        contexts: the text before each completion, from the end of the completion before it.
            Contexts and completions joined in turn are the text that generation would see.
        completions: the assistant's messages, each up to the token that ends its turn.
        answer: content of the assistant's last message.
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
        template = file.read_text()
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def resolve_tokenizer(tokenizer: Any, chat_template: str | None) -> Any:
    """A tokenizer with a pad token.

    Args:
        tokenizer: a tokenizer of transformers, or a name that ``load_tokenizer`` knows.
        chat_template: Jinja source or file that replaces the tokenizer's template.
    """
    if isinstance(tokenizer, str):
        from lit_adaptive.rollout.models.pretrained import load_tokenizer

        tokenizer = load_tokenizer(tokenizer)
    padded = prepare_tokenizer(tokenizer)
    return padded if chat_template is None else with_template(padded, chat_template)


class Chat:
    """Renders conversations as a model sees them.

    Args:
        tokenizer: has a chat template.
        turns: which of the assistant's messages are completions: the ``last``, or ``all``.

    Raises:
        ValueError: if the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, turns: Turns = "last") -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} has no chat "
                "template, which messages need: set chat_template= to a file or a Jinja string, "
                "choose a chat model, or give prompt and completion as strings"
            )
        self.tokenizer = tokenizer
        self.turns = turns
        self.end = end_of_turn(tokenizer)

    def render(self, messages: list[Message]) -> RenderedChat:
        """A conversation, up to the assistant's last message.

        Args:
            messages: each with ``role`` and ``content``.

        Raises:
            ValueError: if it has no message of the assistant, or the template rejects it or
                changes an earlier message as the conversation goes on.
        """
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise ValueError("has no message whose role is 'assistant'")
        contexts: list[str] = []
        completions: list[str] = []
        rendered = ""
        for i in answers if self.turns == "all" else answers[-1:]:
            prompt = self.render_prompt(messages[:i])
            contexts.append(_continuation(rendered, prompt))
            turn = _continuation(prompt, self._apply(messages[: i + 1], generation_prompt=False))
            completions.append(turn.removesuffix(self.end.rest))
            rendered = prompt + completions[-1]
        return RenderedChat(contexts, completions, str(messages[answers[-1]]["content"]))

    def render_prompt(self, messages: list[Message]) -> str:
        """A conversation as generation sees it, up to where the assistant's answer begins.

        Raises:
            ValueError: if the template rejects it.
        """
        return self._apply(messages, generation_prompt=True)

    def _apply(self, messages: list[Message], *, generation_prompt: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=generation_prompt
                )
            )
        except Exception as error:  # templates are programs that raise what they like
            raise ValueError(f"is rejected by the chat template: {error}") from error


def _continuation(start: str, text: str) -> str:
    """``text`` after ``start``, with which it must begin."""
    if not text.startswith(start):
        raise ValueError(
            f"is changed by the chat template as it goes on: after {start[-40:]!r} the text is "
            f"not continued but {text[: len(start)][-40:]!r}; set chat_template= to one that only "
            "appends, or give prompt and completion"
        )
    return text[len(start) :]
