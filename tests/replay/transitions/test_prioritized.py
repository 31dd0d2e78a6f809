"""Prioritized replay against the formulas of Schaul et al. (2016)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_adaptive.replay import PrioritizedReplayBuffer
from lit_adaptive.samplers import PrioritizedSampler


def _filled(capacity: int = 100, count: int = 50, **arguments: Any) -> PrioritizedReplayBuffer:
    buf = PrioritizedReplayBuffer(capacity, **arguments)
    for i in range(count):
        buf.add((np.full(4, i, np.float32), i % 2, float(i), np.full(4, i + 1.0), i % 10 == 9))
    return buf


def test_add_sample_and_update_as_documented() -> None:
    buf = PrioritizedReplayBuffer(capacity=1000, alpha=0.6, beta=0.4)
    for i in range(64):
        state, action, reward = np.random.default_rng(i).normal(size=4), i % 3, 0.5 * i
        next_state, done = np.random.default_rng(i + 1).normal(size=4), i % 16 == 15
        buf.add((state, action, reward, next_state, done))
    batch, weights, indices = buf.sample(batch_size=32)
    assert batch["observation"].shape == batch["next_observation"].shape == (32, 4)
    assert batch["action"].dtype is torch.int64
    assert (batch["action"] == indices % 3).all()
    assert batch["reward"].tolist() == (0.5 * indices).tolist()
    assert batch["terminated"].tolist() == (indices % 16 == 15).tolist()
    assert weights.dtype is torch.float32
    assert weights.tolist() == [1.0] * 32  # all are new, hence equally likely
    assert indices.dtype is torch.int64
    td_errors = torch.linspace(-1, 1, 32)
    buf.update_priorities(indices, td_errors)
    assert len(buf) == 64


def test_priority_is_the_absolute_error_plus_epsilon_and_weights_undo_it() -> None:
    # Schaul et al. (2016): p = |delta| + epsilon (3.3), P = p^alpha / sum (eq. 1),
    # w = (N P)^-beta / max w (3.4).
    buf = _filled(count=4, alpha=0.5, beta=0.75, epsilon=0.25, normalize="buffer")
    buf.update_priorities([0, 1, 2, 3], [-0.75, 3.75, 0.0, 8.75])
    p = torch.tensor([1.0, 4.0, 0.25, 9.0]).double()
    probability = p.sqrt() / p.sqrt().sum()
    weight = (4 * probability) ** -0.75
    weight /= weight.max()
    seen = set()
    for _ in range(200):
        batch, weights, indices = buf.sample(4)
        torch.testing.assert_close(batch["probability"], probability[indices])
        torch.testing.assert_close(weights, weight[indices].float())
        assert batch["index"].equal(indices)
        seen |= set(indices.tolist())
    assert seen == {0, 1, 2, 3}


def test_batch_normalisation_divides_by_the_batchs_maximum() -> None:
    buf = _filled(count=50, beta=1.0)
    buf.update_priorities(torch.arange(50), torch.rand(50) + 0.1)
    for _ in range(10):
        batch, weights, _ = buf.sample(8)
        assert weights.max() == 1
        torch.testing.assert_close(
            weights, (batch["probability"].min() / batch["probability"]).float()
        )


def test_beta_may_be_annealed() -> None:
    buf = _filled(beta=0.0)
    buf.update_priorities(torch.arange(50), torch.arange(50.0))
    assert buf.sample(16)[1].tolist() == [1.0] * 16
    buf.beta = 1.0
    assert buf.sample(16)[1].min() < 1
    with pytest.raises(ValueError, match=r"beta is 1.5; it must lie in \[0, 1\]"):
        buf.beta = 1.5
    assert buf.beta == 1.0


def test_new_items_get_the_greatest_priority_so_far() -> None:
    # Section 3.3 / algorithm 1, line 6: new transitions at maximal priority, 1 at first.
    buf = _filled(capacity=4, count=2, alpha=1.0, epsilon=0.0)
    buf.update_priorities([0], [3.0])
    buf.update_priorities([0], [0.5])
    buf.add((np.zeros(4), 0, 0.0, np.zeros(4), False))
    expected = torch.tensor([0.5, 1.0, 3.0, 0.0]).double() / 4.5
    torch.testing.assert_close(buf.replay.sampler.probabilities(), expected)


@pytest.mark.parametrize(
    "convert", [list, np.array, torch.tensor, lambda x: torch.tensor(x, requires_grad=True)]
)
def test_td_errors_can_be_lists_arrays_or_tensors(convert: Any) -> None:
    one, other = _filled(), _filled()
    errors = [0.5, -2.0, 1e-3]
    one.update_priorities(torch.tensor([3, 1, 4]), torch.tensor(errors))
    other.update_priorities([3, 1, 4], convert(errors))
    probabilities = one.replay.sampler.probabilities(), other.replay.sampler.probabilities()
    torch.testing.assert_close(*probabilities)
    other.update_priorities(np.array([3, 1, 4]), np.array(errors)[:, None])
    torch.testing.assert_close(*probabilities)


def test_td_errors_keep_double_precision() -> None:
    buf = _filled(count=2, alpha=1.0, epsilon=0.0)
    buf.update_priorities([0, 1], np.array([1e300, 2e300]))  # infinite as float32
    expected = torch.tensor([1 / 3, 2 / 3]).double()
    torch.testing.assert_close(buf.replay.sampler.probabilities()[:2], expected)


@pytest.mark.parametrize(
    ("indices", "td_errors", "message"),
    [
        ([3, 7], [0.5, float("nan")], r"TD error of indices \[7\] is \[nan\]"),
        ([3, 7], [float("-inf"), 0.5], r"TD error of indices \[3\] is \[-inf\]"),
        ([3, 100], [1.0, 1.0], r"\[100\]"),
        ([3, -1], [1.0, 1.0], r"\[-1\]"),
        ([3, 60], [1.0, 1.0], r"\[60\]"),
        ([3, 4], [1.0], r"both must be \[B\]"),
        ([[3, 4]], [[1.0, 1.0]], r"both must be \[B\]"),
        ([0.5], [1.0], "float32"),
    ],
)
def test_an_invalid_update_changes_nothing(indices: Any, td_errors: Any, message: str) -> None:
    buf = _filled()
    before = buf.state_dict()["replay"]["sampler"]
    with pytest.raises(ValueError, match=message):
        buf.update_priorities(indices, td_errors)
    after = buf.state_dict()["replay"]["sampler"]
    assert after["mass"].equal(before["mass"])
    assert after["max_priority"] == before["max_priority"]


def test_updates_of_overwritten_slots_are_ignored() -> None:
    buf = _filled(capacity=50)
    _, _, indices = buf.sample(8)
    serial = buf.serial(indices)
    for i in range(50):
        buf.add((np.full(4, float(i)), 0, 0.0, np.full(4, i + 1.0), False))
    before = buf.replay.sampler.probabilities().clone()
    buf.update_priorities(indices, torch.full((8,), 9.0), serial=serial)
    assert buf.replay.sampler.probabilities().equal(before)
    assert buf.replay.stale_updates == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": 1.1}, "alpha is 1.1"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"epsilon": -1e-6}, "epsilon is -1e-06"),
        ({"normalize": "max"}, "normalize is 'max'"),
        ({"gamma": 2.0}, "gamma is 2.0"),
        ({"n_step": 0}, "n_step is 0"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrioritizedReplayBuffer(**({"capacity": 10} | arguments))


def test_a_batch_larger_than_the_content_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 32 and the replay holds 5"):
        _filled(count=5).sample(batch_size=32)


def test_adding_a_batch_equals_adding_its_streams_one_by_one() -> None:
    single, batched = (PrioritizedReplayBuffer(40, num_streams=3, n_step=2) for _ in range(2))
    for t in range(20):
        now = {"x": np.arange(3) + 10.0 * t}
        then = {"x": now["x"] + 10}
        done = np.arange(3) == t % 4
        cut = np.arange(3) == t % 5
        batched.add(
            observation=now,
            action=[0, 1, 2],
            reward=[t, t, t],
            next_observation=then,
            terminated=done,
            truncated=cut,
        )
        for e in range(3):
            step = ({"x": now["x"][e]}, e, t, {"x": then["x"][e]}, done[e])
            single.add(step, truncated=bool(cut[e]), stream=e)
    assert batched.end_episode().equal(single.end_episode())
    index = torch.arange(len(single))
    expected, batch = single.replay.get(index), batched.replay.get(index)
    assert batch["observation"]["x"].equal(expected["observation"]["x"])
    for key in ("action", "reward", "terminated", "discount"):
        assert batch[key].equal(expected[key])


def test_states_may_be_plain_numbers() -> None:
    # As in the Blind Cliffwalk: a state is a number.
    buf = PrioritizedReplayBuffer(4)
    buf.add((2, 1, 1, 3, True))
    batch, _, _ = buf.sample(1)
    assert batch["observation"].tolist() == [2]
    assert batch["next_observation"].tolist() == [3]
    assert batch["terminated"].tolist() == [True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda buf: buf.add(), "either one tuple"),
        (lambda buf: buf.add((0, 0, 0, 0, False), action=[1]), "either one tuple"),
        (lambda buf: buf.add(observation=[0], action=[0]), "either one tuple"),
        (lambda buf: buf.add((0, 0, 0, 0)), "has 4 parts"),
        (lambda buf: buf.add((0, 0, float("nan"), 0, False)), "reward of streams"),
    ],
)
def test_an_invalid_transition_is_named(call: Any, message: str) -> None:
    buf = PrioritizedReplayBuffer(4)
    with pytest.raises(ValueError, match=message):
        call(buf)
    assert len(buf) == 0


def test_a_tuple_for_several_streams_needs_its_stream() -> None:
    buf = PrioritizedReplayBuffer(4, num_streams=2)
    with pytest.raises(ValueError, match="one transition for 2 streams: pass its stream"):
        buf.add((0, 0, 0.0, 0, False))


def test_a_loaded_buffer_draws_and_weighs_as_the_saved_one(tmp_path: Path) -> None:
    one, other = _filled(seed=3, beta=0.2), PrioritizedReplayBuffer(100, beta=0.9)
    one.update_priorities(torch.arange(50), torch.rand(50))
    one.beta = 0.6
    one.sample(5)
    one.save(tmp_path / "per.pt")
    other.load(tmp_path / "per.pt")
    assert other.beta == 0.6
    for _ in range(20):
        draws = one.sample(8), other.sample(8)
        assert draws[0][2].equal(draws[1][2])
        assert draws[0][1].equal(draws[1][1])
        for buf in (one, other):
            buf.update_priorities(draws[0][2], draws[0][1] - 0.5)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"kind": "ReplayBuffer"}, "state is of 'ReplayBuffer', not of a Prioritized"),
        ({"beta": 7.0}, "beta=7.0: it is damaged"),
        ({"replay": None}, "it is damaged"),
    ],
)
def test_an_invalid_state_changes_nothing(state: dict[str, Any], message: str) -> None:
    one, other = _filled(), PrioritizedReplayBuffer(100)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(one.state_dict() | state)
    assert len(other) == 0


def test_another_alpha_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        PrioritizedReplayBuffer(100, alpha=0.5).load_state_dict(_filled(alpha=0.6).state_dict())


def test_the_seed_determines_the_draws() -> None:
    assert _filled(seed=1).sample(16)[2].equal(_filled(seed=1).sample(16)[2])
    assert not _filled(seed=1).sample(16)[2].equal(_filled(seed=2).sample(16)[2])


def test_alpha_reaches_the_sampler() -> None:
    sampler = _filled(alpha=0.3).replay.sampler
    assert isinstance(sampler, PrioritizedSampler)
    assert sampler.alpha == _filled(alpha=0.3).alpha == 0.3
