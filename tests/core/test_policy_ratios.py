import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.policy_ratios import (
    MAX_LOG_RATIO,
    kl_estimates,
    limited_exp,
    log_importance_ratios,
    mismatch_weights,
    off_policy_sequence_mask,
    truncated_ratios,
)

LOGITS = torch.tensor([0.3, -0.8, 0.5, 0.0], dtype=torch.float64)
REFERENCE = torch.tensor([1.0, 0.2, -1.0, 0.4], dtype=torch.float64).log_softmax(0)
BEHAVIOR = torch.tensor([0.0, 0.9, 0.1, -0.4], dtype=torch.float64).log_softmax(0)


def policy():
    logits = LOGITS.clone().requires_grad_()
    return logits, logits.log_softmax(0)


def gradient_of(value, logits):
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def divergence(one, other):
    return (one.exp() * (one - other)).sum()


@given(seed=st.integers(0, 99), lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_ratios_are_quotients_of_tokens_or_geometric_means_of_sequences(seed, lengths):
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    log_prob, behavior = torch.randn(2, len(sequence), generator=generator, dtype=torch.float64)
    quotient = log_prob.exp() / behavior.exp()
    ratio = log_importance_ratios(log_prob, behavior, sequence, len(lengths)).exp()
    torch.testing.assert_close(ratio, quotient)
    ratio = log_importance_ratios(
        log_prob, behavior, sequence, len(lengths), level="sequence"
    ).exp()
    for i, length in enumerate(lengths):
        at = sequence == i
        if length:
            expected = quotient[at].prod() ** (1 / length)
            torch.testing.assert_close(ratio[at], expected.expand(length))


def test_each_token_has_its_own_gradient_in_a_sequence_ratio():
    log_prob = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    log_ratio = log_importance_ratios(
        log_prob, torch.zeros(3), torch.tensor([0, 0, 1]), 2, level="sequence"
    )
    assert log_ratio.tolist() == [-1.5, -1.5, -3.0]
    (gradient,) = torch.autograd.grad(log_ratio, log_prob, torch.tensor([1.0, 10.0, 100.0]))
    assert gradient.tolist() == [1, 10, 100]


def test_ratios_are_limited_from_above():
    ratio = limited_exp(torch.tensor([100.0, -100.0]))
    assert ratio[0].item() == pytest.approx(math.exp(MAX_LOG_RATIO), rel=1e-6)
    assert 0 <= ratio[1] < 1e-40


def test_the_expectation_of_k1_and_k3_is_the_kl_and_k3_is_not_negative():
    # Schulman (2020): k1 and k3 are unbiased, k3 is at least 0 everywhere.
    _, log_prob = policy()
    for estimator in ("k1", "k3"):
        mean = (log_prob.exp() * kl_estimates(log_prob, REFERENCE, estimator=estimator)).sum()
        torch.testing.assert_close(mean, divergence(log_prob, REFERENCE))
    assert (kl_estimates(log_prob, REFERENCE, estimator="k3") >= 0).all()
    assert (kl_estimates(log_prob, REFERENCE, estimator="k1") < 0).any()
    # DeepSeekMath, equation 4, token by token.
    quotient = REFERENCE.exp() / log_prob.exp()
    torch.testing.assert_close(kl_estimates(log_prob, REFERENCE), quotient - quotient.log() - 1)
    torch.testing.assert_close(
        kl_estimates(log_prob, REFERENCE, estimator="k2"), quotient.log().square() / 2
    )


def test_only_k2_has_the_gradient_of_the_kl_as_a_loss():
    logits, log_prob = policy()
    probability = log_prob.exp().detach()  # tokens are drawn from it: no gradient through the draw
    gradients = {
        name: gradient_of(
            (probability * kl_estimates(log_prob, REFERENCE, estimator=name)).sum(), logits
        )
        for name in ("k1", "k2", "k3")
    }
    forward = gradient_of(divergence(log_prob, REFERENCE), logits)
    reverse = gradient_of(divergence(REFERENCE, log_prob), logits)
    torch.testing.assert_close(gradients["k1"], torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(gradients["k2"], forward)
    torch.testing.assert_close(gradients["k3"], reverse)
    assert (forward - reverse).abs().max() > 0.1


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("fresh", [True, False])
def test_with_the_ratio_the_expected_gradient_is_that_of_the_kl(estimator, fresh):
    # Over all tokens of the behavior policy; DeepSeek-V3.2, equation 7, for k3.
    logits, log_prob = policy()
    behavior = log_prob.detach() if fresh else BEHAVIOR
    ratio = truncated_ratios(log_prob, behavior, cap=1e6)
    terms = kl_estimates(log_prob, REFERENCE, estimator=estimator, ratio=ratio)
    value = (behavior.exp() * terms).sum()
    expected = divergence(log_prob, REFERENCE)
    if estimator != "k2":  # the value of k2 is another divergence
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient_of(value, logits), gradient_of(expected, logits))


def test_a_capped_ratio_keeps_the_direction_of_the_gradient():
    log_prob = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    ratio = truncated_ratios(log_prob, torch.tensor([-1.5, -21.0]), cap=3.0)
    torch.testing.assert_close(ratio, torch.tensor([math.exp(0.5), 3.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(ratio.sum(), log_prob)
    torch.testing.assert_close(gradient, ratio)


def test_the_kl_far_from_the_reference_is_finite_and_its_gradient_points_back():
    log_prob = torch.tensor([-100.0, -1.0, -21.0], requires_grad=True)
    value = kl_estimates(log_prob, torch.tensor([0.0, -101.0, 0.0]))
    (gradient,) = torch.autograd.grad(value.sum(), log_prob)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient[0] < 0  # a step against it raises log pi towards the reference
    assert gradient[1] > 0
    assert gradient[2] < 0
    assert value[0] > value[2]


SEQUENCE = torch.tensor([0, 0, 1, 1, 2])
BEFORE = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0])
QUOTIENT = torch.tensor([0.4, 0.9, 3.0, 6.0, 1.0])


def test_truncated_importance_weights_are_capped_quotients():
    # Yao et al. (2025): min(trainer / sampler, C), C = 2.
    mismatch = mismatch_weights(BEFORE + QUOTIENT.log(), BEFORE, SEQUENCE, 3)
    torch.testing.assert_close(mismatch.weight, torch.tensor([0.4, 0.9, 2.0, 2.0, 1.0]))
    assert mismatch.changed.tolist() == [False, False, True, True, False]
    mismatch = mismatch_weights(BEFORE + QUOTIENT.log(), BEFORE, SEQUENCE, 3, cap=5.0)
    torch.testing.assert_close(mismatch.weight, torch.tensor([0.4, 0.9, 3.0, 5.0, 1.0]))


def test_icepop_masks_ratios_outside_its_interval():
    # Ring-1T: zero outside [0.5, 5], the quotient inside.
    mismatch = mismatch_weights(BEFORE + QUOTIENT.log(), BEFORE, SEQUENCE, 3, mode="mask")
    torch.testing.assert_close(mismatch.weight, torch.tensor([0.0, 0.9, 3.0, 0.0, 1.0]))
    assert mismatch.changed.tolist() == [True, False, False, True, False]


def test_the_mismatch_of_a_sequence_is_the_product_over_its_tokens():
    for mode, expected in (
        ("truncate", [0.36, 0.36, 2.0, 2.0, 1.0]),
        ("mask", [0.0, 0.0, 0.0, 0.0, 1.0]),
    ):
        mismatch = mismatch_weights(
            BEFORE + QUOTIENT.log(), BEFORE, SEQUENCE, 3, mode=mode, level="sequence"
        )
        torch.testing.assert_close(mismatch.weight, torch.tensor(expected))
    assert mismatch.changed.tolist() == [True, True, True, True, False]


def test_weights_are_1_without_correction_and_for_equal_policies():
    mismatch = mismatch_weights(BEFORE + 1, BEFORE, SEQUENCE, 3, mode="none")
    assert mismatch.weight.tolist() == [1] * 5
    assert not mismatch.changed.any()
    for mode in ("truncate", "mask"):
        for level in ("token", "sequence"):
            mismatch = mismatch_weights(BEFORE, BEFORE, SEQUENCE, 3, mode=mode, level=level)
            assert mismatch.weight.tolist() == [1] * 5
            assert not mismatch.changed.any()


def test_mismatch_weights_are_finite_and_have_no_gradient():
    old = torch.tensor([100.0, -100.0], requires_grad=True)
    mismatch = mismatch_weights(old, torch.zeros(2), torch.arange(2), 2, mode="mask", high=math.inf)
    assert not mismatch.weight.requires_grad
    assert mismatch.weight.isfinite().all()


def test_off_policy_sequences_with_negative_advantages_are_dropped():
    # DeepSeek-V3.2, section 3.1: A < 0 and mean log(behavior / pi) > delta.
    behavior = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    log_prob = behavior - torch.tensor([1.2, 0.0, 0.4, 0.4, 9.0, -9.0])
    sequence = torch.tensor([0, 0, 1, 1, 2, 3])
    advantage = torch.tensor([-1.0, -1.0, 0.0, -1.0, -1.0])  # the last has no tokens
    for threshold, kept in (
        (0.5, [False, True, True, True, True]),
        (0.39, [False, False, True, True, True]),
        (0.7, [True, True, True, True, True]),
    ):
        keep = off_policy_sequence_mask(
            log_prob, behavior, advantage, sequence, 5, threshold=threshold
        )
        assert keep.tolist() == kept
    keep = off_policy_sequence_mask(log_prob, behavior, -torch.ones(5), sequence, 5)
    assert keep.tolist() == [False, True, False, True, True]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda z, s: kl_estimates(z, torch.zeros(3)),
            r"log_prob has shape \[2\], reference \[3\]",
        ),
        (lambda z, s: kl_estimates(z, z, ratio=torch.ones(1)), r"ratio \[1\]"),
        (lambda z, s: kl_estimates(z, z, estimator="k4"), "estimator is 'k4'"),
        (lambda z, s: log_importance_ratios(z, torch.zeros(3), s, 2), r"'behavior': \[3\]"),
        (lambda z, s: log_importance_ratios(z, z, s, 2, level="word"), "level is 'word'"),
        (lambda z, s: mismatch_weights(z, z, s, 2, mode="clip"), "mode is 'clip'"),
        (lambda z, s: mismatch_weights(z, z, s, 2, level="word"), "level 'word'"),
        (lambda z, s: mismatch_weights(z, z, s, 2, low=1.2), r"low is 1\.2"),
        (lambda z, s: mismatch_weights(z, z, s, 2, high=0.9), r"high 0\.9"),
        (lambda z, s: mismatch_weights(z, z, s, 2, cap=0.0), r"cap 0\.0"),
        (lambda z, s: off_policy_sequence_mask(z, z, z, s, 2, threshold=-1.0), "threshold is -1"),
        (lambda z, s: off_policy_sequence_mask(z, torch.zeros(1), z, s, 2), r"'behavior': \[1\]"),
    ],
)
def test_invalid_shapes_and_options_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(2), torch.arange(2))
