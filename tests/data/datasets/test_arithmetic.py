"""Arithmetic questions: right answers, graded demonstrations, disjoint splits."""

import hashlib
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch

from lit_adaptive.data import AdaptiveDataModule
from lit_adaptive.data.datasets.arithmetic import Arithmetic, Question, is_sloppy

GRADED: dict[str, Any] = {"correct": 0.5, "sloppy": 0.3, "wrong": 0.2}


def _rows(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    dataset = Arithmetic(*args, **kwargs)
    return [dataset[i] for i in range(len(dataset))]


def _school_difficulty(left: int, right: int, mark: str) -> int:
    """Digits and carries, digit by digit with a carry."""
    a, b = str(left)[::-1], str(right)[::-1]
    steps, carry = 0, 0
    for i in range(max(len(a), len(b))):
        x, y = (int(digits[i]) if i < len(digits) else 0 for digits in (a, b))
        carry = int(x + y + carry >= 10) if mark == "+" else int(x - y - carry < 0)
        steps += carry
    return len(a) + len(b) + (len(a) * len(b) if mark == "*" else steps)


def test_answers_are_right_and_rewards_follow_the_grade() -> None:
    rows = _rows(size=1500, digits=3, operators="+-*", **GRADED)
    for row in rows:
        assert int(row["answer"]) == eval(row["prompt"].rstrip("=")) >= 0
        assert row["reward"] == {"correct": 1.0, "sloppy": 0.5, "wrong": 0.0}[row["grade"]]
        assert (row["completion"] == row["answer"]) == (row["grade"] == "correct")
        assert row["completion"].isdecimal()
        assert row["completion"] == str(int(row["completion"]))
        assert row["id"] == row["prompt"].replace("=", "#0")
    assert Counter(row["grade"] for row in rows) == {"correct": 750, "sloppy": 450, "wrong": 300}
    assert len({row["prompt"] for row in rows}) == 1500
    assert {row["reward"] for row in _rows(correct=0.0, sloppy=1.0, sloppy_reward=0.2)} == {0.2}


def test_sloppy_is_off_by_one_or_has_one_digit_wrong_and_wrong_is_neither() -> None:
    def near(completion: str, answer: str) -> bool:
        differing = sum(x != y for x, y in zip(completion, answer, strict=False))
        by_one = abs(int(completion) - int(answer)) == 1
        return by_one or (len(completion) == len(answer) and differing == 1)

    rows = _rows(size=3000, digits=3, correct=0.0, sloppy=0.5, wrong=0.5)
    for row in rows:
        assert near(row["completion"], row["answer"]) == (row["grade"] == "sloppy"), row
    sloppy = [row for row in rows if row["grade"] == "sloppy"]
    by_one = sum(abs(int(row["completion"]) - int(row["answer"])) == 1 for row in sloppy)
    assert 0.5 < by_one / len(sloppy) < 0.75  # one half, and the digits that happen to be next
    assert all(is_sloppy(*pair) for pair in ((100, 99), (7, 9), (55, 65)))
    assert not any(is_sloppy(*pair) for pair in ((56, 65), (10, 8)))


def test_difficulty_is_digits_and_carries() -> None:
    marks = "+-*"
    for row in _rows(size=2000, digits=3, operators=marks):
        mark = next(mark for mark in marks if mark in row["prompt"])
        left, right = map(int, row["prompt"].rstrip("=").split(mark))
        assert row["difficulty"] == _school_difficulty(left, right, mark), row
    questions = (Question(37, "+", 45), Question(999, "+", 1), Question(1000, "-", 1))
    assert [question.difficulty for question in questions] == [5, 7, 8]


def test_splits_share_no_question_even_with_its_operands_exchanged() -> None:
    def keys(split: Any, seed: int) -> set[Any]:
        questions = set()
        for row in _rows(split, size=300, seed=seed):
            question = row["prompt"].rstrip("=")
            mark = "+" if "+" in question else "-"
            pair = question.split(mark)
            questions.add((mark, *(sorted(pair) if mark == "+" else pair)))
        return questions

    train = keys("train", 0) | keys("train", 1)
    validation = keys("validation", 0) | keys("validation", 1)
    test = keys("test", 0) | keys("test", 2)
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_the_same_arguments_give_the_same_rows_in_another_process() -> None:
    code = (
        "from lit_adaptive.data.datasets.arithmetic import Arithmetic; import hashlib;"
        "a = Arithmetic(size=200, correct=0.2, sloppy=0.5, wrong=0.3, seed=3);"
        "print(hashlib.md5(str(a.table.to_pylist()).encode()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = Arithmetic(size=200, correct=0.2, sloppy=0.5, wrong=0.3, seed=3).table.to_pylist()
    assert run.stdout.strip() == hashlib.md5(str(here).encode()).hexdigest()
    assert Arithmetic(seed=1).ids != Arithmetic(seed=0).ids


def test_several_demonstrations_of_a_prompt_stand_together() -> None:
    rows = _rows(size=50, demonstrations_per_prompt=3, **GRADED)
    assert len(rows) == 150
    for i in range(0, 150, 3):
        assert len({row["prompt"] for row in rows[i : i + 3]}) == 1
        assert [row["id"][-2:] for row in rows[i : i + 3]] == ["#0", "#1", "#2"]
    assert Counter(row["grade"] for row in rows) == {"correct": 75, "sloppy": 45, "wrong": 30}


def test_the_counts_of_digits_are_equally_likely() -> None:
    rows = _rows(size=3000, digits=5, operators="+")
    lengths = Counter(len(row["prompt"].split("+")[0]) for row in rows)
    assert sorted(lengths) == [1, 2, 3, 4, 5]
    assert min(lengths.values()) > 450  # 600 each, a few fewer where questions are few


def test_gather_and_column_agree_with_the_rows() -> None:
    dataset = Arithmetic(size=20, **GRADED)
    batch = dataset.gather(torch.tensor([3, 0]))
    assert batch["prompt"] == [dataset[3]["prompt"], dataset[0]["prompt"]]
    assert batch["reward"].equal(dataset.column("reward")[[3, 0]])
    assert dataset[-1] == dataset[19]
    assert len(set(dataset.ids)) == len(dataset) == 20
    data = AdaptiveDataModule(dataset, batch_size=4, difficulty="difficulty")
    assert len(next(iter(data.train_dataloader()))["prompt"]) == 4
    with pytest.raises(ValueError, match=r"answer in Arithmetic \(train\) is not numeric"):
        dataset.column("answer")
    with pytest.raises(ValueError, match="has no column 'ease'"):
        dataset.column("ease")
    with pytest.raises(IndexError, match="row 20 of"):
        dataset[20]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "dev"}, "split is 'dev'"),
        ({"size": 0}, "size is 0"),
        ({"digits": 0}, "digits is 0"),
        ({"digits": 10}, "digits is 10; it must be at most 9"),
        ({"digits": 5, "operators": "*"}, "at most 4"),
        ({"operators": "+/"}, "operators is '\\+/'"),
        ({"operators": "++"}, "each once"),
        ({"operators": ""}, "operators is ''"),
        ({"correct": 0.5}, "add up to 1"),
        ({"correct": 1.5, "wrong": -0.5}, "must not be negative"),
        ({"size": 10**30}, f"size is {10**30}; it must be at most 10000000"),
        (
            {"demonstrations_per_prompt": 10**12},
            f"demonstrations_per_prompt is {10**12}; it must be",
        ),
        ({"correct": float("nan")}, "add up to 1"),
        ({"sloppy_reward": 2.0}, "sloppy_reward is 2"),
        ({"demonstrations_per_prompt": 0}, "demonstrations_per_prompt is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"digits": 1, "size": 200}, "only 1[0-9]{2} different questions"),
    ],
)
def test_an_argument_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Arithmetic(**options)
