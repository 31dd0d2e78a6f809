"""Experience: engines that generate, rewards that score, environments that are played.

Names are imported at first use, so that the worker processes of rewards do not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_adaptive.rollout.engines.base import Engine, Policy
    from lit_adaptive.rollout.engines.continuous_batching import ContinuousBatchingEngine
    from lit_adaptive.rollout.engines.transformers import TransformersEngine
    from lit_adaptive.rollout.engines.vllm import VLLMEngine
    from lit_adaptive.rollout.engines.vllm_server import VLLMServerEngine
    from lit_adaptive.rollout.environments.streams import EnvironmentStep, EnvironmentStreams
    from lit_adaptive.rollout.generation import Completions, Decode, SamplingParams
    from lit_adaptive.rollout.models.embeddings import SentenceEncoder
    from lit_adaptive.rollout.models.pretrained import ModelSource
    from lit_adaptive.rollout.models.tokenizers import EndOfTurn
    from lit_adaptive.rollout.rewards.base import AnswerReward, Reward, RewardOutputError
    from lit_adaptive.rollout.rewards.functions import FunctionReward, VerlReward
    from lit_adaptive.rollout.rewards.length import LengthPenalty
    from lit_adaptive.rollout.rewards.matching import (
        ExactMatch,
        FormatMatch,
        GSM8KMatch,
        NumericMatch,
    )
    from lit_adaptive.rollout.rewards.math import MathVerify
    from lit_adaptive.rollout.rewards.pool import RewardError, RewardPool
    from lit_adaptive.rollout.rewards.reasoning_gym import ReasoningGym
    from lit_adaptive.rollout.rewards.reward_model import RewardModel
    from lit_adaptive.rollout.rewards.scorer import RewardScores, Scorer, WeightedReward

_MODULES = {
    "engines.base": ("Engine", "Policy"),
    "engines.continuous_batching": ("ContinuousBatchingEngine",),
    "engines.transformers": ("TransformersEngine",),
    "engines.vllm": ("VLLMEngine",),
    "engines.vllm_server": ("VLLMServerEngine",),
    "environments.streams": ("EnvironmentStep", "EnvironmentStreams"),
    "generation": ("Completions", "Decode", "SamplingParams"),
    "models.embeddings": ("SentenceEncoder",),
    "models.pretrained": ("ModelSource",),
    "models.tokenizers": ("EndOfTurn",),
    "rewards.base": ("AnswerReward", "Reward", "RewardOutputError"),
    "rewards.functions": ("FunctionReward", "VerlReward"),
    "rewards.length": ("LengthPenalty",),
    "rewards.matching": ("ExactMatch", "FormatMatch", "GSM8KMatch", "NumericMatch"),
    "rewards.math": ("MathVerify",),
    "rewards.pool": ("RewardError", "RewardPool"),
    "rewards.reasoning_gym": ("ReasoningGym",),
    "rewards.reward_model": ("RewardModel",),
    "rewards.scorer": ("RewardScores", "Scorer", "WeightedReward"),
}

__all__ = [
    "AnswerReward",
    "Completions",
    "ContinuousBatchingEngine",
    "Decode",
    "EndOfTurn",
    "Engine",
    "EnvironmentStep",
    "EnvironmentStreams",
    "ExactMatch",
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
    "RewardError",
    "RewardModel",
    "RewardOutputError",
    "RewardPool",
    "RewardScores",
    "SamplingParams",
    "Scorer",
    "SentenceEncoder",
    "TransformersEngine",
    "VLLMEngine",
    "VLLMServerEngine",
    "VerlReward",
    "WeightedReward",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
