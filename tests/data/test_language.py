"""The base of the datamodules of text: one tokenizer for all of its datasets."""

import pytest

from lit_adaptive.data import (
    Arithmetic,
    DemonstrationDataset,
    DemonstrationsDataModule,
    PromptDataset,
    RolloutDataModule,
)
from lit_adaptive.rollout.models.tokenizers import character_tokenizer


def test_validation_and_test_sets_need_the_tokenizer_of_the_training_set() -> None:
    source = Arithmetic(size=6)
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    for datamodule, dataset in (
        (DemonstrationsDataModule, DemonstrationDataset),
        (RolloutDataModule, PromptDataset),
    ):
        train, same, different = dataset(source), dataset(source), dataset(source, tokenizer)
        assert datamodule(train, val_dataset=same, test_dataset=same).tokenizer is train.tokenizer
        for name in ("val_dataset", "test_dataset"):
            with pytest.raises(
                ValueError, match=rf"{name} \(.*\) has another .*give both the same"
            ):
                datamodule(train, **{name: different})
