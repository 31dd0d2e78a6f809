"""Mixtures: every component draws its share, with the probabilities of the whole."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adaptive.samplers import (
    AdaptiveBatchSampler,
    AdaptiveDataWeighter,
    CurriculumSampler,
    IndexSampler,
    MixtureSampler,
    PrioritizedSampler,
    UniformSampler,
)

SIZE = 10
LOSS = torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6, 5, 3])
DIFFICULTY = torch.arange(10.0)


def hybrid() -> MixtureSampler:
    """A curriculum over AdaBoost-like weights, PER, and a tenth uniform."""
    sampler = MixtureSampler(
        SIZE,
        [
            lambda n: CurriculumSampler(n, lambda m: AdaptiveBatchSampler(m, 1.0), start=0.4),
            lambda n: PrioritizedSampler(n, alpha=0.5),
            UniformSampler,
        ],
        [0.6, 0.3, 0.1],
        seed=5,
    )
    sampler.set_difficulty(DIFFICULTY)
    sampler.update(torch.arange(SIZE), LOSS)
    return sampler


def test_probabilities_are_the_weighted_sum_over_the_components() -> None:
    sampler = hybrid()
    # By hand. The curriculum allows the easiest 4; only their losses reach the weights.
    inside = LOSS[:4].double()
    weight = torch.ones(SIZE, dtype=torch.float64)
    weight[:4] = ((inside - inside.min()) / (inside.max() - inside.min()) - 0.5).exp()
    first = torch.where(DIFFICULTY < 4, weight, 0.0)
    second = LOSS.double().sqrt()
    expected = 0.6 * first / first.sum() + 0.3 * second / second.sum() + 0.1 / SIZE
    torch.testing.assert_close(sampler.probabilities(), expected, rtol=1e-6, atol=0)
    draw = sampler.draw(4000)
    torch.testing.assert_close(draw.probability, expected[draw.index], rtol=1e-6, atol=0)
    share = torch.bincount(draw.index, minlength=SIZE) / 4000
    torch.testing.assert_close(share, expected.float(), atol=0.02, rtol=0)
    assert sampler.count == SIZE
    assert sampler.min_probability() == pytest.approx(float(expected.min()))


def test_the_weighted_estimate_is_unbiased() -> None:
    sampler = hybrid()
    p = sampler.probabilities()
    f = DIFFICULTY.double().sin()
    assert float((p * f / (sampler.count * p)).sum()) == pytest.approx(float(f.mean()))


@given(st.integers(1, 40), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_each_component_draws_its_share_within_two(batch: int, parts: list[int]) -> None:
    class Counting(UniformSampler):
        drawn = 0

        def draw(self, batch_size: int) -> Any:
            self.drawn += batch_size
            return super().draw(batch_size)

    sampler = MixtureSampler(3, [Counting] * len(parts), [part / sum(parts) for part in parts])
    sampler.draw(batch)
    for part, component in zip(parts, sampler.samplers, strict=True):
        assert isinstance(component, Counting)
        assert abs(component.drawn - batch * part / sum(parts)) < 2


def test_the_union_of_disjoint_supports_is_counted() -> None:
    def ends(hardest_first: bool) -> Callable[[int], IndexSampler]:
        return lambda n: CurriculumSampler(n, start=0.2, hardest_first=hardest_first)

    sampler = MixtureSampler(SIZE, [ends(False), ends(True)])
    assert sampler.needs_difficulty
    sampler.set_difficulty(DIFFICULTY)
    assert sampler.count == 4
    assert (sampler.probabilities() > 0).nonzero().flatten().tolist() == [0, 1, 8, 9]
    sampler.advance(0.1)  # competence sqrt(0.2 * 0.96 + 0.04) = 0.48: four at each end
    assert sampler.count == 8
    sampler.advance(1.0)
    assert sampler.count == SIZE


@pytest.mark.parametrize(
    ("samplers", "shares", "message"),
    [
        ([], None, "at least one"),
        ([UniformSampler, UniformSampler], [0.6, 0.5], r"sum to 1.1; they must sum to 1"),
        ([UniformSampler], [1.0, 2.0], "2 shares for 1"),
        ([UniformSampler] * 2, [1.0, 0.0], "above 0"),
        ([UniformSampler] * 2, [1.0, math.inf], "finite"),
        ([UniformSampler, AdaptiveDataWeighter], None, "weights losses"),
    ],
)
def test_components_or_shares_that_do_not_fit_are_an_error(
    samplers: list[Any], shares: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureSampler(4, samplers, shares)


def test_an_error_of_a_component_is_raised() -> None:
    sampler = MixtureSampler(4, [PrioritizedSampler, UniformSampler])
    with pytest.raises(ValueError, match=r"index \[1\]"):
        sampler.update(torch.tensor([1]), torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="cannot forget"):
        sampler.forget(0.5)


def test_a_state_of_other_shares_is_an_error() -> None:
    other = MixtureSampler(SIZE, [UniformSampler] * 3, [0.6, 0.2, 0.2])
    with pytest.raises(ValueError, match="shares"):
        other.load_state_dict(hybrid().state_dict())
