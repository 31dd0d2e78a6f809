"""Every sampler, alone and in pairs: stated probabilities are those of the draws and sum to 1.

With N drawable samples and weights 1 / (N P), the expected value of weight times f over a draw is
then the mean of f; a pair for which that cannot hold is rejected.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lit_adaptive.samplers import (
    AdaptiveBatchSampler,
    AdaptiveDataWeighter,
    AdaptiveSampler,
    BucketedSampler,
    CurriculumSampler,
    IndexSampler,
    InfoBatchSampler,
    MixtureSampler,
    PrioritizedSampler,
    RankPrioritizedSampler,
    RewardWeightedSampler,
    ShuffledSampler,
    UniformSampler,
)

SIZE = 8
F = torch.tensor([3.0, -1, 4, 1, -5, 9, 2, 6], dtype=torch.float64)
LOSS = torch.tensor([0.5, 2, 1, 4, 0.1, 3, 0.7, 1.5], dtype=torch.float64)
Factory = Callable[[int], IndexSampler]

SAMPLERS: dict[str, Factory] = {
    "uniform": UniformSampler,
    "shuffled": ShuffledSampler,
    "prioritized": lambda n: PrioritizedSampler(n, alpha=0.7),
    "rank": lambda n: RankPrioritizedSampler(n, alpha=0.7),
    "adaptive": lambda n: AdaptiveBatchSampler(n, 1.0),
    "reward": RewardWeightedSampler,
    "top": lambda n: RewardWeightedSampler(n, scheme="top", share=0.5),
    "curriculum": lambda n: CurriculumSampler(
        n, UniformSampler, start=0.5, until=1.0, hardest_first=True
    ),
    "self-paced": lambda n: CurriculumSampler(n, thresholds=(1.2, 3.0), until=1.0),
    "mixture": lambda n: MixtureSampler(n, [ShuffledSampler, PrioritizedSampler], [0.25, 0.75]),
}
REJECTED: dict[str, Factory] = {"infobatch": InfoBatchSampler, "bucketed": BucketedSampler}


def mixed(first: Factory, second: Factory) -> IndexSampler:
    """A mixture that draws from the first a third of the time."""
    return MixtureSampler(SIZE, [first, second], [1 / 3, 2 / 3])


def over_curriculum(first: Factory, second: Factory) -> IndexSampler:
    """A curriculum over a mixture."""
    return CurriculumSampler(
        SIZE, lambda n: MixtureSampler(n, [first, second]), start=0.4, until=1.0
    )


def prepared(sampler: IndexSampler) -> IndexSampler:
    """The sampler after it has learnt and progressed, in the middle of its epochs."""
    sampler.set_difficulty(LOSS)
    sampler.set_lengths(LOSS)
    sampler.draw(2)
    if isinstance(sampler, AdaptiveSampler) and sampler.learns:
        sampler.update(torch.arange(SIZE), LOSS)
    sampler.advance(0.5)
    return sampler


def frequencies(make: Callable[[], IndexSampler], draws: int = 1500) -> Tensor:
    """How often each index is the next draw, over seeds of the whole history."""
    counts = torch.zeros(SIZE, dtype=torch.float64)
    for seed in range(draws // 2):
        sampler = make()
        sampler.reseed(seed)
        counts += torch.bincount(prepared(sampler).draw(2).index, minlength=SIZE)
    return counts / counts.sum()


def check(make: Callable[[], IndexSampler], *, sampled: bool = False) -> None:
    """Check the claims of the module on one sampler."""
    sampler = prepared(make())
    probability, drawable = sampler.probabilities(), sampler.count
    assert float(probability.sum()) == pytest.approx(1)
    support = probability > 0
    assert int(support.sum()) == drawable
    weight = 1 / (drawable * probability[support])
    expected = float((probability[support] * weight * F[support]).sum())
    assert expected == pytest.approx(float(F[support].mean()))
    draw = sampler.draw(5)
    torch.testing.assert_close(draw.probability, probability[draw.index])
    if sampled:
        error = (frequencies(make) - probability).abs()
        assert bool((error < 4.5 * (probability / 1500).sqrt() + 1e-9).all()), error


@pytest.mark.parametrize("first", SAMPLERS)
@pytest.mark.parametrize("second", SAMPLERS)
@pytest.mark.parametrize("pair", [mixed, over_curriculum])
def test_pairs_are_unbiased(pair: Callable[..., IndexSampler], first: str, second: str) -> None:
    check(lambda: pair(SAMPLERS[first], SAMPLERS[second]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_probabilities_are_those_of_the_draws(name: str) -> None:
    check(lambda: SAMPLERS[name](SIZE), sampled=True)
    curriculum = {"start": 0.4, "power": 1, "until": 1.0}
    check(lambda: CurriculumSampler(SIZE, SAMPLERS[name], **curriculum), sampled=True)
    check(lambda: mixed(SAMPLERS[name], UniformSampler), sampled=True)


@pytest.mark.parametrize("name", REJECTED)
@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: lambda n: BucketedSampler(n, f)])
def test_samplers_that_state_no_single_draw_are_rejected(
    name: str, wrap: Callable[[Factory], Factory]
) -> None:
    factory = wrap(REJECTED[name])
    for make in (
        lambda: mixed(UniformSampler, factory),
        lambda: mixed(factory, AdaptiveBatchSampler),
        lambda: CurriculumSampler(SIZE, factory),
    ):
        with pytest.raises(ValueError, match=r"cannot be part of a (mixture|curriculum): "):
            make()


def test_they_work_outside_of_mixtures() -> None:
    outermost = BucketedSampler(SIZE, lambda n: MixtureSampler(n, [ShuffledSampler] * 2))
    outermost.set_lengths(LOSS)
    draw = outermost.draw(4)
    assert draw.probability.tolist() == [1 / SIZE] * 4


def test_loss_weights_reach_the_mean_under_a_curriculum() -> None:
    sampler = CurriculumSampler(SIZE, AdaptiveDataWeighter, start=0.6, difficulty=LOSS)
    sampler.update(torch.arange(SIZE), LOSS)
    support = sampler.probabilities() > 0
    weight = sampler.loss_weights(support.nonzero().flatten())
    assert weight is not None
    assert float(weight.mean()) == pytest.approx(1)


def test_infobatch_sums_over_an_epoch_are_unbiased_after_samples_return() -> None:
    # A sample of inclusion 1/2 that leaves and returns is part of the new epoch at inclusion 1.
    total = 0.0
    for seed in range(400):
        sampler = InfoBatchSampler(SIZE, seed=seed)
        sampler.update(torch.arange(SIZE), LOSS)
        sampler.draw(3)
        sampler.remove(torch.tensor([0, 4]))
        sampler.insert(torch.tensor([0, 4]))
        epoch = [sampler.draw(1)]
        epoch += [sampler.draw(1) for _ in range(len(sampler._order) - 1)]
        total += sum(float(F[d.index] / (SIZE * d.probability)) for d in epoch) / SIZE
    assert total / 400 == pytest.approx(float(F.mean()), abs=0.15)
