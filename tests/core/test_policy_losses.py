import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.policy_losses import (
    LOSS_TYPES,
    aggregate_losses,
    luffy_shaping,
    policy_gradient_losses,
)

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=5)
TYPES = st.sampled_from(LOSS_TYPES)
SEEDS = st.integers(0, 999)
MAX_LENGTH = 7


def rollouts(lengths, seed, spread=0.5):
    """log_prob (with gradient), behavior, old, advantage, sequence, all in float64."""
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    noise = torch.randn(3, len(sequence), generator=generator, dtype=torch.float64)
    log_prob = (noise[0] * 0.7 - 2).clamp(max=-0.01)
    old, behavior = log_prob + spread * noise[1], log_prob + spread * noise[2]
    advantage = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    return log_prob.requires_grad_(), behavior, old, advantage, sequence


def textbook(log_prob, behavior, old, advantage, sequence, loss_type, options):
    """Each method's equation, one sequence and one token at a time; ratios as plain quotients."""
    low, high = options.get("clip_low", 0.2), options.get("clip_high", 0.2)
    level = options.get("level") or ("sequence" if loss_type == "gspo" else "token")
    delta = options.get("dual_clip")
    losses, tokens = [], 0
    for i, gain in enumerate(advantage):
        positions = [t for t in range(len(sequence)) if sequence[t] == i]
        tokens += len(positions)
        sequence_losses = []
        ratio = [log_prob[t].exp() / behavior[t].exp() for t in positions]
        old_ratio = [old[t].exp() / behavior[t].exp() for t in positions]
        if level == "sequence" and positions:
            n = len(positions)
            ratio = [torch.stack(ratio).prod() ** (1 / n)] * n
            old_ratio = [torch.stack(old_ratio).prod() ** (1 / n)] * n
        for t, rho, r_old in zip(positions, ratio, old_ratio, strict=True):
            center = r_old if options.get("clip_center") == "old" else torch.ones(())
            if loss_type == "cispo":
                weight = torch.minimum(rho, center * (1 + high))
                sequence_losses.append(-weight.detach() * gain * log_prob[t])
                continue
            first = rho
            if delta is not None:  # TRL's two-sided clipping: before the minimum
                first = torch.minimum(rho, center * delta)
            second = torch.minimum(torch.maximum(rho, center * (1 - low)), center * (1 + high))
            sequence_losses.append(-torch.minimum(first * gain, second * gain))
        losses.append(sequence_losses)
    zero = log_prob.sum() * 0
    total = sum((sum(part, zero) for part in losses), zero)
    if loss_type in ("grpo", "gspo"):
        means = [sum(part, zero) / max(len(part), 1) for part in losses]
        return sum(means, zero) / len(advantage)
    if loss_type == "dr_grpo":
        return total / (len(advantage) * MAX_LENGTH)
    return total / max(tokens, 1)


def count_of(loss_type, sequence, size):
    return max(float(len(sequence)), 1.0) if loss_type in ("dapo", "cispo") else float(size)


def loss_of(data, loss_type, options, count=None):
    log_prob, behavior, old, advantage, sequence = data
    size = len(advantage)
    policy = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, size, loss_type=loss_type, old=old, **options
    )
    return aggregate_losses(
        policy.losses, sequence, size,
        loss_type=loss_type, count=count or count_of(loss_type, sequence, size),
        max_length=MAX_LENGTH,
    )  # fmt: skip


OPTIONS = st.fixed_dictionaries(
    {
        "clip_low": st.sampled_from([0.0, 0.2, 0.9, 1.0]),
        "clip_high": st.sampled_from([0.0, 0.28, 0.9, math.inf]),
        "clip_center": st.sampled_from(["one", "old"]),
        "dual_clip": st.sampled_from([None, 2.0]),
    }
)


@given(
    lengths=LENGTHS,
    seed=SEEDS,
    loss_type=TYPES,
    options=OPTIONS,
    level=st.sampled_from([None, "sequence"]),
)
def test_every_loss_and_its_gradient_equal_the_textbooks(lengths, seed, loss_type, options, level):
    if options["clip_high"] == math.inf:
        options = options | {"dual_clip": None}
    data = rollouts(lengths, seed)
    if level == "sequence":
        options = options | {"level": level}
    expected = textbook(*data, loss_type, options)
    loss = loss_of(data, loss_type, options)
    torch.testing.assert_close(loss, expected)
    if not len(data[0]):
        assert loss == 0
        return
    gradient = torch.autograd.grad(expected, data[0])[0]
    torch.testing.assert_close(torch.autograd.grad(loss, data[0])[0], gradient)


@given(lengths=LENGTHS, seed=SEEDS, loss_type=TYPES, options=OPTIONS)
def test_the_weight_is_the_factor_of_the_gradient(lengths, seed, loss_type, options):
    options = options | ({"dual_clip": None} if options["clip_high"] == math.inf else {})
    log_prob, behavior, old, advantage, sequence = rollouts(lengths, seed)
    policy = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, len(lengths),
        loss_type=loss_type, old=old, **options,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(policy.losses.sum(), log_prob)
    torch.testing.assert_close(gradient, -policy.weight * advantage[sequence])
    for statistic in policy[1:]:
        assert not statistic.requires_grad


@given(lengths=LENGTHS, seed=SEEDS, loss_type=TYPES, center=st.sampled_from(["one", "old"]))
def test_fresh_tokens_have_ratio_one_and_the_policy_gradient(lengths, seed, loss_type, center):
    log_prob, _, _, advantage, sequence = rollouts(lengths, seed)
    now = log_prob.detach()
    policy = policy_gradient_losses(
        log_prob, now, advantage, sequence, len(lengths),
        loss_type=loss_type, clip_center=center, old=now, clip_low=0.0, clip_high=0.0,
    )  # fmt: skip
    assert (policy.ratio == 1).all()
    assert not (policy.clipped_low | policy.clipped_high | policy.capped).any()
    (gradient,) = torch.autograd.grad(policy.losses.sum(), log_prob)
    torch.testing.assert_close(gradient, -advantage[sequence])


@given(lengths=LENGTHS, seed=SEEDS, loss_type=TYPES)
def test_the_clip_centers_agree_if_old_equals_behavior(lengths, seed, loss_type):
    log_prob, behavior, _, advantage, sequence = rollouts(lengths, seed)
    data = (log_prob, behavior, behavior, advantage, sequence)
    one, old = (
        loss_of(data, loss_type, {"clip_center": center, "dual_clip": 3.0})
        for center in ("one", "old")
    )
    assert torch.equal(one, old)


def test_tokens_that_drifted_before_the_step_move_only_with_clip_center_old():
    # methods.md 1.7: stored log-probs are 1 nat lower than those at the start of the step, so the
    # ratio is e > 1.2: the paper clips it at once, the released code allows +-20 % of it.
    behavior, old = torch.tensor([-3.0, -3.0, -3.0]), torch.tensor([-2.0, -2.0, -2.0])
    log_prob = (old + torch.tensor([0.0, 0.1, 0.3])).requires_grad_()
    advantage, sequence = torch.ones(1), torch.zeros(3).long()
    one = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, 1, clip_center="one", old=old
    )
    assert one.clipped_high.tolist() == [True, True, True]
    assert one.losses.tolist() == pytest.approx([-1.2] * 3)
    policy = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, 1, clip_center="old", old=old
    )
    assert policy.clipped_high.tolist() == [False, False, True]
    assert policy.losses.tolist() == pytest.approx([-math.e, -math.exp(1.1), -1.2 * math.e])
    (gradient,) = torch.autograd.grad(policy.losses.sum(), log_prob)
    assert gradient.tolist() == pytest.approx([-math.e, -math.exp(1.1), 0])


def test_the_gradient_of_replayed_tokens_is_unbiased():
    # Its expectation under the behavior policy is the policy gradient of the current policy.
    logits = torch.tensor([0.3, -0.8, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    behavior = torch.tensor([1.0, 0.0, -1.0, 0.4], dtype=torch.float64).softmax(0)
    reward = torch.tensor([1.0, -2.0, 0.5, 0.1], dtype=torch.float64)
    log_prob = logits.log_softmax(0)
    policy = policy_gradient_losses(
        log_prob, behavior.log(), reward, torch.arange(4), 4, clip_low=1.0, clip_high=math.inf
    )
    (gradient,) = torch.autograd.grad((behavior * policy.losses).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-(log_prob.exp() * reward).sum(), logits, retain_graph=True)
    torch.testing.assert_close(gradient, expected)
    stale = policy_gradient_losses(log_prob, log_prob.detach(), reward, torch.arange(4), 4)
    (biased,) = torch.autograd.grad((behavior * stale.losses).sum(), logits)
    assert (biased - expected).abs().max() > 0.05  # of a trainer that replays with ratio 1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_logit_gradients_are_those_of_the_paper(sign):
    # Zhu et al. (2025): the objective A pi_v of a sampled v has the gradient A pi_v (1 - pi_v) at v
    # and -A pi_y pi_v elsewhere; here that is the gradient of the ratio times pi_v.
    logits = torch.tensor([0.2, 1.0, -0.5], dtype=torch.float64, requires_grad=True)
    log_prob = logits.log_softmax(0)
    pi, v = log_prob.exp().detach(), 1
    sampled, advantage = log_prob[v : v + 1], torch.tensor([sign])
    losses = policy_gradient_losses(
        sampled, sampled.detach(), advantage, torch.zeros(1).long(), 1
    ).losses
    (gradient,) = torch.autograd.grad(-losses.sum() * pi[v], logits)
    expected = -pi * pi[v]
    expected[v] = pi[v] * (1 - pi[v])
    torch.testing.assert_close(gradient, sign * expected)


@given(lengths=LENGTHS, seed=SEEDS, loss_type=TYPES, data=st.data())
def test_the_losses_of_any_micro_batches_add_up_to_that_of_the_step(lengths, seed, loss_type, data):
    if loss_type == "bnpo":
        loss_type = "grpo"
    log_prob, behavior, old, advantage, sequence = rollouts(lengths, seed)
    size, count = len(lengths), count_of(loss_type, sequence, len(lengths))
    step = loss_of((log_prob, behavior, old, advantage, sequence), loss_type, {}, count)
    batch = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    total = torch.zeros((), dtype=torch.float64)
    for number in set(batch):
        rows = torch.tensor([i for i in range(size) if batch[i] == number])
        token = torch.isin(sequence, rows)
        row = torch.full((size,), -1)
        row[rows] = torch.arange(len(rows))
        total = total + loss_of(
            (log_prob[token], behavior[token], old[token], advantage[rows], row[sequence[token]]),
            loss_type, {}, count,
        )  # fmt: skip
    torch.testing.assert_close(total, step)
    if len(sequence):
        torch.testing.assert_close(
            torch.autograd.grad(total, log_prob)[0], torch.autograd.grad(step, log_prob)[0]
        )


@given(lengths=LENGTHS, seed=SEEDS, loss_type=TYPES)
def test_the_loss_does_not_depend_on_the_order_of_the_rollouts(lengths, seed, loss_type):
    log_prob, behavior, old, advantage, sequence = rollouts(lengths, seed)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    tokens = torch.cat([(sequence == i).nonzero().flatten() for i in order])
    row = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
    permuted = (log_prob[tokens], behavior[tokens], old[tokens], advantage[order])
    torch.testing.assert_close(
        loss_of((*permuted, row[sequence[tokens]]), loss_type, {}),
        loss_of((log_prob, behavior, old, advantage, sequence), loss_type, {}),
    )


def test_gspo_gives_each_token_its_sequences_ratio_and_the_gradient_of_that_ratio():
    # Zheng et al. (2025), equations 7 and 14: s = (product of ratios)^(1/|o|); the mean over tokens
    # of the token form has the gradient of s A.
    log_prob, behavior, _, _, sequence = rollouts([3, 1], seed=4, spread=0.1)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64)
    policy = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, 2, loss_type="gspo", clip_low=0.9, clip_high=9.0
    )
    ratio = log_prob - behavior
    s = torch.stack([ratio[:3].mean(), ratio[3]]).exp()
    torch.testing.assert_close(policy.ratio, s.detach()[sequence])
    (token,) = torch.autograd.grad(
        aggregate_losses(policy.losses, sequence, 2, loss_type="gspo"), log_prob
    )
    (expected,) = torch.autograd.grad(-(s * advantage).mean(), log_prob)
    torch.testing.assert_close(token, expected)


def test_cispo_keeps_the_gradient_of_tokens_above_its_cap():
    # MiniMax (2025): the weight is clipped, but no token loses its gradient.
    behavior = torch.tensor([-5.0, -1.0, -1.0])
    log_prob = torch.tensor([-1.0, -1.0, -9.0], requires_grad=True)
    policy = policy_gradient_losses(
        log_prob, behavior, torch.tensor([2.0]), torch.zeros(3).long(), 1,
        loss_type="cispo", clip_high=4.0,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(policy.losses.sum(), log_prob)
    # TRL's example: the largest weight is 5; there is no lower bound.
    assert gradient.tolist() == pytest.approx([-10.0, -2.0, -2 * math.exp(-8)])
    assert policy.clipped_high.tolist() == [True, False, False]
    assert not policy.clipped_low.any()


def test_dapo_clips_higher_above_than_below():
    # Yu et al. (2025), section 3.1: 0.2 below and 0.28 above.
    ratio = torch.tensor([0.79, 0.81, 1.27, 1.29])
    sequence = torch.zeros(4).long()
    for sign, clipped in ((1.0, [False, False, False, True]), (-1.0, [True, False, False, False])):
        policy = policy_gradient_losses(
            ratio.log(), torch.zeros(4), torch.tensor([sign]), sequence, 1,
            loss_type="dapo", clip_low=0.2, clip_high=0.28,
        )  # fmt: skip
        assert (policy.clipped_high if sign > 0 else policy.clipped_low).tolist() == clipped
        assert not (policy.clipped_low if sign > 0 else policy.clipped_high).any()


def test_dual_clip_caps_the_ratio_of_tokens_with_negative_advantages():
    # Ye et al. (2020): with A < 0 the objective is max(min(rho A, clip(rho) A), c A), c = 3.
    ratio = torch.tensor([0.5, 1.0, 2.9, 3.1, 50.0])
    log_prob = ratio.log().requires_grad_()
    sequence = torch.zeros(5).long()
    policy = policy_gradient_losses(
        log_prob, torch.zeros(5), torch.tensor([-1.0]), sequence, 1, dual_clip=3.0
    )
    assert policy.losses.tolist() == pytest.approx([0.8, 1.0, 2.9, 3.0, 3.0])
    assert policy.capped.tolist() == [False, False, False, True, True]
    (gradient,) = torch.autograd.grad(policy.losses.sum(), log_prob)
    assert gradient.tolist() == pytest.approx([0, 1.0, 2.9, 0, 0])
    above = policy_gradient_losses(
        ratio.log(), torch.zeros(5), torch.ones(1), sequence, 1, dual_clip=3.0
    )
    assert above.losses.tolist() == pytest.approx([-0.5, -1, -1.2, -1.2, -1.2])


def test_demonstrations_have_luffys_loss_and_gradient_and_are_not_clipped():
    # Yan et al. (2025): f(x) = x / (x + 0.1) of x = pi_theta; the gradient's factor on log pi is
    # gamma x / (x + gamma)^2, largest at x = gamma.
    x = torch.tensor([1e-3, 0.05, 0.1, 0.2, 0.99], dtype=torch.float64)
    log_prob = x.log().requires_grad_()
    nan = torch.full_like(x, torch.nan)  # the demonstrator's probabilities are unknown
    policy = policy_gradient_losses(
        log_prob, nan, torch.tensor([2.0]), torch.zeros(5).long(), 1,
        old=nan, clip_center="old", off_policy=torch.tensor([True]),
    )  # fmt: skip
    torch.testing.assert_close(policy.losses, -2 * x / (x + 0.1))
    torch.testing.assert_close(policy.ratio, x)
    assert not (policy.clipped_low | policy.clipped_high).any()
    (gradient,) = torch.autograd.grad(policy.losses.sum(), log_prob)
    torch.testing.assert_close(gradient, -2 * 0.1 * x / (x + 0.1) ** 2)
    torch.testing.assert_close(policy.weight, 0.1 * x / (x + 0.1) ** 2)
    assert policy.weight.argmax() == 2


def test_luffy_shaping_is_pi_over_pi_plus_gamma_and_its_gradient_is_largest_at_gamma():
    x = torch.tensor([1e-3, 0.05, 0.1, 0.2, 0.99], dtype=torch.float64)
    for gamma, largest in ((0.1, 2), (0.2, 3)):
        log_prob = x.log().requires_grad_()
        shaped = luffy_shaping(log_prob, gamma=gamma)
        torch.testing.assert_close(shaped, x / (x + gamma))
        (gradient,) = torch.autograd.grad(shaped.sum(), log_prob)
        assert gradient.argmax() == largest


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_demonstration_does_not_change_the_losses_of_other_completions(loss_type):
    log_prob, behavior, old, advantage, sequence = rollouts([3, 2, 4], seed=1)
    alone = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, 3, loss_type=loss_type, old=old, clip_center="old"
    )
    demonstration = sequence == 1
    policy = policy_gradient_losses(
        log_prob, torch.where(demonstration, torch.nan, behavior), advantage, sequence, 3,
        loss_type=loss_type, clip_center="old", off_policy=torch.tensor([False, True, False]),
        old=torch.where(demonstration, torch.nan, old),
    )  # fmt: skip
    for without, with_one in zip(alone, policy, strict=True):
        assert torch.equal(without[~demonstration], with_one[~demonstration])
    (gradient,) = torch.autograd.grad(policy.losses.sum(), log_prob)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("center", ["one", "old"])
@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_log_ratios_of_100_give_finite_losses_and_gradients(loss_type, center, dual_clip):
    log_prob = torch.tensor([-100.5, -0.5, -100.5, -0.5, -100.5, -100.5], requires_grad=True)
    behavior = torch.tensor([-0.5, -100.5, -0.5, -100.5, -100.5, -100.5])
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])
    for old in (behavior, log_prob.detach(), behavior.flip(0), torch.full((6,), -0.5)):
        policy = policy_gradient_losses(
            log_prob, behavior, advantage, torch.arange(6), 6,
            loss_type=loss_type, clip_center=center, old=old, dual_clip=dual_clip,
        )  # fmt: skip
        loss = aggregate_losses(
            policy.losses, torch.arange(6), 6, loss_type=loss_type, max_length=9
        )
        (gradient,) = torch.autograd.grad(loss, log_prob)
        for value in (loss, gradient, policy.losses, policy.ratio, policy.weight):
            assert value.isfinite().all()


def test_half_precision_is_computed_in_float32():
    log_prob = torch.tensor([-1.0, -2.0], dtype=torch.bfloat16, requires_grad=True)
    policy = policy_gradient_losses(
        log_prob, torch.tensor([-1.01, -2.0]), torch.ones(1), torch.zeros(2).long(), 1
    )
    assert policy.losses.dtype == torch.float32
    assert policy.ratio[0].item() == pytest.approx(math.exp(0.01), rel=1e-6)


def test_keep_changes_neither_the_sequence_ratio_nor_the_counts():
    log_prob, behavior, _, advantage, sequence = rollouts([4, 2], seed=3, spread=0.05)
    keep = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 0.0])
    for loss_type in LOSS_TYPES:
        plain = policy_gradient_losses(
            log_prob, behavior, advantage, sequence, 2, loss_type=loss_type
        )
        kept = policy_gradient_losses(
            log_prob, behavior, advantage, sequence, 2, loss_type=loss_type, keep=keep
        )
        torch.testing.assert_close(kept.losses, plain.losses * keep)
        torch.testing.assert_close(kept.weight, plain.weight * keep)
        assert torch.equal(kept.ratio, plain.ratio)
    # TRL divides by the completion mask, not by the entropy mask.
    losses = torch.ones(6) * keep
    assert aggregate_losses(losses, sequence, 2, loss_type="grpo").item() == pytest.approx(0.4375)
    assert aggregate_losses(losses, sequence, 2, loss_type="bnpo").item() == pytest.approx(2.5 / 6)


def test_losses_are_aggregated_as_in_the_papers():
    # Completions of 1 and 3 tokens with losses 6 | 1 2 3, and an empty one.
    losses, sequence = torch.tensor([6.0, 1.0, 2.0, 3.0]), torch.tensor([0, 1, 1, 1])
    aggregates = {
        name: aggregate_losses(losses, sequence, 3, loss_type=name, max_length=10).item()
        for name in LOSS_TYPES
    }
    assert aggregates == pytest.approx(
        {
            "grpo": (6 + 2) / 3,
            "gspo": (6 + 2) / 3,
            "dr_grpo": 12 / (3 * 10),
            "dapo": 12 / 4,
            "cispo": 12 / 4,
            "bnpo": 12 / 4,
        }
    )
    for name, count in {"grpo": 3, "gspo": 3, "dr_grpo": 3, "dapo": 4, "cispo": 4}.items():
        loss = aggregate_losses(losses, sequence, 3, loss_type=name, max_length=10, count=100.0)
        assert loss.item() == pytest.approx(aggregates[name] * count / 100)
    assert aggregate_losses(losses, sequence, 3, loss_type="bnpo", count=100.0).item() == 3


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_uncounted_tokens_are_ignored(loss_type):
    losses, sequence = torch.tensor([6.0, torch.inf, 2.0, 3.0, 9.0]), torch.tensor([0, 0, 1, 1, 2])
    losses.requires_grad_()
    counted = torch.tensor([True, False, True, True, False])  # the third sequence is empty then
    loss = aggregate_losses(losses, sequence, 3, loss_type=loss_type, counted=counted, max_length=5)
    without = aggregate_losses(
        losses[counted], sequence[counted], 3, loss_type=loss_type, max_length=5
    )
    assert loss == without
    assert torch.autograd.grad(loss, losses)[0].isfinite().all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_without_tokens_the_loss_is_zero_and_has_a_gradient(loss_type):
    log_prob = torch.zeros(0, requires_grad=True)
    empty = torch.zeros(0)
    policy = policy_gradient_losses(
        log_prob, empty, torch.ones(2), empty.long(), 2, loss_type=loss_type, keep=empty
    )
    loss = aggregate_losses(policy.losses, empty.long(), 2, loss_type=loss_type, max_length=5)
    assert loss == 0
    loss.backward()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": "ppo"}, r"loss_type is 'ppo'; it must be one of \['grpo'"),
        ({"loss_type": "gspo", "level": "token"}, "that is loss_type 'grpo'"),
        ({"level": "word"}, "level is 'word'"),
        ({"clip_low": 1.5}, r"clip_low is 1.5; .* \[0, 1\]"),
        ({"clip_high": -0.2}, r"clip_high is -0.2; .* at least 0"),
        ({"dual_clip": 1.1}, r"dual_clip is 1.1; it must be above 1 \+ clip_high = 1.2"),
        ({"clip_center": "old"}, "clip_center is 'old' but `old` is None"),
        ({"clip_center": "two"}, "clip_center is 'two'"),
        ({"old": torch.zeros(3)}, r"'old': \[3\]"),
        ({"keep": torch.zeros(1)}, r"'keep': \[1\]"),
        ({"behavior": torch.zeros(5)}, r"'behavior': \[5\].*all must be \[K\]"),
        ({"advantage": torch.zeros(2)}, r"advantage has shape \[2\] for 1 sequences"),
        ({"off_policy": torch.zeros(2).bool()}, r"off_policy has shape \[2\]"),
        ({"off_policy": torch.ones(1).bool(), "luffy_gamma": 0.0}, "luffy_gamma is 0.0"),
    ],
)  # fmt: skip
def test_an_invalid_option_is_named(options, words):
    arguments = {
        "log_prob": torch.zeros(2), "behavior": torch.zeros(2), "advantage": torch.zeros(1),
        "sequence": torch.zeros(2).long(), "size": 1,
    } | options  # fmt: skip
    with pytest.raises(ValueError, match=words):
        policy_gradient_losses(**arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": "sum"}, "loss_type is 'sum'"),
        ({"count": 0.0}, r"count is 0.0; .* above 0"),
        ({"loss_type": "dr_grpo"}, "max_length is None for loss_type 'dr_grpo'"),
        ({"counted": torch.ones(3).bool()}, r"'counted': \[3\]"),
    ],
)  # fmt: skip
def test_an_invalid_option_of_the_aggregation_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        aggregate_losses(torch.zeros(2), torch.zeros(2).long(), 1, **options)
