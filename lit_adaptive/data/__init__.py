"""LightningDataModules: what a sampler drew, served with index, probability and weight."""

from lit_adaptive.data.base import SampledDataModule
from lit_adaptive.data.indexed import AdaptiveDataModule
from lit_adaptive.data.replay import ReplayDataModule

__all__ = ["AdaptiveDataModule", "ReplayDataModule", "SampledDataModule"]
