"""Any dataset, any sampler: weights through compositions, staleness, evaluation, scores, input."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from lit_adaptive.data import AdaptiveDataModule, LongTailedDigits, TableDataset
from lit_adaptive.samplers import (
    AdaptiveBatchSampler,
    AdaptiveDataWeighter,
    BucketedSampler,
    CurriculumSampler,
    InfoBatchSampler,
    MixtureSampler,
    PrioritizedSampler,
    RewardWeightedSampler,
    ShuffledSampler,
    UniformSampler,
)

PAIRS = TensorDataset(torch.arange(20.0), torch.arange(20))
LOSS = torch.linspace(0.1, 3, 20)


class _Trainer:
    """The place of a process among others."""

    def __init__(self, rank: int, world: int) -> None:
        self.global_rank, self.world_size = rank, world


class _Gathering(Dataset[Any]):
    """Offers whole batches, columns and ids."""

    ids = [f"item-{i}" for i in range(20)]  # noqa: RUF012

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("items are read one by one although the dataset has gather")

    def gather(self, index: Tensor) -> dict[str, Any]:
        return {"input": index * 2.0, "target": index % 3}

    def column(self, name: str) -> Tensor:
        return torch.arange(20.0).flip(0).double()


def test_every_sample_once_in_an_epoch_is_the_default() -> None:
    data = AdaptiveDataModule(PAIRS, batch_size=5)
    for _ in range(2):
        drawn = torch.cat([batch["index"] for batch in data.train_dataloader()])
        assert drawn.sort().values.equal(torch.arange(20))


def test_unnormalized_weights_have_mean_one() -> None:
    data = AdaptiveDataModule(PAIRS, PrioritizedSampler, batch_size=50, seed=1)
    data.update({"index": torch.arange(20)}, LOSS)
    law = data.sampler.probabilities()
    batch = next(iter(data.train_dataloader()))
    torch.testing.assert_close(batch["weight"], (1 / (20 * law))[batch["index"]].float())
    assert float((law / (20 * law)).sum()) == pytest.approx(1.0)


def test_data_weights_are_current_and_importance_weights_those_of_the_draw() -> None:
    data = AdaptiveDataModule(PAIRS, AdaptiveDataWeighter, batch_size=20)
    stream = iter(data.train_dataloader())
    data.update({"index": torch.arange(20)}, LOSS)
    batch = next(stream)
    weight = data.sampler.loss_weights(batch["index"])
    assert weight is not None
    torch.testing.assert_close(batch["weight"], weight.float())
    assert float(weight.mean()) == pytest.approx(1.0)


def test_infobatch_weights_are_the_papers() -> None:
    data = AdaptiveDataModule(PAIRS, InfoBatchSampler, batch_size=20, seed=0)
    next(iter(data.train_dataloader()))
    data.update({"index": torch.arange(20)}, LOSS)  # mean 1.55: the first ten are easy
    batch = next(iter(data.train_dataloader()))
    assert batch["weight"].tolist() == [2.0 if i < 10 else 1.0 for i in batch["index"].tolist()]


def test_curriculum_weights_use_the_support_at_the_draw() -> None:
    data = AdaptiveDataModule(
        PAIRS,
        lambda n: CurriculumSampler(n, UniformSampler, start=0.5, power=1, until=1.0, by="loss"),
        batch_size=4,
        num_workers=1,
        batches_per_epoch=6,
    )
    data.update({"index": torch.arange(20)}, LOSS)
    data.advance(0.0)
    stream = iter(data.train_dataloader())
    first = next(stream)
    assert data.sampler.count == 10
    data.advance(1.0)  # the support doubles while two draws are under way
    rest = list(stream)
    assert all(batch["weight"].eq(1).all() for batch in (first, *rest))
    stale = [float(batch["probability"][0]) for batch in rest]
    assert stale[0] == 1 / 10
    assert stale[-1] == 1 / 20


@pytest.mark.parametrize("workers", [0, 2])
def test_staleness_is_the_number_of_batches_since_the_draw(workers: int) -> None:
    data = AdaptiveDataModule(PAIRS, UniformSampler, batch_size=2, num_workers=workers)
    seen = [data.staleness for _ in data.train_dataloader()]
    # torch fetches two batches ahead for each worker, the next before it hands one over.
    expected = [0] * 10 if workers == 0 else [0, 1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert seen == expected


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 7, 20])
def test_evaluation_counts_every_sample_once_on_equally_many_batches(world: int, size: int) -> None:
    held_out = TensorDataset(torch.arange(float(size)), torch.arange(size))
    counted: list[int] = []
    lengths = set()
    for rank in range(world):
        data = AdaptiveDataModule(PAIRS, val_dataset=held_out, batch_size=1, eval_batch_size=3)
        data.trainer = _Trainer(rank, world)  # type: ignore[assignment]
        loader = data.val_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader)
        lengths.add(len(batches))
        for batch in batches:
            assert batch["input"].long().equal(batch["index"])
            counted += batch["index"][batch["counted"]].tolist()
    assert sorted(counted) == list(range(size))
    assert len(lengths) == 1


@pytest.mark.parametrize("world", [1, 2])
def test_an_epoch_draws_the_dataset_size_over_all_ranks(world: int) -> None:
    data = AdaptiveDataModule(PAIRS, batch_size=4)
    data.trainer = _Trainer(0, world)  # type: ignore[assignment]
    assert len(data.train_dataloader()) == (5 if world == 1 else 3)


@pytest.mark.parametrize(("limit", "taken"), [(3, 3), (0.75, 3), (1.0, 4), (9, 4)])
def test_no_more_batches_are_drawn_than_the_trainer_uses(limit: float, taken: int) -> None:
    # With workers, draws run ahead: beyond the epoch's end they would be lost from the pass.
    data = AdaptiveDataModule(PAIRS, batch_size=5, num_workers=1)
    trainer = _Trainer(0, 1)
    trainer.limit_train_batches = limit  # type: ignore[attr-defined]
    data.trainer = trainer  # type: ignore[assignment]
    drawn: list[int] = []
    for _ in range(4):
        stream = iter(data.train_dataloader())
        for _ in range(taken):  # as Lightning does
            drawn += next(stream)["index"].tolist()
    passes = [drawn[start : start + 20] for start in range(0, len(drawn) - 19, 20)]
    assert all(sorted(once) == list(range(20)) for once in passes)
    assert len(data.train_dataloader()) == 4  # of which Lightning takes its part


def test_batches_are_gathered_at_once_if_the_dataset_can() -> None:
    data = AdaptiveDataModule(_Gathering(), AdaptiveBatchSampler, batch_size=6)
    batch = next(iter(data.train_dataloader()))
    assert batch["input"].equal(batch["index"] * 2.0)
    scored = list(data.scoring_dataloader())
    assert torch.cat([each["index"] for each in scored]).equal(torch.arange(20))


def test_written_scores_start_a_later_run(tmp_path: Path) -> None:
    for suffix in ("csv", "parquet"):
        path = tmp_path / f"scores.{suffix}"
        data = AdaptiveDataModule(_Gathering(), AdaptiveBatchSampler)
        data.update({"index": torch.arange(20)}, LOSS)
        data.write_scores(path)
        again = AdaptiveDataModule(_Gathering(), AdaptiveBatchSampler, scores=str(path))
        torch.testing.assert_close(
            again.sampler.probabilities(), data.sampler.probabilities(), rtol=1e-6, atol=0
        )
    with pytest.raises(ValueError, match="item-0"):
        AdaptiveDataModule(PAIRS, AdaptiveBatchSampler, scores=str(path))
    with pytest.raises(ValueError, match="ShuffledSampler does not learn scores"):
        AdaptiveDataModule(_Gathering(), scores=str(path))
    with pytest.raises(ValueError, match="ShuffledSampler does not learn scores"):
        AdaptiveDataModule(_Gathering()).write_scores(path)
    prioritized = AdaptiveDataModule(_Gathering(), PrioritizedSampler, scores=str(path))
    again_law = prioritized.sampler.probabilities()
    weights = data.sampler.scores().pow(0.6)  # type: ignore[attr-defined]
    torch.testing.assert_close(again_law, weights / weights.sum(), rtol=1e-6, atol=0)


def test_scores_may_be_a_column_such_as_rewards(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("x,y,reward,word\n1.0,0,-1.5,a\n2.0,1,0.5,b\n3.0,1,2,c\n")
    table = TableDataset(path, features=["x"], target="y")
    data = AdaptiveDataModule(table, RewardWeightedSampler, scores="reward")
    expected = torch.tensor([-1.5, 0.5, 2.0]).double().softmax(0)
    torch.testing.assert_close(data.sampler.probabilities(), expected)
    for scores, words in (("rewards", "rewards"), ("word", "not numeric")):
        with pytest.raises(ValueError, match=words):
            AdaptiveDataModule(table, RewardWeightedSampler, scores=scores)
    with pytest.raises(ValueError, match="TensorDataset has no named columns"):
        AdaptiveDataModule(PAIRS, RewardWeightedSampler, scores="reward")
    with pytest.raises(ValueError, match="MixtureSampler does not learn scores"):
        AdaptiveDataModule(table, lambda n: MixtureSampler(n, [UniformSampler]), scores="reward")


def test_groups_and_lengths_come_from_the_dataset() -> None:
    class Grouped(_Gathering):
        groups = torch.arange(20) // 5
        lengths = list(range(20))  # noqa: RUF012

    data = AdaptiveDataModule(
        Grouped(), lambda n: RewardWeightedSampler(n, balance_groups=True), scores="any"
    )
    law = data.sampler.probabilities()
    assert law.view(4, 5).sum(1).tolist() == pytest.approx([0.25] * 4)
    assert "data.texts" not in data.provides
    data = AdaptiveDataModule(Grouped(), lambda n: BucketedSampler(n, batches=4), batch_size=5)
    drawn = [batch["index"].tolist() for batch in data.train_dataloader()]
    assert sorted(drawn) == [list(range(start, start + 5)) for start in range(0, 20, 5)]
    with pytest.raises(
        ValueError, match=r"RewardWeightedSampler needs each sample's group.*`groups`"
    ):
        AdaptiveDataModule(_Gathering(), lambda n: RewardWeightedSampler(n, normalize_groups=True))
    with pytest.raises(ValueError, match=r"BucketedSampler needs each sample's length.*`lengths`"):
        AdaptiveDataModule(_Gathering(), BucketedSampler)


def test_difficulty_comes_from_a_column_or_a_file(tmp_path: Path) -> None:
    def curriculum(n: int) -> CurriculumSampler:
        return CurriculumSampler(n, start=0.25)

    data = AdaptiveDataModule(_Gathering(), curriculum, difficulty="any", batch_size=5)
    assert set(data.sampler.draw(20).index.tolist()) == {15, 16, 17, 18, 19}
    path = tmp_path / "difficulty.csv"
    path.write_text("id,score\n" + "".join(f"item-{i},{i}\n" for i in range(20)))
    data = AdaptiveDataModule(_Gathering(), curriculum, difficulty=str(path))
    assert set(data.sampler.draw(20).index.tolist()) == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="needs the difficulty of each sample"):
        AdaptiveDataModule(PAIRS, curriculum)
    with pytest.raises(ValueError, match="TensorDataset has no named columns"):
        AdaptiveDataModule(PAIRS, curriculum, difficulty="length")
    mixture = AdaptiveDataModule(
        _Gathering(), lambda n: MixtureSampler(n, [curriculum, UniformSampler]), difficulty="any"
    )
    assert not mixture.sampler.needs_difficulty


def test_a_missing_or_textual_difficulty_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("x,y,word\n1.0,0,a\n2.0,1,b\n")
    table = TableDataset(path, features=["x"], target="y")
    for name, words in (("hardness", "hardness"), ("word", "word")):
        with pytest.raises(ValueError, match=words):
            AdaptiveDataModule(table, CurriculumSampler, difficulty=name)
    data = AdaptiveDataModule(table, CurriculumSampler, difficulty="x", batch_size=2)
    assert next(iter(data.train_dataloader()))["input"].shape == (2, 1)


def test_resuming_with_another_dataset_size_is_rejected() -> None:
    state = AdaptiveDataModule(PAIRS, AdaptiveBatchSampler).state_dict()
    shorter = TensorDataset(torch.arange(19.0), torch.arange(19))
    with pytest.raises(ValueError, match=r"there are 19 rows, and were 20. The sampler's state"):
        AdaptiveDataModule(shorter, AdaptiveBatchSampler).load_state_dict(state)


def test_a_dataset_that_cannot_be_drawn_is_rejected() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter([1])

    with pytest.raises(ValueError, match="Stream has no length"):
        AdaptiveDataModule(Stream())
    with pytest.raises(ValueError, match="the dataset is empty"):
        AdaptiveDataModule(TensorDataset(torch.empty(0)))
    with pytest.raises(ValueError, match="there is neither a test_dataset nor a val_dataset"):
        AdaptiveDataModule(PAIRS).test_dataloader()
    with pytest.raises(ValueError, match="eval_batch_size is -1"):
        AdaptiveDataModule(PAIRS, eval_batch_size=-1)


def test_long_tail_has_the_profile_and_held_out_images_stay_out() -> None:
    # n_c = 114 * 100^(-c / 9), rounded: 114, 68, 41, 25, 15, 9, 5, 3, 2, 1.
    train, test = LongTailedDigits("train", seed=3), LongTailedDigits("test")
    validation = LongTailedDigits("validation")
    counts = torch.bincount(train.targets).sort(descending=True).values
    assert counts.tolist() == [114, 68, 41, 25, 15, 9, 5, 3, 2, 1]
    assert torch.bincount(test.targets).tolist() == [45] * 10
    assert torch.bincount(validation.targets).tolist() == [15] * 10
    together = torch.cat([train.ids, test.ids, validation.ids])
    assert len(torch.unique(together)) == len(together)
    assert train.inputs.shape[1:] == (1, 8, 8)
    assert 0 <= float(train.inputs.min()) < float(train.inputs.max()) <= 1
    other = LongTailedDigits("train", seed=4)
    assert torch.bincount(other.targets).argmax() != torch.bincount(train.targets).argmax()
    assert LongTailedDigits("test", seed=9).ids.equal(test.ids)


def test_label_noise_replaces_its_share_by_other_classes() -> None:
    noisy = LongTailedDigits(imbalance=1, label_noise=0.2, seed=1)
    wrong = noisy.targets != noisy.true_targets
    assert float(wrong.double().mean()) == pytest.approx(0.2, abs=0.03)
    assert noisy.true_targets.equal(LongTailedDigits(imbalance=1, seed=1).targets)
    reduced = LongTailedDigits(shares=[0.01] * 5 + [1.0] * 5)
    assert torch.bincount(reduced.targets).tolist() == [1] * 5 + [114] * 5


def test_digits_gather_what_items_say_and_rate_difficulty() -> None:
    digits = LongTailedDigits(seed=2)
    index = torch.tensor([5, 0, 5, 200])
    batch = digits.gather(index)
    for place, i in enumerate(index.tolist()):
        assert digits[i]["input"].equal(batch["input"][place])
        assert digits[i]["target"] == batch["target"][place]
    difficulty = digits.column("difficulty")
    assert difficulty.shape == (len(digits),)
    assert bool((difficulty >= 0).all())
    for options, words in (
        ({"split": "dev"}, "split is 'dev'"),
        ({"imbalance": 0.5}, r"imbalance is 0\.5"),
        ({"label_noise": 1.0}, r"label_noise is 1\.0"),
        ({"shares": [1.0]}, "10 shares"),
    ):
        with pytest.raises(ValueError, match=words):
            LongTailedDigits(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no column 'size'"):
        digits.column("size")


def test_provides_depends_on_the_sampler() -> None:
    shuffled = AdaptiveDataModule(PAIRS, ShuffledSampler).provides
    assert not {"data.update", "data.advance", "data.write_scores"} & shuffled
    boosted = AdaptiveDataModule(PAIRS, AdaptiveBatchSampler).provides
    assert {"data.update", "data.write_scores", "data.scoring_dataloader"} <= boosted
    assert "data.advance" not in boosted
    pruned = AdaptiveDataModule(PAIRS, InfoBatchSampler).provides
    assert {"data.update", "data.advance"} <= pruned


def test_an_empty_test_set_is_an_error_and_not_the_validation_set() -> None:
    data = AdaptiveDataModule(PAIRS, val_dataset=PAIRS, test_dataset=Subset(PAIRS, []))
    for loader in (data.test_dataloader, data.predict_dataloader):
        with pytest.raises(ValueError, match="dataset is empty"):
            loader()


def test_without_a_test_set_the_validation_set_is_tested() -> None:
    data = AdaptiveDataModule(PAIRS, val_dataset=Subset(PAIRS, [3]))
    assert [batch["input"].tolist() for batch in data.test_dataloader()] == [[3.0]]
