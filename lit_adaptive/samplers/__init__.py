"""Samplers choose which index comes next; some learn from what came of it."""

from lit_adaptive.samplers.adaptive_batch import AdaptiveBatchSampler, AdaptiveDataWeighter
from lit_adaptive.samplers.base import AdaptiveSampler, Draw, IndexSampler, SamplerFactory
from lit_adaptive.samplers.batches import BatchDraw, DrawBatches, rank_share
from lit_adaptive.samplers.boosted import BoostedSampler
from lit_adaptive.samplers.bucketed import BucketedSampler
from lit_adaptive.samplers.curriculum import CurriculumSampler
from lit_adaptive.samplers.mixture import MixtureSampler
from lit_adaptive.samplers.prioritized import PrioritizedSampler
from lit_adaptive.samplers.rank_prioritized import RankPrioritizedSampler
from lit_adaptive.samplers.reward_weighted import RewardWeightedSampler
from lit_adaptive.samplers.shuffled import InfoBatchSampler, ShuffledSampler
from lit_adaptive.samplers.uniform import UniformSampler

__all__ = [
    "AdaptiveBatchSampler",
    "AdaptiveDataWeighter",
    "AdaptiveSampler",
    "BatchDraw",
    "BoostedSampler",
    "BucketedSampler",
    "CurriculumSampler",
    "Draw",
    "DrawBatches",
    "IndexSampler",
    "InfoBatchSampler",
    "MixtureSampler",
    "PrioritizedSampler",
    "RankPrioritizedSampler",
    "RewardWeightedSampler",
    "SamplerFactory",
    "ShuffledSampler",
    "UniformSampler",
    "rank_share",
]
