"""Prompts from any source: tokens for the model, columns for rewards, errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from lit_adaptive.data import Arithmetic, PromptDataset

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def _file(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def _from_config(arguments: dict[str, Any], kind: type[Any]) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--dataset", type=kind)
    dataset = {"class_path": f"lit_adaptive.data.{kind.__name__}", "init_args": arguments}
    return parser.instantiate_classes(parser.parse_object({"dataset": dataset})).dataset


def test_columns_are_kept_as_they_are_for_rewards(tmp_path: Path) -> None:
    rows = [
        {"id": "b", "prompt": "1+1=", "answer": 2, "hints": ["two"]},
        {"id": "a", "prompt": "10+10=", "answer": 20, "hints": []},
    ]
    dataset = PromptDataset(_file(tmp_path, rows), columns=["answer"])
    assert dataset.ids == ["b", "a"]
    batch = dataset.gather(torch.tensor([1, 0]))
    assert batch["answer"] == [20, 2]
    assert batch["hints"] == [[], ["two"]]
    assert batch["prompt"] == ["10+10=", "1+1="]
    assert batch["prompt_mask"].sum(1).tolist() == dataset.lengths[[1, 0]].tolist()
    assert batch["prompt_mask"][:, -1].all()
    for row, tokens in enumerate(dataset.tokens(torch.tensor([1, 0]))):
        assert batch["prompt_ids"][row][batch["prompt_mask"][row]].equal(tokens.long())
        assert dataset.tokenizer.decode(tokens, skip_special_tokens=True) == batch["prompt"][row]
    assert dataset.column("answer").tolist() == [2.0, 20.0]
    with pytest.raises(ValueError, match="no column 'hints' of numbers"):
        dataset.column("hints")


def test_conversations_end_where_the_assistant_begins(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1"}]
    talks = PromptDataset(_file(tmp_path, [{"prompt": messages}]), chat_template=TEMPLATE)
    assert talks.texts(torch.tensor([0]))[0]["prompt"] == "s:be brief;u:1+1;a:"
    plain = PromptDataset(
        _file(tmp_path, [{"prompt": "1+1"}]), chat=True, system="be brief", chat_template=TEMPLATE
    )
    assert plain.texts(torch.tensor([0]))[0]["prompt"] == "s:be brief;u:1+1;a:"


def test_long_prompts_raise_an_error_are_dropped_or_lose_their_beginning(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1="}, {"prompt": "1111+1111="}, {"prompt": "2+2="}]
    path = _file(tmp_path, rows)
    lead = len(PromptDataset(path).tokens(torch.tensor([0]))[0]) - 4
    most = lead + 5
    with pytest.raises(ValueError, match=r"rows \[1\] of .* \(1 in all\).*max_length is"):
        PromptDataset(path, max_length=most)
    dropped = PromptDataset(path, max_length=most, overlong="drop")
    assert len(dropped) == 2
    assert dropped.dropped == 1
    assert torch.as_tensor(dropped.ids).tolist() == [0, 2]
    assert [row["prompt"] for row in dropped.texts(torch.tensor([0, 1]))] == ["1+1=", "2+2="]
    cut = PromptDataset(path, max_length=most, overlong="truncate_left")
    assert cut.shortened == 1
    tokens = cut.tokens(torch.tensor([1]))[0]
    assert len(tokens) == most
    assert cut.tokenizer.decode(tokens, skip_special_tokens=True) == "1111="


def test_demonstrations_end_with_a_stop_token_and_are_not_among_the_columns() -> None:
    dataset = PromptDataset(Arithmetic("train", size=5), demonstration="completion")
    assert dataset.demonstrated
    row = dataset.texts(torch.tensor([3]))[0]
    assert "completion" not in row
    tokens = dataset.demonstration(3)
    assert tokens[-1] == dataset.tokenizer.eos_token_id
    assert dataset.decode_completions([torch.tensor(tokens)]) == [row["answer"]]


def test_the_fingerprint_changes_with_prompts_their_borders_and_their_order(tmp_path: Path) -> None:
    one, same, other = (PromptDataset(Arithmetic("train", size=9, seed=s)) for s in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    borders = []  # the same tokens in all, cut in other places
    for name, prompts in (("one", ["12", "3"]), ("two", ["1", "23"]), ("three", ["3", "12"])):
        (tmp_path / name).mkdir()
        path = _file(tmp_path / name, [{"prompt": each} for each in prompts])
        borders.append(PromptDataset(path).fingerprint)
    assert len({*borders}) == 3


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"question": "1"}], {}, "has no column 'prompt'; its columns are"),
        ([{"prompt": "1"}], {"columns": ["answer"]}, "has no column 'answer'"),
        ([{"prompt": "1"}, {"prompt": ""}], {}, r"is empty in rows \[1\]"),
        ([{"prompt": "1"}], {"max_length": 0}, "max_length is 0; it must be at least 1"),
        ([{"prompt": "1"}], {"chat": True}, "no chat template"),
        ([{"prompt": "1", "shown": ""}], {"demonstration": "shown"}, r"is empty in rows \[0\]"),
    ],
)
def test_refuses(
    rows: list[dict[str, Any]], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        PromptDataset(_file(tmp_path, rows), **options)


def test_yaml_gives_the_path_of_a_csv_file_and_not_its_content(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,answer\n1+1=,2\n")
    prompts = _from_config({"source": str(path), "columns": ["answer"]}, PromptDataset)
    assert prompts.texts(torch.tensor([0])) == [{"prompt": "1+1=", "answer": "2"}]


def test_yaml_gives_rows_or_a_dataset_by_its_class() -> None:
    rows = _from_config({"source": [{"prompt": "1+1="}, {"prompt": "2+2="}]}, PromptDataset)
    assert len(rows) == 2
    sums = {"class_path": "lit_adaptive.data.Arithmetic", "init_args": {"size": 5}}
    assert len(_from_config({"source": sums}, PromptDataset)) == 5


def test_stop_tokens_of_the_generation_config_are_not_in_the_text() -> None:
    dataset = PromptDataset([{"prompt": "1+1="}], "characters")
    two, stop = dataset.tokenizer("2;")["input_ids"]
    completion = torch.tensor([two, stop])
    assert dataset.decode_completions([completion]) == ["2;"]
    assert dataset.decode_completions([completion], [stop]) == ["2"]


@pytest.mark.parametrize("name", ["prompts", "completions", "self", "completion_ids"])
def test_a_column_named_as_an_argument_of_rewards_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"list has columns \['{name}'\].*rename"):
        PromptDataset([{"prompt": "1+1=", name: "2"}], "characters")


def test_a_repeated_id_is_refused_at_once() -> None:
    rows = [{"prompt": "1+1=", "id": 3}] * 2
    with pytest.raises(ValueError, match=r"id in list holds .* more than once"):
        PromptDataset(rows, "characters")


@pytest.mark.parametrize("name", ["prompt_ids", "input_ids", "index", "weight", "counted"])
def test_a_column_named_as_a_field_of_the_batch_is_rejected(name: str) -> None:
    words = rf"has columns \['{name}'\], .* a batch's own fields: rename or remove them"
    with pytest.raises(ValueError, match=words):
        PromptDataset([{"prompt": "a", name: "V"}])
    batch = PromptDataset([{"prompt": "a", "target": "V"}]).gather(torch.tensor([0]))
    assert batch["target"] == ["V"]  # a reward's own column
