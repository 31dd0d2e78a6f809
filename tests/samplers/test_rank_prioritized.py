"""Rank-based prioritization; what it shares with the other samplers is in test_base."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adaptive.core.prioritized import rank_priorities, sampling_probabilities
from lit_adaptive.samplers import RankPrioritizedSampler


def test_right_after_sorting_the_distribution_is_that_of_the_true_ranks() -> None:
    # Schaul et al. (2016), section 3.3: p_i = 1 / rank(i), P(i) ~ p_i ** alpha.
    sampler = RankPrioritizedSampler(50, alpha=0.7, resort_every=50)
    priority = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler.update(torch.arange(50), priority)  # 50 updates: sorted
    rank = priority.argsort(descending=True).argsort() + 1
    expected = sampling_probabilities(1 / rank.double(), alpha=0.7)
    torch.testing.assert_close(sampler.probabilities(), expected)
    torch.testing.assert_close(
        sampler.probabilities(), sampling_probabilities(rank_priorities(priority), alpha=0.7)
    )


def test_equal_priorities_rank_in_the_order_of_their_indices() -> None:
    sampler = RankPrioritizedSampler(6, resort_every=6)
    priority = torch.tensor([1.0, 2, 1, 2, 1, 1])
    sampler.update(torch.arange(6), priority)
    expected = sampling_probabilities(rank_priorities(priority), alpha=0.7)
    torch.testing.assert_close(sampler.probabilities(), expected)


def test_a_batch_has_one_draw_from_each_of_its_equal_ranges() -> None:
    sampler = RankPrioritizedSampler(30, alpha=1.0, resort_every=30)
    sampler.update(torch.arange(30), torch.arange(30, 0, -1).double())  # index i has rank i + 1
    cumulative = sampler.probabilities().cumsum(0)
    for _ in range(50):
        index = sampler.draw(10).index
        assert index.equal(index.sort().values)
        bounds = torch.arange(10) / 10
        assert (cumulative[index] >= bounds).all()
        before = torch.where(index > 0, cumulative[index - 1], 0.0)
        assert (before <= bounds + 0.1).all()


@given(
    st.lists(st.tuples(st.sampled_from("uir"), st.integers(0, 11), st.floats(0, 9)), max_size=60)
)
@settings(deadline=None)
def test_the_heap_stays_a_heap(steps: list[tuple[str, int, float]]) -> None:
    sampler, twin = RankPrioritizedSampler(12, resort_every=20), dict.fromkeys(range(12), 1.0)
    highest = 1.0
    for kind, i, value in steps:
        index = torch.tensor([i])
        if kind == "r":
            sampler.remove(index)
            twin.pop(i, None)
        elif kind == "i":
            sampler.insert(index)
            twin[i] = highest
        elif i in twin:
            sampler.update(index, torch.tensor([value], dtype=torch.float64))
            twin[i] = value
            highest = max(highest, value)
    n = sampler.count
    heap, item = sampler._heap[:n].tolist(), sampler._item[:n].tolist()
    assert dict(zip(item, heap, strict=True)) == twin
    assert all(heap[(k - 1) // 2] >= heap[k] for k in range(1, n))
    assert all(sampler._place[i] == k for k, i in enumerate(item))
    sampler.sort()
    assert sampler._heap[:n].tolist() == sorted(twin.values(), reverse=True)


def test_resort_every_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="resort_every is 0"):
        RankPrioritizedSampler(3, resort_every=0)


def test_a_resumed_sampler_sorts_after_the_same_update_as_the_uninterrupted_one() -> None:
    sampler, resumed = (RankPrioritizedSampler(12, resort_every=6) for _ in range(2))
    sampler.update(torch.arange(4), torch.tensor([0.5, 0.1, 0.4, 0.2]))
    resumed.load_state_dict(sampler.state_dict())
    for s in (sampler, resumed):
        s.update(torch.tensor([5, 6]), torch.tensor([0.3, 0.6]))
    priority = sampler.scores()
    expected = sampling_probabilities(rank_priorities(priority), alpha=0.7)
    torch.testing.assert_close(resumed.probabilities(), expected)
    assert resumed.probabilities().equal(sampler.probabilities())
