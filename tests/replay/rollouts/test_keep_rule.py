"""Which groups are kept, and their base priorities."""

import torch
from groups_twin import NAN, graded_group, joined
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.advantages import INFORMATIVE, SOLVED
from lit_adaptive.replay.rollouts.keep_rule import (
    base_priorities,
    keep_outcomes,
    last_occurrences,
)


def test_a_group_with_a_demonstration_is_kept_though_solved() -> None:
    solved = graded_group(0) | {"reward": [1.0, 1.0]}
    groups = joined([solved, solved | {"demonstration": [True, False]}])
    assert keep_outcomes(groups, 0.0).tolist() == [SOLVED, INFORMATIVE]


def test_base_priority_is_the_mean_absolute_advantage_of_rewarded_rollouts() -> None:
    group = graded_group(0, right=2) | {"reward": [NAN, 1.0, 0.0], "advantage": [9.0, 1.0, -2.0]}
    assert base_priorities(joined([group]), "advantage").tolist() == [1.5]


def test_base_priority_by_learnability_is_p_times_1_minus_p() -> None:
    groups = joined([graded_group(0, right=1), graded_group(1, right=3)])
    assert base_priorities(groups, "learnability").tolist() == [1 / 4, 3 / 16]


@given(st.lists(st.integers(0, 5), max_size=20))
def test_last_occurrences_are_ascending(values: list[int]) -> None:
    expected = sorted({value: i for i, value in enumerate(values)}.values())
    position = last_occurrences(torch.tensor(values, dtype=torch.int64))
    assert position.tolist() == expected
