"""Reward functions in TRL's and in verl's signature."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.functions import FunctionReward, VerlReward
from lit_adaptive.rollout.rewards.pool import RewardPool


def score(reward: Reward, completion: str, **columns: Any) -> float | None:
    """The reward of one completion."""
    return reward(["p"], [completion], **{name: [value] for name, value in columns.items()})[0]


def shortness(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Accepts all columns, as TRL's functions do."""
    assert "answer" in columns
    return [-float(len(c)) for c in completions]


def close_to(completions: list[str], answer: list[int]) -> list[float | None]:
    """Accepts only one column."""
    return [-abs(float(c) - a) for c, a in zip(completions, answer, strict=True)]


not_callable = 7


def test_a_function_is_called_with_the_columns_that_it_accepts() -> None:
    reward: Reward = FunctionReward(f"{__name__}.shortness")
    assert reward(["p", "q"], ["abc", "a"], answer=[1, 2]) == [-3, -1]
    reward = FunctionReward(f"{__name__}.close_to")
    assert reward(["p"], ["5"], answer=[7], level=["easy"]) == [-2]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("shortness", "package.module.function"),
        ("no_such_package.rewards.f", "no module 'no_such_package'"),
        (f"{__name__}.shortnes", "did you mean 'shortness'"),
        (f"{__name__}.not_callable", "nothing callable named 'not_callable'"),
    ],
)
def test_a_missing_function_is_named_with_a_remedy(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FunctionReward(path)


VERL = """
import asyncio

def compute_score(data_source, solution_str, ground_truth, extra_info=None, bonus=0):
    score = float(solution_str == ground_truth) + bonus
    if data_source == "plain":
        return score
    if data_source == "tuple":
        return (score, "why")
    if data_source == "nothing":
        return None
    if data_source == "wrong":
        return {"points": 1}
    return {"score": score, "acc": solution_str == ground_truth, "index": extra_info["index"],
            "pred": solution_str}

running = 0

async def compute_later(data_source, solution_str, ground_truth, extra_info):
    global running
    running += 1
    await asyncio.sleep(0.05)
    return {"score": 1.0, "concurrent": running}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my scores.py"
    path.write_text(VERL)
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_verl_functions_return_a_number_a_tuple_or_a_dictionary(workers: int, file: Path) -> None:
    reward = VerlReward(f"{file}:compute_score", ground_truth="right")
    with RewardPool(reward, workers=workers, chunk=2) as pool:
        scores = pool(
            ["p"] * 5,
            ["a", "b", "a", "a", "b"],
            right=["a"] * 5,
            data_source=["plain", "tuple", "nothing", "dict", "dict"],
            extra_info=[None, None, None, {"index": 7}, '{"index": 8}'],
        )
        assert scores == [1, 0, None, 1, 0]
        assert pool.extras == {
            "acc": [None, None, None, 1, 0],
            "index": [None, None, None, 7, 8],
        }


def test_a_verl_function_is_called_with_keywords_and_without_missing_columns(file: Path) -> None:
    reward = VerlReward(f"{file}:compute_score", keywords={"bonus": 5}, data_source="kind")
    assert score(reward, "a", answer="a", kind="plain") == 6


def test_a_dictionary_without_a_score_is_rejected(file: Path) -> None:
    reward = VerlReward(f"{file}:compute_score", data_source="kind")
    with pytest.raises(ValueError, match=r"\['points'\]; it must have a 'score'"):
        score(reward, "a", answer="a", kind="wrong")


def test_async_verl_functions_run_concurrently(file: Path) -> None:
    reward = VerlReward(f"{file}:compute_later")
    assert reward(["p"] * 8, ["c"] * 8, answer=["x"] * 8) == [1] * 8
    assert reward.extras == {"concurrent": [8] * 8}


def test_a_missing_verl_function_or_file_is_named(file: Path) -> None:
    with pytest.raises(ValueError, match=r"has nothing callable named 'score'"):
        VerlReward(f"{file}:score")
    with pytest.raises(ValueError, match=r"there is no file '/none.py'"):
        VerlReward("/none.py:score")
    with pytest.raises(ValueError, match="did you mean 'plus'"):
        VerlReward("awkward_rewards.pluss")


def test_an_async_function_is_awaited_even_in_a_running_event_loop() -> None:
    reward = FunctionReward("awkward_rewards.awaited_length")
    assert reward(["p"], ["abc"]) == [3]

    async def call_in_notebook() -> list[float | None]:
        return reward(["p"], ["abcd"])

    assert asyncio.run(call_in_notebook()) == [4]
