"""Tokenizers: one of single characters that needs no download, and where a completion stops."""

import copy
import string
from collections.abc import Iterable
from typing import Any, NamedTuple

CHARACTERS = "\n " + string.digits + string.ascii_letters + string.punctuation
"""What ``character_tokenizer`` knows by default: printable ASCII, space and newline."""

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_SAID = "what-was-said"  # a message that no template changes


class EndOfTurn(NamedTuple):
    """What a chat template writes after a message of the assistant.

    Attributes:
        closing: up to and with the token that ends the turn, such as ``<|im_end|>``; empty if the
            template ends turns with no token of its own.
        rest: what follows it in the text, such as a newline; a policy never writes that.
        token: the id of the token that ends the turn, or None.
    """

    closing: str
    rest: str
    token: int | None


def character_tokenizer(characters: Iterable[str] = CHARACTERS) -> Any:
    """A tokenizer whose tokens are single characters, made without a download.

    Ids 0 to 3 are ``<pad>``, ``<bos>``, ``<eos>`` and ``<unk>``; then come the characters, sorted,
    so equal characters make equal tokenizers. Texts of these characters come back exactly; another
    character is read as ``<unk>``. None of the four is added to a text.

    Args:
        characters: each a string of length 1; repeated ones count once.

    Returns:
        A ``transformers.PreTrainedTokenizerFast``, which ``save_pretrained`` writes.

    Raises:
        ValueError: if there are none, or one is longer than a character (which).
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = sorted(set(characters))
    odd = [each for each in known if len(each) != 1]
    if odd or not known:
        raise ValueError(f"characters contain {odd}; give at least one, each a single character")
    vocabulary = {name: number for number, name in enumerate([*_SPECIAL, *known])}
    tokenizer: Any = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL[3]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {f"{name[1:-1]}_token": name for name in _SPECIAL}
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def prepared(tokenizer: Any) -> Any:
    """The tokenizer with a pad token; a copy if it had none.

    Without one ``<eos>`` stands in, and the copy's ``pad_stands_in`` is True. Lengths tell what is
    padding, never the pad token's id, so real ends of texts stay targets.

    Args:
        tokenizer: any of transformers; its padding side does not matter.

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
    padded.pad_stands_in = True
    return padded


def end_of_turn(tokenizer: Any) -> EndOfTurn:
    """What the tokenizer's chat template writes after an answer; all empty without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return EndOfTurn("", "", None)
    asked = [{"role": "user", "content": "question"}]
    said = [*asked, {"role": "assistant", "content": _SAID}]
    try:
        text = str(tokenizer.apply_chat_template(said, tokenize=False))
    except Exception:  # templates are programs: any of them may refuse these two messages
        return EndOfTurn("", "", None)
    _, found, tail = text.rpartition(_SAID)
    if not found:
        return EndOfTurn("", "", None)
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    start = len(tail) - len(tail.lstrip())
    fitting = [name for name in added if tail.startswith(name, start)]
    if not fitting:
        return EndOfTurn("", tail, None)
    name = max(fitting, key=len)
    return EndOfTurn(tail[: start + len(name)], tail[start + len(name) :], added[name])


def stop_token_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """The tokens that end a completion, sorted.

    The tokenizer's eos token, those of the generation config, and the token with which the chat
    template ends a turn. A model of chats often has two: with eos alone its answers would look cut.

    Args:
        tokenizer: any of transformers.
        generation_config: of the model; its ``eos_token_id`` is one id or several.
    """
    found = {tokenizer.eos_token_id, end_of_turn(tokenizer).token}
    more = getattr(generation_config, "eos_token_id", None)
    found |= set(more) if isinstance(more, (list, tuple, set)) else {more}
    return sorted(int(each) for each in found if each is not None)
