"""Questions with answers: reasoning-gym by name, the columns of GSM8K and DeepScaleR."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lit_adaptive.data.datasets.reasoning import DeepScaleR, Gsm8k, ReasoningTask
from lit_adaptive.rollout.rewards.matching import GSM8KMatch
from lit_adaptive.rollout.rewards.math import MathVerify
from lit_adaptive.rollout.rewards.reasoning_gym import ReasoningGym

DATA = Path("/work/shared/data")


def columns(data: Any) -> dict[str, list[Any]]:
    by_name: dict[str, list[Any]] = data.table.to_pydict()
    return by_name


# --- reasoning-gym


@pytest.mark.parametrize("task", ["chain_sum", "rearc", "countdown", "graph_color"])
def test_a_task_scores_its_right_answers_1_and_others_below_a_half(task: str) -> None:
    rows = columns(ReasoningTask(task, 12))
    assert [*rows] == ["id", "prompt", "answer", "metadata"]
    answers = {"answer": rows["answer"], "metadata": rows["metadata"]}
    wrong = ReasoningGym()(rows["prompt"], ["<answer>none</answer>"] * 12, **answers)
    assert all(reward is not None and reward < 0.5 for reward in wrong)
    if task == "graph_color":  # has a scorer, but no answers of its own
        assert rows["answer"] == [None] * 12
        return
    right = [f"<answer>{answer}</answer>" for answer in rows["answer"]]
    assert ReasoningGym()(rows["prompt"], right, **answers) == [1] * 12


def test_the_same_arguments_give_the_same_rows_and_other_seeds_others() -> None:
    first, again, second = (columns(ReasoningTask("chain_sum", 50, seed)) for seed in (3, 3, 4))
    assert first == again
    # reasoning-gym's own seeds 3 and 4 would share 49 of 50.
    assert len(set(first["prompt"]) & set(second["prompt"])) < 3
    assert set(first["id"]).isdisjoint(second["id"])


def test_no_question_is_in_two_splits_or_twice_in_one() -> None:
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # 200 questions
    seen: dict[str, set[str]] = {}
    for split, size in (("train", 100), ("validation", 30), ("test", 30)):
        for seed in (0, 1):
            data = ReasoningTask("chain_sum", size, seed, split, few)  # type: ignore[arg-type]
            prompts = columns(data)["prompt"]
            assert len(set(prompts)) == len(set(data.ids)) == len(data) == size
            seen.setdefault(split, set()).update(prompts)
    assert len(seen["train"] | seen["validation"] | seen["test"]) == sum(map(len, seen.values()))


def test_the_tasks_settings_shape_its_questions_and_travel_to_the_scorer() -> None:
    row = ReasoningTask("chain_sum", 5, config={"min_terms": 7, "max_terms": 7})[-1]
    assert row["prompt"].count("+") + row["prompt"].count(" - ") == 6
    metadata = json.loads(row["metadata"])
    assert metadata["task_config"] == {"min_terms": 7, "max_terms": 7}
    assert metadata["source_dataset"] == "chain_sum"


def test_a_task_that_runs_out_of_questions_says_how_many_it_has() -> None:
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(ValueError, match=r"size is 500, but chain_sum \(test\) has only \d\d diff"):
        ReasoningTask("chain_sum", 500, split="test", config=few)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "chain_sums"}, "did you mean chain_sum"),
        ({"name": "composite"}, "not a task of reasoning-gym"),
        ({"size": 0}, "size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "dev"}, "split is 'dev'"),
        ({"config": {"terms": 2}}, "which chain_sum does not accept.*'terms'"),
        ({"config": {"min_terms": -1}}, "which chain_sum does not accept.*positive"),
    ],
)
def test_an_argument_out_of_range_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReasoningTask(**{"name": "chain_sum", "size": 2} | changed)


# --- files


def jsonl(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("2+2=<<2+2=4>>4\n#### 4", "4"),
        ("#### 1,234,567", "1234567"),
        ("#### $1,000.50", "1000.50"),
        ("#### -3\n", "-3"),
        ("#### 5 \n\n", "5"),
        ("#### 5.", "5"),
        ("#### 1\n#### 2", "2"),
    ],
)
def test_gsm8ks_answer_is_the_number_after_the_mark(
    tmp_path: Path, solution: str, answer: str
) -> None:
    data = Gsm8k(jsonl(tmp_path, {"question": "How many?", "answer": solution}))
    assert data[0] == {"id": "rows-0", "prompt": "How many?", "answer": answer}
    assert GSM8KMatch()(["p"], [solution], answer=[answer]) == [1]


def test_an_instruction_follows_the_question(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"question": "How many?", "answer": "#### 4"})
    assert Gsm8k(file, "End with ####.")[0]["prompt"] == "How many?\n\nEnd with ####."


def test_missing_answers_and_columns_are_named(tmp_path: Path) -> None:
    good = {"question": "q", "answer": "#### 1"}
    bad = {"question": "q", "answer": "no mark"}
    with pytest.raises(ValueError, match=r"no number after #### in rows \[1, 3\]"):
        Gsm8k(jsonl(tmp_path, good, bad, good, {"question": "q", "answer": None}))
    with pytest.raises(ValueError, match=r"question in .* is missing in rows \[0\]"):
        Gsm8k(jsonl(tmp_path, {"question": None, "answer": "#### 1"}))
    with pytest.raises(
        ValueError, match=r"has no column 'answer'; its columns are \['question', 'solution'\]"
    ):
        Gsm8k(jsonl(tmp_path, {"question": "q", "solution": "#### 1"}))
    with pytest.raises(ValueError, match=r"has no column 'answer'"):
        DeepScaleR(jsonl(tmp_path, {"problem": "q"}))
    with pytest.raises(ValueError, match=r"missing or empty in rows \[1\]"):
        DeepScaleR(jsonl(tmp_path, {"problem": "q", "answer": "1"}, {"problem": "q", "answer": ""}))
    with pytest.raises(ValueError, match="has no rows"):
        Gsm8k(jsonl(tmp_path))


def verl_row(question: str, answer: Any, system: str | None = "Think.") -> dict[str, Any]:
    before = [] if system is None else [{"role": "system", "content": system + " "}]
    return {
        "prompt": [*before, {"role": "user", "content": question}],
        "reward_model": {"ground_truth": answer, "style": "rule"},
    }


def test_deepscaler_reads_the_original_columns_and_verls(tmp_path: Path) -> None:
    own = DeepScaleR(jsonl(tmp_path, {"problem": "1+1?", "answer": "2", "solution": "s"}))
    assert own[0] == {"id": "rows-0", "prompt": "1+1?", "answer": "2"}
    file = str(tmp_path / "verl.parquet")
    parquet.write_table(pa.Table.from_pylist([verl_row("1+1?", "2")]), file)
    assert DeepScaleR(file)[0] == {"id": "verl-0", "prompt": "1+1?\n\nThink.", "answer": "2"}
    assert DeepScaleR(file, "Box it.")[0]["prompt"] == "1+1?\n\nBox it."
    assert DeepScaleR(file, "")[0]["prompt"] == "1+1?"
    file = jsonl(tmp_path, verl_row("a", "2"), verl_row("b", None))
    with pytest.raises(ValueError, match=r"missing or empty in rows \[1\]"):
        DeepScaleR(file)
    assert DeepScaleR(jsonl(tmp_path, verl_row("a", "2", None)))[0]["prompt"] == "a"


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real files")
def test_all_rows_of_the_real_files_are_read() -> None:
    train = Gsm8k(str(DATA / "gsm8k_train.jsonl"))
    assert len(train) == 7473
    assert train[0]["answer"] == "72"
    assert all(text.lstrip("-").replace(".", "").isdigit() for text in columns(train)["answer"])
    assert len(Gsm8k(str(DATA / "gsm8k_test.jsonl"))) == 1319
    hard = DeepScaleR(str(DATA / "deepscaler_10240.parquet"))
    assert len(hard) == len(set(hard.ids)) == 10240
    rows = [hard[k] for k in range(0, 10240, 400)]
    completions = [rf"So it is \boxed{{{row['answer']}}}." for row in rows]
    rewards = MathVerify()(["p"] * len(rows), completions, answer=[row["answer"] for row in rows])
    assert rewards == [1] * len(rows)


def test_negative_rows_count_from_the_end_and_others_raise_an_index_error() -> None:
    data = ReasoningTask("gcd", 3)
    assert data[-1] == data[2]
    with pytest.raises(IndexError, match=r"row 3 of gcd \(train\), which has 3 rows"):
        data[3]
