"""AdaBoost-like draws; what the data weighter shares is tested for both."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.boosting import boost_log_weights, loss_gains
from lit_adaptive.samplers import AdaptiveBatchSampler, AdaptiveDataWeighter

BOTH = [AdaptiveBatchSampler, AdaptiveDataWeighter]
both = pytest.mark.parametrize("cls", BOTH)


def trained(
    cls: type[AdaptiveBatchSampler], size: int = 12, **options: object
) -> AdaptiveBatchSampler:
    sampler = cls(size, 1.0, seed=3, **options)  # type: ignore[arg-type]
    sampler.update(torch.arange(size), torch.linspace(0, 5, size).square())
    return sampler


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
    probability = sampler.probabilities()
    assert probability[hard] > probability[easy]


def test_weights_follow_the_specification_at_its_settings() -> None:
    sampler = AdaptiveBatchSampler(4, 0.1, baseline=0.0, decay=0.0)
    sampler.update_weights([0, 1, 2], [1.0, 3.0, 2.0])
    expected = torch.tensor([0.0, 0.1, 0.05, 0.0], dtype=torch.float64).exp()
    torch.testing.assert_close(sampler.weights, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        sampler.probabilities(), expected / expected.sum(), rtol=1e-6, atol=0
    )


def test_draws_follow_the_weights_and_carry_their_probabilities() -> None:
    sampler = trained(AdaptiveBatchSampler)
    probability = sampler.probabilities()
    counts = torch.zeros(12)
    for _ in range(300):
        draw = sampler.draw(100)
        assert draw.probability.equal(probability[draw.index])
        counts += torch.bincount(draw.index, minlength=12)
    torch.testing.assert_close(counts / 30_000, probability.float(), atol=1e-3, rtol=0)


def test_the_corrected_estimate_is_unbiased() -> None:
    # The mean over many batches of weight times f is the plain mean of f, at beta = 1.
    sampler = trained(AdaptiveBatchSampler)
    probability = sampler.probabilities()
    f = torch.linspace(-1, 2, 12, dtype=torch.float64)
    weight = 1 / (12 * probability)
    assert float((probability * weight * f).sum()) == pytest.approx(float(f.mean()))
    index, sample_weight = sampler.sample(64)
    torch.testing.assert_close(sample_weight, weight[index])


def test_weights_stay_finite_after_what_a_million_updates_of_a_sample_would_move() -> None:
    # A thousand updates at a learning rate of 100 move as far as a million at 0.1.
    sampler = AdaptiveBatchSampler(3, 100.0, decay=0.0, baseline=0.0)
    for _ in range(1000):
        sampler.update(torch.tensor([0, 1]), torch.tensor([1.0, 0.0]))
    assert sampler.weights.tolist() == pytest.approx([10.0, 1.0, 1.0])
    assert sampler.probabilities().tolist() == pytest.approx([10 / 12, 1 / 12, 1 / 12])


@both
def test_of_an_index_given_twice_the_mean_loss_counts(cls: type[AdaptiveBatchSampler]) -> None:
    twice, once = cls(5, 0.5), cls(5, 0.5)
    twice.update(torch.tensor([4, 1, 1, 3]), torch.tensor([0.0, 4.0, 2.0, 1.0]))
    once.update(torch.tensor([1, 3, 4]), torch.tensor([3.0, 1.0, 0.0]))
    assert twice.weights.equal(once.weights)


@both
def test_equal_losses_leave_it_uniform(cls: type[AdaptiveBatchSampler]) -> None:
    sampler = cls(6, 1.0)
    for _ in range(50):
        index = sampler.draw(4).index
        index = torch.cat([index, index[:2], index[:1]])  # the mean of three is exact too
        sampler.update(index, torch.full((7,), 0.7))
    assert sampler.weights.equal(torch.ones(6, dtype=torch.float64))


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 7), st.floats(-5, 5)), min_size=1, max_size=9),
        max_size=6,
    ),
    st.booleans(),
)
def test_updates_follow_the_equations_of_core_one_sample_at_a_time(
    updates: list[list[tuple[int, float]]], momentum: bool
) -> None:
    mu = 0.5 if momentum else 0.0
    sampler = AdaptiveBatchSampler(8, 0.7, momentum=mu, decay=0.1)
    log_weight, velocity = [torch.zeros(1).double()] * 8, [torch.zeros(1).double()] * 8
    rounded = False  # whether the means' rounding decides a gain
    for update in updates:
        index = [i for i, _ in update]
        sampler.update_weights(index, [loss for _, loss in update])
        distinct = sorted(set(index))
        mean = [np.mean([loss for i, loss in update if i == d]) for d in distinct]
        equal = len(distinct) == 1 or len({loss for _, loss in update}) == 1
        rounded |= not equal and max(mean) - min(mean) <= 1e-6
        for i, gain in zip(distinct, loss_gains(torch.tensor(mean)), strict=True):
            log_weight[i], velocity[i] = boost_log_weights(
                log_weight[i], velocity[i], gain, learning_rate=0.7, momentum=mu, decay=0.1,
                bounds=sampler.bounds,
            )  # fmt: skip
    expected = torch.cat(log_weight).exp()
    if not rounded:
        torch.testing.assert_close(sampler.weights, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("index", [[1, 3, 4], [4, 1, 1, 3]])
def test_the_compiled_update_and_that_of_a_gpu_agree(momentum: float, index: list[int]) -> None:
    compiled, batched = (AdaptiveBatchSampler(6, 0.5, momentum=momentum) for _ in range(2))
    for loss in ([0.0, 4.0, 2.0, 1.0], [3.0, 1.0, 1.0, 5.0]):
        batch = torch.tensor(index), torch.tensor(loss[: len(index)], dtype=torch.float64)
        compiled.update(*batch)
        batched._torch_update(*batch)
    torch.testing.assert_close(compiled.weights, batched.weights, rtol=1e-6, atol=0)
    torch.testing.assert_close(compiled.probabilities(), batched.probabilities(), rtol=1e-6, atol=0)


@both
def test_a_resumed_sampler_has_the_same_probabilities_bit_for_bit(
    cls: type[AdaptiveBatchSampler],
) -> None:
    sampler = trained(cls, size=500)
    resumed = cls(500)
    resumed.load_state_dict(sampler.state_dict())
    assert resumed._tree.masses.equal(sampler._tree.masses)


@both
def test_indices_and_losses_of_any_type_update_alike(cls: type[AdaptiveBatchSampler]) -> None:
    expected, index, loss = trained(cls), torch.tensor([7, 2, 2]), torch.tensor([4.0, 1.0, 3.0])
    expected.update(index, loss)
    for other_index, other_loss in (
        (index.int(), loss.double()),
        (index, loss.half()),
        (torch.stack([index, index], 1)[:, 0], torch.stack([loss, loss], 1)[:, 0]),
        (index, loss.clone().requires_grad_()),
    ):
        sampler = trained(cls)
        sampler.update(other_index, other_loss)
        assert sampler.weights.equal(expected.weights)


@both
def test_an_update_of_nothing_changes_nothing(cls: type[AdaptiveBatchSampler]) -> None:
    sampler = trained(cls)
    before = sampler.weights
    sampler.update(torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert sampler.weights.equal(before)


@both
@pytest.mark.parametrize(
    ("index", "loss", "message"),
    [
        ([0, 12], [1.0, 2.0], r"out of range: \[12\]"),
        ([0, -1], [1.0, 2.0], r"out of range: \[-1\]"),
        ([0, 3], [1.0, math.nan], r"index \[3\] are \[nan\]"),
        ([2, 3], [math.inf, 1.0], r"index \[2\] are \[inf\]"),
        ([0, 5], [1.0, 2.0], r"index \[5\] was not inserted"),
        ([0, 1], [1.0, 1.0, 1.0], r"shape \(2,\), the losses \(3,\)"),
    ],
)
def test_a_wrong_update_names_its_indices_and_changes_nothing(
    cls: type[AdaptiveBatchSampler], index: list[int], loss: list[float], message: str
) -> None:
    sampler = trained(cls)
    sampler.remove(torch.tensor([5]))
    before = sampler.state_dict()
    with pytest.raises(ValueError, match=message):
        sampler.update(torch.tensor(index), torch.tensor(loss))
    after = sampler.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in ("log_weight", "inserted"))


@both
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_resumes_twice_as_if_never_interrupted(
    cls: type[AdaptiveBatchSampler], momentum: float
) -> None:
    def step(sampler: AdaptiveBatchSampler) -> list[int]:
        draw = sampler.draw(5)
        sampler.update(draw.index, draw.index.double().sin())
        return draw.index.tolist()

    uninterrupted = trained(cls, momentum=momentum)
    expected = [step(uninterrupted) for _ in range(30)]
    sampler = trained(cls, momentum=momentum)
    draws = []
    for _ in range(3):
        draws += [step(sampler) for _ in range(10)]
        state = sampler.state_dict()
        sampler = cls(12, 1.0, seed=99, momentum=momentum)
        sampler.draw(3)
        sampler.load_state_dict(state)
    assert draws == expected
    assert sampler.weights.equal(uninterrupted.weights)


@both
def test_a_state_is_loadable_with_weights_only_and_a_copy(
    cls: type[AdaptiveBatchSampler], tmp_path: object
) -> None:
    sampler = trained(cls)
    path = f"{tmp_path}/state.pt"
    torch.save(sampler.state_dict(), path)
    state = torch.load(path, weights_only=True)
    resumed = cls(12, 1.0)
    resumed.load_state_dict(state)
    resumed.update(torch.tensor([0, 1]), torch.tensor([0.0, 1.0]))
    assert torch.equal(state["log_weight"], sampler.state_dict()["log_weight"])


@both
def test_a_state_of_another_size_momentum_bounds_or_class_is_an_error_and_changes_nothing(
    cls: type[AdaptiveBatchSampler],
) -> None:
    state = trained(cls).state_dict()
    for other, message in (
        (cls(13), "size is 12, this sampler's is 13"),
        (cls(12, momentum=0.5), "0 velocities"),
        (cls(12, floor=0.9, ceiling=1.1), "same floor and ceiling"),
        (next(c for c in BOTH if c is not cls)(12), "kind is"),
    ):
        before = other.state_dict()
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert torch.equal(other.state_dict()["generator"], before["generator"])


@both
def test_a_restored_tree_equals_the_saved_tree_bit_by_bit(cls: type[AdaptiveBatchSampler]) -> None:
    sampler = cls(2000, 0.3)
    for seed in range(20):
        noise = torch.rand(2000, generator=torch.Generator().manual_seed(seed))
        sampler.update(torch.arange(1999 - seed), noise[: 1999 - seed])
    resumed = cls(2000, 0.3)
    resumed.load_state_dict(sampler.state_dict())
    assert resumed._tree.masses.equal(sampler._tree.masses)


def test_removed_samples_are_not_drawn_and_get_their_weight_back() -> None:
    sampler = trained(AdaptiveBatchSampler)
    probability = sampler.probabilities()
    sampler.remove(torch.tensor([11, 0, 11]))
    assert sampler.count == 10
    assert not set(sampler.draw(500).index.tolist()) & {0, 11}
    sampler.insert(torch.tensor([0, 11]))
    assert sampler.count == 12
    torch.testing.assert_close(sampler.probabilities(), probability)


def test_forgetting_half_takes_the_square_root_of_the_weights() -> None:
    sampler = trained(AdaptiveBatchSampler)
    weights = sampler.weights
    sampler.forget(0.5)
    torch.testing.assert_close(sampler.weights, weights.sqrt(), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r"fraction is 2\.0"):
        sampler.forget(2.0)


def test_set_scores_restores_the_distribution_and_clips_to_floor_and_ceiling() -> None:
    sampler, fresh = trained(AdaptiveBatchSampler), AdaptiveBatchSampler(12)
    fresh.set_scores(sampler.scores())
    torch.testing.assert_close(fresh.probabilities(), sampler.probabilities(), rtol=1e-6, atol=0)
    fresh.set_scores(torch.tensor([0.0] + [1e9] * 11))
    assert fresh.weights.tolist() == pytest.approx([0.1] + [10.0] * 11)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (torch.ones(11), r"shape \(11,\) for 12"),
        (torch.tensor([1.0] * 11 + [math.nan]), r"index \[11\] are \[nan\]"),
        (torch.tensor([1.0] * 11 + [-1.0]), r"index \[11\] are \[-1"),
    ],
)
def test_set_scores_names_wrong_scores(score: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveBatchSampler(12).set_scores(score)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", -1.0),
        ("momentum", 1.0),
        ("decay", 1.5),
        ("baseline", math.nan),
        ("floor", 0.0),
        ("ceiling", math.inf),
        ("beta", 2.0),
    ],
)
def test_an_option_out_of_range_is_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} is "):
        AdaptiveBatchSampler(4, **{option: value})  # type: ignore[arg-type]
