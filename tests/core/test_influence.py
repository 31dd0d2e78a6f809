"""Off-policy gradients against autograd on toy policies; scores, fusion and selection by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core import (
    group_advantages,
    influence_scores,
    max_fusion,
    mean_validation_gradient,
    off_policy_coefficients,
    policy_gradient_losses,
    reciprocal_rank_fusion,
    select_top,
)
from lit_adaptive.core.policy_losses import aggregate_losses

LENGTHS = torch.tensor([2, 3, 1, 4, 2, 0, 3, 1])
SEQUENCE = torch.arange(8).repeat_interleave(LENGTHS)
GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
REWARD = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
TOKENS = torch.arange(len(SEQUENCE)) % 5


def policies(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, len(TOKENS), 5, generator=generator, dtype=torch.float64)


def log_probs(logits):
    return logits.log_softmax(-1).gather(-1, TOKENS[:, None])[:, 0]


def gradient_of(coefficient, logits):
    logits = logits.clone().requires_grad_()
    (log_probs(logits) * coefficient).sum().backward()
    return logits.grad


def advantages():
    return group_advantages(REWARD, GROUP, 2).double()


@given(st.integers(0, 99), st.floats(0.3, 2))
def test_token_ratios_give_the_gradient_of_ratio_times_advantage(seed, temperature):
    # The equation of CROPI: mean over rollouts of the mean over tokens of grad(rho A).
    policy, behavior = policies(seed) / temperature
    policy.requires_grad_()
    ratio = (log_probs(policy) - log_probs(behavior)).exp()
    per_token = ratio * advantages()[SEQUENCE] / LENGTHS[SEQUENCE] / 4
    per_token.sum().backward()
    coefficient = off_policy_coefficients(
        log_probs(policy), log_probs(behavior), SEQUENCE, REWARD, GROUP, 2
    )
    torch.testing.assert_close(gradient_of(coefficient, policy.detach()), policy.grad)


@pytest.mark.parametrize("ratio", ["token", "prefix", "sequence"])
@pytest.mark.parametrize("self_normalize", [False, True])
def test_without_a_difference_of_policies_it_is_the_gradient_of_grpo(ratio, self_normalize):
    policy = policies()[0].requires_grad_()
    log_prob = log_probs(policy)
    losses = policy_gradient_losses(
        log_prob, log_prob.detach(), advantages(), SEQUENCE, 8, loss_type="grpo"
    ).losses
    loss = aggregate_losses(
        losses, SEQUENCE, 8, loss_type="grpo", count=4.0, max_length=4, counted=None
    )
    (-loss).backward()  # of both prompts, each a mean over its 4 rollouts
    coefficient = off_policy_coefficients(
        log_prob, log_prob, SEQUENCE, REWARD, GROUP, 2, ratio=ratio, self_normalize=self_normalize
    )
    torch.testing.assert_close(gradient_of(coefficient, policy.detach()), policy.grad)


def slow_coefficients(difference, advantage, ratio):
    """Token by token."""
    values = []
    for k, own in enumerate(difference.split(LENGTHS.tolist())):
        for t in range(len(own)):
            part = {"token": own[t : t + 1], "prefix": own[: t + 1], "sequence": own}[ratio]
            values.append(float(part.sum().exp() * advantage[k] / len(own) / 4))
    return torch.tensor(values)


@given(st.integers(0, 99), st.sampled_from(["token", "prefix", "sequence"]))
def test_ratios_are_products_over_a_token_its_prefix_or_the_rollout(seed, ratio):
    policy, behavior = map(log_probs, policies(seed))
    got = off_policy_coefficients(policy, behavior, SEQUENCE, REWARD, GROUP, 2, ratio=ratio)
    torch.testing.assert_close(got, slow_coefficients(policy - behavior, advantages(), ratio))


def test_sequence_ratios_correct_the_distribution_exactly():
    # Two tokens of a vocabulary of 3; the reward of all 9 sequences is known. The mean over
    # rollouts of beta, weighted by its probabilities, is the policy gradient under pi.
    generator = torch.Generator().manual_seed(1)
    policy, behavior = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    reward = torch.randn(9, generator=generator)
    policy.requires_grad_()

    def both(logits):
        table = logits.log_softmax(-1)
        return torch.stack([table[0, pairs[:, 0]], table[1, pairs[:, 1]]], 1)

    advantage = group_advantages(reward, torch.zeros(9, dtype=torch.int64), 1).double()
    expected = torch.autograd.grad((both(policy).sum(1).exp() * advantage).sum(), policy)[0]
    coefficient = off_policy_coefficients(
        both(policy).flatten(),
        both(behavior).flatten(),
        torch.arange(9).repeat_interleave(2),
        reward,
        torch.zeros(9, dtype=torch.int64),
        1,
        ratio="sequence",
    ).view(9, 2)
    drawn = both(behavior).sum(1).exp()[:, None] * 9 * 2  # undo the means over rollouts and tokens
    got = torch.autograd.grad((both(policy) * coefficient * drawn).sum(), policy)[0]
    torch.testing.assert_close(got, expected)


def test_clipped_tokens_have_no_gradient():
    difference = torch.tensor([0.3, -0.3, 0.1, 0.3, -0.3, 0.1], dtype=torch.float64)
    sequence, reward = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1.0, 0.0])
    got = off_policy_coefficients(
        difference, torch.zeros(6).double(), sequence, reward, torch.zeros(2).long(), 1, clip=0.2
    )
    # exp(.3) > 1.2 with a positive advantage; exp(-.3) < .8 with a negative one
    assert got.eq(0).tolist() == [True, False, False, False, True, False]


def test_self_normalized_ratios_have_mean_1():
    policy, behavior = map(log_probs, policies())
    options = {"sequence": SEQUENCE, "reward": REWARD, "group": GROUP, "size": 2}
    plain = off_policy_coefficients(policy, behavior, **options)
    got = off_policy_coefficients(policy, behavior, **options, self_normalize=True)
    ratio = (policy - behavior).exp().split(LENGTHS.tolist())
    for group in (0, 1):
        means = [float(r.mean()) for r in ratio[4 * group : 4 * group + 4] if len(r)]
        at = GROUP[SEQUENCE] == group
        torch.testing.assert_close(got[at], plain[at] / (sum(means) / len(means)))


def test_reweighted_advantages_are_those_under_the_policy():
    # Weights exp(mean log ratio) of 3 and 1: mean (3 * 1 + 1 * 0) / 4, variance 3/16.
    log_prob = torch.tensor([math.log(3.0), math.log(3.0), 0.0], dtype=torch.float64)
    sequence, reward = torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.0])
    got = off_policy_coefficients(
        log_prob,
        torch.zeros(3).double(),
        sequence,
        reward,
        torch.zeros(2).long(),
        1,
        reweight_advantages=True,
        epsilon=0.0,
    )
    deviation = math.sqrt(3 / 16)
    expected = [3 * 0.25 / deviation / 4] * 2 + [-0.75 / deviation / 2]
    assert got.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("reweight", [False, True])
def test_equal_rewards_give_no_gradient_and_missing_ones_count_as_rollouts(reweight):
    policy, behavior = map(log_probs, policies())
    reward = torch.tensor([0.7, 0.7, 0.7, 0.7, 1.0, 0.0, 0.0, math.nan])
    got = off_policy_coefficients(
        policy, behavior, SEQUENCE, reward, GROUP, 2, reweight_advantages=reweight
    )
    assert not got[GROUP[SEQUENCE] == 0].any()
    assert got[SEQUENCE == 4].ne(0).all()
    assert not got[SEQUENCE == 7].any()


def test_damaged_log_probabilities_name_the_prompt():
    policy, behavior = map(log_probs, policies())
    behavior[-1] = math.nan
    with pytest.raises(ValueError, match=r"behavior of tokens of the groups \[1\] is NaN"):
        off_policy_coefficients(policy, behavior, SEQUENCE, REWARD, GROUP, 2)
    with pytest.raises(ValueError, match="sequence must ascend"):
        off_policy_coefficients(policy, policy, SEQUENCE.flip(0), REWARD, GROUP, 2)
    for options, message in (({"ratio": "full"}, "ratio is 'full'"), ({"clip": 0.0}, "clip is 0")):
        with pytest.raises(ValueError, match=message):
            off_policy_coefficients(policy, policy, SEQUENCE, REWARD, GROUP, 2, **options)


def test_scores_are_cosines_or_inner_products_and_nan_without_a_gradient():
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    validation = torch.tensor([0.0, 5.0])
    cosine = influence_scores(gradient, validation)
    assert cosine.tolist() == pytest.approx([0.8, math.nan, -1.0], nan_ok=True)
    product = influence_scores(gradient, validation, metric="inner_product")
    assert product.tolist() == pytest.approx([20.0, math.nan, -10.0], nan_ok=True)
    rate = torch.tensor([0.5, 0.5, 0.25])
    learnable = influence_scores(gradient, validation, metric="learnable_cosine", pass_rate=rate)
    assert learnable.tolist() == pytest.approx([0.8, math.nan, -0.75], nan_ok=True)
    with pytest.raises(ValueError, match="needs the prompts' pass rates"):
        influence_scores(gradient, validation, metric="learnable_cosine")
    with pytest.raises(ValueError, match=r"prompts \[1\] are NaN"):
        influence_scores(gradient.index_fill(0, torch.tensor([1]), math.nan), validation)
    with pytest.raises(ValueError, match="metric is 'dot'"):
        influence_scores(gradient, validation, metric="dot")


@pytest.mark.parametrize(("count", "size"), [(6, 40), (40, 6)])
def test_the_influence_function_is_a_ridge_regression_on_the_pools_directions(count, size):
    generator = torch.Generator().manual_seed(count)
    gradient = torch.randn(count, size, generator=generator) * torch.rand(count, 1).exp()
    gradient[2] = 0
    validation = torch.randn(size, generator=generator)
    found = influence_scores(gradient, validation, metric="influence_function")
    unit = torch.nn.functional.normalize(gradient.double(), dim=1)
    hessian = unit.T @ unit + torch.eye(size, dtype=torch.float64)
    expected = unit @ torch.linalg.inv(hessian) @ (validation.double() / validation.double().norm())
    expected[2] = math.nan
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5, equal_nan=True)
    # Neither the length of a gradient nor that of the validation's matters.
    scaled = influence_scores(3 * gradient, validation / 7, metric="influence_function")
    torch.testing.assert_close(scaled, found, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_the_influence_function_looks_past_what_all_gradients_share():
    # Of 200 gradients, 20 have the direction of validation, and all a common one that is longer.
    generator = torch.Generator().manual_seed(0)
    noise, useful, common = (torch.randn(n, 256, generator=generator) for n in (200, 1, 1))
    kind = torch.arange(200) < 20
    length = 0.2 + 5 * torch.rand(200, 1, generator=generator)  # of the common direction
    gradient = noise + length * common + kind[:, None] * useful / 2
    validation = (4 * common + useful)[0]

    def precision(metric):
        best = influence_scores(gradient, validation, metric=metric).topk(20).indices
        return float(kind[best].double().mean())

    assert precision("influence_function") >= 0.9
    assert precision("cosine") <= 0.6


def test_validation_gradients_are_means_over_prompts_with_a_gradient():
    gradient = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 4.0]])
    assert mean_validation_gradient(gradient).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="none of the 3 validation prompts"):
        mean_validation_gradient(torch.zeros(3, 2))


SCORES = torch.tensor([[0.9, 0.1, 0.5, math.nan, 0.5], [0.2, 0.3, 0.9, math.nan, math.nan]])


def test_rank_fusion_by_hand():
    # Ranks: 1, 4, 2, -, 2 (a tie) and 3, 2, 1, -, -.
    fused = reciprocal_rank_fusion(SCORES)
    expected = [1 + 1 / 3, 1 / 4 + 1 / 2, 1 / 2 + 1, math.nan, 1 / 2]
    assert fused.tolist() == pytest.approx(expected, nan_ok=True)
    fused = reciprocal_rank_fusion(SCORES, constant=60)
    expected = [1 / 61 + 1 / 63, 1 / 64 + 1 / 62, 1 / 62 + 1 / 61, math.nan, 1 / 62]
    assert fused.tolist() == pytest.approx(expected, nan_ok=True)
    # CROPI counts only the places that would be selected.
    fused = reciprocal_rank_fusion(SCORES, top_k=2)
    assert fused.tolist() == pytest.approx([1, 1 / 2, 3 / 2, math.nan, 1 / 2], nan_ok=True)
    assert max_fusion(SCORES).tolist() == pytest.approx([0.9, 0.3, 0.9, math.nan, 0.5], nan_ok=True)
    with pytest.raises(ValueError, match="constant is -1"):
        reciprocal_rank_fusion(SCORES, constant=-1)
    with pytest.raises(ValueError, match="top_k is 0"):
        reciprocal_rank_fusion(SCORES, top_k=0)


def test_selection_takes_a_share_of_the_whole_pool():
    score = torch.tensor([0.1, math.nan, 0.9, 0.9, math.nan, 0.5, math.nan, 0.2, math.nan, 0.0])
    assert select_top(score, 0.1).tolist() == [2]
    assert select_top(score, 0.3).tolist() == [2, 3, 5]
    assert select_top(score, 0.25).tolist() == [2, 3, 5]  # rounded up
    assert select_top(score, 1.0).tolist() == [2, 3, 5, 7, 0, 9]  # the others have no gradient
    with pytest.raises(ValueError, match="fraction is 10"):
        select_top(score, 10)
