"""A character tokenizer, pad tokens, and the tokens that end a completion."""

import copy
import string
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

CHARACTERS = "\n " + string.digits + string.ascii_letters + string.punctuation
"""Default vocabulary of ``character_tokenizer``: printable ASCII, space and newline."""

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_MESSAGE = "message-of-the-assistant"  # a text that no template changes


class EndOfTurn(NamedTuple):
    """The text that a chat template adds after a message of the assistant.

    Attributes:
        closing: text up to and including the token that ends the turn, such as ``<|im_end|>``;
            empty if the template has no such token.
        rest: text after that token, such as a newline, which a policy never generates.
        token: id of the token that ends the turn, or None.
    """

    closing: str
    rest: str
    token: int | None


def character_tokenizer(characters: Iterable[str] = CHARACTERS) -> Any:
    """Make a tokenizer whose tokens are single characters, without a download.

    Ids 0 to 3 are ``<pad>``, ``<bos>``, ``<eos>`` and ``<unk>``; then come the characters in sorted
    order. Texts of these characters are decoded exactly; any other character becomes ``<unk>``.
    None of the four special tokens is added to a text.

    Args:
        characters: strings of length 1; repeated ones count once.

    Returns:
        A ``transformers.PreTrainedTokenizerFast``.

    Raises:
        ValueError: if there are none, or one is longer than a character.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    distinct = sorted(set(characters))
    invalid = [text for text in distinct if len(text) != 1]
    if invalid or not distinct:
        raise ValueError(
            f"characters contain {invalid}; give at least one, each a single character"
        )
    vocabulary = {name: number for number, name in enumerate([*_SPECIAL, *distinct])}
    tokenizer: Any = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL[3]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {f"{name[1:-1]}_token": name for name in _SPECIAL}
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def prepare_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer with a pad token: itself, or a copy that pads with its eos token.

    Padding is recognized by lengths, never by the pad token's id, so eos tokens of texts stay
    targets.

    Args:
        tokenizer: a transformers tokenizer, with any padding side.

    Raises:
        ValueError: if it has no eos token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} has no eos "
            "token, so a completion would never end: set tokenizer.eos_token to one of its tokens "
            "and save it, or choose another"
        )
    if tokenizer.pad_token_id is not None:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.eos_token
    return padded


def end_of_turn(tokenizer: Any) -> EndOfTurn:
    """Find the text that the chat template adds after an answer; empty without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return EndOfTurn("", "", None)
    messages = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": _MESSAGE},
    ]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # templates are programs, and may reject these two messages
        return EndOfTurn("", "", None)
    _, message, tail = text.rpartition(_MESSAGE)
    if not message:
        return EndOfTurn("", "", None)
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    start = len(tail) - len(tail.lstrip())
    matches = [name for name in added if tail.startswith(name, start)]
    if not matches:
        return EndOfTurn("", tail, None)
    name = max(matches, key=len)
    return EndOfTurn(tail[: start + len(name)], tail[start + len(name) :], added[name])


def stop_token_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Return the sorted ids of tokens that end a completion.

    These are the tokenizer's eos token, those of the generation config, and the token with which
    the chat template ends a turn, which in chat models often differs from eos.

    Args:
        tokenizer: a transformers tokenizer.
        generation_config: the model's; its ``eos_token_id`` is one id or several.
    """
    stops = {tokenizer.eos_token_id, end_of_turn(tokenizer).token}
    configured = getattr(generation_config, "eos_token_id", None)
    stops |= set(configured) if isinstance(configured, (list, tuple, set)) else {configured}
    return sorted(int(stop) for stop in stops if stop is not None)


def decode_completions(
    tokenizer: Any, completions: Sequence[Sequence[int]], stops: Iterable[int]
) -> list[str]:
    """Completions as text, without special tokens and without ``stops``, the tokens that end them.

    Args:
        tokenizer: a transformers tokenizer.
        completions: token ids of each.
        stops: as ``stop_token_ids`` of the model's generation config returns them.
    """
    ends = set(stops)
    kept = [[token for token in completion if token not in ends] for completion in completions]
    texts: list[str] = tokenizer.batch_decode(kept, skip_special_tokens=True)
    return texts
