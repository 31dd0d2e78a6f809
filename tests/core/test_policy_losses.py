import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.policy_losses import (
    LOSS_TYPES,
    PAPER_CLIPS,
    aggregate_losses,
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
    of_sequences, tokens = [], 0
    for i, gain in enumerate(advantage):
        at = [t for t in range(len(sequence)) if sequence[t] == i]
        tokens += len(at)
        of_tokens = []
        ratio = [log_prob[t].exp() / behavior[t].exp() for t in at]
        moved = [old[t].exp() / behavior[t].exp() for t in at]
        if level == "sequence" and at:
            mean = torch.stack(ratio).prod() ** (1 / len(at))
            ratio = [mean] * len(at)
            moved = [torch.stack(moved).prod() ** (1 / len(at))] * len(at)
        for t, rho, r_old in zip(at, ratio, moved, strict=True):
            center = r_old if options.get("clip_center") == "old" else torch.ones(())
            if loss_type == "cispo":
                weight = torch.minimum(rho, center * (1 + high))
                if options.get("cispo_low") is not None:
                    weight = torch.maximum(weight, center * (1 - options["cispo_low"]))
                of_tokens.append(-weight.detach() * gain * log_prob[t])
                continue
            first = rho
            if delta is not None:  # TRL's two-sided clipping: before the minimum
                first = torch.minimum(rho, center * delta)
            second = torch.minimum(torch.maximum(rho, center * (1 - low)), center * (1 + high))
            of_tokens.append(-torch.minimum(first * gain, second * gain))
        of_sequences.append(of_tokens)
    zero = log_prob.sum() * 0
    total = sum((sum(each, zero) for each in of_sequences), zero)
    if loss_type in ("grpo", "gspo"):
        return sum((sum(each, zero) / max(len(each), 1) for each in of_sequences), zero) / len(
            advantage
        )
    if loss_type == "dr_grpo":
        return total / (len(advantage) * MAX_LENGTH)
    return total / max(tokens, 1)


def count_of(loss_type, sequence, size):
    return max(float(len(sequence)), 1.0) if loss_type in ("dapo", "cispo") else float(size)


def loss_of(data, loss_type, options, count=None):
    log_prob, behavior, old, advantage, sequence = data
    size = len(advantage)
    found = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, size, loss_type=loss_type, old=old, **options
    )
    return aggregate_losses(
        found.losses, sequence, size,
        loss_type=loss_type, count=count or count_of(loss_type, sequence, size),
        max_length=MAX_LENGTH,
    )  # fmt: skip


OPTIONS = st.fixed_dictionaries(
    {
        "clip_low": st.sampled_from([0.0, 0.2, 0.9, 1.0]),
        "clip_high": st.sampled_from([0.0, 0.28, 0.9, math.inf]),
        "clip_center": st.sampled_from(["one", "old"]),
        "dual_clip": st.sampled_from([None, 2.0]),
        "cispo_low": st.sampled_from([None, 0.3, 1.0]),
    }
)


@given(
    lengths=LENGTHS,
    seed=SEEDS,
    loss_type=TYPES,
    options=OPTIONS,
    level=st.sampled_from([None, "sequence"]),
)
def test_every_loss_and_its_gradient_are_the_textbooks(lengths, seed, loss_type, options, level):
    if options["clip_high"] == math.inf:
        options = options | {"dual_clip": None}
    data = rollouts(lengths, seed)
    if level == "sequence":
        options = options | {"level": level}
    expected = textbook(*data, loss_type, options)
    found = loss_of(data, loss_type, options)
    torch.testing.assert_close(found, expected)
    if not len(data[0]):
        assert found == 0
        return
    wanted = torch.autograd.grad(expected, data[0])[0]
    torch.testing.assert_close(torch.autograd.grad(found, data[0])[0], wanted)


@given(lengths=LENGTHS, seed=SEEDS, loss_type=TYPES, options=OPTIONS)
def test_the_reported_weight_is_what_the_gradient_is_multiplied_by(
    lengths, seed, loss_type, options
):
    options = options | ({"dual_clip": None} if options["clip_high"] == math.inf else {})
    log_prob, behavior, old, advantage, sequence = rollouts(lengths, seed)
    found = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, len(lengths),
        loss_type=loss_type, old=old, **options,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(found.losses.sum(), log_prob)
    torch.testing.assert_close(gradient, -found.weight * advantage[sequence])
    for each in found[1:]:
        assert not each.requires_grad


@given(lengths=LENGTHS, seed=SEEDS, loss_type=TYPES, center=st.sampled_from(["one", "old"]))
def test_fresh_tokens_have_ratio_one_and_the_policy_gradient(lengths, seed, loss_type, center):
    log_prob, _, _, advantage, sequence = rollouts(lengths, seed)
    now = log_prob.detach()
    found = policy_gradient_losses(
        log_prob, now, advantage, sequence, len(lengths),
        loss_type=loss_type, clip_center=center, old=now, clip_low=0.0, clip_high=0.0,
    )  # fmt: skip
    assert (found.ratio == 1).all()
    assert not (found.clipped_low | found.clipped_high | found.capped).any()
    (gradient,) = torch.autograd.grad(found.losses.sum(), log_prob)
    torch.testing.assert_close(gradient, -advantage[sequence])


@given(lengths=LENGTHS, seed=SEEDS, loss_type=TYPES)
def test_the_two_centres_agree_where_old_is_the_behavior(lengths, seed, loss_type):
    log_prob, behavior, _, advantage, sequence = rollouts(lengths, seed)
    data = (log_prob, behavior, behavior, advantage, sequence)
    one, old = (
        loss_of(data, loss_type, {"clip_center": center, "dual_clip": 3.0})
        for center in ("one", "old")
    )
    assert torch.equal(one, old)


def test_what_drifted_before_the_step_is_stuck_under_centre_one_and_moves_under_old():
    # methods.md 1.7: stored log-probs are 1 nat lower than those at the start of the step, so the
    # ratio is e > 1.2: the paper's clip holds it at once, the released code's allows +-20 % of it.
    behavior, old = torch.tensor([-3.0, -3.0, -3.0]), torch.tensor([-2.0, -2.0, -2.0])
    log_prob = (old + torch.tensor([0.0, 0.1, 0.3])).requires_grad_()
    advantage, sequence = torch.ones(1), torch.zeros(3).long()
    one = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, 1, clip_center="one", old=old
    )
    assert one.clipped_high.tolist() == [True, True, True]
    assert one.losses.tolist() == pytest.approx([-1.2] * 3)
    found = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, 1, clip_center="old", old=old
    )
    assert found.clipped_high.tolist() == [False, False, True]
    assert found.losses.tolist() == pytest.approx([-math.e, -math.exp(1.1), -1.2 * math.e])
    (gradient,) = torch.autograd.grad(found.losses.sum(), log_prob)
    assert gradient.tolist() == pytest.approx([-math.e, -math.exp(1.1), 0])


def test_replay_is_divided_by_what_wrote_it_and_so_is_unbiased():
    # E over the behavior policy of the replay loss' gradient is the policy gradient of today.
    logits = torch.tensor([0.3, -0.8, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    behavior = torch.tensor([1.0, 0.0, -1.0, 0.4], dtype=torch.float64).softmax(0)
    reward = torch.tensor([1.0, -2.0, 0.5, 0.1], dtype=torch.float64)
    log_prob = logits.log_softmax(0)
    found = policy_gradient_losses(
        log_prob, behavior.log(), reward, torch.arange(4), 4, clip_low=1.0, clip_high=math.inf
    )
    (gradient,) = torch.autograd.grad((behavior * found.losses).sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(-(log_prob.exp() * reward).sum(), logits, retain_graph=True)
    torch.testing.assert_close(gradient, wanted)
    stale = policy_gradient_losses(log_prob, log_prob.detach(), reward, torch.arange(4), 4)
    (biased,) = torch.autograd.grad((behavior * stale.losses).sum(), logits)
    assert (biased - wanted).abs().max() > 0.05  # as a trainer that replays with ratio 1 does


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_logit_gradients_are_those_of_the_paper(sign):
    # Zhu et al. (2025): for the sampled v, A (pi_v)(1 - pi_v) at v, -A pi_y pi_v elsewhere, of the
    # objective A pi_v; here that is the gradient of the ratio times pi_v.
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
def test_any_cut_into_micro_batches_adds_up_to_the_step(lengths, seed, loss_type, data):
    if loss_type == "bnpo":
        loss_type = "grpo"
    log_prob, behavior, old, advantage, sequence = rollouts(lengths, seed)
    size, count = len(lengths), count_of(loss_type, sequence, len(lengths))
    whole = loss_of((log_prob, behavior, old, advantage, sequence), loss_type, {}, count)
    cut = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    total = torch.zeros((), dtype=torch.float64)
    for batch in set(cut):
        chosen = torch.tensor([i for i in range(size) if cut[i] == batch])
        at = torch.isin(sequence, chosen)
        place = torch.full((size,), -1)
        place[chosen] = torch.arange(len(chosen))
        total = total + loss_of(
            (log_prob[at], behavior[at], old[at], advantage[chosen], place[sequence[at]]),
            loss_type, {}, count,
        )  # fmt: skip
    torch.testing.assert_close(total, whole)
    if len(sequence):
        torch.testing.assert_close(
            torch.autograd.grad(total, log_prob)[0], torch.autograd.grad(whole, log_prob)[0]
        )


@given(lengths=LENGTHS, seed=SEEDS, loss_type=TYPES)
def test_the_order_of_rollouts_changes_nothing(lengths, seed, loss_type):
    log_prob, behavior, old, advantage, sequence = rollouts(lengths, seed)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    tokens = torch.cat([(sequence == i).nonzero().flatten() for i in order])
    place = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
    moved = (log_prob[tokens], behavior[tokens], old[tokens], advantage[order])
    torch.testing.assert_close(
        loss_of((*moved, place[sequence[tokens]]), loss_type, {}),
        loss_of((log_prob, behavior, old, advantage, sequence), loss_type, {}),
    )


def test_gspo_gives_each_token_its_sequences_ratio_and_the_gradient_of_that_ratio():
    # Zheng et al. (2025), equations 7 and 14: s = (product of ratios)^(1/|o|); the mean over tokens
    # of the token form has the gradient of s A.
    log_prob, behavior, _, _, sequence = rollouts([3, 1], seed=4, spread=0.1)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64)
    found = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, 2, loss_type="gspo", clip_low=0.9, clip_high=9.0
    )
    ratio = log_prob - behavior
    s = torch.stack([ratio[:3].mean(), ratio[3]]).exp()
    torch.testing.assert_close(found.ratio, s.detach()[sequence])
    (token,) = torch.autograd.grad(
        aggregate_losses(found.losses, sequence, 2, loss_type="gspo"), log_prob
    )
    (wanted,) = torch.autograd.grad(-(s * advantage).mean(), log_prob)
    torch.testing.assert_close(token, wanted)
    assert PAPER_CLIPS["gspo"] == (3e-4, 4e-4)


def test_cispo_keeps_the_gradient_of_tokens_over_its_cap():
    # MiniMax (2025): the weight is cut, the update of no token is.
    behavior = torch.tensor([-5.0, -1.0, -1.0])
    log_prob = torch.tensor([-1.0, -1.0, -9.0], requires_grad=True)
    found = policy_gradient_losses(
        log_prob, behavior, torch.tensor([2.0]), torch.zeros(3).long(), 1,
        loss_type="cispo", clip_high=PAPER_CLIPS["cispo"][1],
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(found.losses.sum(), log_prob)
    # TRL's example: the greatest weight is 5; no lower bound.
    assert gradient.tolist() == pytest.approx([-10.0, -2.0, -2 * math.exp(-8)])
    assert found.clipped_high.tolist() == [True, False, False]
    assert not found.clipped_low.any()


def test_dapo_clips_higher_above_than_below():
    # Yu et al. (2025), section 3.1: 0.2 below and 0.28 above.
    low, high = PAPER_CLIPS["dapo"]
    ratio = torch.tensor([0.79, 0.81, 1.27, 1.29])
    sequence = torch.zeros(4).long()
    for sign, clipped in ((1.0, [False, False, False, True]), (-1.0, [True, False, False, False])):
        found = policy_gradient_losses(
            ratio.log(), torch.zeros(4), torch.tensor([sign]), sequence, 1,
            loss_type="dapo", clip_low=low, clip_high=high,
        )  # fmt: skip
        assert (found.clipped_high if sign > 0 else found.clipped_low).tolist() == clipped
        assert not (found.clipped_low if sign > 0 else found.clipped_high).any()


def test_dual_clip_caps_bad_tokens_that_the_policy_has_come_to_like():
    # Ye et al. (2020): with A < 0 the objective is max(min(rho A, clip(rho) A), c A), c = 3.
    ratio = torch.tensor([0.5, 1.0, 2.9, 3.1, 50.0])
    log_prob = ratio.log().requires_grad_()
    sequence = torch.zeros(5).long()
    found = policy_gradient_losses(
        log_prob, torch.zeros(5), torch.tensor([-1.0]), sequence, 1, dual_clip=3.0
    )
    assert found.losses.tolist() == pytest.approx([0.8, 1.0, 2.9, 3.0, 3.0])
    assert found.capped.tolist() == [False, False, False, True, True]
    (gradient,) = torch.autograd.grad(found.losses.sum(), log_prob)
    assert gradient.tolist() == pytest.approx([0, 1.0, 2.9, 0, 0])
    above = policy_gradient_losses(
        ratio.log(), torch.zeros(5), torch.ones(1), sequence, 1, dual_clip=3.0
    )
    assert above.losses.tolist() == pytest.approx([-0.5, -1, -1.2, -1.2, -1.2])


def test_demonstrations_have_luffys_loss_and_gradient_and_no_clip():
    # Yan et al. (2025): f(x) = x / (x + 0.1) of x = pi_theta; the gradient's factor on log pi is
    # gamma x / (x + gamma)^2, greatest at x = gamma.
    x = torch.tensor([1e-3, 0.05, 0.1, 0.2, 0.99], dtype=torch.float64)
    log_prob = x.log().requires_grad_()
    nan = torch.full_like(x, torch.nan)  # nobody knows the demonstrator's probabilities
    found = policy_gradient_losses(
        log_prob, nan, torch.tensor([2.0]), torch.zeros(5).long(), 1,
        old=nan, clip_center="old", off_policy=torch.tensor([True]),
    )  # fmt: skip
    torch.testing.assert_close(found.losses, -2 * x / (x + 0.1))
    torch.testing.assert_close(found.ratio, x)
    assert not (found.clipped_low | found.clipped_high).any()
    (gradient,) = torch.autograd.grad(found.losses.sum(), log_prob)
    torch.testing.assert_close(gradient, -2 * 0.1 * x / (x + 0.1) ** 2)
    torch.testing.assert_close(found.weight, 0.1 * x / (x + 0.1) ** 2)
    assert found.weight.argmax() == 2
    other = policy_gradient_losses(
        log_prob, nan, torch.ones(1), torch.zeros(5).long(), 1,
        off_policy=torch.tensor([True]), luffy_gamma=0.2,
    )  # fmt: skip
    assert other.weight.argmax() == 3


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_demonstration_beside_others_leaves_their_losses_as_they_are(loss_type):
    log_prob, behavior, old, advantage, sequence = rollouts([3, 2, 4], seed=1)
    alone = policy_gradient_losses(
        log_prob, behavior, advantage, sequence, 3, loss_type=loss_type, old=old, clip_center="old"
    )
    demonstration = sequence == 1
    found = policy_gradient_losses(
        log_prob, torch.where(demonstration, torch.nan, behavior), advantage, sequence, 3,
        loss_type=loss_type, clip_center="old", off_policy=torch.tensor([False, True, False]),
        old=torch.where(demonstration, torch.nan, old),
    )  # fmt: skip
    for one, two in zip(alone, found, strict=True):
        assert torch.equal(one[~demonstration], two[~demonstration])
    (gradient,) = torch.autograd.grad(found.losses.sum(), log_prob)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("center", ["one", "old"])
@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_log_ratios_of_100_give_numbers(loss_type, center, dual_clip):
    log_prob = torch.tensor([-100.5, -0.5, -100.5, -0.5, -100.5, -100.5], requires_grad=True)
    behavior = torch.tensor([-0.5, -100.5, -0.5, -100.5, -100.5, -100.5])
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])
    for old in (behavior, log_prob.detach(), behavior.flip(0), torch.full((6,), -0.5)):
        found = policy_gradient_losses(
            log_prob, behavior, advantage, torch.arange(6), 6,
            loss_type=loss_type, clip_center=center, old=old, dual_clip=dual_clip,
        )  # fmt: skip
        loss = aggregate_losses(found.losses, torch.arange(6), 6, loss_type=loss_type, max_length=9)
        (gradient,) = torch.autograd.grad(loss, log_prob)
        for each in (loss, gradient, found.losses, found.ratio, found.weight):
            assert each.isfinite().all()


def test_half_precision_is_reckoned_in_float32():
    log_prob = torch.tensor([-1.0, -2.0], dtype=torch.bfloat16, requires_grad=True)
    found = policy_gradient_losses(
        log_prob, torch.tensor([-1.01, -2.0]), torch.ones(1), torch.zeros(2).long(), 1
    )
    assert found.losses.dtype == torch.float32
    assert found.ratio[0].item() == pytest.approx(math.exp(0.01), rel=1e-6)


def test_kept_tokens_change_neither_the_ratio_of_their_sequence_nor_what_counts():
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
    # TRL divides by the completion's mask, not by that of entropy.
    losses = torch.ones(6) * keep
    assert aggregate_losses(losses, sequence, 2, loss_type="grpo").item() == pytest.approx(0.4375)
    assert aggregate_losses(losses, sequence, 2, loss_type="bnpo").item() == pytest.approx(2.5 / 6)


def test_aggregates_are_the_papers():
    # Completions of 1 and 3 tokens with losses 6 | 1 2 3, and one that is empty.
    losses, sequence = torch.tensor([6.0, 1.0, 2.0, 3.0]), torch.tensor([0, 1, 1, 1])
    found = {
        each: aggregate_losses(losses, sequence, 3, loss_type=each, max_length=10).item()
        for each in LOSS_TYPES
    }
    assert found == pytest.approx(
        {
            "grpo": (6 + 2) / 3,
            "gspo": (6 + 2) / 3,
            "dr_grpo": 12 / (3 * 10),
            "dapo": 12 / 4,
            "cispo": 12 / 4,
            "bnpo": 12 / 4,
        }
    )
    for each, factor in {"grpo": 3, "gspo": 3, "dr_grpo": 3, "dapo": 4, "cispo": 4}.items():
        given = aggregate_losses(losses, sequence, 3, loss_type=each, max_length=10, count=100.0)
        assert given.item() == pytest.approx(found[each] * factor / 100)
    assert aggregate_losses(losses, sequence, 3, loss_type="bnpo", count=100.0).item() == 3


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_uncounted_tokens_are_as_if_they_were_not_there(loss_type):
    losses, sequence = torch.tensor([6.0, torch.inf, 2.0, 3.0, 9.0]), torch.tensor([0, 0, 1, 1, 2])
    losses.requires_grad_()
    counted = torch.tensor([True, False, True, True, False])  # the third sequence is empty then
    found = aggregate_losses(
        losses, sequence, 3, loss_type=loss_type, counted=counted, max_length=5
    )
    without = aggregate_losses(
        losses[counted], sequence[counted], 3, loss_type=loss_type, max_length=5
    )
    assert found == without
    assert torch.autograd.grad(found, losses)[0].isfinite().all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_no_tokens_at_all_give_a_loss_of_zero_with_a_gradient(loss_type):
    log_prob = torch.zeros(0, requires_grad=True)
    empty = torch.zeros(0)
    found = policy_gradient_losses(
        log_prob, empty, torch.ones(2), empty.long(), 2, loss_type=loss_type, keep=empty
    )
    loss = aggregate_losses(found.losses, empty.long(), 2, loss_type=loss_type, max_length=5)
    assert loss == 0
    loss.backward()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": "ppo"}, r"loss_type is 'ppo'; it must be one of \['grpo'"),
        ({"loss_type": "gspo", "level": "token"}, "that is loss_type 'grpo'"),
        ({"level": "word"}, "level is 'word'"),
        ({"clip_low": 1.5}, r"clip_low is 1.5 .* \[0, 1\]"),
        ({"cispo_low": -0.1}, r"cispo_low -0.1; .* \[0, 1\]"),
        ({"clip_high": -0.2}, r"clip_high is -0.2; .* at least 0"),
        ({"dual_clip": 1.1}, r"dual_clip is 1.1; it must be above 1 \+ clip_high = 1.2"),
        ({"clip_center": "old"}, "clip_center is 'old' without `old`"),
        ({"clip_center": "two"}, "clip_center is 'two'"),
        ({"old": torch.zeros(3)}, r"'old': \[3\]"),
        ({"keep": torch.zeros(1)}, r"'keep': \[1\]"),
        ({"behavior": torch.zeros(5)}, r"'behavior': \[5\].*all must be \[K\]"),
        ({"advantage": torch.zeros(2)}, r"advantage has shape \[2\] for 1 sequences"),
        ({"off_policy": torch.zeros(2).bool()}, r"off_policy has shape \[2\]"),
        ({"off_policy": torch.ones(1).bool(), "luffy_gamma": 0.0}, "luffy_gamma is 0.0"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(options, words):
    given = {
        "log_prob": torch.zeros(2), "behavior": torch.zeros(2), "advantage": torch.zeros(1),
        "sequence": torch.zeros(2).long(), "size": 1,
    } | options  # fmt: skip
    with pytest.raises(ValueError, match=words):
        policy_gradient_losses(**given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": "sum"}, "loss_type is 'sum'"),
        ({"count": 0.0}, r"count is 0.0; .* above 0"),
        ({"loss_type": "dr_grpo"}, "max_length is None for loss_type 'dr_grpo'"),
        ({"counted": torch.ones(3).bool()}, r"'counted': \[3\]"),
    ],
)  # fmt: skip
def test_a_wrong_option_of_the_aggregate_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        aggregate_losses(torch.zeros(2), torch.zeros(2).long(), 1, **options)
