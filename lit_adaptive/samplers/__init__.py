"""Samplers: which index comes next, and with which probability."""

from lit_adaptive.samplers.adaptive_batch import AdaptiveBatchSampler
from lit_adaptive.samplers.base import AdaptiveSampler, Draw, IndexSampler, SamplerFactory
from lit_adaptive.samplers.batches import BatchDraw, DrawBatches, rank_share
from lit_adaptive.samplers.bucketed import BucketedSampler
from lit_adaptive.samplers.curriculum import CurriculumSampler
from lit_adaptive.samplers.data_weighter import AdaptiveDataWeighter
from lit_adaptive.samplers.difficulty import DifficultySampler
from lit_adaptive.samplers.greso import GRESOSampler
from lit_adaptive.samplers.infobatch import InfoBatchSampler
from lit_adaptive.samplers.mixture import MixtureSampler
from lit_adaptive.samplers.pass_rates import (
    ArcsineKalman,
    BetaPosterior,
    FixedDifficulty,
    MarkovForecast,
    PassRateEstimator,
)
from lit_adaptive.samplers.prioritized import PrioritizedSampler
from lit_adaptive.samplers.rank_prioritized import RankPrioritizedSampler
from lit_adaptive.samplers.reward_weighted import RewardWeightedSampler
from lit_adaptive.samplers.shuffled import EpochSampler, ShuffledSampler
from lit_adaptive.samplers.tree import TreeSampler
from lit_adaptive.samplers.uniform import UniformSampler
from lit_adaptive.samplers.wrapper import WrapperSampler

__all__ = [
    "AdaptiveBatchSampler",
    "AdaptiveDataWeighter",
    "AdaptiveSampler",
    "ArcsineKalman",
    "BatchDraw",
    "BetaPosterior",
    "BucketedSampler",
    "CurriculumSampler",
    "DifficultySampler",
    "Draw",
    "DrawBatches",
    "EpochSampler",
    "FixedDifficulty",
    "GRESOSampler",
    "IndexSampler",
    "InfoBatchSampler",
    "MarkovForecast",
    "MixtureSampler",
    "PassRateEstimator",
    "PrioritizedSampler",
    "RankPrioritizedSampler",
    "RewardWeightedSampler",
    "SamplerFactory",
    "ShuffledSampler",
    "TreeSampler",
    "UniformSampler",
    "WrapperSampler",
    "rank_share",
]
