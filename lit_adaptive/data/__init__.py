"""LightningDataModules: batches that a sampler drew, with index, probability and weight."""

from lit_adaptive.data.datasets.arithmetic import Arithmetic
from lit_adaptive.data.datasets.commands import DigitCommands
from lit_adaptive.data.datasets.concatenated import ConcatenatedQuestions
from lit_adaptive.data.datasets.digits import LongTailedDigits
from lit_adaptive.data.datasets.reasoning import DeepScaleR, Gsm8k, ReasoningTask
from lit_adaptive.data.datasets.text_classification import EncodedText, TaskQuestions
from lit_adaptive.data.demonstrations import DemonstrationsDataModule
from lit_adaptive.data.language import LanguageDataModule
from lit_adaptive.data.map_style import AdaptiveDataModule
from lit_adaptive.data.pass_rates import PassRateDataModule
from lit_adaptive.data.rollouts.datamodule import RolloutDataModule
from lit_adaptive.data.sampled import SampledDataModule
from lit_adaptive.data.sources.rows import HubRows
from lit_adaptive.data.sources.scores import read_scores, write_scores
from lit_adaptive.data.sources.tables import TableDataset
from lit_adaptive.data.text.demonstration_dataset import DemonstrationDataset
from lit_adaptive.data.text.prompt_dataset import PromptDataset
from lit_adaptive.data.transitions import TransitionsDataModule

__all__ = [
    "AdaptiveDataModule",
    "Arithmetic",
    "ConcatenatedQuestions",
    "DeepScaleR",
    "DemonstrationDataset",
    "DemonstrationsDataModule",
    "DigitCommands",
    "EncodedText",
    "Gsm8k",
    "HubRows",
    "LanguageDataModule",
    "LongTailedDigits",
    "PassRateDataModule",
    "PromptDataset",
    "ReasoningTask",
    "RolloutDataModule",
    "SampledDataModule",
    "TableDataset",
    "TaskQuestions",
    "TransitionsDataModule",
    "read_scores",
    "write_scores",
]
