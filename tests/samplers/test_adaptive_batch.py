"""AdaBoost-like sampler and data weighter: laws, updates, states, bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.kernels import boosting as loops
from lit_adaptive.samplers import AdaptiveBatchSampler, AdaptiveDataWeighter
from lit_adaptive.samplers.boosted import BoostedSampler

BOTH = [AdaptiveBatchSampler, AdaptiveDataWeighter]


def test_the_specifications_calls_verbatim() -> None:
    sampler = AdaptiveBatchSampler(dataset_size=1000, learning_rate=0.1)
    indices, importance_weights = sampler.sample(batch_size=32)
    assert indices.shape == importance_weights.shape == (32,)
    assert indices.dtype == torch.int64
    assert bool(((indices >= 0) & (indices < 1000)).all())
    torch.testing.assert_close(importance_weights, torch.ones(32, dtype=torch.float64))
    losses = np.random.default_rng(0).random(32)
    sampler.update_weights(indices.numpy(), losses)
    hard, easy = indices[losses.argmax()], indices[losses.argmin()]
    law = sampler.probabilities()
    assert law[hard] > law[easy]


def test_weights_follow_the_specification_at_its_settings() -> None:
    sampler = AdaptiveBatchSampler(4, 0.1, baseline=0.0, decay=0.0)
    sampler.update_weights([0, 1, 2], [1.0, 3.0, 2.0])
    expected = torch.tensor([0.0, 0.1, 0.05, 0.0], dtype=torch.float64).exp()
    torch.testing.assert_close(sampler.weights, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        sampler.probabilities(), expected / expected.sum(), rtol=1e-6, atol=0
    )


def _taught(cls: type[BoostedSampler], size: int = 12, **options: object) -> BoostedSampler:
    sampler = cls(size, 1.0, seed=3, **options)  # type: ignore[arg-type]
    sampler.update(torch.arange(size), torch.linspace(0, 5, size).square())
    return sampler


def test_draws_follow_the_law_and_carry_it() -> None:
    sampler = _taught(AdaptiveBatchSampler)
    law = sampler.probabilities()
    counts = torch.zeros(12)
    for _ in range(300):
        draw = sampler.draw(100)
        assert draw.probability.equal(law[draw.index])
        counts += torch.bincount(draw.index, minlength=12)
    torch.testing.assert_close(counts / 30_000, law.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(sampler.probability_of(torch.tensor([3, 3, 11])), law[[3, 3, 11]])
    assert sampler.min_probability() == law.min()


def test_corrected_estimate_is_unbiased() -> None:
    # The mean over many batches of weight times f is the plain mean of f, at beta = 1.
    sampler = _taught(AdaptiveBatchSampler)
    law = sampler.probabilities()
    f = torch.linspace(-1, 2, 12, dtype=torch.float64)
    weight = 1 / (12 * law)
    assert float((law * weight * f).sum()) == pytest.approx(float(f.mean()))
    index, given_weight = sampler.sample(64)
    torch.testing.assert_close(given_weight, weight[index])


def test_data_weighter_has_the_expectation_of_uncorrected_draws() -> None:
    drawing, weighing = _taught(AdaptiveBatchSampler), _taught(AdaptiveDataWeighter)
    f = torch.linspace(-1, 2, 12, dtype=torch.float64)
    drawn = float((drawing.probabilities() * f).sum())
    weights = weighing.loss_weights(torch.arange(12))
    assert weights is not None
    weighed = float((weighing.probabilities() * weights * f).sum())
    assert weighed == pytest.approx(drawn)
    assert float(weights.mean()) == pytest.approx(1.0)
    index, weight = weighing.sample(12)
    assert index.sort().values.tolist() == list(range(12))  # every sample once in a pass
    torch.testing.assert_close(weight, weights[index])


def test_stays_finite_after_a_million_updates_of_the_same_sample() -> None:
    sampler = AdaptiveBatchSampler(3, 0.1, decay=0.0, baseline=0.0)
    once = 1000  # the compiled loop is fed the raw arrays: a million calls of update take a minute
    index, loss = torch.tensor([0, 1]), torch.tensor([1.0, 0.0], dtype=torch.float64)
    into, mass = torch.empty_like(index), torch.empty_like(loss)
    rule = (0.1, 0.0, 0.0, 0.0, *sampler.bounds)
    arrays = [each.numpy() for each in (sampler._log_weight, sampler._velocity, index, loss)]
    for _ in range(1_000_000 - once):
        loops.boost(*arrays, sampler._tree.priorities.numpy(), rule, into.numpy(), mass.numpy())
    for _ in range(once):
        sampler.update(index, loss)
    assert sampler.weights.tolist() == pytest.approx([10.0, 1.0, 1.0])
    assert bool(sampler._law().isfinite().all())
    assert sampler._law().tolist() == pytest.approx([10 / 12, 1 / 12, 1 / 12])


@pytest.mark.parametrize("cls", BOTH)
def test_of_an_index_given_twice_the_mean_loss_counts(cls: type[BoostedSampler]) -> None:
    one, other = cls(5, 0.5), cls(5, 0.5)
    one.update(torch.tensor([4, 1, 1, 3]), torch.tensor([0.0, 4.0, 2.0, 1.0]))
    other.update(torch.tensor([1, 3, 4]), torch.tensor([3.0, 1.0, 0.0]))
    assert one.weights.equal(other.weights)


@pytest.mark.parametrize("cls", BOTH)
def test_equal_losses_leave_it_uniform(cls: type[BoostedSampler]) -> None:
    sampler = cls(6, 1.0)
    for _ in range(50):
        sampler.update(sampler.draw(4).index, torch.full((4,), 0.7))
    assert sampler.weights.equal(torch.ones(6, dtype=torch.float64))


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 7), st.floats(-5, 5)), min_size=1, max_size=9),
        max_size=6,
    ),
    st.booleans(),
)
def test_other_devices_path_agrees_with_the_compiled_one(
    updates: list[list[tuple[int, float]]], momentum: bool
) -> None:
    options = {"momentum": 0.5 if momentum else 0.0, "decay": 0.1}
    here, there = (AdaptiveBatchSampler(8, 0.7, **options) for _ in range(2))
    for update in updates:
        index = torch.tensor([i for i, _ in update])
        loss = torch.tensor([x for _, x in update], dtype=torch.float64)
        here.update(index, loss)
        assert there._boost_there(index, loss)
    torch.testing.assert_close(there.weights, here.weights, rtol=1e-5, atol=0)
    torch.testing.assert_close(there.probabilities(), here.probabilities(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("cls", BOTH)
def test_refuses_bad_updates_by_name_and_changes_nothing(cls: type[BoostedSampler]) -> None:
    sampler = _taught(cls)
    sampler.remove(torch.tensor([5]))
    before = sampler.state_dict()
    cases = [
        ([0, 12], [1.0, 2.0], r"out of range: \[12\]"),
        ([0, -1], [1.0, 2.0], r"out of range: \[-1\]"),
        ([0, 3], [1.0, math.nan], r"index \[3\] are \[nan\]"),
        ([2, 3], [math.inf, 1.0], r"index \[2\] are \[inf\]"),
        ([0, 5], [1.0, 2.0], r"index \[5\] was not inserted"),
    ]
    for index, loss, words in cases:
        with pytest.raises(ValueError, match=words):
            sampler.update(torch.tensor(index), torch.tensor(loss))
    with pytest.raises(ValueError, match=r"shape \(2,\), the losses \(3,\)"):
        sampler.update(torch.tensor([0, 1]), torch.ones(3))
    after = sampler.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in ("log_weight", "inserted"))


@pytest.mark.parametrize("cls", BOTH)
def test_skips_and_counts_what_is_not_finite_if_told_to(cls: type[BoostedSampler]) -> None:
    lenient, strict = cls(6, 0.5, nonfinite="skip"), cls(6, 0.5)
    lenient.update(torch.tensor([0, 1, 2, 3]), torch.tensor([1.0, math.nan, math.inf, 3.0]))
    strict.update(torch.tensor([0, 3]), torch.tensor([1.0, 3.0]))
    assert lenient.skipped == 2
    assert lenient.weights.equal(strict.weights)
    lenient.update(torch.tensor([0]), torch.tensor([math.nan]))
    assert lenient.skipped == 3


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_resumes_twice_as_if_never_stopped(cls: type[BoostedSampler], momentum: float) -> None:
    def step(sampler: BoostedSampler) -> list[int]:
        draw = sampler.draw(5)
        sampler.update(draw.index, draw.index.double().sin())
        return draw.index.tolist()

    whole = _taught(cls, momentum=momentum)
    expected = [step(whole) for _ in range(30)]
    broken = _taught(cls, momentum=momentum)
    found = []
    for _ in range(3):
        found += [step(broken) for _ in range(10)]
        state = broken.state_dict()
        broken = cls(12, 1.0, seed=99, momentum=momentum)
        broken.draw(3)
        broken.load_state_dict(state)
    assert found == expected
    assert broken.weights.equal(whole.weights)


@pytest.mark.parametrize("cls", BOTH)
def test_state_is_tensors_and_primitives_and_refused_where_it_does_not_fit(
    cls: type[BoostedSampler], tmp_path: object
) -> None:
    sampler = _taught(cls)
    path = f"{tmp_path}/state.pt"
    torch.save(sampler.state_dict(), path)
    state = torch.load(path, weights_only=True)
    cases = [
        (cls(13), "size is 12, this sampler's is 13"),
        (cls(12, momentum=0.5), "0 velocities"),
        (cls(12, floor=0.9, ceiling=1.1), "same floor and ceiling"),
        (next(c for c in BOTH if c is not cls)(12), "kind is"),
    ]
    for other, words in cases:
        before = other.state_dict()
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(state)
        assert torch.equal(other.state_dict()["generator"], before["generator"])
    fresh = cls(12, 1.0)
    fresh.load_state_dict(state)
    fresh.update(torch.tensor([0, 1]), torch.tensor([0.0, 1.0]))
    assert torch.equal(state["log_weight"], sampler.state_dict()["log_weight"])  # copied


def test_removed_samples_are_not_drawn_and_get_their_weight_back() -> None:
    sampler = _taught(AdaptiveBatchSampler)
    law = sampler.probabilities()
    sampler.remove(torch.tensor([11, 0, 11]))
    assert sampler.count == 10
    assert not set(sampler.draw(500).index.tolist()) & {0, 11}
    sampler.insert(torch.tensor([0, 11]))
    assert sampler.count == 12
    torch.testing.assert_close(sampler.probabilities(), law)
    sampler.clear()
    with pytest.raises(ValueError, match="nothing"):
        sampler.draw(1)


def test_forgetting_and_scores() -> None:
    sampler = _taught(AdaptiveBatchSampler)
    weights = sampler.weights
    sampler.forget(0.5)
    torch.testing.assert_close(sampler.weights, weights.sqrt(), rtol=1e-5, atol=0)
    other = AdaptiveBatchSampler(12)
    other.set_scores(sampler.scores())
    torch.testing.assert_close(other.probabilities(), sampler.probabilities(), rtol=1e-6, atol=0)
    other.set_scores(torch.tensor([0.0] + [1e9] * 11))  # brought between floor and ceiling
    assert other.weights.tolist() == pytest.approx([0.1] + [10.0] * 11)
    for score, words in (
        (torch.ones(11), r"shape \(11,\) for 12"),
        (torch.tensor([1.0] * 11 + [math.nan]), r"index \[11\] are \[nan\]"),
        (torch.tensor([1.0] * 11 + [-1.0]), r"index \[11\] are \[-1"),
    ):
        with pytest.raises(ValueError, match=words):
            other.set_scores(score)
    with pytest.raises(ValueError, match="share is 2"):
        other.forget(2.0)


def test_names_options_out_of_range() -> None:
    for option, value in (
        ("learning_rate", -1.0),
        ("momentum", 1.0),
        ("decay", 1.5),
        ("baseline", math.nan),
        ("floor", 0.0),
        ("ceiling", math.inf),
        ("beta", 2.0),
        ("nonfinite", "drop"),
    ):
        with pytest.raises(ValueError, match=f"{option} is "):
            AdaptiveBatchSampler(4, **{option: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size is 0"):
        AdaptiveBatchSampler(0)


@pytest.mark.parametrize("cls", BOTH)
def test_a_restored_tree_holds_the_very_bits_of_the_tree_that_was_saved(
    cls: type[BoostedSampler],
) -> None:
    # torch's exp and the compiled loop's differ in the last bit now and then.
    sampler = cls(2000, 0.3)
    for seed in range(20):
        noise = torch.rand(2000, generator=torch.Generator().manual_seed(seed))
        sampler.update(torch.arange(2000), noise)
    other = cls(2000, 0.3)
    other.load_state_dict(sampler.state_dict())
    assert other._tree.priorities.equal(sampler._tree.priorities)
