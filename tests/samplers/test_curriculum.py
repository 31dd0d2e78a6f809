"""Curricula: which samples are eligible when, over any inner sampler."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_adaptive.samplers import (
    AdaptiveBatchSampler,
    AdaptiveDataWeighter,
    CurriculumSampler,
    PrioritizedSampler,
    RankPrioritizedSampler,
    RewardWeightedSampler,
    ShuffledSampler,
    UniformSampler,
)

SIZE = 10
LOSS = torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6, 5, 3])
DIFFICULTY = torch.arange(10.0)


@pytest.mark.parametrize(
    "inner",
    [ShuffledSampler, UniformSampler, PrioritizedSampler, RankPrioritizedSampler,
     AdaptiveBatchSampler, AdaptiveDataWeighter,
     lambda n: RewardWeightedSampler(n, temperature=5.0)],
)  # fmt: skip
def test_it_restricts_any_sampler_and_keeps_its_probabilities(inner: Any) -> None:
    sampler = CurriculumSampler(SIZE, inner, start=0.3, power=1, until=0.5, difficulty=DIFFICULTY)
    assert sampler.count == 3
    assert set(sampler.draw(60).index.tolist()) == {0, 1, 2}
    if sampler.learns:
        sampler.update(torch.arange(SIZE), LOSS)
    sampler.advance(0.25)  # half of `until`: 0.5 * 0.7 + 0.3 = 0.65
    assert sampler.count == 6
    draw = sampler.draw(200)
    assert set(draw.index.tolist()) == set(range(6))
    probability = sampler.probabilities()
    assert draw.probability.equal(probability[draw.index])
    assert probability[6:].tolist() == [0.0] * 4
    assert float(probability.sum()) == pytest.approx(1.0)
    sampler.advance(0.5)
    assert sampler.count == SIZE


def test_the_hardest_first_in_stages() -> None:
    sampler = CurriculumSampler(SIZE, stages=[0.2, 1.0], hardest_first=True, difficulty=DIFFICULTY)
    assert set(sampler.draw(40).index.tolist()) == {8, 9}
    sampler.advance(0.24)  # until = 0.5: still the first stage
    assert sampler.count == 2
    assert sampler.competence == 0.2
    sampler.advance(0.25)
    assert sampler.count == SIZE
    assert sampler.competence == 1.0


def test_self_paced_eligibility_follows_the_losses_in_both_directions() -> None:
    # Kumar et al. (2010): v_i = 1[loss_i < 1 / K].
    sampler = CurriculumSampler(4, UniformSampler, thresholds=(1.0, 4.0), until=1.0)
    assert sampler.learns
    assert sampler.count == 4  # no loss is known yet: all count as easy
    sampler.update(torch.arange(4), torch.tensor([0.5, 1.5, 3.0, 9.0]))
    sampler.advance(0.0)
    assert (sampler.probabilities() > 0).tolist() == [True, False, False, False]
    sampler.advance(0.5)  # threshold 2
    assert sampler.count == 2
    sampler.update(torch.tensor([0]), torch.tensor([8.0]))
    sampler.advance(0.5)
    assert (sampler.probabilities() > 0).tolist() == [False, True, False, False]
    sampler.update(torch.tensor([1]), torch.tensor([8.0]))
    with pytest.raises(ValueError, match=r"no loss is below the threshold 2\.0"):
        sampler.advance(0.5)


def test_eligibility_by_rank_of_loss() -> None:
    sampler = CurriculumSampler(4, by="loss", start=0.5, power=1, until=1.0)
    sampler.update(torch.arange(4), torch.tensor([9.0, 1.0, 5.0, 2.0]))
    sampler.advance(0.0)
    assert (sampler.probabilities() > 0).tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match=r"index \[2\] are NaN"):
        sampler.update(torch.tensor([2]), torch.tensor([math.nan]))


def test_losses_are_the_scores_where_the_inner_sampler_does_not_learn() -> None:
    sampler = CurriculumSampler(4, by="loss", start=0.5, power=1, until=1.0)
    assert sampler.scores().tolist() == [0.0] * 4
    sampler.set_scores(torch.tensor([9.0, 1.0, 5.0, 2.0]))
    assert sampler.scores().tolist() == [9.0, 1.0, 5.0, 2.0]
    assert (sampler.probabilities() > 0).tolist() == [False, True, False, True]


def test_the_inner_sampler_learns_only_from_eligible_samples_unless_it_accepts_others() -> None:
    strict = CurriculumSampler(SIZE, PrioritizedSampler, start=0.4, difficulty=DIFFICULTY)
    strict.update(torch.arange(SIZE), LOSS)
    assert strict.scores().tolist() == pytest.approx([3, 1, 4, 1] + [0] * 6)
    assert CurriculumSampler(SIZE, RewardWeightedSampler).accepts_absent


def test_members_can_be_inserted_removed_and_cleared() -> None:
    sampler = CurriculumSampler(
        SIZE, UniformSampler, start=0.5, power=1, difficulty=DIFFICULTY, filled=False
    )
    assert sampler.count == 0
    sampler.insert(torch.tensor([9, 4, 7, 1]))
    assert set(sampler.draw(40).index.tolist()) == {1, 4}
    sampler.remove(torch.tensor([4]))
    assert sampler.draw(3).index.tolist() == [1, 1, 1]
    sampler.advance(1.0)
    assert set(sampler.draw(60).index.tolist()) == {1, 7, 9}
    sampler.clear()
    with pytest.raises(ValueError, match="nothing"):
        sampler.draw(1)


def test_a_draw_without_difficulties_is_an_error() -> None:
    with pytest.raises(ValueError, match="no difficulties: give the datamodule"):
        CurriculumSampler(4).draw(1)


@pytest.mark.parametrize(
    ("difficulty", "message"),
    [
        (torch.ones(3), r"shape \(3,\) for 4"),
        (torch.tensor([0.0, math.nan, 1, 2]), r"index \[1\] are \[nan\]"),
        (torch.tensor([0.0, 1, 2, math.inf]), r"index \[3\] are \[inf\]"),
    ],
)
def test_wrong_difficulties_are_named(difficulty: Tensor, message: str) -> None:
    sampler = CurriculumSampler(4)
    with pytest.raises(ValueError, match=message):
        sampler.set_difficulty(difficulty)
    assert sampler.needs_difficulty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": 0.0}, r"until is 0\.0"),
        ({"start": 0.0}, r"start is 0\.0"),
        ({"by": "size"}, "by is 'size'"),
        ({"stages": [0.5], "thresholds": (1.0, 2.0)}, "both"),
        ({"stages": [0.0]}, "share of the samples"),
        ({"thresholds": (2.0, 1.0)}, "the threshold grows"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CurriculumSampler(4, **options)


def test_progress_outside_0_1_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"progress is 1\.5"):
        CurriculumSampler(4).advance(1.5)


def test_a_state_of_other_difficulties_is_an_error_and_changes_nothing() -> None:
    sampler = CurriculumSampler(SIZE, start=0.4, difficulty=DIFFICULTY)
    other = CurriculumSampler(SIZE, start=0.4, difficulty=DIFFICULTY.flip(0))
    before = other.probabilities()
    with pytest.raises(ValueError, match=r"difficulties of index \[0, 1, 2"):
        other.load_state_dict(sampler.state_dict())
    assert other.probabilities().equal(before)


def test_a_resumed_curriculum_keeps_its_progress() -> None:
    sampler = CurriculumSampler(SIZE, UniformSampler, start=0.3, power=1, difficulty=DIFFICULTY)
    sampler.advance(0.25)
    resumed = CurriculumSampler(SIZE, UniformSampler, start=0.3, power=1, difficulty=DIFFICULTY)
    resumed.load_state_dict(sampler.state_dict())
    assert resumed.competence == sampler.competence
    for s in (sampler, resumed):
        s.remove(torch.tensor([0]))
        s.insert(torch.tensor([0]))  # eligibility is decided anew
    assert resumed.probabilities().equal(sampler.probabilities())


def test_a_resumed_curriculum_keeps_its_losses() -> None:
    sampler = CurriculumSampler(SIZE, UniformSampler, by="loss", start=0.5, power=1)
    sampler.update(torch.arange(SIZE), LOSS)
    resumed = CurriculumSampler(SIZE, UniformSampler, by="loss", start=0.5, power=1)
    resumed.load_state_dict(sampler.state_dict())
    for s in (sampler, resumed):
        s.advance(0.0)
    assert resumed.probabilities().equal(sampler.probabilities())
    assert sampler.count < SIZE
