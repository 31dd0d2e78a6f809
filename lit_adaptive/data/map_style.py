"""Any map-style dataset as a datamodule, drawn by any sampler."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lit_adaptive.data.sampled import Batch, Normalize, SampledDataModule, ServedBatches
from lit_adaptive.data.seeding import derive_seed, seeded
from lit_adaptive.data.sources.columns import MapDataset
from lit_adaptive.data.sources.scores import aligned_scores, read_scores, write_scores
from lit_adaptive.samplers import (
    AdaptiveSampler,
    BatchDraw,
    DrawBatches,
    SamplerFactory,
    ShuffledSampler,
)

Collate = Callable[[list[Any]], Any]


class _Fetch(Dataset[Any]):
    """Asked with indices, returns their collated batch and the question itself."""

    def __init__(self, dataset: Dataset[Any], collate: Collate, *seed: int) -> None:
        self.dataset = dataset
        self.collate = collate
        self.seed = seed
        at_once = getattr(dataset, "gather", None)
        self.gather: Callable[[Tensor], Any] | None = (
            at_once if collate is default_collate else None
        )

    def __getitem__(self, asked: Any) -> tuple[Any, Any]:
        index: Tensor = asked.index
        if self.gather is not None:
            return self.gather(index), asked
        with seeded(derive_seed(*self.seed, asked.number)):
            return self.collate([self.dataset[i] for i in index.tolist()]), asked


class _Part(NamedTuple):
    """Indices of an evaluation batch, and which of them count (the others fill up a rank)."""

    index: Tensor  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    counted: Tensor
    number: int


def _as_is(fetched: Any) -> Any:
    return fetched


class AdaptiveDataModule(SampledDataModule):
    """Samples of a map-style dataset, drawn by any sampler.

    A batch is the collated dictionary, or ``{"input": ..., "target": ...}`` for a dataset of pairs,
    with the draw's ``index``, ``probability`` and ``weight``. A dataset may offer more than items:
    ``gather(index)`` (a collated batch at once: the fast way, for what is not random),
    ``column(name)`` (numbers by name), ``ids`` (one for each sample, for files of scores), and for
    samplers that want them ``groups`` (``[N]`` integers: which samples belong together) and
    ``lengths`` (``[N]``: how long each is).

    Args:
        dataset: has ``__len__`` and ``__getitem__``; its items are dictionaries or pairs. Hugging
            Face datasets, torchvision's and tensors do; ``data.TableDataset`` reads files.
        sampler: chooses what is drawn; by default each sample once in a pass, shuffled.
        val_dataset: validated on, in order; every rank takes its share.
        test_dataset: the same for ``test`` and ``predict``; ``val_dataset`` if not given.
        batch_size: samples per batch and rank.
        batches_per_epoch: by default as many as see ``len(dataset)`` samples over all ranks.
        eval_batch_size: samples per batch where nothing is drawn; by default four times as many.
        num_workers: processes that load samples; draws then run ahead by two batches a worker.
        difficulty: for a curriculum: a column of the dataset, or a CSV or Parquet file of ``id``
            and ``score``.
        scores: what the sampler begins with: a column of the dataset, such as its rewards, or a CSV
            or Parquet file of ``id`` and ``score``, such as an earlier run's ``scores.csv``.
        beta: see ``SampledDataModule``.
        normalize: see ``SampledDataModule``.
        collate: makes a batch of a list of items.
        seed: of the sampler; by default that of ``seed_everything``.

    Raises:
        ValueError: if the dataset is empty, a number is out of range, or a file or column does not
            fit the dataset.
    """

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
        if eval_batch_size is not None and eval_batch_size <= 0:
            raise ValueError(f"eval_batch_size is {eval_batch_size}; it must be above 0")
        self._given_batches = batches_per_epoch
        self.dataset = dataset
        self.val_dataset = val_dataset
        self.test_dataset = test_dataset
        if val_dataset is None:  # Lightning asks who overrides it; an empty one makes it warn
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        self.eval_batch_size = eval_batch_size or 4 * batch_size
        self.num_workers = num_workers
        self.collate = collate
        self.sampler = sampler(size)
        self.sampler.reseed(self.seed)
        if difficulty is not None:
            self.sampler.set_difficulty(self.numbers(difficulty))
        elif self.sampler.needs_difficulty:
            raise ValueError(
                f"{type(self.sampler).__name__} needs to know how hard each sample is: set the "
                "datamodule's `difficulty` to a column of the dataset or a file of scores, or let "
                "the curriculum go by losses (by: loss)"
            )
        if self.sampler.needs_groups:
            self.sampler.set_groups(self._own("groups", "which samples belong together"))
        if self.sampler.needs_lengths:
            self.sampler.set_lengths(self._own("lengths", "how long each sample is"))
        if scores is not None:
            self._warm_start(scores)

    def _own(self, name: str, what: str) -> Tensor:
        """What the sampler wants to know, and only the dataset can tell."""
        found: Tensor | None = getattr(self.dataset, name, None)
        if found is None:
            raise ValueError(
                f"{type(self.sampler).__name__} needs to know {what}, which a "
                f"{type(self.dataset).__name__} does not tell: give the dataset an attribute "
                f"`{name}` ([N], as data.TokenizedDemonstrations has), or choose a sampler that "
                "does without"
            )
        return torch.as_tensor(found)

    @property
    def ids(self) -> Any:
        """One for each sample: the dataset's own, or the number of the row."""
        own = getattr(self.dataset, "ids", None)
        return torch.arange(self.sampler.size) if own is None else own

    def numbers(self, source: str) -> Tensor:
        """A number for each sample: a column of the dataset, or a file of ``id`` and ``score``.

        Raises:
            ValueError: if there is no such column or file, or it does not fit the dataset.
        """
        if Path(source).suffix.lower() in (".csv", ".parquet"):
            return aligned_scores(read_scores(source), self.ids)
        column = getattr(self.dataset, "column", None)
        if column is None:
            raise ValueError(
                f"{source!r} is no file, and a {type(self.dataset).__name__} has no columns by "
                "name: give a CSV or Parquet file of id and score"
            )
        values: Tensor = column(source)
        return values

    def _warm_start(self, source: str) -> None:
        if not (isinstance(self.sampler, AdaptiveSampler) and self.sampler.learns):
            raise ValueError(
                f"scores is {source!r}, but {type(self.sampler).__name__} learns nothing that "
                "scores could begin with: choose a sampler that learns, or leave scores out"
            )
        self.sampler.set_scores(self.numbers(source))

    def write_scores(self, path: str | Path) -> None:
        """Keep what the sampler has learnt, for ``scores`` of a later run.

        Raises:
            ValueError: if it learns nothing, or the path ends neither in ``.csv`` nor ``.parquet``.
        """
        if not isinstance(self.sampler, AdaptiveSampler):
            raise ValueError(f"{type(self.sampler).__name__} learns nothing that could be kept")
        write_scores(path, self.ids, self.sampler.scores())

    @property
    def provides(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``; the dataset's own columns are read off its first item."""
        first = self._named(
            _Fetch(self.dataset, self.collate)[_Part(torch.tensor([0]), _ONE, 0)][0]
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
            _Fetch(self.dataset, self.collate, self.seed, batches.rank),
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
        """The draws of this rank; an epoch is as long as the number of ranks makes it."""
        if self._given_batches is None:
            ranks = self.trainer.world_size if self.trainer else 1
            self.batches_per_epoch = math.ceil(self.sampler.size / (self.batch_size * ranks))
        return super().batches()

    def train_dataloader(self) -> ServedBatches:
        """Batches as the sampler draws them."""
        self.batches()
        return ServedBatches(self.batches_per_epoch, self._serve)

    # What is not drawn but read in order ---------------------------------------------------------

    def _evaluation_order(self, dataset: Dataset[Any]) -> Tensor:
        """In which order it is read where nothing is drawn: ``[N]`` int64."""
        return torch.arange(_length(dataset))

    def _parts(self, order: Tensor) -> list[_Part]:
        """This rank's batches of ``order`` ``[N]``: as many on every rank."""
        size = len(order)
        ranks, rank = 1, 0
        if self.trainer is not None:
            ranks, rank = self.trainer.world_size, self.trainer.global_rank
        place = torch.arange(-(-size // ranks)) * ranks + rank
        counted = place < size
        index = order[place % size]
        return [
            _Part(index[start:stop], counted[start:stop], start)
            for start in range(0, len(index), self.eval_batch_size)
            for stop in (start + self.eval_batch_size,)
        ]

    def _evaluation_batches(self, dataset: Dataset[Any]) -> ServedBatches:
        parts = self._parts(self._evaluation_order(dataset))

        def serve() -> Iterator[Batch]:
            loader: DataLoader[tuple[Any, _Part]] = DataLoader(
                _Fetch(dataset, self.collate),
                sampler=parts,
                batch_size=None,
                num_workers=self.num_workers,
                collate_fn=_as_is,
            )
            for samples, part in loader:
                batch = self._named(samples)
                batch["index"], batch["counted"] = part.index, part.counted
                yield batch

        return ServedBatches(len(parts), serve)

    def scoring_dataloader(self) -> ServedBatches:
        """The whole dataset in order, this rank's share; ``counted`` ``[B]`` marks what counts."""
        return self._evaluation_batches(self.dataset)

    def val_dataloader(self) -> Any:
        """The validation set in order, this rank's share."""
        assert self.val_dataset is not None  # otherwise Lightning does not ask
        return self._evaluation_batches(self.val_dataset)

    def test_dataloader(self) -> ServedBatches:
        """The test set, or else the validation set.

        Raises:
            ValueError: if neither was given.
        """
        dataset = self.test_dataset or self.val_dataset
        if dataset is None:
            raise ValueError("neither test_dataset nor val_dataset is given: nothing to test on")
        return self._evaluation_batches(dataset)

    predict_dataloader = test_dataloader


_ONE = torch.ones(1, dtype=torch.bool)


def _length(dataset: Dataset[Any]) -> int:
    try:
        size = len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(
            f"a {type(dataset).__name__} has no length; samples are drawn by index: "
            "use a map-style dataset"
        ) from error
    if size == 0:
        raise ValueError("the dataset is empty; there is nothing to draw from")
    return size
