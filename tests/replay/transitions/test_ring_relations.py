"""Rings that receive the same steps in different forms have the same contents."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_adaptive.replay import TransitionRing

SPECIAL = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1.0])


def _assert_bits(one: Tensor, other: Tensor) -> None:
    assert one.dtype == other.dtype
    if one.is_floating_point():
        one, other = one.contiguous().view(torch.int32), other.contiguous().view(torch.int32)
    assert one.equal(other)


def _leaves(random: torch.Generator, streams: int, stack: tuple[int, ...]) -> list[Tensor]:
    shape = (streams, *stack, 2)
    return [
        SPECIAL[torch.randint(5, shape, generator=random)],
        torch.randint(2, shape, generator=random, dtype=torch.uint8),
        torch.rand(shape[:-1], generator=random) < 0.5,
    ]


def _nest(leaves: list[Tensor]) -> dict[str, Any]:
    return {"a": leaves[0], "more": (leaves[1], {"b": leaves[2]})}


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 20),
    streams=st.integers(1, 3),
    n_step=st.integers(1, 3),
    stack=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    steps=st.integers(1, 40),
)
def test_a_nested_observation_is_stored_as_its_leaves_are(
    capacity: int, streams: int, n_step: int, stack: int, seed: int, steps: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    axes = () if stack == 1 else (stack,)

    def ring(frame_stack: int) -> TransitionRing:
        return TransitionRing(capacity, num_streams=streams, n_step=n_step, frame_stack=frame_stack)

    nested, flat = ring(stack), [ring(1) for _ in range(3)]
    now = _leaves(random, streams, axes)
    for _ in range(steps):
        then = _leaves(random, streams, axes)
        for old, new in zip(now, then, strict=True):
            if stack > 1 and torch.rand(1, generator=random) < 0.8:
                new[:, :-1] = old[:, 1:]
        action = torch.randint(4, (streams,), generator=random)
        reward = torch.randn(streams, generator=random)
        ended = torch.rand(2, streams, generator=random) < 0.15
        written = nested.add(_nest(now), action, reward, _nest(then), *ended)
        for one, a, b in zip(flat, now, then, strict=True):
            assert one.add(a, action, reward, b, *ended).equal(written)
        if torch.rand(1, generator=random) < 0.2:
            cut = torch.randperm(streams, generator=random)[:2]
            written = nested.end_episode(cut)
            assert all(one.end_episode(cut).equal(written) for one in flat)
        now = then
        if torch.rand(1, generator=random) < 0.2:
            now = _leaves(random, streams, axes)
            if stack > 1:  # the first frame, repeated
                now = [leaf[:, :1].repeat(1, stack, *[1] * (leaf.dim() - 2)) for leaf in now]
    index = torch.arange(len(nested))
    batch, apart = nested.get(index), [one.get(index) for one in flat]
    for key in ("observation", "next_observation"):
        nest = batch[key]
        leaves = (nest["a"], nest["more"][0], nest["more"][1]["b"])
        for leaf, flat_batch in zip(leaves, apart, strict=True):
            _assert_bits(leaf, flat_batch[key])
    for key in ("action", "reward", "terminated", "discount"):
        assert all(batch[key].equal(one[key]) for one in apart)


@given(n_step=st.integers(1, 5), lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_ending_an_episode_later_is_truncating_its_last_step(
    n_step: int, lengths: list[int]
) -> None:
    truncated, ended_later = (TransitionRing(16, n_step=n_step, gamma=0.7) for _ in range(2))
    time = 0
    for length in lengths:
        for step in range(length):
            last = step == length - 1
            truncated.add([[time]], [time], [time], [[time + 1]], [False], [last])
            ended_later.add([[time]], [time], [time], [[time + 1]], [False])
            time += 1
        time += 10
        ended_later.end_episode()
        index = torch.arange(len(truncated))
        actual, expected = ended_later.get(index), truncated.get(index)
        assert all(actual[key].equal(expected[key]) for key in expected)


@given(st.permutations(range(4)), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_streams_may_be_added_apart_and_in_any_order(order: list[int], n_step: int) -> None:
    together, apart = (TransitionRing(64, num_streams=4, n_step=n_step) for _ in range(2))
    for time in range(12):
        now = torch.arange(4)[:, None] * 100 + time
        ended = torch.arange(4) == time % 5
        together.add(now, now[:, 0], now[:, 0].float(), now + 1, ended)
        for one in order:
            row = slice(one, one + 1)
            part = now[row]
            apart.add(part, part[:, 0], part[:, 0].float(), part + 1, ended[row], stream=[one])

    def held(ring: TransitionRing) -> list[Any]:
        batch = ring.get(torch.arange(len(ring)))
        columns = [value.flatten().tolist() for value in batch.values()]
        return sorted(zip(*columns, strict=True))

    assert held(together) == held(apart)
