import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.token_entropy import (
    clip_cov,
    covariances,
    high_entropy_mask,
    kl_cov,
    kl_cov_penalties,
)

VALUES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), st.booleans()), min_size=0, max_size=40
)


def columns(pairs):
    return (
        torch.tensor([value for value, _ in pairs], dtype=torch.float32),
        torch.tensor([kept for _, kept in pairs], dtype=torch.bool),
    )


def greatest(values, kept, number):
    """Which the greatest are: sorted, first come first taken."""
    places = sorted((i for i in range(len(values)) if kept[i]), key=lambda i: (-values[i], i))
    chosen = set(places[:number])
    return [i in chosen for i in range(len(values))]


@given(pairs=VALUES, quantile=st.sampled_from([0.05, 0.1, 0.2, 0.5, 1.0]))
def test_exactly_the_share_of_highest_entropy_is_taken_in_the_order_of_tokens(pairs, quantile):
    entropy, keep = columns(pairs)
    number = math.ceil(round(quantile * int(keep.sum()), 6))
    result = high_entropy_mask(entropy, quantile, keep)
    assert result.tolist() == greatest(entropy.tolist(), keep.tolist(), number)
    every = high_entropy_mask(entropy, quantile)
    number = math.ceil(round(quantile * len(pairs), 6))
    assert every.tolist() == greatest(entropy.tolist(), [True] * len(pairs), number)


def test_a_fifth_is_the_papers_share():
    # Wang et al. (2025): rho = 20 %; their code takes ceil(0.2 N).
    entropy = torch.rand(101, generator=torch.Generator().manual_seed(0))
    result = high_entropy_mask(entropy)
    assert result.sum() == 21
    assert entropy[result].min() > entropy[~result].max()


def test_shares_that_are_whole_numbers_are_not_rounded_away():
    assert high_entropy_mask(torch.arange(100.0), 0.07).sum() == 7  # 0.07 * 100: 7.000000000000001
    assert kl_cov(torch.zeros(100), share=0.29).sum() == 29  # 0.29 * 100: 28.999999999999996


def test_covariances_are_those_of_the_kept_tokens():
    log_prob, advantage = torch.tensor([-1.0, -3.0, 5.0, -2.0]), torch.tensor([1.0, -1.0, 9.0, 3.0])
    keep = torch.tensor([True, True, False, True])
    result = covariances(log_prob, advantage, keep)
    # means over the kept: log pi -2, A 1
    assert result.tolist() == [0.0, 2.0, 0.0, 0.0]
    every = covariances(log_prob, advantage)
    expected = torch.stack([log_prob, advantage]).cov(correction=0)[0, 1]
    torch.testing.assert_close(every.mean(), expected)
    assert not covariances(log_prob.requires_grad_(), advantage).requires_grad
    poisoned = covariances(torch.tensor([-1.0, -3.0, torch.nan, -2.0]), advantage, keep)
    assert poisoned.tolist() == result.tolist()


def test_entropy_falls_by_the_covariance_to_first_order():
    # Cui et al. (2025): the covariance of log pi and the change of the logits, under the policy.
    logits = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    log_prob = logits.log_softmax(0)
    pi = log_prob.exp()

    def entropy(z):
        return -(z.softmax(0) * z.log_softmax(0)).sum()

    step = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) * 1e-5
    centered = (log_prob - (pi * log_prob).sum()) * (step - (pi * step).sum())
    fall = entropy(logits) - entropy(logits + step)
    torch.testing.assert_close(fall, (pi * centered).sum(), rtol=1e-3, atol=0)


@given(pairs=VALUES, share=st.sampled_from([0.0, 2e-4, 0.1, 0.5]), seed=st.integers(0, 99))
def test_clip_cov_selects_the_share_of_all_tokens_from_the_band(pairs, share, seed):
    cov, keep = columns(pairs)
    uniform = torch.rand(len(cov), generator=torch.Generator().manual_seed(seed))
    clipped = clip_cov(cov, share=share, low=0.5, high=3.0, uniform=uniform, keep=keep)
    band = keep & (cov > 0.5) & (cov < 3.0)  # the bounds are exclusive
    count = max(1, math.floor(round(share * int(keep.sum()), 6))) if share else 0
    assert clipped.sum() == min(count, int(band.sum()))
    assert not (clipped & ~band).any()


def test_clip_cov_has_the_papers_constants_and_selects_uniformly():
    # Cui et al. (2025): 2e-4 of the tokens, of those between 1 and 5.
    cov = torch.tensor([0.9, 1.0, 1.1, 4.9, 5.0, 3.0, -torch.inf] + [0.0] * 9_993)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(7)
    for _ in range(600):
        clipped = clip_cov(cov, uniform=torch.rand(len(cov), generator=generator))
        assert clipped.sum() == 2  # of 10,000
        counts += clipped[:7]
    assert counts[[0, 1, 4, 6]].tolist() == [0] * 4
    assert (counts[[2, 3, 5]] - 400).abs().max() < 60  # 5 standard deviations of 11.5


def test_clip_cov_selects_the_smallest_random_numbers():
    cov = torch.tensor([2.0, 2.0, 2.0, 0.0])
    uniform = torch.tensor([0.5, 0.2, 0.9, 0.0])
    assert clip_cov(cov, share=0.5, uniform=uniform).tolist() == [True, True, False, False]


@given(pairs=VALUES, share=st.sampled_from([0.0, 2e-4, 0.1, 0.5, 1.0]))
def test_kl_cov_selects_the_highest_covariances_at_least_one(pairs, share):
    cov, keep = columns(pairs)
    number = max(1, math.floor(round(share * int(keep.sum()), 6))) if share else 0
    result = kl_cov(cov, share=share, keep=keep)
    assert result.tolist() == greatest(cov.tolist(), keep.tolist(), number)


def test_kl_cov_penalises_selected_tokens_only():
    log_prob = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)
    old = torch.tensor([-2.0, -0.5, -1.0, torch.nan])
    mask = torch.tensor([True, True, True, False])
    penalty = kl_cov_penalties(log_prob, old, mask, coefficient=2.0)
    assert penalty.tolist() == [2.0, 1.0, 0.0, 0.0]
    (gradient,) = torch.autograd.grad(penalty.sum(), log_prob)
    assert gradient.tolist() == [2.0, -2.0, 0.0, 0.0]
    assert kl_cov_penalties(log_prob, old, mask).tolist() == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda v: high_entropy_mask(v, 0.0), r"quantile is 0.0; .* \(0, 1\]"),
        (lambda v: high_entropy_mask(v, 1.5), r"quantile is 1.5"),
        (lambda v: high_entropy_mask(v / 0 * 0), r"entropy is NaN at index \[0, 1, 2\]"),
        (lambda v: high_entropy_mask(v, keep=torch.ones(2)), r"keep has shape \[2\] .* \[3\]"),
        (lambda v: covariances(v, torch.ones(2)), r"log_prob has shape \[3\] and advantage \[2\]"),
        (lambda v: clip_cov(v, uniform=v, share=1.1), r"share is 1\.1"),
        (lambda v: clip_cov(v, uniform=v, low=5.0, high=1.0), r"low is 5\.0 and high 1\.0"),
        (lambda v: clip_cov(v, uniform=torch.ones(2)), r"uniform has shape \[2\]"),
        (lambda v: kl_cov(v, share=-0.1), r"share is -0\.1"),
        (lambda v: kl_cov(v / 0 * 0), "cov is NaN"),
    ],
)
def test_invalid_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.ones(3))
