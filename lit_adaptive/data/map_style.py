"""Datamodule of any map-style dataset, drawn by any sampler."""

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.fingerprint import data_changes, data_fingerprint
from lit_adaptive.data.sampled import Batch, Normalize, SampledDataModule, ServedBatches
from lit_adaptive.data.seeding import derive_seed, seeded
from lit_adaptive.data.sources.columns import DRAW_KEYS, MapDataset
from lit_adaptive.data.sources.scores import aligned_scores, read_scores, write_scores
from lit_adaptive.samplers import (
    AdaptiveSampler,
    BatchDraw,
    DrawBatches,
    SamplerFactory,
    ShuffledSampler,
)

Collate = Callable[[list[Any]], Any]
OnChangedData = Literal["error", "warn"]


class _Fetch(Dataset[Any]):
    """Dataset whose keys are draws: each gives its collated batch, and the draw itself."""

    def __init__(
        self, dataset: Dataset[Any], collate: Collate, seed: tuple[int, ...] = (0,)
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.seed = seed
        self.gather: Callable[[Tensor], Any] | None = (
            getattr(dataset, "gather", None) if collate is default_collate else None
        )

    def __getitem__(self, draw: Any) -> tuple[Any, Any]:
        index: Tensor = draw.index
        if self.gather is not None:
            return self.gather(index), draw
        with seeded(derive_seed(*self.seed, draw.number)):
            return self.collate([self.dataset[i] for i in index.tolist()]), draw


class _EvaluationBatch(NamedTuple):
    """Indices of an evaluation batch; those not ``counted`` pad it to equal sizes over ranks."""

    index: Tensor  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    counted: Tensor
    number: int


def _as_is(fetched: Any) -> Any:
    return fetched


class AdaptiveDataModule(SampledDataModule):
    """Samples of a map-style dataset, drawn by any sampler.

    A batch is the collated dictionary, or ``{"input": ..., "target": ...}`` for a dataset of pairs,
    with the draw's ``index``, ``probability`` and ``weight``. Optional attributes of a dataset are
    ``gather(index)`` (returns a collated batch at once, which is faster, for items that are not
    random), ``column(name)`` (a numeric column), ``ids`` (one per sample, for files of scores), and
    for samplers that need them ``groups`` (``[N]`` integers, the group of each sample) and
    ``lengths`` (``[N]``, the length of each sample), and ``content()`` (see ``data_fingerprint``).

    Args:
        dataset: training set with ``__len__`` and ``__getitem__`` whose items are dictionaries or
            pairs, such as datasets of Hugging Face and torchvision, and tensors;
            ``data.TableDataset`` reads files.
        sampler: chooses what is drawn; by default each sample once per pass, shuffled.
        val_dataset: validation set, read in order; every rank takes its share.
        test_dataset: set for ``test`` and ``predict``; by default the validation set.
        batch_size: samples per batch and rank.
        batches_per_epoch: batches per epoch; by default as many as draw ``len(dataset)`` samples
            over all ranks.
        eval_batch_size: samples per batch of validation, test and prediction; by default four times
            ``batch_size``.
        num_workers: processes that load samples; draws then run ahead by two batches per worker.
        difficulty: difficulty of each sample, for a curriculum: a column of the dataset, or a CSV
            or Parquet file of ``id`` and ``score``.
        scores: initial scores of the sampler: a column of the dataset, such as its rewards, or a
            CSV or Parquet file of ``id`` and ``score``, such as an earlier run's ``scores.csv``.
        beta: see ``SampledDataModule``.
        normalize: see ``SampledDataModule``.
        collate: makes a batch of a list of items.
        on_changed_data: on resuming with a training set whose rows differ from the checkpoint's,
            raise an error, or ``warn`` and go on.
        seed: seed of the sampler; by default that of ``seed_everything``.

    Raises:
        ValueError: if the dataset is empty, a number is out of range, or a file or column does not
            fit the dataset.
    """

    _changed_data_options: ClassVar[tuple[str, ...]] = get_args(OnChangedData)

    def __init__(
        self,
        dataset: MapDataset,
        sampler: SamplerFactory = ShuffledSampler,
        *,
        val_dataset: MapDataset | None = None,
        test_dataset: MapDataset | None = None,
        batch_size: int = 32,
        batches_per_epoch: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        difficulty: str | None = None,
        scores: str | None = None,
        beta: float = 1.0,
        normalize: Normalize = "none",
        collate: Collate = default_collate,
        on_changed_data: OnChangedData = "error",
        seed: int | None = None,
    ) -> None:
        size = _length(dataset)
        super().__init__(
            batch_size=batch_size,
            batches_per_epoch=1 if batches_per_epoch is None else batches_per_epoch,
            beta=beta,
            normalize=normalize,
            seed=seed,
        )
        check_at_least(eval_batch_size=(eval_batch_size, 1))
        for name, evaluated in (("val_dataset", val_dataset), ("test_dataset", test_dataset)):
            _check_same_columns(dataset, evaluated, name)
        self._batches_option = batches_per_epoch
        self.dataset = dataset
        self.val_dataset = val_dataset
        self.test_dataset = test_dataset
        self._categories: dict[str, list[str]] = getattr(dataset, "categories", {})
        self._encode_categories()
        if val_dataset is None:  # Lightning checks for an override, and warns about an empty one
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        self.eval_batch_size = eval_batch_size or 4 * batch_size
        check_at_least(1024, num_workers=(num_workers, 0))
        if on_changed_data not in self._changed_data_options:
            names = " or ".join(self._changed_data_options)
            raise ValueError(f"on_changed_data is {on_changed_data!r}; it must be {names}")
        self.num_workers = num_workers
        self.collate = collate
        self.on_changed_data: str = on_changed_data
        self.sampler = sampler(size)
        self.sampler.reseed(self.seed)
        if difficulty is not None:
            self.sampler.set_difficulty(self.numbers(difficulty))
        elif self.sampler.needs_difficulty:
            raise ValueError(
                f"{type(self.sampler).__name__} needs the difficulty of each sample: set the "
                "datamodule's `difficulty` to a column of the dataset or a file of scores, or use "
                "the losses (by: loss)"
            )
        if self.sampler.needs_groups:
            self.sampler.set_groups(self._dataset_attribute("groups", "each sample's group"))
        if self.sampler.needs_lengths:
            self.sampler.set_lengths(self._dataset_attribute("lengths", "each sample's length"))
        if scores is not None:
            self._warm_start(scores)

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        return data_fingerprint(self.dataset)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state, the position in the epoch, and the data's fingerprint."""
        return super().state_dict() | {"data": self._fingerprint, "categories": self._categories}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue drawing as if the run had never stopped.

        Outside of training, only the categories of columns of strings are the checkpoint's.

        Raises:
            ValueError: if the training set is not the checkpoint's (see ``on_changed_data``), or a
                value is no category of it.
        """
        if self._fitting():
            self._check_data(state_dict)
        self._categories = state_dict.get("categories", {})
        self._encode_categories()
        super().load_state_dict(state_dict)

    def _encode_categories(self) -> None:
        """Encode columns of strings in all sets alike."""
        for dataset in (self.dataset, self.val_dataset, self.test_dataset):
            encode = getattr(dataset, "set_categories", None)
            if encode is not None:
                encode(self._categories)

    def _check_data(self, state_dict: dict[str, Any]) -> bool:
        """Whether the training set's rows are the checkpoint's.

        Raises:
            ValueError: if they are not, unless ``on_changed_data`` is ``remap``, or it is ``warn``
                and their number is.
        """
        if "data" not in state_dict:
            return True
        changes = data_changes(state_dict["data"], self._fingerprint)
        if changes is None:
            return True
        name = getattr(self.dataset, "source", type(self.dataset).__name__)
        message = f"the training data ({name}) are not those of the checkpoint: {changes}"
        if state_dict["data"]["size"] != self.sampler.size and self.on_changed_data != "remap":
            remap = ", set on_changed_data: remap" if "remap" in self._changed_data_options else ""
            raise ValueError(
                f"{message}. The sampler's state is of those rows: resume with them{remap}, or "
                "start a new run"
            )
        if self.on_changed_data == "error":
            raise ValueError(
                f"{message}: resume with that data, or set on_changed_data: warn to go on"
            )
        rank_zero_warn(message)
        return False

    def _dataset_attribute(self, name: str, meaning: str) -> Tensor:
        """An attribute ``[N]`` of the dataset that the sampler needs."""
        values: Tensor | None = getattr(self.dataset, name, None)
        if values is None:
            raise ValueError(
                f"{type(self.sampler).__name__} needs {meaning}, and {type(self.dataset).__name__} "
                f"has no attribute `{name}`: add it to the dataset ([N], as "
                "data.DemonstrationDataset has it), or choose another sampler"
            )
        return torch.as_tensor(values)

    @property
    def ids(self) -> Any:
        """Id of each sample: the dataset's ``ids``, or the row numbers."""
        ids = getattr(self.dataset, "ids", None)
        return torch.arange(self.sampler.size) if ids is None else ids

    def numbers(self, source: str) -> Tensor:
        """One number per sample: a column of the dataset, or a file of ``id`` and ``score``.

        Raises:
            ValueError: if there is no such column or file, or it does not fit the dataset.
        """
        if Path(source).suffix.lower() in (".csv", ".parquet"):
            return aligned_scores(read_scores(source), self.ids)
        column = getattr(self.dataset, "column", None)
        if column is None:
            raise ValueError(
                f"{source!r} is not a CSV or Parquet file, and {type(self.dataset).__name__} has "
                "no named columns: give a file of id and score"
            )
        values: Tensor = column(source)
        return values

    def _warm_start(self, source: str) -> None:
        if not (isinstance(self.sampler, AdaptiveSampler) and self.sampler.learns):
            raise ValueError(
                f"scores is {source!r}, but {type(self.sampler).__name__} does not learn scores: "
                "choose a sampler that does, or leave scores out"
            )
        self.sampler.set_scores(self.numbers(source))
        self._has_initial_scores = True

    def write_scores(self, path: str | Path) -> None:
        """Write the sampler's scores to a file, for ``scores`` of a later run.

        Raises:
            ValueError: if it does not learn scores, or the path does not end in ``.csv`` or
                ``.parquet``.
        """
        if not isinstance(self.sampler, AdaptiveSampler):
            raise ValueError(
                f"{type(self.sampler).__name__} does not learn scores that could be written: "
                "choose an adaptive sampler"
            )
        write_scores(path, self.ids, self.sampler.scores())

    @property
    def provides(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``; the batch's keys are those of the dataset's first item."""
        first = self._named(
            _Fetch(self.dataset, self.collate)[_EvaluationBatch(torch.tensor([0]), _ONE, 0)][0]
        )
        names = {f"batch.{key}" for key in first} | {"data.scoring_dataloader"}
        if isinstance(self.sampler, AdaptiveSampler):
            names.add("data.write_scores")
        if hasattr(self.dataset, "texts"):
            names.add("data.texts")
        return super().provides | names

    @staticmethod
    def _named(batch: Any) -> Batch:
        if isinstance(batch, dict):
            if taken := sorted(DRAW_KEYS & batch.keys()):
                raise ValueError(
                    f"the dataset's items have {taken}, which the datamodule adds to each batch "
                    f"({', '.join(sorted(DRAW_KEYS))}): rename these keys in the dataset"
                )
            return batch
        if isinstance(batch, (list, tuple)) and len(batch) == 2:
            return {"input": batch[0], "target": batch[1]}
        raise ValueError(
            f"the dataset's items collate to a {type(batch).__name__}; "
            "they must be dictionaries or (input, target) pairs: wrap the dataset or pass collate="
        )

    def _serve(self) -> Iterator[Batch]:
        batches = self.epoch()
        loader: DataLoader[tuple[Any, BatchDraw]] = DataLoader(
            _Fetch(self.dataset, self.collate, (self.seed, batches.rank)),
            sampler=batches,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
        )
        for samples, draw in loader:
            batches.acknowledge()
            yield self.weighted(self._named(samples), draw)

    def batches(self) -> DrawBatches:
        """The draws of this rank; the length of an epoch depends on the number of ranks."""
        if self._batches_option is None:
            ranks = self.trainer.world_size if self.trainer else 1
            self.batches_per_epoch = math.ceil(self.sampler.size / (self.batch_size * ranks))
        return super().batches()

    def train_dataloader(self) -> ServedBatches:
        """Batches as the sampler draws them."""
        self.batches()
        return ServedBatches(self.batches_per_epoch, self._serve)

    # Evaluation ----------------------------------------------------------------------------------

    def _evaluation_order(self, dataset: Dataset[Any]) -> Tensor:
        """Order ``[N]`` int64 in which a dataset is evaluated."""
        return torch.arange(_length(dataset))

    def _split_order(self, order: Tensor) -> list[_EvaluationBatch]:
        """This rank's batches of ``order`` ``[N]``; every rank has the same number."""
        size = len(order)
        ranks, rank = 1, 0
        if self.trainer is not None:
            ranks, rank = self.trainer.world_size, self.trainer.global_rank
        position = torch.arange(-(-size // ranks)) * ranks + rank
        counted = position < size
        index = order[position % size]
        return [
            _EvaluationBatch(index[start:stop], counted[start:stop], start)
            for start in range(0, len(index), self.eval_batch_size)
            for stop in (start + self.eval_batch_size,)
        ]

    def _evaluation_batches(self, dataset: Dataset[Any]) -> ServedBatches:
        plan = self._split_order(self._evaluation_order(dataset))

        def serve() -> Iterator[Batch]:
            loader: DataLoader[tuple[Any, _EvaluationBatch]] = DataLoader(
                _Fetch(dataset, self.collate),
                sampler=plan,
                batch_size=None,
                num_workers=self.num_workers,
                collate_fn=_as_is,
            )
            for samples, drawn in loader:
                batch = self._named(samples)
                batch["index"], batch["counted"] = drawn.index, drawn.counted
                yield batch

        return ServedBatches(len(plan), serve)

    def scoring_dataloader(self) -> ServedBatches:
        """This rank's share of the training set in order; padding is not ``counted`` ``[B]``."""
        return self._evaluation_batches(self.dataset)

    def val_dataloader(self) -> Any:
        """This rank's share of the validation set, in order."""
        assert self.val_dataset is not None  # otherwise Lightning does not call it
        return self._evaluation_batches(self.val_dataset)

    @property
    def evaluated_dataset(self) -> MapDataset | None:
        """The dataset of ``test`` and ``predict``: the test set, or else the validation set."""
        return self.val_dataset if self.test_dataset is None else self.test_dataset

    def test_dataloader(self) -> ServedBatches:
        """This rank's share of the test set, or else of the validation set.

        Raises:
            ValueError: if there is neither.
        """
        dataset = self.evaluated_dataset
        if dataset is None:
            raise ValueError(
                "there is neither a test_dataset nor a val_dataset to test on: set one of them"
            )
        return self._evaluation_batches(dataset)

    predict_dataloader = test_dataloader


_ONE = torch.ones(1, dtype=torch.bool)


def _check_same_columns(dataset: Any, evaluated: Any, name: str) -> None:
    """Raise ValueError if a dataset numbers classes or orders features unlike the training set."""
    features, own = (getattr(each, "feature_names", None) for each in (dataset, evaluated))
    if features and own and list(features) != list(own):
        raise ValueError(
            f"{name} has the features {list(own)}, the training set {list(features)}: inputs are "
            "distinguished by position, so name the same features in the same order for both"
        )
    classes, own = (getattr(each, "classes", None) for each in (dataset, evaluated))
    if classes and own and list(own) != list(classes)[: len(own)]:
        raise ValueError(
            f"{name} numbers its classes {list(own)}, the training set {list(classes)}: set "
            f"classes: {list(classes)} for {name} too"
        )


def _length(dataset: Dataset[Any]) -> int:
    try:
        size = len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(
            f"{type(dataset).__name__} has no length, and samples are drawn by index: use a "
            "map-style dataset"
        ) from error
    if size == 0:
        raise ValueError("the dataset is empty: give one with at least one sample")
    return size
