"""Selection by difficulty: its draws against enumeration, its scores against closed forms."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core import difficulty as d
from lit_adaptive.core.advantages import group_advantages


def sequences(mass: list[float], count: int) -> dict[tuple[int, ...], float]:
    """Probability of each ordered draw without replacement, written out."""
    out: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(len(mass)), count):
        left, chance = sum(mass), 1.0
        for item in order:
            chance *= mass[item] / left
            left -= mass[item]
        out[order] = chance
    return out


def test_draws_follow_the_distribution_of_draws_without_replacement() -> None:
    mass, count, rounds = [0.5, 0.3, 0.15, 0.05], 2, 40_000
    generator = torch.Generator().manual_seed(0)
    log = torch.tensor(mass, dtype=torch.float64).log()
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(rounds):
        order = tuple(d.gumbel_top_k(log, count, generator).index.tolist())
        seen[order] = seen.get(order, 0) + 1
    expected = sequences(mass, count)
    chi_square = sum(
        (seen.get(order, 0) - rounds * p) ** 2 / (rounds * p) for order, p in expected.items()
    )
    assert chi_square < 31.3  # 11 degrees of freedom, 0.1 %


@pytest.mark.parametrize("count", [1, 3, 5])
def test_weights_by_the_inclusion_estimate_the_sum_without_bias(count: int) -> None:
    log = torch.tensor([0.0, -1.0, -3.0, -0.5, -6.0], dtype=torch.float64)
    value = torch.tensor([1.0, -2.0, 4.0, 0.5, 10.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    estimates = []
    for _ in range(30_000):
        draw = d.gumbel_top_k(log, count, generator)
        estimates.append(float((value[draw.index] / draw.inclusion).sum()))
    estimate = torch.tensor(estimates, dtype=torch.float64)
    error = float(estimate.std()) / len(estimate) ** 0.5
    assert abs(float(estimate.mean()) - 13.5) < 4 * error + 1e-9


def test_at_the_papers_temperature_no_distant_prompt_is_drawn() -> None:
    # In float32 the softmax of 1,000 uniform pass rates has about 200 positive entries, and
    # torch.multinomial draws 307 of 512 prompts whose probability is 0.
    rate = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log = d.selection_log_masses(d.selection_scores(rate, "near"), "softmax", tau=1e-3)
    drawn = d.gumbel_top_k(log, 512, torch.Generator().manual_seed(1)).index
    nearest = (rate - 0.5).abs().sort().values
    assert (rate[drawn] - 0.5).abs().max() < nearest[511] + 0.02
    softmax = torch.softmax((-(rate - 0.5).abs() / 1e-3).float(), 0)
    assert int((softmax > 0).sum()) < 512


def test_the_distribution_is_the_softmax_of_the_distance() -> None:
    rate = torch.tensor([0.1, 0.4, 0.55, 0.9], dtype=torch.float64)
    scores = d.selection_scores(rate, "near", alpha=0.3)
    log = d.selection_log_masses(scores, "softmax", tau=0.1)
    masses = [math.exp(-abs((1 - p) - 0.3) / 0.1) for p in rate.tolist()]
    expected = torch.tensor([m / sum(masses) for m in masses], dtype=torch.float64)
    torch.testing.assert_close(log.softmax(0), expected)
    mixed = d.selection_log_masses(scores, "softmax", tau=0.1, uniform_share=0.2)
    torch.testing.assert_close(mixed.softmax(0), 0.8 * expected + 0.05)


def test_top_k_takes_the_largest_scores_and_equal_ones_at_random() -> None:
    score = torch.tensor([0.2, 0.25, 0.25, 0.25, 0.1], dtype=torch.float64)
    log = d.selection_log_masses(score, "top_k")
    generator = torch.Generator().manual_seed(0)
    draws = [tuple(sorted(d.gumbel_top_k(log, 2, generator).index.tolist())) for _ in range(300)]
    assert set(draws) == {(1, 2), (1, 3), (2, 3)}


def test_prompts_of_score_0_are_drawn_only_after_all_others() -> None:
    rate = torch.tensor([0.0, 0.5, 1.0, 0.25], dtype=torch.float64)
    log = d.selection_log_masses(d.selection_scores(rate, "learnability"), "proportional")
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        assert set(d.gumbel_top_k(log, 3, generator).index[:2].tolist()) == {1, 3}
    flat = d.selection_log_masses(torch.zeros(4), "proportional")
    torch.testing.assert_close(flat.softmax(0), torch.full((4,), 0.25, dtype=torch.float64))


@given(st.floats(0, 1), st.integers(2, 9))
def test_expected_signal_equals_its_closed_forms(rate: float, group_size: int) -> None:
    p = torch.tensor([rate], dtype=torch.float64)
    g = group_size

    def signal(**options: object) -> float:
        return float(
            d.expected_signal(
                p,
                g,
                lambda r, group, n: group_advantages(r, group, n, **options),  # type: ignore[arg-type]
            )
        )

    spread = 1 - rate**g - (1 - rate) ** g
    assert signal(scale="none") == pytest.approx(rate * (1 - rate) * (1 - 1 / g), abs=1e-6)
    loo = signal(scale="none", leave_one_out=True)
    assert loo == pytest.approx(rate * (1 - rate) * g / (g - 1), abs=1e-6)
    assert signal(scale="group", epsilon=0.0) == pytest.approx((1 - 1 / g) * spread, abs=1e-6)


def test_the_squared_gradient_is_that_of_theorem_1_by_enumeration() -> None:
    # Scores of +-1, independent of the rewards: the gradient of every outcome, written out.
    group_size, rate = 4, 0.3
    total = 0.0
    for rewards in itertools.product([0, 1], repeat=group_size):
        chance = math.prod(rate if r else 1 - rate for r in rewards)
        mean = sum(rewards) / group_size
        for scores in itertools.product([-1, 1], repeat=group_size):
            gradient = sum((r - mean) * s for r, s in zip(rewards, scores, strict=True))
            total += chance * gradient**2 / 2**group_size
    p = torch.tensor([rate], dtype=torch.float64)
    signal = d.expected_signal(
        p, group_size, lambda r, g, n: group_advantages(r, g, n, scale="none")
    )
    assert float(signal) * group_size == pytest.approx(total, abs=1e-6)
    assert total == pytest.approx(group_size * rate * (1 - rate) * (1 - 1 / group_size))


def test_adaptive_difficulty_is_one_minus_the_mean_reward() -> None:
    reward = torch.tensor([1.0, 0.0, 0.25, torch.nan, torch.nan])
    group = torch.tensor([0, 0, 0, 0, 1])
    got = d.adaptive_difficulty(reward, group, 2)
    torch.testing.assert_close(got[:1], torch.tensor([1 - 1.25 / 3], dtype=torch.float64))
    assert bool(got[1].isnan())
    with pytest.raises(ValueError, match=r"rewards of \[2.0\].*spread"):
        d.adaptive_difficulty(torch.tensor([2.0]), torch.tensor([0]), 1)


def test_arcsine_draws_are_uniform_in_the_angle() -> None:
    rate = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    log = d.selection_log_masses(d.selection_scores(rate, "arcsine"), "proportional")
    angle = rate.sqrt().asin() / (math.pi / 2)
    mass = torch.zeros(20, dtype=torch.float64).index_add(
        0, (angle * 20).long().clamp(max=19), log.softmax(0)
    )
    torch.testing.assert_close(mass, torch.full((20,), 0.05, dtype=torch.float64))


def test_a_markov_belief_learns_the_transition_it_sees() -> None:
    # The update of 2603.10887 for one prompt, written out: from sometimes (0.5) to always.
    state = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    belief = d.MarkovBelief(state, torch.ones(1, 3, 3, dtype=torch.float64))
    updated = d.markov_observe(belief, torch.tensor([2]), forgetting=0.7)
    expected = torch.ones(3, 3, dtype=torch.float64)
    expected[2] += state[0]
    torch.testing.assert_close(updated.transition[0], expected)
    assert updated.state.tolist() == [[0, 0, 1]]
    forecast = d.markov_forecast(updated)
    torch.testing.assert_close(forecast[0], expected[:, 2] / expected[:, 2].sum())


def test_a_kalman_belief_follows_the_weighted_mean() -> None:
    belief = d.Gaussian(torch.tensor([0.5]).double(), torch.tensor([0.2]).double())
    got = d.kalman_update(belief, torch.tensor([0.25]).double(), torch.tensor([8.0]))
    noise, psi = 1 / 34, math.asin(0.5)
    precision = 1 / 0.2 + 1 / noise
    assert float(got.mean) == pytest.approx((0.5 / 0.2 + psi / noise) / precision, rel=1e-6)
    assert float(got.variance) == pytest.approx(1 / precision, rel=1e-6)
    flat = d.kalman_update(belief, torch.tensor([0.0]).double(), torch.tensor([8.0]))
    assert float(flat.variance) == pytest.approx(1 / (1 / 0.2 + 16), rel=1e-6)


def test_skipping_and_tracking_are_those_of_the_papers() -> None:
    skip = d.skip_probabilities(torch.tensor([0, 1, 2, 20]), torch.full((4,), 0.5))
    torch.testing.assert_close(skip, torch.tensor([0.0, 0.5, 0.75, 0.99]).double())
    assert d.tracked_difficulty(0.2, 1.0) == pytest.approx(0.2 + 0.5 * math.tanh(1.0))
    assert d.tracked_difficulty(0.2, 0.0) == 0.0


def test_selection_precision_has_its_bounds_beside_it() -> None:
    true = torch.tensor([0.0, 0.5, 0.6, 1.0, 1.0, 0.0])
    predicted = torch.tensor([0.45, 0.5, 0.9, 0.1, 0.2, 0.3])
    got = d.selection_precision(predicted, true, 3)
    assert got == pytest.approx((1 / 3, 2 / 3, 2 / 6))


def test_calibration_error_is_the_mean_gap_over_bins() -> None:
    predicted = torch.tensor([0.11, 0.19, 0.95])
    true = torch.tensor([0.0, 0.5, 0.75])
    assert d.calibration_error(predicted, true) == pytest.approx(
        (2 / 3) * abs(0.15 - 0.25) + (1 / 3) * 0.2
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("near", "softmax", 1.5, 0.1), "alpha is 1.5"),
        (("near", "softmax", 0.5, 0.0), "tau is 0.0"),
        (("near", "softmax", 0.5, math.nan), "tau is nan"),
        (("near", "proportional", 0.5, 0.1), "near"),
        (("arcsine", "top_k", 0.5, 0.1), "arcsine"),
        (("hard", "top_k", 0.5, 0.1), "target is 'hard'"),
    ],
)
def test_options_that_make_no_selection_are_refused(
    options: tuple[str, str, float, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        d.check_selection(*options)


def test_too_few_items_with_a_mass_are_refused() -> None:
    log = torch.tensor([0.0, -math.inf, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="count is 3, but 2 of 3"):
        d.gumbel_top_k(log, 3, torch.Generator())
