"""ConcatenatedQuestions: all rows, each question once."""

import pytest
import torch

from lit_adaptive.data import Arithmetic, ConcatenatedQuestions, PromptDataset
from lit_adaptive.data.datasets.questions import QuestionRows


def test_the_rows_follow_one_another_and_questions_of_earlier_parts_are_left_out() -> None:
    easy = Arithmetic("train", size=40, digits=1)
    both = Arithmetic("train", size=300, digits=2)
    whole = ConcatenatedQuestions([easy, both])
    prompts = [row["prompt"] for row in whole]  # type: ignore[attr-defined]
    seen = [row["prompt"] for row in easy]  # type: ignore[attr-defined]
    more = [row["prompt"] for row in both if row["prompt"] not in seen]  # type: ignore[attr-defined]
    assert prompts == seen + more
    assert len(more) < 300
    assert whole.ids[0] == f"0/{easy.ids[0]}"
    assert len({*whole.ids}) == len(whole)
    dataset = PromptDataset(whole, columns=["answer"])
    assert dataset.column("difficulty").shape == (len(whole),)


def test_a_column_that_a_part_lacks_is_none_there() -> None:
    other = QuestionRows({"id": ["a"], "prompt": ["Why?"], "answer": ["So."], "hint": ["h"]}, "x")
    whole = ConcatenatedQuestions([Arithmetic("train", size=3), other])
    assert [row["hint"] for row in whole] == [None, None, None, "h"]  # type: ignore[attr-defined]
    assert whole[3]["grade"] is None
    assert whole.gather(torch.tensor([3]))["prompt"] == ["Why?"]


def test_parts_that_do_not_go_together_are_refused() -> None:
    part = Arithmetic("train", size=3)
    with pytest.raises(ValueError, match="parts is empty"):
        ConcatenatedQuestions([])
    with pytest.raises(ValueError, match=r"all questions of Arithmetic .*part 1"):
        ConcatenatedQuestions([part, part])
    numbers = QuestionRows({"id": ["a"], "prompt": ["Why?"], "answer": [1]}, "x")
    with pytest.raises(ValueError, match="different types"):
        ConcatenatedQuestions([part, numbers])
