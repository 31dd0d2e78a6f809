"""Datamodule of demonstrations: prompts with completions to learn from."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_adaptive.data.language import LanguageDataModule, TextDataset
from lit_adaptive.data.text.demonstration_dataset import DemonstrationDataset
from lit_adaptive.data.text.prompt_dataset import PromptDataset
from lit_adaptive.samplers import SamplerFactory, ShuffledSampler


class DemonstrationsDataModule(LanguageDataModule):
    """Prompts and completions for fine-tuning, drawn by any sampler.

    See ``DemonstrationDataset`` for the keys of a batch; validation and test batches also hold the
    prompts. Validation and test samples are batched by length, so that there is little padding,
    and the batches are shuffled, the same way every time.

    Args:
        dataset: training set.
        sampler: chooses what is drawn; by default each sample once per pass, shuffled.
        val_dataset: validation set: demonstrations, or prompts (``PromptDataset``) to complete.
        test_dataset: set for ``test`` and ``predict``, as ``val_dataset``, which is the default.
        validation_share: fraction of the prompts of ``dataset`` to validate on instead of a
            ``val_dataset``, in (0, 1). A prompt's hash decides, so all samples of a prompt stay
            together whatever the order of the rows.
        **options: see ``AdaptiveDataModule``.

    Raises:
        ValueError: if an option is out of range, or a validation or test set has another tokenizer.
    """

    dataset: DemonstrationDataset

    def __init__(
        self,
        dataset: DemonstrationDataset,
        sampler: SamplerFactory = ShuffledSampler,
        *,
        val_dataset: TextDataset | None = None,
        test_dataset: TextDataset | None = None,
        validation_share: float | None = None,
        **options: Any,
    ) -> None:
        if validation_share is not None:
            if val_dataset is not None:
                raise ValueError(
                    f"validation_share is {validation_share} and val_dataset is given; set one"
                )
            dataset, val_dataset = _split(dataset, validation_share)
        super().__init__(
            dataset,
            sampler,
            val_dataset=_with_prompts(val_dataset),
            test_dataset=_with_prompts(test_dataset),
            **options,
        )

    @property
    def provides(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``."""
        return super().provides | {"data.set_reference", "data.tokenizer"}

    def set_reference(self, log_probs: Tensor) -> None:
        """Set the reference's log-probabilities; see ``DemonstrationDataset.set_reference``."""
        self.dataset.set_reference(log_probs)

    def _evaluation_order(self, dataset: Dataset[Any]) -> Tensor:
        """Similar lengths within a batch of all ranks, batches in a fixed random order.

        In order of length, ``limit_val_batches`` would evaluate the longest samples only.
        """
        assert isinstance(dataset, DemonstrationDataset | PromptDataset)
        by_length = torch.argsort(dataset.lengths, descending=True, stable=True)
        size = self.eval_batch_size * (self.trainer.world_size if self.trainer else 1)
        full = len(by_length) // size
        generator = torch.Generator().manual_seed(0)
        batches = by_length[: full * size].view(full, size)
        shuffled = batches[torch.randperm(full, generator=generator)]
        return torch.cat([shuffled.flatten(), by_length[full * size :]])


def _with_prompts(dataset: TextDataset | None) -> TextDataset | None:
    if not isinstance(dataset, DemonstrationDataset) or dataset.prompts:
        return dataset
    return dataset.subset(torch.arange(len(dataset)), prompts=True)


def _split(
    dataset: DemonstrationDataset, share: float
) -> tuple[DemonstrationDataset, DemonstrationDataset]:
    if not 0 < share < 1:
        raise ValueError(f"validation_share is {share}; it must lie in (0, 1)")
    held_out = dataset.hashes < share
    if bool(held_out.all()) or not bool(held_out.any()):
        raise ValueError(
            f"validation_share is {share}, but of the {int(dataset.groups.max()) + 1} different "
            f"prompts of {dataset.source} {'all' if bool(held_out.all()) else 'none'} fall into "
            "it; a prompt's samples are not split: give val_dataset instead, or another share"
        )
    train = dataset.subset((~held_out).nonzero().flatten())
    return train, dataset.subset(held_out.nonzero().flatten())
