"""What curricula, mixtures and bucketed samplers forward to their inner samplers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lit_adaptive.samplers import (
    AdaptiveBatchSampler,
    AdaptiveDataWeighter,
    BucketedSampler,
    CurriculumSampler,
    IndexSampler,
    MixtureSampler,
    PrioritizedSampler,
    RewardWeightedSampler,
    ShuffledSampler,
    UniformSampler,
    WrapperSampler,
)

SIZE = 10
VALUES = torch.arange(10.0)
Factory = Callable[[int], IndexSampler]


def over(inner: Factory) -> list[WrapperSampler]:
    """Each wrapper, over ``inner``."""
    return [
        CurriculumSampler(SIZE, inner),
        MixtureSampler(SIZE, [inner]),
        MixtureSampler(SIZE, [UniformSampler, inner]),
        BucketedSampler(SIZE, inner),
    ]


def test_difficulties_are_forwarded() -> None:
    for sampler in over(lambda n: CurriculumSampler(n, start=0.5)):
        assert sampler.needs_difficulty
        assert sampler.follows_progress
        sampler.set_difficulty(VALUES)
        assert not sampler.needs_difficulty
        assert not sampler.samplers[-1].needs_difficulty


def test_groups_are_forwarded() -> None:
    for sampler in over(lambda n: RewardWeightedSampler(n, balance_groups=True)):
        assert sampler.needs_groups
        sampler.set_groups(VALUES.long() // 2)
        assert not sampler.needs_groups


class _ByLength(UniformSampler):
    lengths: torch.Tensor | None = None

    @property
    def needs_lengths(self) -> bool:
        return self.lengths is None

    def set_lengths(self, lengths: torch.Tensor) -> None:
        self.lengths = lengths


def test_lengths_are_forwarded() -> None:
    for sampler in over(_ByLength):
        assert sampler.needs_lengths
        sampler.set_lengths(VALUES)
        sampler.set_difficulty(VALUES)
        assert not sampler.needs_lengths
        assert len(sampler.draw(6).index) == 6


def test_progress_is_forwarded() -> None:
    for sampler in over(lambda n: CurriculumSampler(n, start=0.5, difficulty=VALUES)):
        sampler.set_difficulty(VALUES)
        sampler.advance(1.0)
        assert sampler.samplers[-1].count == SIZE


def test_updates_scores_and_forgetting_are_forwarded() -> None:
    for sampler in over(lambda n: AdaptiveBatchSampler(n, 1.0)):
        sampler.set_difficulty(VALUES)
        sampler.advance(1.0)
        inner = sampler.samplers[-1]
        assert isinstance(inner, AdaptiveBatchSampler)
        assert sampler.learns
        sampler.update(torch.arange(SIZE), VALUES)
        assert len(inner.weights.unique()) == SIZE
        assert sampler.scores().equal(inner.weights)
        sampler.forget(1.0)
        assert inner.weights.tolist() == [1.0] * SIZE
        sampler.set_scores(torch.linspace(0.5, 2, SIZE))
        torch.testing.assert_close(inner.weights.float(), torch.linspace(0.5, 2, SIZE))


def test_loss_weights_are_forwarded() -> None:
    for sampler in (
        CurriculumSampler(SIZE, AdaptiveDataWeighter, start=1.0, difficulty=VALUES),
        BucketedSampler(SIZE, AdaptiveDataWeighter),
    ):
        assert sampler.has_loss_weights
        weights = sampler.loss_weights(torch.arange(SIZE))
        assert weights is not None
        assert weights.tolist() == pytest.approx([1.0] * SIZE)


def test_a_wrapper_accepts_absent_indices_if_its_inner_samplers_do() -> None:
    assert BucketedSampler(SIZE, RewardWeightedSampler).accepts_absent
    assert not BucketedSampler(SIZE, PrioritizedSampler).accepts_absent
    assert not BucketedSampler(SIZE, ShuffledSampler).accepts_absent
    both = [RewardWeightedSampler, PrioritizedSampler]
    assert not MixtureSampler(SIZE, both).accepts_absent
    assert MixtureSampler(SIZE, [RewardWeightedSampler, UniformSampler]).accepts_absent


def test_a_wrapper_over_samplers_that_do_not_learn_does_not_learn() -> None:
    for sampler in over(ShuffledSampler)[1:]:
        assert not sampler.learns
        assert sampler.scores().tolist() == [1.0] * SIZE
        for call in (
            lambda sampler=sampler: sampler.update(torch.tensor([0]), torch.ones(1)),
            lambda sampler=sampler: sampler.set_scores(torch.ones(SIZE)),
            lambda sampler=sampler: sampler.forget(0.5),
        ):
            with pytest.raises(ValueError, match="ShuffledSampler learns nothing"):
                call()


def test_members_are_forwarded() -> None:
    for sampler in over(UniformSampler):
        sampler.set_difficulty(VALUES)
        sampler.set_lengths(VALUES)
        sampler.advance(1.0)
        sampler.remove(torch.tensor([3, 4]))
        assert sampler.samplers[-1].count == 8
        sampler.insert(torch.tensor([3]))
        assert sampler.samplers[-1].count == 9
        sampler.clear()
        assert sampler.samplers[-1].count == 0


def test_inner_samplers_have_random_numbers_of_their_own_and_reseeding_repeats_them() -> None:
    sampler = MixtureSampler(1000, [UniformSampler, UniformSampler], seed=3)
    index = sampler.draw(20).index
    assert index[:10].tolist() != index[10:].tolist()
    sampler.reseed(3)
    assert sampler.draw(20).index.equal(index)


def hybrid(size: int) -> MixtureSampler:
    return MixtureSampler(
        size,
        [
            lambda n: CurriculumSampler(n, lambda m: AdaptiveBatchSampler(m, 1.0), start=0.4),
            lambda n: PrioritizedSampler(n, alpha=0.5),
            UniformSampler,
        ],
        [0.6, 0.3, 0.1],
    )


@pytest.mark.parametrize("make", [
    hybrid,
    lambda n: CurriculumSampler(n, AdaptiveDataWeighter),
    lambda n: CurriculumSampler(n, PrioritizedSampler, thresholds=(5.0, 50.0)),
    lambda n: CurriculumSampler(n, RewardWeightedSampler),
    lambda n: MixtureSampler(n, [lambda m: RewardWeightedSampler(m, scheme="rank"),
                                 UniformSampler]),
])  # fmt: skip
def test_compositions_resume_twice_as_if_never_interrupted(make: Callable[[int], Any]) -> None:
    def begin(seed: int) -> Any:
        sampler = make(SIZE)
        sampler.reseed(seed)
        if sampler.needs_difficulty:
            sampler.set_difficulty(VALUES)
        return sampler

    def step(sampler: Any, k: int) -> list[Any]:
        sampler.advance(k / 30)
        draw = sampler.draw(6)
        sampler.update(draw.index, (draw.index * 7 % 5).float() + 1)
        return [draw.index.tolist(), draw.probability.tolist()]

    uninterrupted, sampler = begin(5), begin(5)
    expected = [step(uninterrupted, k) for k in range(30)]
    draws = []
    for part in range(3):
        draws += [step(sampler, k) for k in range(10 * part, 10 * part + 10)]
        state = sampler.state_dict()
        sampler = begin(99)
        sampler.draw(2)
        sampler.load_state_dict(state)
    assert draws == expected


def test_a_state_that_fails_at_a_later_inner_sampler_changes_nothing() -> None:
    sampler, other = hybrid(SIZE), hybrid(SIZE)
    for s in (sampler, other):
        s.set_difficulty(VALUES)
    other.update(torch.arange(SIZE), VALUES + 1)
    before = sampler.probabilities()
    state = other.state_dict()
    state["samplers"][2]["count"] = -1
    with pytest.raises(ValueError, match="damaged"):
        sampler.load_state_dict(state)
    assert sampler.probabilities().equal(before)


def test_a_state_of_another_size_or_inner_sampler_is_an_error() -> None:
    with pytest.raises(ValueError, match="size is 10, this sampler's is 11"):
        hybrid(SIZE + 1).load_state_dict(hybrid(SIZE).state_dict())
    with pytest.raises(ValueError, match=r"kind is 'ShuffledSampler', .* 'UniformSampler'"):
        BucketedSampler(SIZE, UniformSampler).load_state_dict(BucketedSampler(SIZE).state_dict())
