"""What every sampler guarantees, and the least that a sampler of your own must implement."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer, seed_everything
from scipy import stats
from torch import Tensor

from callbacks import LossRefresh
from lit_adaptive.data import AdaptiveDataModule, LongTailedDigits
from lit_adaptive.modules import Classifier, Dense
from lit_adaptive.samplers import (
    AdaptiveBatchSampler,
    AdaptiveSampler,
    CurriculumSampler,
    Draw,
    IndexSampler,
    MixtureSampler,
    PrioritizedSampler,
    RankPrioritizedSampler,
    RewardWeightedSampler,
    UniformSampler,
)
from lit_adaptive.samplers.base import check_indices

ALL = [
    UniformSampler,
    PrioritizedSampler,
    RankPrioritizedSampler,
    RewardWeightedSampler,
    AdaptiveBatchSampler,
]
every_sampler = pytest.mark.parametrize("cls", ALL)
prioritized = pytest.mark.parametrize("cls", [PrioritizedSampler, RankPrioritizedSampler])
Class = Callable[..., Any]
OTHER_SETTINGS: dict[Any, dict[str, Any]] = {
    PrioritizedSampler: {"alpha": 0.1},
    RankPrioritizedSampler: {"alpha": 0.1},
    RewardWeightedSampler: {"temperature": 0.1},
    AdaptiveBatchSampler: {"momentum": 0.5},
}


# A minimal sampler --------------------------------------------------------------------------------


class SoftmaxSampler(AdaptiveSampler):
    """Draws samples in proportion to exp(loss / temperature)."""

    def __init__(self, size: int, temperature: float = 1.0) -> None:
        super().__init__(size)
        self.temperature = temperature
        self.loss = torch.zeros(size, dtype=torch.float64)

    def draw(self, batch_size: int) -> Draw:
        probability = torch.softmax(self.loss / self.temperature, dim=0)
        index = probability.multinomial(batch_size, replacement=True, generator=self.generator)
        return Draw(index, probability[index])

    def update(self, index: Tensor, priority: Tensor) -> None:
        self.loss[index] = priority.double()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "loss": self.loss.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.loss.copy_(state["loss"])


class Batches(Callback):
    """Records what every training step received."""

    needs = provides = frozenset()

    def __init__(self) -> None:
        self.steps: list[list[Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, _: int):
        names = ("index", "probability", "weight")
        self.steps.append([batch[name].tolist() for name in names] + [float(outputs["loss"])])


def fit(folder: Path, max_steps: int, checkpoint: Path | None = None) -> tuple[Any, Trainer]:
    seed_everything(3, verbose=False)
    batches = Batches()
    data = AdaptiveDataModule(
        LongTailedDigits("train"), SoftmaxSampler, val_dataset=LongTailedDigits("validation"),
        batch_size=16, batches_per_epoch=5, beta=0.5,
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", use_distributed_sampler=False, default_root_dir=folder, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        max_steps=max_steps, limit_val_batches=0, callbacks=[batches, LossRefresh()],
    )  # fmt: skip
    trainer.fit(
        Classifier(Dense(64, 10, hidden=[16]), 10), data, ckpt_path=checkpoint, weights_only=True
    )
    return batches.steps, trainer


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_a_sampler_of_five_methods_trains_and_resumes_as_if_never_interrupted(
    tmp_path: Path,
) -> None:
    expected, trainer = fit(tmp_path, 13)
    assert len({weight for step in expected[1:] for weight in step[2]}) > 10  # it learnt
    first, interrupted = fit(tmp_path, 7)
    interrupted.save_checkpoint(tmp_path / "step7.ckpt")
    rest, resumed = fit(tmp_path, 13, tmp_path / "step7.ckpt")
    assert first + rest == expected
    loss = trainer.datamodule.sampler.loss  # type: ignore[attr-defined]
    assert resumed.datamodule.sampler.loss.equal(loss)  # type: ignore[attr-defined]


def test_a_minimal_sampler_learns_has_all_indices_and_no_needs() -> None:
    sampler = SoftmaxSampler(7)
    assert sampler.learns
    assert sampler.count == 7
    needs = [sampler.needs_difficulty, sampler.needs_groups, sampler.needs_lengths]
    abilities = [sampler.follows_progress, sampler.has_loss_weights, sampler.accepts_absent]
    assert needs + abilities == [False] * 6
    assert sampler.loss_weights(torch.tensor([1])) is None
    sampler.advance(0.5)
    sampler.set_difficulty(torch.zeros(7))
    sampler.reseed(4)
    first = sampler.draw(9).index
    sampler.reseed(4)
    assert sampler.draw(9).index.equal(first)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("insert", [torch.tensor([1])]),
        ("remove", [torch.tensor([1])]),
        ("clear", []),
        ("probabilities", []),
        ("scores", []),
        ("set_scores", [torch.ones(7)]),
    ],
)
def test_a_method_without_default_names_itself_and_its_purpose(
    method: str, arguments: list[Any]
) -> None:
    with pytest.raises(
        ValueError, match=f"SoftmaxSampler does not implement {method}, which it needs"
    ):
        getattr(SoftmaxSampler(7), method)(*arguments)


def test_a_minimal_sampler_cannot_forget() -> None:
    with pytest.raises(ValueError, match=r"SoftmaxSampler cannot forget 0\.5"):
        SoftmaxSampler(7).forget(0.5)


def test_probabilities_are_enough_for_a_mixture() -> None:
    class WithProbabilities(SoftmaxSampler):
        def probabilities(self) -> Tensor:
            return torch.softmax(self.loss / self.temperature, dim=0)

    sampler = WithProbabilities(3)
    sampler.update(torch.tensor([2]), torch.tensor([2.0]))
    expected = torch.tensor([0.0, 0, 2], dtype=torch.float64).softmax(0)
    assert sampler.probability_of(torch.tensor([2, 0])).equal(expected[[2, 0]])
    assert sampler.min_probability() == expected[0]
    mixture = MixtureSampler(3, [WithProbabilities, UniformSampler])
    mixture.update(torch.tensor([2]), torch.tensor([2.0]))
    torch.testing.assert_close(mixture.probabilities(), 0.5 * expected + 0.5 / 3)
    assert mixture.draw(4).probability.shape == (4,)


def test_an_incomplete_sampler_cannot_be_made() -> None:
    class Incomplete(IndexSampler):
        def draw(self, batch_size: int) -> Draw:
            raise AssertionError

    with pytest.raises(TypeError, match="abstract method"):
        Incomplete(3)  # type: ignore[abstract]


# What every sampler guarantees --------------------------------------------------------------------


def used(cls: Class, size: int = 40, **options: Any) -> Any:
    """A sampler after removals, insertions, draws and updates."""
    sampler = cls(size, seed=5, **options)
    sampler.remove(torch.tensor([0, 7, 7, size - 1]))
    sampler.draw(9)
    if isinstance(sampler, AdaptiveSampler):
        sampler.update(torch.arange(1, 7), torch.tensor([0.5, 3, 0.01, 9, 2, 1]))
    sampler.insert(torch.tensor([7]))
    return sampler


@every_sampler
def test_draws_follow_the_probabilities_reported(cls: Class) -> None:
    sampler = used(cls)
    probability = sampler.probabilities()
    assert probability.shape == (40,)
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert sampler.min_probability() == probability[probability > 0].min()
    counts = torch.zeros(40, dtype=torch.float64)
    for _ in range(8000):
        draw = sampler.draw(1)
        assert draw.probability.equal(probability[draw.index])
        counts[draw.index] += 1
    drawable = probability > 0
    assert counts[~drawable].sum() == 0
    expected = probability[drawable] * 8000
    assert stats.chisquare(counts[drawable].numpy(), expected.numpy()).pvalue > 1e-3


@every_sampler
def test_probability_of_agrees_with_probabilities(cls: Class) -> None:
    sampler = used(cls)
    index = torch.tensor([3, 0, 3, 12])
    assert sampler.probability_of(index).equal(sampler.probabilities()[index])


@every_sampler
def test_an_index_is_expected_batch_size_times_probability_times_in_a_batch(cls: Class) -> None:
    sampler = used(cls)
    draws = [sampler.draw(64) for _ in range(3000)]
    count = torch.bincount(torch.cat([d.index for d in draws]), minlength=40) / (3000 * 64)
    torch.testing.assert_close(count.double(), sampler.probabilities(), rtol=0.05, atol=1e-3)


@every_sampler
def test_a_resumed_sampler_draws_what_the_uninterrupted_one_draws(cls: Class) -> None:
    sampler = used(cls)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    resumed = cls(40, seed=99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(5):
        draw, resumed_draw = sampler.draw(13), resumed.draw(13)
        assert draw.index.equal(resumed_draw.index)
        assert draw.probability.equal(resumed_draw.probability)
        for s in (sampler, resumed):
            s.remove(draw.index[:2])
            s.insert(draw.index[:1])
            if isinstance(s, AdaptiveSampler):
                s.insert(draw.index)
                s.update(draw.index, draw.index.double() / 7)
                s.insert(draw.index[:3])  # at the maximum priority, which must be remembered


@every_sampler
def test_a_state_is_a_copy(cls: Class) -> None:
    sampler = used(cls)
    state = sampler.state_dict()
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
    index = sampler.draw(13).index
    if isinstance(sampler, AdaptiveSampler):
        sampler.update(index, index.double() / 7)
    sampler.remove(index[:2])
    for name, value in before.items():
        if isinstance(value, Tensor):  # an unknown reward is NaN
            assert value.nan_to_num().equal(state[name].nan_to_num()), name
        else:
            assert value == state[name], name


@every_sampler
def test_equal_seeds_draw_equally_and_reseeding_restarts_the_draws(cls: Class) -> None:
    first, second = cls(100, seed=1), cls(100, seed=2)
    assert not first.draw(50).index.equal(second.draw(50).index)
    for sampler in (first, second):
        sampler.reseed(8)
    assert first.draw(50).index.equal(second.draw(50).index)


@every_sampler
def test_filled_false_is_empty_and_clear_empties(cls: Class) -> None:
    sampler = cls(10, filled=False)
    for _ in range(2):
        assert sampler.count == 0
        for call in (lambda: sampler.draw(3), sampler.min_probability, sampler.probabilities):
            with pytest.raises(ValueError, match="nothing"):
                call()
        sampler.insert(torch.tensor([4, 2, 4]))
        assert sampler.count == 2
        assert set(sampler.draw(50).index.tolist()) == {2, 4}
        sampler.clear()


@every_sampler
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 8), max_size=6)), max_size=12))
@settings(deadline=None)
def test_insert_and_remove_keep_exactly_the_set(cls: Class, steps: list[Any]) -> None:
    sampler, twin = cls(9, filled=False), set[int]()
    for inserted, index in steps:
        if inserted:
            sampler.insert(torch.tensor(index, dtype=torch.int64))
            twin |= set(index)
        else:
            sampler.remove(torch.tensor(index, dtype=torch.int64))
            twin -= set(index)
        assert sampler.count == len(twin)
        if twin:
            assert set(sampler.probabilities().nonzero().flatten().tolist()) == twin
            assert set(sampler.draw(50 * len(twin)).index.tolist()) <= twin


@every_sampler
def test_a_size_or_batch_size_of_zero_is_an_error(cls: Class) -> None:
    with pytest.raises(ValueError, match="size is 0"):
        cls(0)
    sampler = cls(5)
    for size in (0, -3):
        with pytest.raises(ValueError, match=f"batch_size is {size}"):
            sampler.draw(size)


@every_sampler
@pytest.mark.parametrize("method", ["insert", "remove"])
@pytest.mark.parametrize("index", [[1, -1, 5], [0.5], [[1]]])
def test_inserting_or_removing_a_wrong_index_changes_nothing(
    cls: Class, method: str, index: list[Any]
) -> None:
    sampler = cls(5)
    before = sampler.probabilities()
    with pytest.raises(ValueError, match="index"):
        getattr(sampler, method)(torch.tensor(index))
    assert sampler.probabilities().equal(before)
    assert sampler.count == 5


@every_sampler
def test_the_state_of_another_sampler_is_an_error_and_changes_nothing(cls: Class) -> None:
    sampler = used(cls)
    before = sampler.probabilities()
    others = [other(40) for other in ALL if other is not cls] + [cls(41)]
    if cls in OTHER_SETTINGS:
        others.append(cls(40, **OTHER_SETTINGS[cls]))
    random_state = sampler.generator.get_state()
    for other in others:
        with pytest.raises(ValueError, match="the state"):
            sampler.load_state_dict(other.state_dict())
    assert sampler.probabilities().equal(before)
    assert sampler.generator.get_state().equal(random_state)


@pytest.mark.parametrize(
    ("cls", "change"),
    [
        (UniformSampler, {"item": torch.zeros(40, dtype=torch.int64)}),
        (UniformSampler, {"count": 41}),
        (PrioritizedSampler, {"mass": torch.full((40,), math.nan, dtype=torch.float64)}),
        (PrioritizedSampler, {"mass": torch.ones(40, dtype=torch.float64)}),
        (PrioritizedSampler, {"max_priority": math.inf}),
        (PrioritizedSampler, {"inserted": torch.ones(4, dtype=torch.bool)}),
        (RankPrioritizedSampler, {"item": torch.zeros(38, dtype=torch.int64)}),
        (RankPrioritizedSampler, {"heap": torch.zeros(3, dtype=torch.float64)}),
        (RankPrioritizedSampler, {"heap": torch.arange(38, dtype=torch.float64)}),
        (RankPrioritizedSampler, {"max_priority": math.nan}),
        (AdaptiveBatchSampler, {"log_weight": torch.zeros(39)}),
    ],
)
def test_a_damaged_state_is_an_error_and_changes_nothing(
    cls: Class, change: dict[str, Any]
) -> None:
    sampler = used(cls)
    before = sampler.probabilities()
    random_state = sampler.generator.get_state()
    with pytest.raises(ValueError, match="damaged"):
        sampler.load_state_dict({**used(cls).state_dict(), **change})
    assert sampler.probabilities().equal(before)
    assert sampler.generator.get_state().equal(random_state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@every_sampler
def test_a_sampler_on_the_gpu_draws_what_the_one_on_the_cpu_draws(cls: Class) -> None:
    if cls is AdaptiveBatchSampler:
        pytest.skip("exponentials differ in the last bit")
    plain = cls in (UniformSampler, RewardWeightedSampler)
    options = {} if plain else {"alpha": 1.0}  # powers differ in the last bit
    cpu, gpu = used(cls, **options), used(cls, device="cuda", **options)
    for _ in range(5):
        cpu_draw, gpu_draw = cpu.draw(20), gpu.draw(20)
        assert gpu_draw.index.is_cuda
        assert cpu_draw.index.equal(gpu_draw.index.cpu())
        assert cpu_draw.probability.equal(gpu_draw.probability.cpu())
        for sampler, draw in ((cpu, cpu_draw), (gpu, gpu_draw)):
            if isinstance(sampler, AdaptiveSampler):
                sampler.update(draw.index, draw.index.double() + 1)
            sampler.remove(draw.index[:1])
    state = gpu.state_dict()
    assert not any(isinstance(v, Tensor) and v.is_cuda for v in state.values())
    resumed = cls(40, device="cuda", **options)
    resumed.load_state_dict(state)
    assert resumed.draw(9).index.equal(gpu.draw(9).index)


# What both prioritized samplers guarantee ---------------------------------------------------------


@prioritized
@pytest.mark.parametrize(
    ("index", "priority", "message"),
    [
        ([1, -1], [1, 1], r"out of range: \[-1\]"),
        ([1, 40], [1, 1], r"out of range: \[40\]"),
        ([1, 2, 3], [1, math.nan, math.inf], r"index \[2, 3\]"),
        ([1, 2], [-1, 5], r"index \[1\]"),
        ([1, 0], [5, 5], r"index \[0\] was not inserted"),
        ([1, 2], [5], "shape"),
    ],
)
def test_a_wrong_update_names_its_indices_and_changes_nothing(
    cls: Class, index: list[int], priority: list[float], message: str
) -> None:
    sampler = used(cls)
    before = sampler.probabilities()
    with pytest.raises(ValueError, match=message):
        sampler.update(torch.tensor(index), torch.tensor(priority, dtype=torch.float64))
    assert sampler.probabilities().equal(before)
    assert sampler.max_priority == 9


@prioritized
def test_an_alpha_outside_0_1_is_an_error(cls: Class) -> None:
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="alpha is"):
            cls(5, alpha=alpha)


@prioritized
def test_new_items_get_the_maximum_priority_so_far(cls: Class) -> None:
    # Schaul et al. (2016), section 3.3 and algorithm 1: p_1 = 1, then the maximum so far.
    sampler = cls(10, alpha=1.0, filled=False)
    sampler.insert(torch.tensor([0]))
    assert sampler.max_priority == 1
    sampler.update(torch.tensor([0]), torch.tensor([4.0]))
    sampler.update(torch.tensor([0]), torch.tensor([0.5]))
    assert sampler.max_priority == 4
    sampler.insert(torch.tensor([1]))
    probability = sampler.probabilities()
    ratio = 8 if cls is PrioritizedSampler else 2  # 4 to 1/2, or rank 1 to rank 2
    assert probability[1] == ratio * probability[0]


@prioritized
def test_of_an_index_given_twice_the_last_priority_counts(cls: Class) -> None:
    sampler = cls(3, alpha=1.0)
    sampler.update(torch.tensor([0, 1, 2, 0]), torch.tensor([50.0, 3, 2, 1]))
    if isinstance(sampler, RankPrioritizedSampler):
        sampler.sort()
    assert sampler.probabilities().argsort().tolist() == [0, 2, 1]


@prioritized
def test_set_scores_restores_the_distribution_of_the_saved_scores(cls: Class) -> None:
    sampler, fresh = cls(6), cls(6)
    sampler.update(torch.arange(6), torch.tensor([3.0, 1, 2, 6, 5, 4]))
    fresh.set_scores(sampler.scores())
    if isinstance(sampler, RankPrioritizedSampler):
        sampler.sort()
    torch.testing.assert_close(fresh.probabilities(), sampler.probabilities())


# Checks of arguments ------------------------------------------------------------------------------


def test_check_indices_returns_int64_on_the_cpu() -> None:
    index = check_indices(torch.tensor([2, 0], dtype=torch.int32), 3)
    assert index.dtype is torch.int64
    assert index.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([0, 3, -1]), r"out of range: \[3, -1\]; indices lie in \[0, 3\)"),
        (torch.tensor([0.0]), r"float32 of shape \(1,\); pass int64"),
        (torch.tensor([True]), "bool of shape"),
        (torch.tensor([[0]]), r"shape \(1, 1\)"),
    ],
)
def test_check_indices_names_wrong_indices(index: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_indices(index, 3)


def test_the_uniform_sampler_has_no_update() -> None:
    assert isinstance(UniformSampler(3), IndexSampler)
    assert not isinstance(UniformSampler(3), AdaptiveSampler)
    assert not hasattr(UniformSampler(3), "update")


def test_a_curriculum_over_a_sampler_with_a_fixed_set_of_indices_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"SoftmaxSampler does not implement clear, .*curriculum"):
        CurriculumSampler(7, SoftmaxSampler)
