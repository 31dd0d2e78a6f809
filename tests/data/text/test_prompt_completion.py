"""Rows as prompts and completions: columns by role, and errors that name the row."""

from typing import Any

import pytest
import torch

from lit_adaptive.data import DemonstrationDataset
from lit_adaptive.rollout.models.tokenizers import character_tokenizer

TOKENIZER = character_tokenizer()
ROWS = [{"prompt": "1+1=", "completion": "2"}]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "list has no rows"),
        ([{"prompt": "a"}], r"columns \['prompt'\]; it must have.*prompt: question"),
        ([{"prompt": "a", "completion": None}], r"completion in list is missing in rows \[1\]"),
        (
            [{"prompt": "a", "completion": 5}],
            r"completion in list is not a string .*\[1\].*\[5\]",
        ),
        ([{"prompt": "a", "completion": ""}], r"completion in list is empty .*rows \[1\].*correct"),
        ([{"prompt": "a", "completion": "<eos>"}], r"is empty .*rows \[1\]"),
        ([{"prompt": "a"}], r"completion in list is missing in rows \[1\]"),
        (["text"], "row 1 of list is a str; rows are dictionaries"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(rows: list[Any], words: str) -> None:
    good = [{"prompt": "a", "completion": "b"}]
    usable = not words.startswith(("list has", "columns"))
    with pytest.raises(ValueError, match=words):
        DemonstrationDataset([*good, *rows] if usable else rows, TOKENIZER)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlong": "cut"}, "overlong is 'cut'; it must be one of"),
        ({"empty": "keep"}, "empty is 'keep'"),
        ({"turns": "first"}, "turns is 'first'"),
        ({"prompt": "prompt", "text": "text"}, "columns of several kinds"),
        ({"columns": ["ease"]}, "has no column 'ease'"),
        ({"completion": "solution"}, "has no column 'solution'"),
        ({"max_length": 1}, "max_length is 1; a sample has at least 2"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DemonstrationDataset(ROWS, TOKENIZER, **options)


def test_columns_of_other_roles_do_not_hide_prompt_and_completion() -> None:
    row = {"prompt": "no", "q": "1+1=", "completion": "no", "a": "2"}
    dataset = DemonstrationDataset([row], TOKENIZER, prompt="q", completion="a")
    assert dataset.texts(torch.tensor([0])) == [{"prompt": "1+1=", "completion": "2"}]
