"""LightningDataModules: what a sampler drew, served with index, probability and weight."""

from lit_adaptive.data.base import SampledDataModule
from lit_adaptive.data.digits import LongTailedDigits
from lit_adaptive.data.indexed import AdaptiveDataModule
from lit_adaptive.data.replay import ReplayDataModule
from lit_adaptive.data.tables import TableDataset

__all__ = [
    "AdaptiveDataModule",
    "LongTailedDigits",
    "ReplayDataModule",
    "SampledDataModule",
    "TableDataset",
]
