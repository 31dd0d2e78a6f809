"""Checkpoints of the rollout buffer: exact resume, and validation before any change."""

import math
from typing import Any

import pytest
import torch
from groups_twin import (
    as_primitives,
    assert_same,
    assert_unchanged,
    filled_buffer,
    graded_group,
    joined,
    random_group,
    reloaded,
)

from lit_adaptive.replay.rollouts.buffer import RolloutBuffer, RolloutDraw

POLICIES = ("uniform", "prioritized", "fresh")


def assert_same_draw(actual: RolloutDraw, expected: RolloutDraw) -> None:
    assert_same(actual.groups, expected.groups)
    for values, others in zip(actual[1:], expected[1:], strict=True):
        assert values.equal(others)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_resumed_buffer_draws_what_an_uninterrupted_one_draws(policy: str) -> None:
    options: dict[str, Any] = {"policy": policy, "tau": 0.7, "max_age": 900}

    def run(resumed_at: set[int]) -> list[RolloutDraw]:
        random = torch.Generator().manual_seed(5)
        buffer = RolloutBuffer(50, seed=3, **options)
        draws = []
        for step in range(40):
            version = 13 * step  # log masses grow beyond the exponents of float64
            if step in resumed_at:
                state = reloaded(buffer.state_dict())
                buffer = RolloutBuffer(50, seed=77, **options)
                buffer.load_state_dict(state)
            groups = [random_group(random, prompts=90, version=version) for _ in range(20)]
            buffer.add(joined(groups))
            draws.append(buffer.draw(9, version=version, beta=0.4))
            priority = torch.rand(9, generator=random)
            buffer.update_priorities(draws[-1].key, priority)
            if step % 3 == 0:
                buffer.set_factors(torch.rand(90, generator=random) + 1e-3)
        return draws

    for resumed, uninterrupted in zip(run({11, 12, 30}), run(set()), strict=True):
        assert_same_draw(resumed, uninterrupted)


def test_a_state_is_a_copy() -> None:
    buffer = filled_buffer(6, policy="fresh")
    state = buffer.state_dict()
    before = repr(as_primitives(state))
    buffer.add(joined([graded_group(9, version=9)]))
    buffer.update_priorities(buffer.probabilities()[0], torch.rand(6))
    buffer.draw(2, version=9, beta=0)
    assert repr(as_primitives(state)) == before
    twin = RolloutBuffer(6, policy="fresh")
    twin.load_state_dict(state)
    twin.add(joined([graded_group(8, version=9)]))
    twin.draw(6, version=9, beta=0)
    assert repr(as_primitives(state)) == before


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"capacity": 7}, "state has capacity=6, this RolloutBuffer capacity=7"),
        ({"policy": "uniform"}, "policy='fresh', this RolloutBuffer policy='uniform'"),
        ({"alpha": 0.5}, "alpha=0.6, this RolloutBuffer alpha=0.5"),
        ({"tau": 5.0}, "tau=500.0, this RolloutBuffer tau=5.0"),
        ({"signal": "learnability"}, "signal='advantage'"),
        ({"deduplicate": False}, "deduplicate=True"),
    ],
)
def test_a_state_with_other_options_is_refused(options: dict[str, Any], error: str) -> None:
    state = filled_buffer(6, policy="fresh").state_dict()
    buffer = RolloutBuffer(**{"capacity": 6, "policy": "fresh", **options})
    buffer.add(joined([graded_group(3)]))
    before = buffer.state_dict()
    with pytest.raises(ValueError, match=error):
        buffer.load_state_dict(state)
    assert_unchanged(buffer, before)


DAMAGE: dict[str, dict[str, Any]] = {
    "no groups": {"groups": None},
    "a field too short": {"tokens": torch.empty(1, dtype=torch.int32)},
    "a prompt with several groups": {"prompt": torch.zeros(6, dtype=torch.int64)},
    "keys in another order": {"key": torch.tensor([0, 1, 2, 3, 5, 4])},
    "a negative key": {"key": torch.arange(-1, 5)},
    "keys of another type": {"key": torch.arange(6.0)},
    "a key to be given again": {"next_key": 5},
    "infinite priorities": {"base": torch.full((6,), math.inf, dtype=torch.float64)},
    "priorities of 0": {"base": torch.zeros(6, dtype=torch.float64)},
    "priorities for other groups": {"base": torch.ones(5, dtype=torch.float64)},
    "no priorities": {"base": None},
    "factors for other prompts": {"factors": torch.ones(5, dtype=torch.float64)},
    "negative factors": {"factors": torch.full((6,), -1.0, dtype=torch.float64)},
    "groups newer than the newest version": {"newest": 2},
    "no version": {"newest": None},
    "a version that is text": {"newest": "4"},
    "a fingerprint that is a number": {"fingerprint": 3},
    "a negative counter": {"counters": {"stale_updates": -1}},
    "a generator too short": {"generator": torch.zeros(9, dtype=torch.uint8)},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_changes_nothing(damage: dict[str, Any]) -> None:
    state = filled_buffer(6, policy="fresh").state_dict()
    groups = state["groups"]
    damaged = {**state, **{name: value for name, value in damage.items() if name in state}}
    fields = {name: value for name, value in damage.items() if name in groups}
    if fields:
        damaged["groups"] = {**groups, **fields}
    if "counters" in damage:
        damaged["counters"] = {**state["counters"], **damage["counters"]}
    buffer = RolloutBuffer(6, policy="fresh")
    buffer.add(joined([graded_group(3)]))
    before = buffer.state_dict()
    with pytest.raises(ValueError, match="damaged"):
        buffer.load_state_dict(damaged)
    assert_unchanged(buffer, before)


def test_a_state_of_another_class_is_refused() -> None:
    state = filled_buffer(6).state_dict()
    with pytest.raises(ValueError, match="of 'TransitionRing', not of a RolloutBuffer"):
        RolloutBuffer(6).load_state_dict(state | {"kind": "TransitionRing"})


def test_rollouts_of_another_model_are_refused_and_change_nothing() -> None:
    buffer = filled_buffer(3)
    buffer.fingerprint = "gpt2:abc"
    llama = RolloutBuffer(3)
    llama.fingerprint = "llama:def"
    before = llama.state_dict()
    with pytest.raises(ValueError, match=r"of tokenizer and model 'gpt2:abc'.*'llama:def'.*empty"):
        llama.load_state_dict(reloaded(buffer.state_dict()))
    assert_unchanged(llama, before)


def test_a_buffer_without_fingerprint_adopts_that_of_the_state() -> None:
    buffer = filled_buffer(3)
    buffer.fingerprint = "gpt2:abc"
    resumed = RolloutBuffer(3)
    resumed.load_state_dict(buffer.state_dict())
    assert resumed.fingerprint == "gpt2:abc"


def test_the_fingerprint_can_change_only_while_no_groups_are_held() -> None:
    buffer = filled_buffer(3)
    buffer.fingerprint = "gpt2:abc"
    with pytest.raises(ValueError, match=r"'gpt2:abc'.*'llama:def'.*clear"):
        buffer.fingerprint = "llama:def"
    buffer.clear()
    buffer.fingerprint = "llama:def"
    assert len(buffer) == 0


def test_keys_are_not_reused_after_clear() -> None:
    buffer = filled_buffer(4)
    key = buffer.probabilities()[0]
    buffer.clear()
    buffer.add(joined([graded_group(i) for i in range(4)]))
    assert not set(key.tolist()) & set(buffer.probabilities()[0].tolist())
    assert buffer.update_priorities(key, torch.ones(4)) == 0


def test_max_age_and_tolerance_may_change_on_resume() -> None:
    buffer = filled_buffer(5, policy="fresh")
    resumed = RolloutBuffer(5, policy="fresh", max_age=2, tolerance=0.1)
    resumed.load_state_dict(reloaded(buffer.state_dict()))
    assert_same(resumed.groups(), buffer.groups())
    assert resumed.expire(5) == 3
