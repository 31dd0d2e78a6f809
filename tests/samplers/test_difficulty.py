"""DifficultySampler: which prompts it draws, that none repeats in a window, and exact resume."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_adaptive.samplers import (
    ArcsineKalman,
    BetaPosterior,
    CurriculumSampler,
    DifficultySampler,
    FixedDifficulty,
    MarkovForecast,
    MixtureSampler,
    PassRateEstimator,
    UniformSampler,
)

RATES = torch.linspace(0, 1, 41, dtype=torch.float64)


def sampler_of(rates: Tensor, **options: Any) -> DifficultySampler:
    sampler = DifficultySampler(len(rates), **options)
    sampler.set_prediction(rates)
    return sampler


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_it_draws_the_prompts_whose_difficulty_is_nearest_to_the_target(alpha: float) -> None:
    drawn = sampler_of(RATES, alpha=alpha).draw(5).index
    nearest = ((1 - RATES) - alpha).abs().sort().values
    torch.testing.assert_close(((1 - RATES[drawn]) - alpha).abs().sort().values, nearest[:5])


def test_no_prompt_repeats_in_a_window_and_every_window_is_a_new_selection() -> None:
    sampler = sampler_of(RATES, window=2)
    first, second = sampler.draw(6).index, sampler.draw(6).index
    assert len({*first.tolist(), *second.tolist()}) == 12
    for drawn in (first, second):
        sampler.update(drawn, torch.full((6,), 0.0))
    third = sampler.draw(6).index  # those of the first window have been found too hard
    assert not {*third.tolist()} & {*first.tolist(), *second.tolist()}


def test_a_window_ends_after_its_steps_and_not_before() -> None:
    sampler = sampler_of(RATES, window=2)
    drawn = [sampler.draw(6).index]
    sampler.update(drawn[0], torch.full((6,), 0.5))  # now they are nearest to the target
    drawn.append(sampler.draw(6).index)
    assert not {*drawn[0].tolist()} & {*drawn[1].tolist()}
    sampler.update(drawn[1], torch.full((6,), 0.0))
    window = torch.cat([sampler.draw(6).index, sampler.draw(6).index]).tolist()
    assert {*drawn[0].tolist()} < {*window}


def test_draws_to_replace_uninformative_groups_are_others_of_the_window() -> None:
    sampler = sampler_of(RATES)
    drawn = sampler.draw(6).index.tolist()
    for _ in range(5):
        drawn += sampler.draw(6).index.tolist()
    assert len(set(drawn)) == 36
    drawn += sampler.draw(6).index.tolist()  # 5 are left: one repeats
    assert len(set(drawn)) == 41


def test_the_selections_order_is_random() -> None:
    # The first of two draws must not hold the better half.
    sampler = sampler_of(RATES, window=2)
    distance = [0.0, 0.0]
    for _ in range(400):
        for place in range(2):
            distance[place] += float((RATES[sampler.draw(8).index] - 0.5).abs().mean())
        sampler.end_window()
    assert distance[0] == pytest.approx(distance[1], rel=0.05)


def test_weights_by_its_probability_are_unbiased() -> None:
    value = torch.arange(41, dtype=torch.float64)
    sampler = sampler_of(RATES, tau=0.2, window=2, uniform_share=0.1)
    estimates: list[float] = []
    for _ in range(4000):
        draw = sampler.draw(4)
        estimates.append(float((value[draw.index] / (41 * draw.probability)).mean()))
        sampler.end_window()
    estimate = torch.tensor(estimates)
    assert abs(estimate.mean() - value.mean()) < 4 * estimate.std() / 4000**0.5


def test_prompts_that_were_rolled_out_otherwise_are_left_out_of_the_window() -> None:
    sampler = sampler_of(RATES, window=2)
    sampler.leave_out(torch.tensor([20, 21]))
    drawn = sampler.draw(6)
    sampler.leave_out(torch.tensor([22, 23]))
    both = {*drawn.index.tolist(), *sampler.draw(6).index.tolist()}
    assert len(both) == 12
    assert not {20, 21} & both
    assert len(drawn.probability) == 6


def test_thompson_draws_explore_where_little_is_known() -> None:
    rates = torch.cat([torch.full((20,), 0.4), torch.full((20,), 0.2)]).double()
    sampler = sampler_of(rates, selection="top_k", thompson=True)
    sampler.update(torch.arange(20), torch.full((20,), 0.0))  # known to be hard
    seen = torch.bincount(torch.cat([sampler_draw(sampler, 5) for _ in range(50)]), minlength=40)
    assert int(seen[20:].sum()) > 3 * int(seen[:20].sum())


def sampler_draw(sampler: DifficultySampler, count: int) -> Tensor:
    sampler.end_window()
    return sampler.draw(count).index


def test_dps_takes_the_prompts_that_are_sometimes_solved() -> None:
    sampler = DifficultySampler(
        6, MarkovForecast(forgetting=1.0), target="informative", selection="top_k"
    )
    for _ in range(4):
        sampler.update(torch.arange(6), torch.tensor([0.0, 0.5, 1.0, 0.0, 0.125, 1.0]))
    assert set(sampler.draw(2).index.tolist()) == {1, 4}


def test_adarft_moves_its_target_with_the_reward() -> None:
    sampler = DifficultySampler(
        41, FixedDifficulty(), selection="top_k", alpha=0.2, track_reward=True
    )
    sampler.set_difficulty(torch.arange(41.0))  # scaled to [0, 1]
    before = sampler.draw(1).index
    sampler.update(before, torch.tensor([1.0]))  # solved: go on to harder prompts
    after = sampler.draw(1).index
    assert before.tolist() == [8]
    assert after.item() == round(40 * (0.2 + 0.5 * math.tanh(1.0)))


ESTIMATORS: list[PassRateEstimator] = [
    BetaPosterior(decay=0.9),
    MarkovForecast(),
    ArcsineKalman(),
    FixedDifficulty(),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_sampler_draws_what_the_uninterrupted_one_does(
    estimator: PassRateEstimator, cut: int
) -> None:
    def start() -> DifficultySampler:
        sampler = DifficultySampler(41, estimator, tau=0.1, window=2, track_reward=True, seed=3)
        if sampler.needs_difficulty:
            sampler.set_difficulty(RATES)
        return sampler

    def step(sampler: DifficultySampler) -> list[int]:
        drawn = sampler.draw(5).index
        sampler.update(drawn, 1 - RATES[drawn])
        return drawn.tolist()

    whole, broken = start(), start()
    expected = [step(whole) for _ in range(6)]
    got = [step(broken) for _ in range(cut)]
    resumed = start()
    resumed.load_state_dict(broken.state_dict())
    assert got + [step(resumed) for _ in range(6 - cut)] == expected


def test_a_state_of_another_estimator_is_refused() -> None:
    state = DifficultySampler(4, MarkovForecast()).state_dict()
    with pytest.raises(ValueError, match="estimator is 'MarkovForecast'"):
        DifficultySampler(4).load_state_dict(state)


def test_a_curriculum_restricts_what_is_drawn() -> None:
    sampler = CurriculumSampler(
        41, DifficultySampler, start=0.25, until=1.0, difficulty=torch.arange(41.0)
    )
    assert int(sampler.draw(8).index.max()) < 11


def test_prompts_that_are_removed_while_a_window_lasts_are_not_missed() -> None:
    sampler = sampler_of(RATES, window=4)
    drawn = sampler.draw(8).index
    sampler.remove(drawn)
    sampler.remove(torch.arange(0, 8))
    rest = sampler.draw(sampler.count).index.tolist()
    assert len({*rest}) == sampler.count
    assert not {*rest} & {*drawn.tolist(), *range(8)}


def test_a_mixture_refuses_draws_without_replacement() -> None:
    with pytest.raises(ValueError, match=r"DifficultySampler.*uniform_share"):
        MixtureSampler(8, [DifficultySampler, UniformSampler])
    with pytest.raises(ValueError, match=r"CurriculumSampler.*uniform_share"):
        MixtureSampler(8, [lambda n: CurriculumSampler(n, DifficultySampler), UniformSampler])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0"),
        ({"group_size": 0}, "group_size is 0"),
        ({"uniform_share": 1.0}, "uniform_share is 1.0"),
        ({"thompson": True, "estimator": MarkovForecast()}, "thompson.*MarkovForecast"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DifficultySampler(8, **options)


def test_pass_rates_outside_0_and_1_are_refused_with_what_still_makes_sense() -> None:
    sampler = DifficultySampler(8)
    with pytest.raises(ValueError, match=r"index \[3\] are \[1.5\].*signal: spread"):
        sampler.update(torch.tensor([3]), torch.tensor([1.5]))
    with pytest.raises(ValueError, match=r"index \[2\] are \[-0.5\]"):
        sampler.update(torch.tensor([2]), torch.tensor([-0.5]))
    with pytest.raises(ValueError, match=r"index \[7\]"):
        sampler.set_prediction(torch.tensor([0.5] * 7 + [2.0]))


def test_a_batch_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 9, but only 8 prompts"):
        DifficultySampler(8).draw(9)
