"""What all samplers with replacement promise, and what each adds."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lit_adaptive.core.prioritized import importance_sampling_weights, sampling_probabilities
from lit_adaptive.samplers import (
    AdaptiveSampler,
    IndexSampler,
    PrioritizedSampler,
    RankPrioritizedSampler,
    RewardWeightedSampler,
    UniformSampler,
)

ALL = [UniformSampler, PrioritizedSampler, RankPrioritizedSampler, RewardWeightedSampler]
ADAPTIVE = [PrioritizedSampler, RankPrioritizedSampler]
every = pytest.mark.parametrize("cls", ALL)
adaptive = pytest.mark.parametrize("cls", ADAPTIVE)
Class = Callable[..., Any]
OTHERWISE: dict[Any, dict[str, Any]] = {RewardWeightedSampler: {"temperature": 0.1}}


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def worked_on(cls: Class, size: int = 40, **options: Any) -> Any:
    """A sampler of whose items some are gone and some have new priorities."""
    sampler = cls(size, seed=5, **options)
    sampler.remove(torch.tensor([0, 7, 7, size - 1]))
    sampler.draw(9)
    if isinstance(sampler, AdaptiveSampler):
        sampler.update(torch.arange(1, 7), torch.tensor([0.5, 3, 0.01, 9, 2, 1]))
    sampler.insert(torch.tensor([7]))
    return sampler


@every
def test_draws_follow_the_probabilities_reported(cls: Class) -> None:
    sampler = worked_on(cls)
    probability = sampler.probabilities()
    assert probability.shape == (40,)
    torch.testing.assert_close(probability.sum(), doubles([1])[0])
    assert sampler.min_probability() == probability[probability > 0].min()
    seen = torch.zeros(40, dtype=torch.float64)
    for _ in range(8000):
        draw = sampler.draw(1)
        assert draw.probability.equal(probability[draw.index])
        seen[draw.index] += 1
    drawable = probability > 0
    assert seen[~drawable].sum() == 0
    expected = probability[drawable] * 8000
    assert stats.chisquare(seen[drawable].numpy(), expected.numpy()).pvalue > 1e-3


@every
def test_a_batch_is_drawn_with_the_right_expectation(cls: Class) -> None:
    # Stratified or not, an index is expected B P(i) times in a batch.
    sampler = worked_on(cls)
    draws = [sampler.draw(64) for _ in range(3000)]
    count = torch.bincount(torch.cat([d.index for d in draws]), minlength=40) / (3000 * 64)
    torch.testing.assert_close(count.double(), sampler.probabilities(), rtol=0.05, atol=1e-3)


@every
def test_a_resumed_sampler_draws_what_the_uninterrupted_one_draws(cls: Class) -> None:
    sampler = worked_on(cls)
    file = io.BytesIO()
    state = sampler.state_dict()
    torch.save(state, file)
    kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
    file.seek(0)
    again = cls(40, seed=99)
    again.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(5):
        ours, theirs = sampler.draw(13), again.draw(13)
        assert ours.index.equal(theirs.index)
        assert ours.probability.equal(theirs.probability)
        for one in (sampler, again):
            one.remove(ours.index[:2])
            one.insert(ours.index[:1])
            if isinstance(one, AdaptiveSampler):
                one.insert(ours.index)
                one.update(ours.index, ours.index.double() / 7)
                one.insert(ours.index[:3])  # at the maximum priority, which must be remembered
    for name, value in kept.items():  # the state was a copy
        if isinstance(value, Tensor):  # a reward that was not told is NaN
            assert value.nan_to_num().equal(state[name].nan_to_num()), name
        else:
            assert value == state[name], name


@every
def test_equal_seeds_draw_equally_and_the_generator_can_be_reseeded(cls: Class) -> None:
    one, other = cls(100, seed=1), cls(100, seed=2)
    assert not one.draw(50).index.equal(other.draw(50).index)
    for sampler in (one, other):
        sampler.generator.manual_seed(8)
    assert one.draw(50).index.equal(other.draw(50).index)


@every
def test_filled_false_is_empty_and_clear_empties(cls: Class) -> None:
    sampler = cls(10, filled=False)
    for _ in range(2):
        assert sampler.count == 0
        for call in (lambda: sampler.draw(3), sampler.min_probability, sampler.probabilities):
            with pytest.raises(ValueError, match="nothing"):
                call()
        sampler.insert(torch.tensor([4, 2, 4]))
        assert sampler.count == 2
        assert set(sampler.draw(50).index.tolist()) == {2, 4}
        sampler.clear()


@every
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 8), max_size=6)), max_size=12))
@settings(deadline=None)
def test_insert_and_remove_keep_exactly_the_set(cls: Class, steps: list[Any]) -> None:
    sampler, twin = cls(9, filled=False), set[int]()
    for inserted, index in steps:
        if inserted:
            sampler.insert(torch.tensor(index, dtype=torch.int64))
            twin |= set(index)
        else:
            sampler.remove(torch.tensor(index, dtype=torch.int64))
            twin -= set(index)
        assert sampler.count == len(twin)
        if twin:
            assert set(sampler.probabilities().nonzero().flatten().tolist()) == twin


@every
def test_bad_input_is_refused(cls: Class) -> None:
    with pytest.raises(ValueError, match="size is 0"):
        cls(0)
    sampler = cls(5)
    for size in (0, -3):
        with pytest.raises(ValueError, match="batch_size is"):
            sampler.draw(size)
    before = sampler.probabilities()
    for call in (sampler.insert, sampler.remove):
        for bad in (torch.tensor([1, -1, 5]), torch.tensor([0.5]), torch.tensor([[1]])):
            with pytest.raises(ValueError, match="index"):
                call(bad)
    assert sampler.probabilities().equal(before)
    assert sampler.count == 5


@every
def test_a_state_of_another_sampler_is_refused_and_changes_nothing(cls: Class) -> None:
    sampler = worked_on(cls)
    before = sampler.probabilities()
    others = [other(40) for other in ALL if other is not cls] + [cls(41)]
    if cls is not UniformSampler:
        others.append(cls(40, **OTHERWISE.get(cls, {"alpha": 0.1})))
    rng = sampler.generator.get_state()
    for other in others:
        with pytest.raises(ValueError, match="the state's"):
            sampler.load_state_dict(other.state_dict())
    assert sampler.probabilities().equal(before)
    assert sampler.generator.get_state().equal(rng)


@adaptive
def test_bad_updates_are_refused_and_change_nothing(cls: Class) -> None:
    sampler = worked_on(cls)
    before = sampler.probabilities()
    for index, priority, message in (
        ([1, -1], [1, 1], r"out of range: \[-1\]"),
        ([1, 40], [1, 1], r"out of range: \[40\]"),
        ([1, 2, 3], [1, math.nan, math.inf], r"index \[2, 3\]"),
        ([1, 2], [-1, 5], r"index \[1\]"),
        ([1, 0], [5, 5], r"index \[0\] was not inserted"),
        ([1, 2], [5], "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.update(torch.tensor(index), torch.tensor(priority, dtype=torch.float64))
        assert sampler.probabilities().equal(before)
        assert sampler.max_priority == 9


@adaptive
def test_alpha_outside_0_1_is_refused(cls: Class) -> None:
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="alpha is"):
            cls(5, alpha=alpha)


@adaptive
def test_new_items_get_the_maximum_priority_so_far(cls: Class) -> None:
    # Schaul et al. (2016), section 3.3 and algorithm 1: p_1 = 1, then the maximum so far.
    sampler = cls(10, alpha=1.0, filled=False)
    sampler.insert(torch.tensor([0]))
    assert sampler.max_priority == 1
    sampler.update(torch.tensor([0]), doubles([4.0]))
    sampler.update(torch.tensor([0]), doubles([0.5]))
    assert sampler.max_priority == 4
    sampler.insert(torch.tensor([1]))
    probability = sampler.probabilities()
    ratio = 8 if cls is PrioritizedSampler else 2  # 4 to 1/2, or rank 1 to rank 2
    assert probability[1] == ratio * probability[0]


@adaptive
def test_of_an_index_given_twice_the_last_priority_counts(cls: Class) -> None:
    sampler = cls(3, alpha=1.0)
    sampler.update(torch.tensor([0, 1, 2, 0]), doubles([50, 3, 2, 1]))
    if isinstance(sampler, RankPrioritizedSampler):
        sampler.sort()
    assert sampler.probabilities().argsort().tolist() == [0, 2, 1]


def test_uniform_sampler_cannot_be_updated() -> None:
    assert isinstance(UniformSampler(3), IndexSampler)
    assert not isinstance(UniformSampler(3), AdaptiveSampler)
    assert not hasattr(UniformSampler(3), "update")


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_proportional_probabilities_are_equation_1(alpha: float) -> None:
    sampler = PrioritizedSampler(5, alpha=alpha)
    priority = doubles([0.0, 1e-3, 2.0, 5.0, 1.0])
    sampler.update(torch.arange(5), priority)
    expected = sampling_probabilities(priority, alpha=alpha)
    torch.testing.assert_close(sampler.probabilities(), expected, rtol=1e-14, atol=0)
    assert sampler.count == 5
    assert 0 not in sampler.draw(500).index.tolist()
    sampler.update(torch.tensor([0]), doubles([2.0]))  # it is inserted still
    assert sampler.probabilities()[0] == sampler.probabilities()[2]


def test_all_priorities_zero_is_refused_at_the_draw() -> None:
    sampler = PrioritizedSampler(3)
    sampler.update(torch.arange(3), torch.zeros(3))
    with pytest.raises(ValueError, match="total priority is 0"):
        sampler.draw(2)


def test_weighted_mean_over_draws_is_the_uniform_mean() -> None:
    sampler = worked_on(PrioritizedSampler)
    f = torch.arange(40, dtype=torch.float64)
    drawable = sampler.probabilities() > 0
    sums = 0.0
    for _ in range(2000):
        draw = sampler.draw(32)
        low = sampler.min_probability()
        weight = importance_sampling_weights(
            draw.probability, size=sampler.count, beta=1.0, min_probability=low
        )
        sums += float((weight * f[draw.index]).mean()) / (sampler.count * low)
    assert sums / 2000 == pytest.approx(float(f[drawable].mean()), rel=0.01)


def test_right_after_sorting_the_rank_law_is_that_of_the_true_ranks() -> None:
    # Schaul et al. (2016), section 3.3: p_i = 1 / rank(i), P(i) ~ p_i ** alpha.
    sampler = RankPrioritizedSampler(50, alpha=0.7, resort_every=50)
    priority = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler.update(torch.arange(50), priority)  # 50 updates: sorted
    rank = priority.argsort(descending=True).argsort() + 1
    expected = sampling_probabilities(1 / rank.double(), alpha=0.7)
    torch.testing.assert_close(sampler.probabilities(), expected)


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
            sampler.update(index, doubles([value]))
            twin[i] = value
            highest = max(highest, value)
    n = sampler.count
    heap, item = sampler._heap[:n].tolist(), sampler._item[:n].tolist()
    assert dict(zip(item, heap, strict=True)) == twin
    assert all(heap[(k - 1) // 2] >= heap[k] for k in range(1, n))
    assert all(sampler._place[who] == k for k, who in enumerate(item))
    sampler.sort()
    assert sampler._heap[:n].tolist() == sorted(twin.values(), reverse=True)


def test_resort_every_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="resort_every is 0"):
        RankPrioritizedSampler(3, resort_every=0)


@pytest.mark.parametrize(
    ("cls", "change"),
    [
        (UniformSampler, {"item": torch.zeros(40, dtype=torch.int64)}),
        (UniformSampler, {"count": 41}),
        (PrioritizedSampler, {"mass": torch.full((40,), math.nan, dtype=torch.float64)}),
        (PrioritizedSampler, {"mass": torch.ones(40, dtype=torch.float64)}),
        (PrioritizedSampler, {"max_priority": math.inf}),
        (PrioritizedSampler, {"inserted": torch.ones(4, dtype=torch.bool)}),
        (RankPrioritizedSampler, {"item": torch.zeros(38, dtype=torch.int64)}),
        (RankPrioritizedSampler, {"heap": torch.zeros(3, dtype=torch.float64)}),
        (RankPrioritizedSampler, {"heap": torch.arange(38, dtype=torch.float64)}),
        (RankPrioritizedSampler, {"max_priority": math.nan}),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(cls: Class, change: dict[str, Any]) -> None:
    sampler = worked_on(cls)
    before = sampler.probabilities()
    rng = sampler.generator.get_state()
    with pytest.raises(ValueError, match="damaged"):
        sampler.load_state_dict({**worked_on(cls).state_dict(), **change})
    assert sampler.probabilities().equal(before)
    assert sampler.generator.get_state().equal(rng)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@every
def test_a_sampler_on_the_gpu_draws_what_the_one_on_the_cpu_draws(cls: Class) -> None:
    plain = cls in (UniformSampler, RewardWeightedSampler)
    options = {} if plain else {"alpha": 1.0}  # powers differ in the last bit
    cpu, gpu = worked_on(cls, **options), worked_on(cls, device="cuda", **options)
    for _ in range(5):
        ours, theirs = cpu.draw(20), gpu.draw(20)
        assert theirs.index.is_cuda
        assert ours.index.equal(theirs.index.cpu())
        assert ours.probability.equal(theirs.probability.cpu())
        for one, draw in ((cpu, ours), (gpu, theirs)):
            if isinstance(one, AdaptiveSampler):
                one.update(draw.index, draw.index.double() + 1)
            one.remove(draw.index[:1])
    state = gpu.state_dict()
    assert not any(isinstance(v, Tensor) and v.is_cuda for v in state.values())
    again = cls(40, device="cuda", **options)
    again.load_state_dict(state)
    assert again.draw(9).index.equal(gpu.draw(9).index)
