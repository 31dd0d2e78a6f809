"""Samplers choose which index comes next; some learn from what came of it."""

from lit_adaptive.samplers.batches import BatchDraw, DrawBatches, rank_share
from lit_adaptive.samplers.prioritized import PrioritizedSampler
from lit_adaptive.samplers.protocol import AdaptiveSampler, Draw, IndexSampler
from lit_adaptive.samplers.rank import RankPrioritizedSampler
from lit_adaptive.samplers.uniform import UniformSampler

__all__ = [
    "AdaptiveSampler",
    "BatchDraw",
    "Draw",
    "DrawBatches",
    "IndexSampler",
    "PrioritizedSampler",
    "RankPrioritizedSampler",
    "UniformSampler",
    "rank_share",
]
