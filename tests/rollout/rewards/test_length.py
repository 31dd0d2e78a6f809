"""The penalty for long completions."""

import pytest

from lit_adaptive.rollout.rewards.length import LengthPenalty


def test_the_penalty_falls_linearly_between_free_and_limit() -> None:
    lengths = [0, 10, 11, 15, 20, 500]
    rewards = LengthPenalty(10, 20)(["p"] * 6, ["x" * n for n in lengths])
    assert rewards == pytest.approx([0, 0, -0.1, -0.5, -1, -1])


def test_tokens_are_counted_in_their_column() -> None:
    reward = LengthPenalty(2, 6, unit="tokens")
    assert reward(["p"] * 2, ["?"] * 2, completion_ids=[[1, 2, 3], 5]) == [-0.25, -0.75]
    with pytest.raises(ValueError, match="needs the column 'completion_ids'"):
        reward(["p"], ["c"])


@pytest.mark.parametrize(("free", "limit"), [(-1, 5), (5, 5), (6, 5)])
def test_free_is_not_negative_and_below_the_limit(free: int, limit: int) -> None:
    with pytest.raises(ValueError, match=f"free is {free}, limit is {limit}"):
        LengthPenalty(free, limit)


def test_an_unknown_unit_is_rejected() -> None:
    with pytest.raises(ValueError, match="unit is 'words'"):
        LengthPenalty(1, 2, unit="words")  # type: ignore[arg-type]
