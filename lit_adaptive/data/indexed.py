"""Any map-style dataset as a datamodule, drawn by any sampler."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from lit_adaptive.data.base import Batch, SampledDataModule, SamplerFactory, ServedBatches
from lit_adaptive.samplers import BatchDraw, UniformSampler

Collate = Callable[[list[Any]], Any]


class _Drawn(Dataset[Any]):
    """The dataset, asked with a whole draw; the draw travels back beside the samples."""

    def __init__(self, dataset: Dataset[Any], collate: Collate) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitem__(self, draw: BatchDraw) -> tuple[Any, BatchDraw]:
        samples = [self.dataset[i] for i in draw.index.tolist()]
        return self.collate(samples), draw


def _as_is(fetched: Any) -> Any:
    return fetched


class AdaptiveDataModule(SampledDataModule):
    """Samples of a map-style dataset, drawn with replacement by any sampler.

    A batch is the collated dictionary, or ``{"input": ..., "target": ...}`` for a dataset of pairs,
    with the draw's ``index``, ``probability`` and ``weight``.

    Args:
        dataset: has ``__len__`` and ``__getitem__``; its items are dictionaries or pairs.
        sampler: chooses what is drawn.
        batch_size: samples per batch and rank.
        batches_per_epoch: by default as many as see ``len(dataset)`` samples over all ranks.
        num_workers: processes that load samples; draws then run ahead by two batches a worker.
        beta: see ``SampledDataModule``.
        normalize: see ``SampledDataModule``.
        collate: makes a batch of a list of items.
        seed: of the sampler; by default that of ``seed_everything``.

    Raises:
        ValueError: if the dataset is empty, or a number is out of range.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: SamplerFactory = UniformSampler,
        *,
        batch_size: int = 32,
        batches_per_epoch: int | None = None,
        num_workers: int = 0,
        beta: float = 1.0,
        normalize: Literal["batch", "buffer"] = "batch",
        collate: Collate = default_collate,
        seed: int | None = None,
    ) -> None:
        size = len(dataset)  # type: ignore[arg-type]
        if size == 0:
            raise ValueError("the dataset is empty; there is nothing to draw from")
        super().__init__(
            batch_size=batch_size,
            batches_per_epoch=batches_per_epoch or max(1, math.ceil(size / max(batch_size, 1))),
            beta=beta,
            normalize=normalize,
            seed=seed,
        )
        self.dataset = dataset
        self.num_workers = num_workers
        self.collate = collate
        self.sampler = sampler(size)
        self.sampler.generator.manual_seed(self.seed)

    @property
    def provides(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``; the dataset's own columns are read off its first item."""
        first = self._named(self.collate([self.dataset[0]]))
        return super().provides | {f"batch.{key}" for key in first}

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
            _Drawn(self.dataset, self.collate),
            sampler=batches,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
        )
        for samples, draw in loader:
            batches.acknowledge()
            yield self.weighted(self._named(samples), draw)

    def train_dataloader(self) -> ServedBatches:
        """Batches as the sampler draws them."""
        return ServedBatches(self.batches_per_epoch, self._serve)
