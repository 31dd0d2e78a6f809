"""AdaBoost-like weights: the equations, and the compiled loop against them."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.boosting import boosted, forgotten, gains
from lit_adaptive.core.kernels import boosting as loops

finite = st.floats(-1e6, 1e6)


def test_gain_is_minmax_less_the_baseline() -> None:
    # The specification: (losses - min) / (max - min).
    loss = torch.tensor([2.0, 4.0, 3.0])
    torch.testing.assert_close(
        gains(loss, baseline=0.0), torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    )
    torch.testing.assert_close(
        gains(loss, baseline=0.5), torch.tensor([-0.5, 0.5, 0.0], dtype=torch.float64)
    )


def test_equal_losses_are_no_news() -> None:
    assert gains(torch.full((7,), 3.25)).equal(torch.zeros(7, dtype=torch.float64))
    assert gains(torch.tensor([5.0])).item() == 0
    assert len(gains(torch.empty(0))) == 0


def test_opposite_extremes_do_not_overflow() -> None:
    big = torch.finfo(torch.float64).max
    found = gains(torch.tensor([-big, big, 0.0], dtype=torch.float64), baseline=0.0)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64))


def test_without_baseline_and_decay_it_is_the_specifications_rule() -> None:
    # w *= exp(0.1 * minmax(loss)), from the specification's update_weights.
    loss = torch.tensor([0.3, 0.9, 0.5], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    expected = weight * torch.exp(0.1 * (loss - loss.min()) / (loss.max() - loss.min()))
    moved, _ = boosted(
        weight.log(),
        torch.zeros(3),
        gains(loss, baseline=0.0),
        learning_rate=0.1,
        bounds=(-50.0, 50.0),
    )
    torch.testing.assert_close(moved.exp(), expected)


def test_log_weight_settles_at_the_moving_average_times_rate_over_decay() -> None:
    # Constant gain g: the fixed point of s <- (1 - lambda) s + eta g is eta g / lambda.
    s, v = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    gain = torch.tensor([0.5], dtype=torch.float64)
    for _ in range(3000):
        s, v = boosted(s, v, gain, learning_rate=0.1, momentum=0.9, decay=0.02, bounds=(-9.0, 9.0))
    torch.testing.assert_close(s, torch.tensor([0.1 * 0.5 / 0.02], dtype=torch.float64))


def test_floor_and_ceiling_hold_and_forgetting_goes_to_uniform() -> None:
    s = torch.tensor([0.0, 0.0])
    for _ in range(100):
        s, _ = boosted(
            s, torch.zeros(2), torch.tensor([0.5, -0.5]), learning_rate=1.0, bounds=(-1.0, 2.0)
        )
    assert s.tolist() == [2.0, -1.0]
    assert forgotten(s, 0.5).tolist() == [1.0, -0.5]
    assert forgotten(s, 1.0).tolist() == [0.0, 0.0]


def _slowly(
    s: list[float], v: list[float], batch: list[tuple[int, float]], rule: tuple[float, ...]
) -> tuple[list[float], list[float]]:
    """One sample after another, in plain Python."""
    rate, momentum, decay, baseline, low, high = rule
    seen: dict[int, list[float]] = {}
    for index, loss in batch:
        seen.setdefault(index, []).append(loss)
    mean = {index: sum(losses) / len(losses) for index, losses in seen.items()}
    least, greatest = min(mean.values()), max(mean.values())
    s, v = list(s), list(v)
    for index, loss in mean.items():
        spread = greatest - least
        gain = (loss - least) / spread - baseline if spread > 0 else 0.0
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
def test_compiled_loop_agrees_with_one_sample_after_another(
    batch: list[tuple[int, float]],
    momentum: float,
    decay: float,
    baseline: float,
    start: list[float],
) -> None:
    rule = (0.3, momentum, decay, baseline, -1.5, 1.25)
    start = [float(np.float32(value)) for value in start]
    expected, velocities = _slowly(start, [0.0] * 6, batch, rule)
    log_weight = np.array(start, dtype=np.float32)
    velocity = np.zeros(6 if momentum else 0, dtype=np.float32)
    index = np.array([i for i, _ in batch], dtype=np.int64)
    loss = np.array([x for _, x in batch], dtype=np.float64)
    into, mass = np.empty_like(index), np.empty_like(loss)
    leaves = np.ones(6)
    kept = loops.boost(log_weight, velocity, index, loss, leaves, rule, into, mass)
    assert into[:kept].tolist() == sorted({i for i, _ in batch})
    np.testing.assert_allclose(log_weight, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mass[:kept], np.exp(log_weight.astype(np.float64))[into[:kept]])
    if momentum:
        np.testing.assert_allclose(velocity, velocities, rtol=1e-5, atol=1e-6)


def test_compiled_loop_refuses_and_does_nothing() -> None:
    for index, loss in (
        ([9], [1.0]),
        ([-1], [1.0]),
        ([0], [math.nan]),
        ([1], [math.inf]),
        ([2], [1.0]),
    ):
        log_weight = np.zeros(3, dtype=np.float32)
        leaves = np.array([1.0, 0.5, 0.0])
        arrays = np.array([0, *index]), np.array([0.0, *loss])
        out = np.empty(2, dtype=np.int64), np.empty(2)
        rule = (0.1, 0.0, 0.0, 0.5, -1.0, 1.0)
        assert loops.boost(log_weight, log_weight[:0], *arrays, leaves, rule, *out) == loops.BAD
        assert not log_weight.any()
