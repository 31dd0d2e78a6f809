"""AdaBoost-like sample weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.boosting import (
    average_duplicates,
    boost_log_weights,
    decay_toward_uniform,
    loss_gains,
)
from lit_adaptive.core.kernels.boosting import boosted_log_weights


def doubles(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_gain_is_the_minmax_loss_minus_the_baseline() -> None:
    # The specification: (losses - min) / (max - min).
    loss = torch.tensor([2.0, 4.0, 3.0])
    assert loss_gains(loss, baseline=0.0).tolist() == [0.0, 1.0, 0.5]
    assert loss_gains(loss, baseline=0.5).tolist() == [-0.5, 0.5, 0.0]


def test_equal_losses_have_gain_0() -> None:
    assert loss_gains(torch.full((7,), 3.25)).tolist() == [0.0] * 7
    assert loss_gains(torch.tensor([5.0])).item() == 0
    assert len(loss_gains(torch.empty(0))) == 0


def test_gains_of_opposite_extremes_do_not_overflow() -> None:
    big = torch.finfo(torch.float64).max
    assert loss_gains(doubles([-big, big, 0.0]), baseline=0.0).tolist() == [0.0, 1.0, 0.5]


def test_without_baseline_and_decay_the_update_is_the_specifications() -> None:
    # w *= exp(0.1 * minmax(loss)), from the specification's update_weights.
    loss, weight = doubles([0.3, 0.9, 0.5]), doubles([1.0, 2.0, 0.5])
    expected = weight * torch.exp(0.1 * (loss - loss.min()) / (loss.max() - loss.min()))
    log_weight, _ = boost_log_weights(
        weight.log(),
        torch.zeros(3),
        loss_gains(loss, baseline=0.0),
        learning_rate=0.1,
        bounds=(-50.0, 50.0),
    )
    torch.testing.assert_close(log_weight.exp(), expected)


def test_a_constant_gain_leads_to_the_gain_times_learning_rate_over_decay() -> None:
    # The fixed point of s <- (1 - lambda) s + eta g is eta g / lambda.
    s, v, gain = doubles([0.0]), doubles([0.0]), doubles([0.5])
    for _ in range(3000):
        s, v = boost_log_weights(
            s, v, gain, learning_rate=0.1, momentum=0.9, decay=0.02, bounds=(-9.0, 9.0)
        )
    torch.testing.assert_close(s, doubles([0.1 * 0.5 / 0.02]))


def test_log_weights_stay_within_their_bounds() -> None:
    s = torch.tensor([0.0, 0.0])
    for _ in range(100):
        s, _ = boost_log_weights(
            s, torch.zeros(2), torch.tensor([0.5, -0.5]), learning_rate=1.0, bounds=(-1.0, 2.0)
        )
    assert s.tolist() == [2.0, -1.0]


def test_decay_shrinks_log_weights_and_a_full_one_is_uniform() -> None:
    assert decay_toward_uniform(doubles([2.0, -1.0]), 0.5).tolist() == [1.0, -0.5]
    assert decay_toward_uniform(doubles([2.0, -1.0]), 1.0).tolist() == [0.0, 0.0]


def _update_one_by_one(
    s: list[float], v: list[float], batch: list[tuple[int, float]], rule: tuple[float, ...]
) -> tuple[list[float], list[float]]:
    """The equations of the module's docstring, one sample after another."""
    rate, momentum, decay, baseline, low, high = rule
    losses: dict[int, list[float]] = {}
    for index, loss in batch:
        losses.setdefault(index, []).append(loss)
    mean = {index: sum(values) / len(values) for index, values in losses.items()}
    least, greatest = min(mean.values()), max(mean.values())
    s, v = list(s), list(v)
    for index, loss in mean.items():
        gain = (loss - least) / (greatest - least) - baseline if greatest > least else 0.0
        v[index] = momentum * v[index] + (1 - momentum) * gain
        s[index] = min(max((1 - decay) * s[index] + rate * v[index], low), high)
    return s, v


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(-50, 50)), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.lists(st.floats(-1, 1), min_size=6, max_size=6),
)
def test_an_update_of_a_batch_equals_one_sample_after_another(
    batch: list[tuple[int, float]],
    momentum: float,
    decay: float,
    baseline: float,
    start: list[float],
) -> None:
    low, high = -1.5, 1.25
    expected = _update_one_by_one(
        start, [0.0] * 6, batch, (0.3, momentum, decay, baseline, low, high)
    )
    s, v = doubles(start), torch.zeros(6, dtype=torch.float64)
    index, loss = torch.tensor([i for i, _ in batch]), doubles([x for _, x in batch])
    distinct, mean = average_duplicates(index, loss)
    s[distinct], v[distinct] = boost_log_weights(
        s[distinct],
        v[distinct],
        loss_gains(mean, baseline=baseline),
        learning_rate=0.3,
        momentum=momentum,
        decay=decay,
        bounds=(low, high),
    )
    torch.testing.assert_close(s, doubles(expected[0]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(v, doubles(expected[1]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("index", [[4, 1, 3, 0], [4, 1, 1, 4]])
def test_duplicates_are_averaged_and_sorted_by_index(index: list[int]) -> None:
    loss = doubles([1.0, 5.0, 2.0, 4.0])
    distinct, mean = average_duplicates(torch.tensor(index), loss)
    assert distinct.tolist() == sorted(set(index))
    for sample, value in zip(distinct.tolist(), mean.tolist(), strict=True):
        assert value == loss[torch.tensor(index) == sample].mean()


def test_the_mean_of_equal_losses_is_exact() -> None:
    _, mean = average_duplicates(torch.tensor([2, 2, 2, 7]), doubles([0.1] * 4))
    assert mean.tolist() == [0.1, 0.1]


# The compiled loop --------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(-1e6, 1e6)), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.01, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_compiled_update_is_the_reference_equations(
    pairs: list[tuple[int, float]], momentum: float, decay: float, baseline: float
) -> None:
    index = torch.tensor([i for i, _ in pairs])
    loss = torch.tensor([value for _, value in pairs], dtype=torch.float64)
    log_weight = torch.linspace(-2, 2, 10)
    velocity = torch.linspace(-0.5, 0.5, 10) if momentum else torch.empty(0)
    bounds = (-2.3, 2.3)
    rule = (0.1, momentum, decay, baseline, *bounds)
    compiled = boosted_log_weights(
        log_weight.numpy(), velocity.numpy(), index.numpy(), loss.numpy(), rule
    )
    distinct, mean = average_duplicates(index, loss)
    before = velocity[distinct].double() if momentum else torch.zeros_like(mean)
    expected, expected_velocity = boost_log_weights(
        log_weight[distinct].double(),
        before,
        loss_gains(mean, baseline=baseline),
        learning_rate=0.1,
        momentum=momentum,
        decay=decay,
        bounds=bounds,
    )
    assert compiled[0].tolist() == distinct.tolist()
    spread = mean.max() - mean.min() > 1e-6 * mean.abs().max()  # else the min-max is rounding
    if bool(spread) or len(mean) == 1:
        torch.testing.assert_close(
            torch.from_numpy(compiled[1]), expected.float(), atol=1e-5, rtol=0
        )
        if momentum:
            torch.testing.assert_close(
                torch.from_numpy(compiled[2]), expected_velocity.float(), atol=1e-5, rtol=0
            )
