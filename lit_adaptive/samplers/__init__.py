"""Samplers choose which index comes next; some learn from what came of it."""

from lit_adaptive.samplers.adaptive import AdaptiveBatchSampler, AdaptiveDataWeighter
from lit_adaptive.samplers.batches import BatchDraw, DrawBatches, rank_share
from lit_adaptive.samplers.boosted import BoostedSampler
from lit_adaptive.samplers.bucketed import BucketedSampler
from lit_adaptive.samplers.curriculum import CurriculumSampler
from lit_adaptive.samplers.mixture import MixtureSampler
from lit_adaptive.samplers.passes import InfoBatchSampler, ShuffledSampler
from lit_adaptive.samplers.prioritized import PrioritizedSampler
from lit_adaptive.samplers.protocol import AdaptiveSampler, Draw, IndexSampler, SamplerFactory
from lit_adaptive.samplers.rank import RankPrioritizedSampler
from lit_adaptive.samplers.reward_weighted import RewardWeightedSampler
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
