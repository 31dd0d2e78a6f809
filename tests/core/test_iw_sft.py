"""Weights and losses of iw-SFT, DFT and SFT, against the written formulas."""

import math

import pytest
import torch
from torch import Tensor

from lit_adaptive.core.iw_sft import (
    MAX_LOG_WEIGHT,
    ImportanceWeightedSFTLoss,
    dft_weights,
    iw_sft_weights,
    label_smoothed_losses,
    self_normalize,
)

V = 7


def batch(seed: int = 0, *, b: int = 3, t: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with gradients, labels with some ignored, reference log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, t, V, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(V, (b, t), generator=generator)
    labels[0, :2] = labels[1, 4] = -100
    reference = torch.randn(b, t, V, generator=generator, dtype=torch.float64).log_softmax(-1)
    return logits, labels, reference


def of_labels(log_probs: Tensor, labels: Tensor) -> Tensor:
    return log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]


def written(
    logits: Tensor,
    labels: Tensor,
    reference: Tensor,
    *,
    ratio: str,
    level: str,
    temperature: float,
    clamp: tuple[float, float],
    smooth: float,
) -> Tensor:
    """The loss token by token, as the papers write it."""
    log_probs = logits.log_softmax(-1)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for i in range(len(labels)):
        places = [t for t in range(labels.shape[1]) if labels[i, t] != -100]
        now = [log_probs[i, t, labels[i, t]] for t in places]
        then = [reference[i, t, labels[i, t]] for t in places]
        logs = [float(a.detach() - b) for a, b in zip(now, then, strict=True)]
        if ratio == "ref_over_policy":
            logs = [-each for each in logs]
        if level == "sequence":
            logs = [sum(logs) / len(logs)] * len(logs)
        for t, log_prob, log in zip(places, now, logs, strict=True):
            weight = min(max(math.exp(log / temperature), clamp[0]), clamp[1])
            nll = -(1 - smooth) * log_prob - smooth * log_probs[i, t].mean()
            total = total + weight * nll
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("ratio", ["ref_over_policy", "policy_over_ref"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("smooth", [0.0, 0.2])
def test_loss_and_gradient_are_those_of_the_written_formula(ratio, level, temperature, smooth):
    logits, labels, reference = batch()
    clamp = (0.3, 1.7)
    loss_fn = ImportanceWeightedSFTLoss(
        epsilon=smooth,
        label_smoothing=smooth > 0,
        temperature=temperature,
        ratio=ratio,
        level=level,
        clamp=clamp,
    )
    loss = loss_fn(logits, labels, of_labels(reference, labels))
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = written(
        logits,
        labels,
        reference,
        ratio=ratio,
        level=level,
        temperature=temperature,
        clamp=clamp,
        smooth=smooth,
    )
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_the_specifications_call_gives_the_specifications_loss():
    # Specification 000, section 3.2: nll * exp((ref - current) / T) * mask, over the mask's sum;
    # its epsilon of 0.1 is read by nothing.
    logits, labels, reference = batch(1)
    ref_log_probs = of_labels(reference, labels)
    loss = ImportanceWeightedSFTLoss(epsilon=0.1, temperature=1.0)(logits, labels, ref_log_probs)
    current = of_labels(logits.log_softmax(-1), labels)
    mask = labels != -100
    weights = ((ref_log_probs - current) / 1.0).exp().detach()
    expected = (-current * weights * mask).sum() / mask.sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_references_logits_do_for_its_log_probabilities():
    logits, labels, reference = batch(2)
    loss_fn = ImportanceWeightedSFTLoss()
    torch.testing.assert_close(
        loss_fn(logits, labels, reference), loss_fn(logits, labels, of_labels(reference, labels))
    )


def test_without_a_reference_it_is_plain_sft():
    logits, labels, _ = batch(3)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100
    )
    torch.testing.assert_close(ImportanceWeightedSFTLoss()(logits, labels), expected)


def test_label_smoothing_is_torchs():
    logits, labels, _ = batch(4)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, label_smoothing=0.1
    )
    loss = ImportanceWeightedSFTLoss(epsilon=0.1, label_smoothing=True)(logits, labels)
    torch.testing.assert_close(loss, expected)


def test_shifted_labels_are_the_input_ids_themselves():
    logits, _, reference = batch(5)
    ids = torch.randint(V, (3, 5))
    moved = torch.cat([ids[:, 1:], torch.full((3, 1), -100)], 1)
    ref_log_probs = of_labels(reference, moved)
    straight = ImportanceWeightedSFTLoss()(logits, moved, ref_log_probs)
    at_label = torch.cat([torch.zeros(3, 1), ref_log_probs[:, :-1]], 1)
    shifted = ImportanceWeightedSFTLoss(shift=True)
    torch.testing.assert_close(shifted(logits, ids, at_label), straight)
    torch.testing.assert_close(shifted(logits, ids, reference), straight)


def test_dft_multiplies_each_token_by_its_own_probability():
    # Wu et al. (2025), equation 9: -sg(pi) log pi, so the gradient in the logits is pi (pi - 1).
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    loss = ImportanceWeightedSFTLoss(objective="dft")(logits, torch.tensor([[2]]))
    assert loss.item() == pytest.approx(0.25 * math.log(4))
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient[0, 0], 0.25 * torch.tensor([0.25, 0.25, -0.75, 0.25]))


def test_weights_have_no_gradient_of_their_own():
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    weights = iw_sft_weights(log_prob, torch.tensor([-2.0, -1.0]), torch.tensor([0, 1]), 2)
    assert not weights.weight.requires_grad
    assert not dft_weights(log_prob).weight.requires_grad


def test_a_policy_that_equals_its_reference_has_weight_one():
    log_prob, sequence = torch.tensor([-1.0, -2.0, -0.1]), torch.tensor([0, 0, 2])
    for ratio in ("ref_over_policy", "policy_over_ref"):
        for level in ("token", "sequence"):
            weights = iw_sft_weights(log_prob, log_prob, sequence, 3, ratio=ratio, level=level)
            assert weights.weight.tolist() == [1, 1, 1]
            assert not weights.clamped.any()


def test_the_papers_clamps_are_the_default_and_counted():
    # emmyqin/iw_sft: [0, 16] per sequence, [0.2, 1.8] per token.
    log_prob, reference = torch.tensor([0.0, 0.0, -9.0]), torch.tensor([-9.0, -9.0, 0.0])
    sequence = torch.tensor([0, 0, 1])
    weights = iw_sft_weights(log_prob, reference, sequence, 2)
    torch.testing.assert_close(weights.weight, torch.tensor([16.0, 16.0, math.exp(-9)]))
    assert weights.clamped.tolist() == [True, True, False]
    weights = iw_sft_weights(log_prob, reference, sequence, 2, level="token")
    torch.testing.assert_close(weights.weight, torch.tensor([1.8, 1.8, 0.2]))
    assert weights.clamped.all()


def test_a_sequences_ratio_is_the_mean_over_its_tokens_whatever_its_length():
    # bounding_trainers.py: diff is the mean over answer tokens, not the sum.
    log_prob = torch.tensor([-1.0] * 100 + [-1.0])
    sequence = torch.tensor([0] * 100 + [1])
    weights = iw_sft_weights(log_prob, log_prob - 0.5, sequence, 2)
    torch.testing.assert_close(weights.weight, torch.full((101,), math.exp(0.5)))


def test_an_overflowing_weight_is_held_and_counted():
    weights = iw_sft_weights(
        torch.tensor([-1000.0, -1.0]),
        torch.tensor([0.0, -1.0]),
        torch.tensor([0, 1]),
        2,
        ratio="ref_over_policy",
    )
    assert weights.weight[0].item() == pytest.approx(math.exp(MAX_LOG_WEIGHT), rel=1e-5)
    assert weights.clamped.tolist() == [True, False]


def test_self_normalised_weights_have_mean_one():
    weight = self_normalize(torch.tensor([1.0, 5.0, 6.0]))
    assert weight.mean().item() == pytest.approx(1)
    torch.testing.assert_close(
        self_normalize(torch.tensor([2.0]), torch.tensor(4.0)), torch.tensor([0.5])
    )


def step(probability: Tensor, data: Tensor, reference: Tensor, **options: object) -> Tensor:
    """The expected gradient of iw-SFT in the logits of a bandit with softmax policy."""
    logits = probability.log().requires_grad_()
    log_prob = logits.log_softmax(0)
    arms = torch.arange(len(data))
    weights = iw_sft_weights(log_prob, reference.log(), arms, len(data), **options).weight
    loss = -(data * weights * log_prob).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


def descend(data: Tensor, reference: Tensor, steps: int, **options: object) -> Tensor:
    logits = reference.log()
    for _ in range(steps):
        logits = logits - 0.5 * step(logits.softmax(0), data, reference, **options)
    return logits.softmax(0)


def test_the_papers_bandit_ends_where_it_says():
    # Section 4's toy: reference 50/50, left succeeds half the time, right always. What a filter
    # keeps is (1/3, 2/3). SFT stays there; iw-SFT goes to the optimum; the specification's ratio
    # goes back towards the reference, to (data * reference)^(1/2).
    data, reference = torch.tensor([1 / 3, 2 / 3]), torch.tensor([0.5, 0.5])
    plain = descend(data, reference, 2000, temperature=1e6)  # all weights 1
    torch.testing.assert_close(plain, torch.tensor([1 / 3, 2 / 3]), atol=1e-4, rtol=0)
    paper = descend(data, reference, 2000, ratio="policy_over_ref", clamp=None)
    assert paper[1] > 0.999
    specification = descend(data, reference, 2000, ratio="ref_over_policy", level="token")
    root = (data * reference).sqrt()
    torch.testing.assert_close(specification, root / root.sum(), atol=1e-4, rtol=0)
    assert specification[1].item() == pytest.approx(0.5858, abs=1e-4)


def test_without_smoothing_the_loss_is_the_negative_log_probability():
    assert label_smoothed_losses(torch.tensor([-2.0]), None, 0.0).tolist() == [2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; .* above 0"),
        ({"epsilon": 1.0}, r"epsilon is 1.0; .* \[0, 1\)"),
        ({"ratio": "other"}, "ratio is 'other'; it must be one of"),
        ({"level": "word"}, "level is 'word'"),
        ({"objective": "ppo"}, "objective is 'ppo'"),
        ({"clamp": (2.0, 3.0)}, r"clamp is \[2.0, 3.0\]; .* low <= 1 <= high"),
        ({"reduction": "fixed"}, "reduction is 'fixed' and count is None"),
    ],
)
def test_a_wrong_option_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        ImportanceWeightedSFTLoss(**options)


def test_wrong_shapes_are_named():
    logits, labels, reference = batch()
    loss_fn = ImportanceWeightedSFTLoss()
    with pytest.raises(ValueError, match=r"logits have shape \[3, 5, 7\] and labels \[3, 4\]"):
        loss_fn(logits, labels[:, :4])
    with pytest.raises(ValueError, match=r"ref_log_probs has shape \[3, 4\]"):
        loss_fn(logits, labels, of_labels(reference, labels)[:, :4])
    with pytest.raises(ValueError, match=r"log_prob has shape \[2\], reference \[3\]"):
        iw_sft_weights(torch.zeros(2), torch.zeros(3), torch.zeros(2).long(), 1)


def test_a_reference_of_nan_is_named():
    with pytest.raises(ValueError, match="NaN"):
        iw_sft_weights(torch.zeros(1), torch.tensor([torch.nan]), torch.tensor([0]), 1)


def test_another_policy_may_stand_for_the_current_one_in_the_ratio():
    logits, labels, reference = batch(6)
    ref_log_probs = of_labels(reference, labels)
    loss_fn = ImportanceWeightedSFTLoss(ratio="policy_over_ref")
    same = loss_fn(logits, labels, ref_log_probs, q_log_probs=ref_log_probs)
    torch.testing.assert_close(same, loss_fn(logits, labels))  # q = pi_ref: all weights are 1


def test_normalised_weights_leave_a_loss_that_no_common_factor_changes():
    logits, labels, reference = batch(7)
    ref_log_probs = of_labels(reference, labels)
    loss_fn = ImportanceWeightedSFTLoss(normalize=True)
    one = loss_fn(logits, labels, ref_log_probs)
    torch.testing.assert_close(loss_fn(logits, labels, ref_log_probs + 2.0), one)


def test_a_samples_weight_multiplies_its_losses():
    logits, labels, _ = batch(8)
    weight = torch.tensor([0.0, 2.0, 0.0])
    weights = ImportanceWeightedSFTLoss()(logits, labels, sample_weight=weight)
    only = torch.where(torch.tensor([[False], [True], [False]]), labels, -100)
    alone = ImportanceWeightedSFTLoss(reduction="fixed", count=float((labels != -100).sum()))
    torch.testing.assert_close(weights, 2 * alone(logits, only))
