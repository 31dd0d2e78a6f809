"""DigitCommands: what it asks, what demonstrations show, and its splits."""

import math
import statistics

import pytest
import torch

from lit_adaptive.data import DigitCommands

OPERATIONS = {
    0: lambda text: text,
    1: lambda text: text.translate(str.maketrans("0123456789", "1234567890")),
    2: lambda text: text.translate(str.maketrans("0123456789", "9876543210")),
    3: lambda text: "".join(sorted(text, reverse=True)),
}


def rows(**options: int | str) -> dict[str, list[str] | torch.Tensor]:
    data = DigitCommands(**options)  # type: ignore[arg-type]
    return data.gather(torch.arange(len(data)))


def test_answers_follow_the_command_and_other_demonstrations_another_operation() -> None:
    table = rows(size=3000)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    followed: dict[str, list[bool]] = {letter: [] for letter in letters}
    chance = dict(zip(table["command"], table["difficulty"].tolist(), strict=True))
    for prompt, shown, answer in zip(
        table["prompt"], table["completion"], table["answer"], strict=True
    ):
        letter, text = prompt[0], prompt[1:-1]
        assert answer == OPERATIONS[letters.index(letter) % 4](text)
        assert shown in {operation(text) for operation in OPERATIONS.values()}
        followed[letter].append(shown == answer)
    for letter, results in followed.items():
        expected, count = 1 - chance[letter], len(results)
        error = 5 * math.sqrt(expected * (1 - expected) / count) + 0.1  # operations may agree
        assert abs(statistics.fmean(results) - expected) < error


def test_commands_range_from_hopeless_to_likely() -> None:
    table = rows(size=3000)
    pass_rate = 1 - table["difficulty"]
    assert pass_rate.min() < 1e-3
    assert pass_rate.max() > 0.95
    assert 0.2 < float(((pass_rate > 0.05) & (pass_rate < 0.75)).double().mean()) < 0.6


def test_splits_have_no_question_in_common_whatever_the_seed() -> None:
    parts = [
        {*rows(split=split, size=400, digits=3, seed=seed)["prompt"]}
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    ]
    for i, one in enumerate(parts):
        assert len(one) == 400
        for other in parts[i + 2 - i % 2 :]:
            assert not one & other
    assert rows(size=50)["prompt"] == rows(size=50)["prompt"]
    assert rows(size=50)["prompt"] != rows(size=50, seed=1)["prompt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split is 'dev'"),
        ({"size": 0}, "size is 0"),
        ({"size": 10**30}, "at most"),
        ({"digits": 2}, "digits is 2"),
        ({"digits": 10}, "digits must be at most 9"),
        ({"split": "test", "size": 7801}, "at most 7800"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitCommands(**options)  # type: ignore[arg-type]
