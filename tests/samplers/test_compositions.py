"""Curricula and mixtures: exact probabilities through every composition, by brute force."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.samplers import (
    AdaptiveBatchSampler,
    AdaptiveDataWeighter,
    CurriculumSampler,
    IndexSampler,
    InfoBatchSampler,
    MixtureSampler,
    PrioritizedSampler,
    RankPrioritizedSampler,
    RewardWeightedSampler,
    ShuffledSampler,
    UniformSampler,
)

SIZE = 10
LOSS = torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6, 5, 3])
HARD = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9])


def _hybrid(size: int) -> MixtureSampler:
    """A curriculum over boosted weights, PER, and a tenth uniform."""
    return MixtureSampler(
        size,
        [
            lambda n: CurriculumSampler(n, lambda m: AdaptiveBatchSampler(m, 1.0), start=0.4),
            lambda n: PrioritizedSampler(n, alpha=0.5),
            UniformSampler,
        ],
        [6.0, 3.0, 1.0],
        seed=5,
    )


def test_a_hybrids_probabilities_are_the_sum_over_its_parts_by_hand() -> None:
    sampler = _hybrid(SIZE)
    sampler.set_difficulty(HARD)
    sampler.update(torch.arange(SIZE), LOSS)
    # By hand. The curriculum allows the easiest 4; only their losses reach the boosted weights.
    inside = LOSS[:4].double()
    boosted = torch.ones(SIZE, dtype=torch.float64)
    boosted[:4] = ((inside - inside.min()) / (inside.max() - inside.min()) - 0.5).exp()
    first = torch.where(HARD < 4, boosted, 0.0)
    second = LOSS.double().sqrt()
    expected = 0.6 * first / first.sum() + 0.3 * second / second.sum() + 0.1 / SIZE
    torch.testing.assert_close(sampler.probabilities(), expected, rtol=1e-6, atol=0)
    draw = sampler.draw(4000)
    torch.testing.assert_close(draw.probability, expected[draw.index], rtol=1e-6, atol=0)
    share = torch.bincount(draw.index, minlength=SIZE) / 4000
    torch.testing.assert_close(share, expected.float(), atol=0.02, rtol=0)
    assert sampler.count == SIZE
    assert sampler.min_probability() == pytest.approx(float(expected.min()))


def test_a_mixtures_weighted_estimate_is_unbiased() -> None:
    sampler = _hybrid(SIZE)
    sampler.set_difficulty(HARD)
    sampler.update(torch.arange(SIZE), LOSS)
    p = sampler.probabilities()
    f = HARD.double().sin()
    assert float((p * f / (sampler.count * p)).sum()) == pytest.approx(float(f.mean()))


@given(st.integers(1, 40), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_each_component_draws_its_share_within_one(batch: int, parts: list[int]) -> None:
    class Marked(UniformSampler):
        asked = 0

        def draw(self, batch_size: int) -> Any:
            self.asked += batch_size
            return super().draw(batch_size)

    sampler = MixtureSampler(3, [Marked] * len(parts), [float(part) for part in parts])
    sampler.draw(batch)
    for part, component in zip(parts, sampler.samplers, strict=True):
        assert isinstance(component, Marked)
        assert abs(component.asked - batch * part / sum(parts)) < 2


def test_components_have_streams_of_their_own_and_reseeding_repeats_them() -> None:
    sampler = MixtureSampler(1000, [UniformSampler, UniformSampler], seed=3)
    index = sampler.draw(20).index
    assert index[:10].tolist() != index[10:].tolist()
    sampler.reseed(3)
    assert sampler.draw(20).index.equal(index)


def test_union_of_disjoint_supports_is_counted() -> None:
    def ends(hardest_first: bool) -> Callable[[int], IndexSampler]:
        return lambda n: CurriculumSampler(n, start=0.2, hardest_first=hardest_first)

    sampler = MixtureSampler(SIZE, [ends(False), ends(True)])
    assert sampler.wants_difficulty
    sampler.set_difficulty(HARD)
    assert sampler.count == 4
    assert (sampler.probabilities() > 0).nonzero().flatten().tolist() == [0, 1, 8, 9]
    sampler.advance(0.1)  # competence sqrt(0.2 * 0.96 + 0.04) = 0.48: four at each end
    assert sampler.count == 8
    sampler.advance(1.0)
    assert sampler.count == SIZE


@pytest.mark.parametrize(
    "inner",
    [ShuffledSampler, UniformSampler, PrioritizedSampler, RankPrioritizedSampler,
     AdaptiveBatchSampler, AdaptiveDataWeighter, InfoBatchSampler,
     lambda n: RewardWeightedSampler(n, temperature=5.0)],
)  # fmt: skip
def test_a_curriculum_restricts_any_sampler_and_keeps_its_law(inner: Any) -> None:
    sampler = CurriculumSampler(SIZE, inner, start=0.3, power=1, until=0.5, difficulty=HARD)
    assert sampler.count == 3
    assert set(sampler.draw(60).index.tolist()) == {0, 1, 2}
    if sampler.learns:
        sampler.update(torch.arange(SIZE), LOSS)  # what is outside is not told
    sampler.advance(0.25)  # half of `until`: 0.5 * 0.7 + 0.3 = 0.65
    assert sampler.count == 6
    draw = sampler.draw(200)
    assert set(draw.index.tolist()) == set(range(6))
    law = sampler.probabilities()
    assert draw.probability.equal(law[draw.index])
    assert law[6:].tolist() == [0.0] * 4
    if inner is InfoBatchSampler:  # its law sums to the expected length of a pass over N
        assert 0.5 < float(law.sum()) <= 1
    else:
        assert float(law.sum()) == pytest.approx(1.0)
    sampler.advance(0.5)
    assert sampler.count == SIZE


def test_hard_to_easy_and_stages() -> None:
    sampler = CurriculumSampler(SIZE, shares=[0.2, 1.0], hardest_first=True, difficulty=HARD)
    assert set(sampler.draw(40).index.tolist()) == {8, 9}
    sampler.advance(0.24)  # until = 0.5: still the first stage
    assert sampler.count == 2
    sampler.advance(0.25)
    assert sampler.count == SIZE


def test_self_pace_follows_the_losses_both_ways() -> None:
    sampler = CurriculumSampler(4, UniformSampler, thresholds=(1.0, 4.0), until=1.0)
    assert sampler.learns
    assert sampler.count == 4  # nothing seen yet: all count as easy
    sampler.update(torch.arange(4), torch.tensor([0.5, 1.5, 3.0, 9.0]))
    sampler.advance(0.0)
    assert (sampler.probabilities() > 0).tolist() == [True, False, False, False]
    sampler.advance(0.5)  # threshold 2
    assert sampler.count == 2
    sampler.update(torch.tensor([0]), torch.tensor([8.0]))  # forgotten: it leaves
    sampler.advance(0.5)
    assert (sampler.probabilities() > 0).tolist() == [False, True, False, False]
    sampler.update(torch.tensor([1]), torch.tensor([8.0]))
    with pytest.raises(ValueError, match=r"no sample's loss is below the threshold 2\.0"):
        sampler.advance(0.5)


def test_a_curriculum_by_rank_of_loss() -> None:
    sampler = CurriculumSampler(4, by="loss", start=0.5, power=1, until=1.0)
    sampler.update(torch.arange(4), torch.tensor([9.0, 1.0, 5.0, 2.0]))
    sampler.advance(0.0)
    assert (sampler.probabilities() > 0).tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match=r"index \[2\] are NaN"):
        sampler.update(torch.tensor([2]), torch.tensor([math.nan]))


def test_curriculum_names_bad_input() -> None:
    with pytest.raises(ValueError, match="no difficulties"):
        CurriculumSampler(4).draw(1)
    sampler = CurriculumSampler(4)
    for difficulty, words in (
        (torch.ones(3), r"shape \(3,\) for 4"),
        (torch.tensor([0.0, math.nan, 1, 2]), r"index \[1\] are \[nan\]"),
        (torch.tensor([0.0, 1, 2, math.inf]), r"index \[3\] are \[inf\]"),
    ):
        with pytest.raises(ValueError, match=words):
            sampler.set_difficulty(difficulty)
    for options, words in (
        ({"until": 0.0}, r"until is 0\.0"),
        ({"start": 0.0}, r"start is 0\.0"),
        ({"by": "size"}, "by is 'size'"),
        ({"shares": [0.5], "thresholds": (1.0, 2.0)}, "both"),
        ({"shares": [0.0]}, "share of the samples"),
        ({"thresholds": (2.0, 1.0)}, "not descend"),
    ):
        with pytest.raises(ValueError, match=words):
            CurriculumSampler(4, **options)
    with pytest.raises(ValueError, match=r"progress is 1\.5"):
        sampler.advance(1.5)


def test_mixture_names_bad_input() -> None:
    for samplers, shares, words in (
        ([], None, "at least one"),
        ([UniformSampler], [1.0, 2.0], "2 shares for 1"),
        ([UniformSampler] * 2, [1.0, 0.0], "above 0"),
        ([UniformSampler, AdaptiveDataWeighter], None, "weighs losses"),
    ):
        with pytest.raises(ValueError, match=words):
            MixtureSampler(4, samplers, shares)
    sampler = MixtureSampler(4, [PrioritizedSampler, UniformSampler])
    with pytest.raises(ValueError, match=r"index \[1\]"):
        sampler.update(torch.tensor([1]), torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="cannot forget"):
        sampler.forget(0.5)


@pytest.mark.parametrize("make", [
    _hybrid,
    lambda n: CurriculumSampler(n, AdaptiveDataWeighter, seed=5),
    lambda n: CurriculumSampler(n, PrioritizedSampler, thresholds=(5.0, 50.0), seed=5),
    lambda n: CurriculumSampler(n, RewardWeightedSampler, seed=5),
    lambda n: MixtureSampler(n, [lambda m: RewardWeightedSampler(m, scheme="rank"),
                                 UniformSampler], seed=5),
])  # fmt: skip
def test_compositions_resume_twice(make: Callable[[int], Any]) -> None:
    def begin(seed: int) -> Any:
        sampler = make(SIZE)
        sampler.reseed(seed)
        if sampler.wants_difficulty:
            sampler.set_difficulty(HARD)
        return sampler

    def step(sampler: Any, k: int) -> list[Any]:
        sampler.advance(k / 30)
        draw = sampler.draw(6)
        sampler.update(draw.index, (draw.index * 7 % 5).float() + 1)
        return [draw.index.tolist(), draw.probability.tolist()]

    whole, broken = begin(5), begin(5)
    expected = [step(whole, k) for k in range(30)]
    found = []
    for part in range(3):
        found += [step(broken, k) for k in range(10 * part, 10 * part + 10)]
        state = broken.state_dict()
        broken = begin(99)
        broken.draw(2)
        broken.load_state_dict(state)
    assert found == expected


def test_states_that_do_not_fit_are_refused_and_change_nothing() -> None:
    sampler = _hybrid(SIZE)
    sampler.set_difficulty(HARD)
    state = sampler.state_dict()
    other = MixtureSampler(SIZE, [UniformSampler] * 3, [6.0, 3.0, 2.0])
    with pytest.raises(ValueError, match="shares"):
        other.load_state_dict(state)
    turned = _hybrid(SIZE)
    turned.set_difficulty(HARD.flip(0))
    before = turned.probabilities()
    with pytest.raises(ValueError, match=r"difficulties of index \[0, 1, 2"):
        turned.load_state_dict(state)
    assert turned.probabilities().equal(before)
    with pytest.raises(ValueError, match="size is 10, this sampler's is 11"):
        _hybrid(SIZE + 1).load_state_dict(state)


def test_scores_and_weights_pass_through() -> None:
    sampler = CurriculumSampler(SIZE, AdaptiveDataWeighter, start=1.0, difficulty=HARD)
    assert sampler.weighs
    weights = sampler.loss_weights(torch.arange(SIZE))
    assert weights is not None
    assert weights.tolist() == pytest.approx([1.0] * SIZE)
    sampler.set_scores(torch.linspace(0.5, 2, SIZE))
    torch.testing.assert_close(sampler.scores().float(), torch.linspace(0.5, 2, SIZE))
    mixed = _hybrid(SIZE)
    mixed.set_difficulty(HARD)
    mixed.set_scores(torch.linspace(0.5, 2, SIZE))
    torch.testing.assert_close(mixed.scores().float(), torch.linspace(0.5, 2, SIZE))
