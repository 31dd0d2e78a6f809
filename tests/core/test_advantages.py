import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.advantages import (
    FAILED,
    FLAT,
    INFORMATIVE,
    SOLVED,
    group_advantages,
    group_outcomes,
    has_spread,
    overlong_penalty,
    pass_at_k,
    psr_nsr_advantages,
    scale_by_sign,
)

NAN = math.nan
GROUPS = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, -0.5, 0.3, 0.1, NAN]), min_size=2, max_size=6),
    min_size=1,
    max_size=5,
)


def flat(groups, order=None):
    reward = torch.tensor([r for group in groups for r in group], dtype=torch.float64)
    group = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(g) for g in groups]))
    if order is not None:
        reward, group = reward[order], group[order]
    return reward, group


def slow_advantages(groups, scale, leave_one_out, epsilon):
    """The definitions, one rollout at a time, with Python floats."""
    batch = [r for group in groups for r in group if not math.isnan(r)]
    advantages = []
    for group in groups:
        known = [r for r in group if not math.isnan(r)]
        for i, reward in enumerate(group):
            if math.isnan(reward) or len(known) == 1 or len(set(known)) == 1:
                advantages.append(0.0)
                continue
            rest = [r for j, r in enumerate(group) if j != i and not math.isnan(r)]
            baseline = rest if leave_one_out else known
            advantage = reward - sum(baseline) / len(baseline)
            if scale != "none":
                pool = known if scale == "group" else batch
                mean = sum(pool) / len(pool)
                variance = sum((r - mean) ** 2 for r in pool) / (len(pool) - 1)
                advantage /= math.sqrt(variance) + epsilon
            advantages.append(advantage)
    return advantages


@given(
    groups=GROUPS,
    scale=st.sampled_from(["none", "group", "batch"]),
    leave_one_out=st.booleans(),
    epsilon=st.sampled_from([0.0, 1e-4, 0.5]),
    seed=st.integers(0, 99),
)
def test_advantages_equal_those_of_a_loop_in_any_order(groups, scale, leave_one_out, epsilon, seed):
    count = sum(map(len, groups))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    reward, group = flat(groups, order)
    advantage = group_advantages(
        reward, group, len(groups), scale=scale, leave_one_out=leave_one_out, epsilon=epsilon
    )
    expected = torch.tensor(slow_advantages(groups, scale, leave_one_out, epsilon))[order]
    assert advantage.dtype == torch.float32
    torch.testing.assert_close(advantage, expected, atol=1e-6, rtol=1e-5)


@given(groups=GROUPS, scale=st.sampled_from(["none", "group", "batch"]), shift=st.integers(-9, 9))
def test_a_constant_added_to_all_rewards_does_not_change_advantages(groups, scale, shift):
    reward, group = flat(groups)
    plain = group_advantages(reward, group, len(groups), scale=scale)
    moved = group_advantages(reward + shift, group, len(groups), scale=scale)
    torch.testing.assert_close(moved, plain, atol=1e-6, rtol=1e-5)


def test_one_correct_of_four_has_the_advantages_of_the_papers_and_trl():
    reward, group = torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.int64)
    # s = 1/2 with n - 1; TRL adds 1e-4.
    grpo = group_advantages(reward, group, 1)
    torch.testing.assert_close(grpo, torch.tensor([0.75, -0.25, -0.25, -0.25]) / 0.5001)
    # Dr. GRPO and DOTS: no standard deviation.
    dr_grpo = group_advantages(reward, group, 1, scale="none")
    assert dr_grpo.tolist() == [0.75, -0.25, -0.25, -0.25]
    # RLOO: the mean of the other rollouts is 0 for the correct one and 1/3 for the others.
    rloo = group_advantages(reward, group, 1, scale="none", leave_one_out=True)
    torch.testing.assert_close(rloo, torch.tensor([1, -1 / 3, -1 / 3, -1 / 3]))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 1e8 + 0.1, -7e-9])
@pytest.mark.parametrize("count", [2, 3, 7, 49])
@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_equal_rewards_give_exactly_zero(value, count, scale):
    reward = torch.full((count,), value, dtype=torch.float64)
    for leave_one_out in (False, True):
        advantage = group_advantages(
            reward, torch.zeros(count).long(), 1,
            scale=scale, leave_one_out=leave_one_out, epsilon=0.0,
        )  # fmt: skip
        assert advantage.tolist() == [0.0] * count


def test_a_batch_without_known_rewards_has_advantages_of_zero():
    reward, group = torch.full((4,), NAN), torch.tensor([0, 0, 1, 1])
    for scale in ("none", "group", "batch"):
        assert group_advantages(reward, group, 3, scale=scale).tolist() == [0.0] * 4


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_signal_is_p_times_1_minus_p_times_1_minus_1_over_g(p):
    # Sun et al. (2025), theorem 1: with 0/1 rewards and no std, E[A^2] = p (1 - p) (1 - 1/G).
    size = 6
    outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)))
    correct = outcomes.sum(1)
    probability = p**correct * (1 - p) ** (size - correct)
    group = torch.arange(len(outcomes)).repeat_interleave(size)
    advantage = group_advantages(outcomes.flatten(), group, len(outcomes), scale="none")
    signal = (probability * advantage.view(-1, size).square().mean(1)).sum()
    assert signal.item() == pytest.approx(p * (1 - p) * (1 - 1 / size), rel=1e-5)


def test_leave_one_out_is_unbiased_and_the_group_mean_shrinks_gradients_by_1_minus_1_over_g():
    # E[(r_i - b) d log p(r_i)/dp] must be dE[r]/dp = 1: RLOO's promise (Ahmadian et al., 2024).
    p, size = 0.3, 4
    outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)))
    correct = outcomes.sum(1)
    probability = p**correct * (1 - p) ** (size - correct)
    group = torch.arange(len(outcomes)).repeat_interleave(size)
    score = outcomes / p - (1 - outcomes) / (1 - p)
    for leave_one_out, expected in ((True, 1.0), (False, 1 - 1 / size)):
        advantage = group_advantages(
            outcomes.flatten(), group, len(outcomes), scale="none", leave_one_out=leave_one_out
        )
        gradient = (probability * (advantage.view(-1, size) * score).mean(1)).sum()
        assert gradient.item() == pytest.approx(expected, rel=1e-5)


def test_a_group_of_one_is_rejected_where_two_rollouts_are_needed():
    reward, group = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 2])
    with pytest.raises(ValueError, match=r"groups \[2\] have 1 rollout; .* at least 2 .* 'none'"):
        group_advantages(reward, group, 3)
    with pytest.raises(ValueError, match=r"groups \[2\] have 1 rollout; leave_one_out"):
        group_advantages(reward, group, 3, scale="none", leave_one_out=True)
    with pytest.raises(ValueError, match="'batch' but there is only one rollout"):
        group_advantages(torch.ones(1), torch.zeros(1).long(), 1, scale="batch")
    assert group_advantages(reward, group, 3, scale="none").tolist() == [0.5, -0.5, 0]


def test_a_single_known_reward_of_a_group_has_advantage_0():
    advantage = group_advantages(torch.tensor([1.0, NAN]), torch.tensor([0, 0]), 1)
    assert advantage.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("reward", "group", "options", "words"),
    [
        ([1.0, math.inf], [0, 0], {}, r"index \[1\] are \[inf\]; a reward is finite"),
        ([1.0, 0.0], [0], {}, r"reward has shape \[2\] and group \[1\]"),
        ([1.0, 0.0], [0, 5], {}, r"groups of index \[1\] are \[5\]; .* \[0, 1\)"),
        ([1.0, 0.0], [0, 0], {"scale": "std"}, "scale is 'std'; it must be one of"),
        ([1.0, 0.0], [0, 0], {"epsilon": -1.0}, "epsilon is -1.0; .* at least 0"),
    ],
)
def test_invalid_rewards_groups_and_options_are_named(reward, group, options, words):
    with pytest.raises(ValueError, match=words):
        group_advantages(torch.tensor(reward), torch.tensor(group), 1, **options)


def test_informative_groups_have_differing_rewards_and_are_neither_solved_nor_failed():
    # DAPO, equation 11; DOTS, algorithm 1.
    outcome = {
        (1.0, 1.0): SOLVED,
        (0.0, 0.0): FAILED,
        (0.0, 1.0): INFORMATIVE,
        (0.5, 0.5): FLAT,
        (0.0, 1.0, NAN): INFORMATIVE,
        (1.0, NAN): SOLVED,
        (NAN, NAN): FLAT,
        (-1.0, 1.0): INFORMATIVE,
        (2.0, 2.0): FLAT,
        (0.0,) * 9 + (1.0,): INFORMATIVE,
    }
    reward, group = flat(list(outcome))
    size = len(outcome) + 1  # the last group is empty
    outcomes = group_outcomes(reward, group, size)
    assert outcomes.tolist() == [*outcome.values(), FLAT]


def test_the_tolerance_widens_solved_and_failed():
    reward, group = flat([[0.0] * 9 + [1.0], [1.0] * 9 + [0.0], [0.0, 1.0]])
    outcomes = group_outcomes(reward, group, 3, tolerance=0.1 + 1e-9)
    assert outcomes.tolist() == [FAILED, SOLVED, INFORMATIVE]
    with pytest.raises(ValueError, match=r"tolerance is -0\.1"):
        group_outcomes(reward, group, 3, tolerance=-0.1)


def test_groups_have_spread_if_two_known_rewards_differ():
    reward, group = flat([[0.5, 0.5], [0.0, 1.0, NAN], [1.0, NAN], [NAN, NAN], [-1.0, 1.0]])
    assert has_spread(reward, group, 6).tolist() == [False, True, False, False, True, False]


@given(groups=GROUPS)
def test_a_group_has_spread_if_and_only_if_it_has_advantages(groups):
    reward, group = flat(groups)
    advantage = group_advantages(reward, group, len(groups), scale="none")
    nonzero = torch.zeros(len(groups)).index_add(0, group, advantage.abs()) > 0
    assert has_spread(reward, group, len(groups)).tolist() == nonzero.tolist()


def test_psr_nsr_and_w_reinforce_have_the_papers_advantages():
    # Zhu et al. (2025): PSR keeps correct samples with +1, NSR others with -1; lambda is 0.1.
    reward = torch.tensor([1.0, 0.0, NAN, 1.0, -1.0])
    assert psr_nsr_advantages(reward).tolist() == [1, -1, 0, 1, -1]
    assert psr_nsr_advantages(reward, negative_weight=0.0).tolist() == [1, 0, 0, 1, 0]
    assert psr_nsr_advantages(reward, positive_weight=0.0).tolist() == [0, -1, 0, 0, -1]
    w_reinforce = psr_nsr_advantages(reward, positive_weight=0.1)
    torch.testing.assert_close(w_reinforce, torch.tensor([0.1, -1, 0, 0.1, -1]))


def test_rewards_from_the_threshold_on_are_correct():
    assert psr_nsr_advantages(torch.tensor([0.7, 0.8]), threshold=0.8).tolist() == [-1, 1]


def test_a_negative_weight_below_0_is_rejected():
    with pytest.raises(ValueError, match=r"weight of negative samples is -1.0; .* at least 0"):
        psr_nsr_advantages(torch.zeros(2), negative_weight=-1.0)


def test_scaling_by_sign_preserves_signs():
    advantage = torch.tensor([2.0, -4.0, 0.0])
    scaled = scale_by_sign(advantage, positive=0.1, negative=0.5)
    torch.testing.assert_close(scaled, torch.tensor([0.2, -2.0, 0.0]))
    with pytest.raises(ValueError, match="weight of positive samples is nan"):
        scale_by_sign(advantage, positive=NAN, negative=1.0)


def test_overlong_penalty_falls_from_0_to_minus_1_over_the_cache():
    # Yu et al. (2025), section 4.1: 16384 expected tokens, a cache of 4096, at most 20480.
    lengths = torch.tensor([0, 16384, 16385, 18432, 20480, 30000])
    penalty = overlong_penalty(lengths, max_length=20480, cache=4096)
    torch.testing.assert_close(penalty, torch.tensor([0, 0, -1 / 4096, -0.5, -1, -1]))


@pytest.mark.parametrize("cache", [0, 20481])
def test_a_cache_outside_1_to_max_length_is_rejected(cache):
    with pytest.raises(ValueError, match=f"cache is {cache} with max_length 20480"):
        overlong_penalty(torch.tensor([5]), max_length=20480, cache=cache)


@given(data=st.data(), n=st.integers(1, 9))
def test_pass_at_k_is_the_fraction_of_all_draws_with_a_correct_one(data, n):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(itertools.combinations(range(n), k))
    expected = sum(any(i < c for i in draw) for draw in draws) / len(draws)
    rate = pass_at_k(torch.tensor([c]), torch.tensor([n]), k)
    assert rate.dtype == torch.float64
    assert rate.item() == pytest.approx(expected, rel=1e-12, abs=0)


def test_pass_at_k_is_exact_where_binomials_overflow():
    n, k = 5000, 1024  # C(5000, 1024) has more than 1100 digits
    correct = torch.tensor([0, 1, 7, 2500, 3977, 5000])
    failures = [math.comb(n - c, k) for c in correct.tolist()]
    total = math.comb(n, k)
    rate = pass_at_k(correct, torch.full((6,), n), k)
    for value, failed in zip(rate.tolist(), failures, strict=True):
        assert value == pytest.approx((total - failed) / total, rel=1e-12, abs=0)
    assert rate[1].item() == pytest.approx(k / n, rel=1e-12)
    assert rate[0] == 0
    assert rate[-1] == 1


def test_pass_at_k_needs_k_completions_of_every_prompt():
    with pytest.raises(ValueError, match=r"k is 5; .* one prompt has 4: sample more"):
        pass_at_k(torch.tensor([1, 1]), torch.tensor([8, 4]), 5)
    with pytest.raises(ValueError, match="k is 0"):
        pass_at_k(torch.tensor([1]), torch.tensor([8]), 0)


def test_more_correct_completions_than_completions_are_rejected():
    with pytest.raises(ValueError, match=r"correct is \[9\] of \[8\] at index \[1\]"):
        pass_at_k(torch.tensor([1, 9]), torch.tensor([8, 8]), 1)


def test_no_prompts_have_no_pass_rates():
    assert pass_at_k(torch.tensor([]), torch.tensor([]), 3).shape == (0,)
