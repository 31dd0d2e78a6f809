"""reasoning-gym's scorers as a reward, and its metadata as JSON."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.rollout.rewards import reasoning_gym as module
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.reasoning_gym import (
    ReasoningGym,
    load_reasoning_gym,
    pack_metadata,
    unpack_metadata,
)


def score(reward: Reward, completion: str, **columns: Any) -> float | None:
    """The reward of one completion."""
    return reward(["p"], [completion], **{name: [value] for name, value in columns.items()})[0]


@pytest.mark.parametrize("task", ["chain_sum", "countdown", "rearc", "graph_color", "word_ladder"])
def test_scores_are_those_of_reasoning_gyms_dataset(task: str) -> None:
    import reasoning_gym

    data = reasoning_gym.create_dataset(task, size=4, seed=5)
    for entry in data:
        metadata = pack_metadata(entry["metadata"])
        assert unpack_metadata(metadata) == entry["metadata"]  # tuples, and keys of any type
        for answer in (entry["answer"] or "?", "nonsense", "1"):
            expected = data.score_answer(answer, entry)
            rewards = ReasoningGym()(
                [entry["question"]],
                [f"<think>so</think> <answer> {answer} </answer>"],
                answer=[entry["answer"]],
                metadata=[metadata],
            )
            assert rewards == [expected]


def test_the_last_tagged_answer_is_scored_or_without_tags_the_complete_text() -> None:
    row = {"answer": "72", "metadata": {"source_dataset": "chain_sum"}}
    assert score(ReasoningGym(), "<answer>1</answer> no <answer>72</answer>", **row) == 1
    assert score(ReasoningGym(), "72\n", **row) == 1
    assert score(ReasoningGym(strict=True), "72", **row) == 0
    assert score(ReasoningGym(tag=None), "<answer>72</answer>", **row) == 2 / 19  # its own partial
    assert score(ReasoningGym(tag="a.b"), "<a.b>72</a.b> <acb>1</acb>", **row) == 1
    assert score(ReasoningGym(), "72", answer="72", metadata=None) is None


def test_a_scorer_is_made_once_with_the_tasks_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import reasoning_gym

    calls: list[Any] = []
    create = reasoning_gym.create_dataset
    monkeypatch.setattr(
        reasoning_gym,
        "create_dataset",
        lambda name, **k: calls.append((name, k)) or create(name, **k),
    )
    module._scorer.cache_clear()
    metadata = {"source_dataset": "chain_sum", "task_config": {"min_terms": 3}}
    for _ in range(3):
        assert score(ReasoningGym(), "5", answer="5", metadata=json.dumps(metadata)) == 1
    assert calls == [("chain_sum", {"min_terms": 3})]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ModuleNotFoundError, match=r"lit-adaptive\[text\]"):
        load_reasoning_gym()


def test_metadata_without_a_task_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"\['x'\] but no source_dataset"):
        score(ReasoningGym(), "5", answer="5", metadata={"x": 1})


json_values = st.recursive(
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


@given(json_values)
def test_packed_metadata_is_unpacked_exactly(value: Any) -> None:
    unpacked = unpack_metadata(pack_metadata(value))
    assert unpacked == value
    assert repr(unpacked) == repr(value)  # tuples differ from lists, 1 from True
