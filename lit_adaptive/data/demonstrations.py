"""Demonstrations as a datamodule: what is learnt from, validated on and generated for."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_adaptive.data.map_style import AdaptiveDataModule
from lit_adaptive.data.sources.columns import MapDataset
from lit_adaptive.data.text.chat import Turns
from lit_adaptive.data.text.demonstration_dataset import DemonstrationDataset
from lit_adaptive.data.text.encoding import Overlong
from lit_adaptive.samplers import SamplerFactory, ShuffledSampler

__all__ = ["DemonstrationDataset", "DemonstrationsDataModule"]


class DemonstrationsDataModule(AdaptiveDataModule):
    """Prompts and completions for fine-tuning, drawn by any sampler.

    ``DemonstrationDataset`` tells what is read, how it becomes tokens, and what a batch holds.
    Validation and test batches hold the prompts and ``columns`` too. What is not drawn but read
    through is put into batches by length, so there is little padding, and the batches are shuffled,
    always the same way.

    Args:
        dataset: a ``.jsonl``, ``.csv`` or ``.parquet`` file, a Hugging Face folder or name, or a
            dataset of rows such as ``Arithmetic`` or ``HubRows``.
        sampler: chooses what is drawn; by default each sample once in a pass, shuffled.
        tokenizer: ``characters``, ``smollm2``, a folder, a GGUF file or a hub name; or one of
            transformers.
        val_dataset: validated on, of the same columns.
        test_dataset: the same for ``test`` and ``predict``.
        validation_share: in (0, 1), of ``dataset`` instead of a ``val_dataset``. Its hash tells to
            which a prompt belongs, so all its samples stay together, in any order of the rows.
        prompt: see ``DemonstrationDataset``, as all that follow.
        completion: column.
        messages: column.
        text: column.
        id: column.
        columns: text columns of validation and test batches, such as ``[answer]``.
        chat: put strings into the chat template.
        turns: of the assistant that are learnt.
        chat_template: instead of the tokenizer's.
        max_length: tokens of a sample.
        overlong: what happens to longer ones.
        empty: what happens to empty completions.
        packing: put several samples into a row.
        pack_length: tokens of a packed row.
        cache_dir: keep tokens on disk; needed for more than fits in memory.
        **others: see ``AdaptiveDataModule``.

    Attributes:
        tokenizer: with a pad token.

    Raises:
        ValueError: if an option is out of range, or rows do not fit (which).
    """

    dataset: DemonstrationDataset

    def __init__(
        self,
        dataset: str | MapDataset,
        sampler: SamplerFactory = ShuffledSampler,
        *,
        tokenizer: str | Any = "characters",
        val_dataset: str | MapDataset | None = None,
        test_dataset: str | MapDataset | None = None,
        validation_share: float | None = None,
        prompt: str | None = None,
        completion: str | None = None,
        messages: str | None = None,
        text: str | None = None,
        id: str | None = "id",  # noqa: A002
        columns: Sequence[str] = (),
        chat: bool = False,
        turns: Turns = "last",
        chat_template: str | None = None,
        max_length: int = 1024,
        overlong: Overlong = "error",
        empty: Literal["error", "drop"] = "error",
        packing: bool = False,
        pack_length: int | None = None,
        cache_dir: str | None = None,
        **others: Any,
    ) -> None:
        def read(source: Any, tokenizer: Any, *, prompts: bool) -> DemonstrationDataset:
            if isinstance(source, DemonstrationDataset):
                return source
            return DemonstrationDataset(
                source,
                tokenizer,
                prompt=prompt,
                completion=completion,
                messages=messages,
                text=text,
                id=id,
                columns=columns,
                chat=chat,
                turns=turns,
                chat_template=chat_template,
                max_length=max_length,
                overlong=overlong,
                empty=empty,
                packing=packing,
                pack_length=pack_length,
                prompts=prompts,
                cache_dir=cache_dir,
            )

        train = read(dataset, tokenizer, prompts=False)
        self.tokenizer = train.tokenizer
        validation, test = (
            None if each is None else read(each, self.tokenizer, prompts=True)
            for each in (val_dataset, test_dataset)
        )
        if validation_share is not None:
            if validation is not None:
                raise ValueError(
                    f"validation_share is {validation_share} and val_dataset is given; set one"
                )
            train, validation = _split(train, validation_share)
        super().__init__(train, sampler, val_dataset=validation, test_dataset=test, **others)

    @property
    def provides(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``."""
        return super().provides | {"data.set_reference", "data.tokenizer"}

    def set_reference(self, log_probs: Tensor) -> None:
        """See ``DemonstrationDataset.set_reference``; of what is learnt from."""
        self.dataset.set_reference(log_probs)

    def texts(self, index: Tensor) -> list[dict[str, Any]]:
        """See ``DemonstrationDataset.texts``; of what is learnt from."""
        return self.dataset.texts(index)

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of prompts as ``texts`` gives them, as in training."""
        return self.dataset.encode_prompts(prompts)

    def _order(self, dataset: Dataset[Any]) -> Tensor:
        """By length within a batch of all ranks, batches in a fixed random order, a part last.

        In order of length, ``limit_val_batches`` would take only the longest.
        """
        assert isinstance(dataset, DemonstrationDataset)
        by_length = torch.argsort(dataset.lengths, descending=True, stable=True)
        block = self.eval_batch_size * (self.trainer.world_size if self.trainer else 1)
        blocks = len(by_length) // block
        source = torch.Generator().manual_seed(0)
        whole = by_length[: blocks * block].view(blocks, block)
        shuffled = whole[torch.randperm(blocks, generator=source)]
        return torch.cat([shuffled.flatten(), by_length[blocks * block :]])


def _split(
    whole: DemonstrationDataset, share: float
) -> tuple[DemonstrationDataset, DemonstrationDataset]:
    if not 0 < share < 1:
        raise ValueError(f"validation_share is {share}; it must lie in (0, 1)")
    held_out = whole.hashes < share
    if bool(held_out.all()) or not bool(held_out.any()):
        raise ValueError(
            f"validation_share is {share}, but of the {int(whole.groups.max()) + 1} different "
            f"prompts of {whole.source} {'all' if bool(held_out.all()) else 'none'} fall into it; "
            "prompts stay whole: give val_dataset instead, or another share"
        )
    train = whole.subset((~held_out).nonzero().flatten())
    return train, whole.subset(held_out.nonzero().flatten(), prompts=True)
