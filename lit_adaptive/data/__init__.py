"""LightningDataModules: what a sampler drew, served with index, probability and weight."""

from lit_adaptive.data.arithmetic import Arithmetic
from lit_adaptive.data.base import SampledDataModule
from lit_adaptive.data.demonstrations import DemonstrationsDataModule, TokenizedDemonstrations
from lit_adaptive.data.digits import LongTailedDigits
from lit_adaptive.data.hub import HubDataset
from lit_adaptive.data.indexed import AdaptiveDataModule
from lit_adaptive.data.prompts import PromptDataset
from lit_adaptive.data.replay import ReplayDataModule
from lit_adaptive.data.rollouts import RolloutDataModule
from lit_adaptive.data.rows import HubRows
from lit_adaptive.data.tables import TableDataset, read_scores, write_scores
from lit_adaptive.data.tasks import DeepScaleR, Gsm8k, ReasoningTask
from lit_adaptive.data.text import EncodedText, TaskQuestions

__all__ = [
    "AdaptiveDataModule",
    "Arithmetic",
    "DeepScaleR",
    "DemonstrationsDataModule",
    "EncodedText",
    "Gsm8k",
    "HubDataset",
    "HubRows",
    "LongTailedDigits",
    "PromptDataset",
    "ReasoningTask",
    "ReplayDataModule",
    "RolloutDataModule",
    "SampledDataModule",
    "TableDataset",
    "TaskQuestions",
    "TokenizedDemonstrations",
    "read_scores",
    "write_scores",
]
