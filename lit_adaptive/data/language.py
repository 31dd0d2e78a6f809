"""Base class of the datamodules that serve tokenized text."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lit_adaptive.data.map_style import AdaptiveDataModule
from lit_adaptive.data.text.demonstration_dataset import DemonstrationDataset
from lit_adaptive.data.text.prompt_dataset import PromptDataset
from lit_adaptive.data.text.tokenization import tokenizer_key
from lit_adaptive.samplers import SamplerFactory, ShuffledSampler

TextDataset = DemonstrationDataset | PromptDataset  # without a class path the first one


class LanguageDataModule(AdaptiveDataModule):
    """A tokenized dataset drawn by any sampler, with validation and test sets of its tokenizer.

    Args:
        dataset: training set.
        sampler: chooses what is drawn; by default each sample once per pass, shuffled.
        val_dataset: validation set.
        test_dataset: set for ``test`` and ``predict``; by default the validation set.
        **options: see ``AdaptiveDataModule``.

    Attributes:
        tokenizer: the training set's tokenizer; it has a pad token.

    Raises:
        ValueError: if the validation or test set has another tokenizer, or an option is out of
            range.
    """

    dataset: Any

    def __init__(
        self,
        dataset: TextDataset,
        sampler: SamplerFactory = ShuffledSampler,
        *,
        val_dataset: TextDataset | None = None,
        test_dataset: TextDataset | None = None,
        **options: Any,
    ) -> None:
        self.tokenizer = dataset.tokenizer
        for name, evaluated in (("val_dataset", val_dataset), ("test_dataset", test_dataset)):
            if evaluated is not None and _key(evaluated) != _key(dataset):
                raise ValueError(
                    f"{name} ({evaluated.source}) has another tokenizer or chat template than "
                    f"dataset ({dataset.source}): give both the same `tokenizer`, "
                    "`chat_template` and `added_tokens`"
                )
        super().__init__(
            dataset, sampler, val_dataset=val_dataset, test_dataset=test_dataset, **options
        )

    def state_dict(self) -> dict[str, Any]:
        """Also the day that the chat template reads."""
        return super().state_dict() | {"day": self.dataset.day}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the chat template read the day of the run's beginning again."""
        self.set_day(state_dict.get("day"))
        super().load_state_dict(state_dict)

    def set_day(self, day: str | None) -> None:
        """Render all conversations on another day, an ISO date; None changes nothing."""
        datasets: list[Any] = [self.dataset, self.val_dataset, self.test_dataset]
        for dataset in datasets:
            if day is not None and dataset is not None and dataset.day not in (None, day):
                dataset.set_day(day)

    def texts(self, index: Tensor) -> list[dict[str, Any]]:
        """``prompt`` and the other columns of the training samples ``index`` ``[n]`` int64."""
        rows: list[dict[str, Any]] = self.dataset.texts(index)
        return rows

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens of prompts, given as ``texts`` returns them."""
        tokens: list[list[int]] = self.dataset.encode_prompts(prompts)
        return tokens


def _key(dataset: TextDataset) -> str:
    return tokenizer_key(dataset.tokenizer)
