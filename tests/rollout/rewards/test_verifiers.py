"""The rewards that ship: sums, mathematics, reasoning tasks, form, length, verl's functions."""

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.pool import RewardPool
from lit_adaptive.rollout.rewards.reasoning_gym import packed, unpacked
from lit_adaptive.rollout.rewards.verifiers import (
    FormatMatch,
    GSM8KMatch,
    LengthPenalty,
    MathVerify,
    ReasoningGym,
    VerlReward,
    last_boxed,
)


def one(reward: Reward, completion: str, **columns: Any) -> float | None:
    return reward(["p"], [completion], **{name: [value] for name, value in columns.items()})[0]


# --- GSM8K


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        ("so 70+2=72\n#### 72", 1, 1),
        ("#### 70 no, #### 72", 1, 1),
        ("#### $72.00", 1, 1),
        ("#### 72 clips", 1, 1),
        ("so it is 72", 0, 1),
        ("#### ", 0, 0),
        ("####\n72", 0, 1),  # the number is not on the mark's line
        ("72 #### 71", 0, 0),
        ("#### 71\n72", 0, 0),
        ("", 0, 0),
    ],
)
def test_gsm8k_wants_the_number_behind_the_mark(
    completion: str, strict: float, lenient: float
) -> None:
    assert one(GSM8KMatch(), completion, answer="72") == strict
    assert one(GSM8KMatch(strict=False), completion, answer="... #### 72") == lenient


def test_gsm8k_does_not_apply_without_an_answer() -> None:
    assert one(GSM8KMatch(), "#### 1", answer=None) is None
    assert one(GSM8KMatch(), "#### 1,234", answer="1234") == 1


# --- mathematics


@pytest.mark.parametrize(
    ("completion", "answer", "worth"),
    [
        (r"thus \boxed{\frac{1}{2}}", "0.5", 1),
        (r"thus $\dfrac12$.", r"\frac{1}{2}", 1),
        ("it is 1/2", r"\frac{1}{2}", 1),
        (r"\boxed{-\frac{1}{\sqrt{3}}}", r"-\frac{\sqrt{3}}{3}", 1),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1),
        (r"\boxed{1,234}", "1234", 1),
        (r"\boxed{x = 4}", "4", 1),
        (r"\boxed{\{2, 1\}}", r"\{1,2\}", 1),
        (r"\boxed{(1, 2)}", "(2, 1)", 0),
        (r"\boxed{3}", "4", 0),
        ("no idea", "4", 0),
        ("", "4", 0),
        (r"\boxed{", "4", 0),
        (r"\boxed{4}", "", None),
        (r"\boxed{4}", None, None),
        (r"\boxed{4}", r"$4$", 1),
        (r"\boxed{4}", r"so \boxed{4}", 1),
        (r"\boxed{4}", 4, 1),
    ],
)
def test_math_verify_compares_as_mathematics(
    completion: str, answer: Any, worth: float | None
) -> None:
    assert one(MathVerify(), completion, answer=answer) == worth


def test_boxed_takes_the_last_box_and_nothing_else() -> None:
    strict = MathVerify(boxed=True)
    assert one(strict, "the answer is $4$", answer="4") == 0
    assert one(strict, r"\boxed{3}, no: \boxed{4}", answer="4") == 1
    assert one(strict, r"\boxed{4}, no: \boxed{3}", answer="4") == 0
    assert one(strict, r"\boxed{\frac{1}{2}} {", answer="0.5") == 1
    assert one(strict, r"\boxed{} and $4$", answer="4") == 0
    assert last_boxed(r"a \boxed {b{c}d} \boxed{e") == "b{c}d"
    assert last_boxed("nothing") is None


def test_precision_says_how_far_decimals_are_compared() -> None:
    assert one(MathVerify(precision=2), r"\boxed{3.14159}", answer="3.1416") == 1
    assert one(MathVerify(precision=6), r"\boxed{3.14159}", answer="3.1416") == 0
    with pytest.raises(ValueError, match="precision is -1"):
        MathVerify(precision=-1)


def test_math_verify_works_outside_the_main_thread_and_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found: list[float | None] = []
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(
            target=lambda: found.append(one(MathVerify(), r"\boxed{1}", answer="1"))
        )
        thread.start()
        thread.join()
    assert found == [1]
    assert not caplog.records


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_adaptive.rollout import reasoning, verifiers

    verifiers._math_verify.cache_clear()
    verifiers._right_answer.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ModuleNotFoundError, match=r"lit-adaptive\[math\]"):
        one(MathVerify(), "1", answer="1")
    with pytest.raises(ModuleNotFoundError, match=r"lit-adaptive\[text\]"):
        reasoning.load_reasoning_gym()


def test_what_sympy_never_finishes_is_cut() -> None:
    with RewardPool(MathVerify(), timeout_s=1.5, on_error="zero", chunk=4) as pool:
        endless = r"\boxed{99999999!}"
        found = pool(["p"] * 3, [r"\boxed{1}", endless, r"\boxed{2}"], answer=["1", "3", "2"])
        assert found == [1, 0, 1]
        assert pool.timeouts == 1


def test_a_column_that_is_missing_is_named() -> None:
    for reward in (MathVerify(), GSM8KMatch(), ReasoningGym(), VerlReward("math.floor")):
        with pytest.raises(ValueError, match=r"needs the column 'answer'.*offers other"):
            one(reward, "1", other=1)


# --- reasoning-gym


@pytest.mark.parametrize("task", ["chain_sum", "countdown", "rearc", "graph_color", "word_ladder"])
def test_reasoning_gym_scores_as_its_own_dataset_does(task: str) -> None:
    import reasoning_gym

    data = reasoning_gym.create_dataset(task, size=4, seed=5)
    for entry in data:
        metadata = packed(entry["metadata"])
        assert unpacked(metadata) == entry["metadata"]  # tuples, and keys that are no strings
        for said in (entry["answer"] or "?", "nonsense", "1"):
            expected = data.score_answer(said, entry)
            found = ReasoningGym()(
                [entry["question"]],
                [f"<think>so</think> <answer> {said} </answer>"],
                answer=[entry["answer"]],
                metadata=[metadata],
            )
            assert found == [expected]


def test_reasoning_gym_reads_the_last_answer_and_all_without_tags() -> None:
    row = {"answer": "72", "metadata": {"source_dataset": "chain_sum"}}
    assert one(ReasoningGym(), "<answer>1</answer> no <answer>72</answer>", **row) == 1
    assert one(ReasoningGym(), "72\n", **row) == 1
    assert one(ReasoningGym(strict=True), "72", **row) == 0
    assert one(ReasoningGym(tag=None), "<answer>72</answer>", **row) == 2 / 19  # its own partial
    assert one(ReasoningGym(tag="a.b"), "<a.b>72</a.b> <acb>1</acb>", **row) == 1
    assert one(ReasoningGym(), "72", answer="72", metadata=None) is None


def test_the_tasks_own_settings_reach_its_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    import reasoning_gym

    from lit_adaptive.rollout import reasoning

    made: list[Any] = []
    create = reasoning_gym.create_dataset
    monkeypatch.setattr(
        reasoning_gym,
        "create_dataset",
        lambda name, **k: made.append((name, k)) or create(name, **k),
    )
    reasoning._scorer.cache_clear()
    metadata = {"source_dataset": "chain_sum", "task_config": {"min_terms": 3}}
    for _ in range(3):
        assert one(ReasoningGym(), "5", answer="5", metadata=json.dumps(metadata)) == 1
    assert made == [("chain_sum", {"min_terms": 3})]  # once


def test_metadata_without_a_task_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['x'\] but no source_dataset"):
        one(ReasoningGym(), "5", answer="5", metadata={"x": 1})


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.dictionaries(st.tuples(st.integers(), st.text(max_size=2)), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(plain)
def test_what_is_packed_comes_out_the_same(value: Any) -> None:
    found = unpacked(packed(value))
    assert found == value
    assert repr(found) == repr(value)  # tuples are no lists, 1 is not True


# --- form and length


@pytest.mark.parametrize(
    ("completion", "worth"),
    [
        ("<think>a\nb</think>\n<answer>7</answer>", 1),
        ("  <think></think><answer></answer>\n", 1),
        ("<think>a</think> so <answer>7</answer>", 0),
        ("<answer>7</answer><think>a</think>", 0),
        ("<think>a</think><think>b</think><answer>7</answer>", 0),
        ("<think>a</think><answer>7</answer><answer>8</answer>", 0),
        ("<think>a<think>b</think><answer>7</answer>", 0),
        ("<think>a</think><answer>7", 0),
        ("x <think>a</think><answer>7</answer>", 0),
        ("", 0),
    ],
)
def test_the_usual_form_is_thought_then_answer_each_once(completion: str, worth: float) -> None:
    assert one(FormatMatch(), completion) == worth


def test_form_by_ones_own_pattern() -> None:
    assert one(FormatMatch(r"a.b"), " a\nb ") == 1
    assert one(FormatMatch(r"a.b"), "xa b") == 0
    assert one(FormatMatch(r"a.b", search=True), "xa b") == 1
    with pytest.raises(ValueError, match=r"pattern is '\(', which is no regular expression"):
        FormatMatch("(")
    with RewardPool(FormatMatch(r"a+"), workers=1) as pool:
        assert pool(["p"] * 2, ["aa", "ab"]) == [1, 0]


def test_length_costs_linearly_between_free_and_limit() -> None:
    reward = LengthPenalty(10, 20)
    lengths = [0, 10, 11, 15, 20, 500]
    found = reward(["p"] * 6, ["x" * n for n in lengths])
    assert found == pytest.approx([0, 0, -0.1, -0.5, -1, -1])
    tokens = LengthPenalty(2, 6, unit="tokens")
    assert tokens(["p"] * 2, ["?"] * 2, completion_ids=[[1, 2, 3], 5]) == [-0.25, -0.75]
    with pytest.raises(ValueError, match="needs the column 'completion_ids'"):
        tokens(["p"], ["c"])
    for free, limit in ((-1, 5), (5, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"free is {free}, limit is {limit}"):
            LengthPenalty(free, limit)
    with pytest.raises(ValueError, match="unit is 'words'"):
        LengthPenalty(1, 2, unit="words")  # type: ignore[arg-type]


# --- verl

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

async def judged(data_source, solution_str, ground_truth, extra_info):
    global running
    running += 1
    await asyncio.sleep(0.05)
    return {"score": 1.0, "together": running}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my scores.py"
    path.write_text(VERL)
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_verls_functions_give_a_number_a_tuple_or_a_dictionary(workers: int, file: Path) -> None:
    reward = VerlReward(f"{file}:compute_score", ground_truth="right")
    with RewardPool(reward, workers=workers, chunk=2) as pool:
        found = pool(
            ["p"] * 5,
            ["a", "b", "a", "a", "b"],
            right=["a"] * 5,
            data_source=["plain", "tuple", "nothing", "dict", "dict"],
            extra_info=[None, None, None, {"index": 7}, '{"index": 8}'],
        )
        assert found == [1, 0, None, 1, 0]
        assert pool.extras == {
            "acc": [None, None, None, 1, 0],
            "index": [None, None, None, 7, 8],
        }


def test_verls_function_gets_what_there_is_and_keywords(file: Path) -> None:
    reward = VerlReward(f"{file}:compute_score", keywords={"bonus": 5}, data_source="kind")
    assert one(reward, "a", answer="a", kind="plain") == 6
    with pytest.raises(ValueError, match=r"\['points'\]; it must have a 'score'"):
        one(reward, "a", answer="a", kind="wrong")


def test_verls_async_functions_run_together(file: Path) -> None:
    reward = VerlReward(f"{file}:judged")
    assert reward(["p"] * 8, ["c"] * 8, answer=["x"] * 8) == [1] * 8
    assert reward.extras == {"together": [8] * 8}


def test_a_function_of_verl_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(ValueError, match=r"has nothing callable named 'score'"):
        VerlReward(f"{file}:score")
    with pytest.raises(ValueError, match=r"there is no file '/none.py'"):
        VerlReward("/none.py:score")
    with pytest.raises(ValueError, match="did you mean 'plus'"):
        VerlReward("awkward_rewards.pluss")
