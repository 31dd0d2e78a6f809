"""Networks: shapes, the dueling identity, and what they refuse."""

import pytest
import torch

from lit_adaptive.modules import MLP, MinAtarConv, NatureConv, QNetwork

CASES = [(MLP, (4,)), (MLP, (2, 3)), (MinAtarConv, (4, 10, 10)), (NatureConv, (4, 84, 84))]


@pytest.mark.parametrize(("network", "shape"), CASES)
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool])
def test_a_network_returns_a_value_per_observation_and_action(
    network: type[QNetwork], shape: tuple[int, ...], dueling: bool, dtype: torch.dtype
) -> None:
    net = network(shape, 3, dueling=dueling)
    rated = net(torch.ones(5, *shape).to(dtype))
    assert rated.shape == (5, 3)
    assert rated.isfinite().all()


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_dueling_values_average_to_the_state_value(
    network: type[QNetwork], shape: tuple[int, ...]
) -> None:
    # Wang et al. (2016), equation 9: the advantages are centred, so mean_a Q(s, a) = V(s).
    net = network(shape, 6, dueling=True)
    observation = torch.rand(5, *shape)
    assert net.value is not None
    expected = net.value(net.trunk(net.prepare(observation))).squeeze(1)
    torch.testing.assert_close(net(observation).mean(1), expected, atol=1e-5, rtol=1e-4)


def test_nature_network_has_the_papers_size() -> None:
    # Mnih et al. (2015): 32 8x8, 64 4x4, 64 3x3 filters, 512 units; 18 actions.
    count = sum(p.numel() for p in NatureConv((4, 84, 84), 18).parameters())
    layers = [32 * (4 * 64 + 1), 64 * (32 * 16 + 1), 64 * (64 * 9 + 1), 512 * (64 * 49 + 1)]
    assert count == sum(layers) + 18 * 513


def test_bytes_are_divided_by_255() -> None:
    net = NatureConv((4, 84, 84), 2)
    frames = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    torch.testing.assert_close(net(frames), net(frames.float() / 255))


@pytest.mark.parametrize(
    ("network", "shape"), [(MinAtarConv, (4,)), (NatureConv, (10, 10, 4)), (MinAtarConv, (4, 2, 2))]
)
def test_an_unsupported_observation_shape_is_rejected_by_name(
    network: type[QNetwork], shape: tuple[int, ...]
) -> None:
    with pytest.raises(
        ValueError, match=rf"{network.__name__} does not support observations of shape"
    ):
        network(shape, 2)


def test_an_mlp_without_hidden_layers_is_rejected() -> None:
    with pytest.raises(ValueError, match="hidden is"):
        MLP((4,), 2, hidden=[])


def test_mlp_takes_observations_that_are_single_numbers() -> None:
    assert MLP((), 3)(torch.rand(5)).shape == (5, 3)
