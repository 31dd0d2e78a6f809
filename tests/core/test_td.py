import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.core.td import double_q_errors, huber_losses, q_errors


def _case(seed: int, batch: int = 7, actions: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "q": normal(batch, actions),
        "action": torch.randint(actions, (batch,), generator=generator),
        "reward": normal(batch),
        "discount": torch.rand(batch, generator=generator, dtype=torch.float64),
        "terminated": torch.rand(batch, generator=generator) < 0.3,
        "online": normal(batch, actions),
        "target": normal(batch, actions),
    }


@given(st.integers(0, 2**31))
def test_q_error_is_reward_plus_discounted_maximum_minus_value(seed: int) -> None:
    c = _case(seed)
    error = q_errors(c["q"], c["action"], c["reward"], c["discount"], c["terminated"], c["target"])
    for i in range(len(error)):
        ahead = 0.0 if c["terminated"][i] else float(max(c["target"][i]))
        expected = c["reward"][i] + c["discount"][i] * ahead - c["q"][i, c["action"][i]]
        torch.testing.assert_close(error[i], expected)


@given(st.integers(0, 2**31))
def test_double_q_selects_by_the_online_and_evaluates_by_the_target_network(seed: int) -> None:
    # van Hasselt et al. (2016), equation 4.
    c = _case(seed)
    error = double_q_errors(
        *(c[k] for k in ("q", "action", "reward", "discount", "terminated", "online", "target"))
    )
    for i in range(len(error)):
        chosen = int(c["online"][i].argmax())
        ahead = 0.0 if c["terminated"][i] else float(c["target"][i, chosen])
        expected = c["reward"][i] + c["discount"][i] * ahead - c["q"][i, c["action"][i]]
        torch.testing.assert_close(error[i], expected)


def test_no_gradient_flows_through_the_target() -> None:
    c = _case(0)
    for key in ("q", "online", "target"):
        c[key].requires_grad_()
    errors = double_q_errors(
        *(c[k] for k in ("q", "action", "reward", "discount", "terminated", "online", "target"))
    )
    errors.sum().backward()
    assert c["online"].grad is None
    assert c["target"].grad is None
    expected = torch.zeros_like(c["q"]).scatter_(1, c["action"][:, None], -1.0)
    assert c["q"].grad is not None
    assert c["q"].grad.equal(expected)


@given(st.floats(-50, 50), st.floats(0.01, 20))
def test_huber_gradient_is_the_error_clipped_to_delta(error: float, delta: float) -> None:
    # Mnih et al. (2015) clip the error term to [-1, 1].
    x = torch.tensor(error, dtype=torch.float64, requires_grad=True)
    huber_losses(x, delta).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, x.detach().clamp(-delta, delta))


def test_huber_without_delta_is_half_the_square() -> None:
    error = torch.tensor([-3.0, 0.0, 0.5])
    assert huber_losses(error, None).equal(0.5 * error**2)


@pytest.mark.parametrize("name", ["action", "reward", "discount", "terminated"])
def test_a_column_of_the_wrong_shape_is_named(name: str) -> None:
    c = _case(0)
    c[name] = c[name][:3]
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\)"):
        q_errors(c["q"], c["action"], c["reward"], c["discount"], c["terminated"], c["target"])


def test_both_networks_must_have_the_same_actions() -> None:
    c = _case(0)
    with pytest.raises(ValueError, match=r"must be \[B, A\]"):
        q_errors(
            c["q"], c["action"], c["reward"], c["discount"], c["terminated"], c["target"][:, :2]
        )


def test_a_delta_of_zero_is_rejected() -> None:
    with pytest.raises(ValueError, match="delta is 0"):
        huber_losses(torch.zeros(1), 0)
