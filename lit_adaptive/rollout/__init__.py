"""Experience: environments, the streams they make, and the episodes that are played in them."""

from lit_adaptive.rollout.engines.base import Engine, Policy
from lit_adaptive.rollout.engines.continuous_batching import ContinuousBatchingEngine
from lit_adaptive.rollout.engines.transformers import TransformersEngine
from lit_adaptive.rollout.environments.streams import EnvironmentStreams, Step
from lit_adaptive.rollout.generation import Completions, Decode, SamplingParams
from lit_adaptive.rollout.models.pretrained import ModelSource
from lit_adaptive.rollout.models.tokenizers import EndOfTurn
from lit_adaptive.rollout.rewards.base import (
    AnswerReward,
    ExactMatch,
    FunctionReward,
    NumericMatch,
    Reward,
)
from lit_adaptive.rollout.rewards.pool import Failure, RewardPool
from lit_adaptive.rollout.rewards.reasoning_gym import ReasoningGym
from lit_adaptive.rollout.rewards.reward_model import RewardModel
from lit_adaptive.rollout.rewards.scorer import Scorer, Scores, WeightedReward
from lit_adaptive.rollout.rewards.verifiers import (
    FormatMatch,
    GSM8KMatch,
    LengthPenalty,
    MathVerify,
    VerlReward,
)

__all__ = [
    "AnswerReward",
    "Completions",
    "ContinuousBatchingEngine",
    "Decode",
    "EndOfTurn",
    "Engine",
    "EnvironmentStreams",
    "ExactMatch",
    "Failure",
    "FormatMatch",
    "FunctionReward",
    "GSM8KMatch",
    "LengthPenalty",
    "MathVerify",
    "ModelSource",
    "NumericMatch",
    "Policy",
    "ReasoningGym",
    "Reward",
    "RewardModel",
    "RewardPool",
    "SamplingParams",
    "Scorer",
    "Scores",
    "Step",
    "TransformersEngine",
    "VerlReward",
    "WeightedReward",
]
