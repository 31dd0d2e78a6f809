"""LightningModules: training steps that return a loss and a signal per sample."""

from lit_adaptive.modules.base import AdaptiveModule
from lit_adaptive.modules.classifier import Classifier
from lit_adaptive.modules.classifier_networks import Dense, TransformersClassifier
from lit_adaptive.modules.difficulty_predictor import (
    DifficultyPredictor,
    PassRateModule,
    PassRatePrediction,
)
from lit_adaptive.modules.dqn import DQN
from lit_adaptive.modules.grpo import GRPO
from lit_adaptive.modules.iw_sft import IWSFT
from lit_adaptive.modules.language.gradients import PromptGradients
from lit_adaptive.modules.language.network import LanguageModel
from lit_adaptive.modules.language.policy import PolicyModule
from lit_adaptive.modules.language.recipes import CausalLM, ConfiguredLM, LoRA, PretrainedLM
from lit_adaptive.modules.objective import PolicyObjective
from lit_adaptive.modules.optimization import Optimization
from lit_adaptive.modules.q_networks import MLP, MinAtarConv, NatureConv, QNetwork
from lit_adaptive.modules.sample_gradients import SampleGradients

__all__ = [
    "DQN",
    "GRPO",
    "IWSFT",
    "MLP",
    "AdaptiveModule",
    "CausalLM",
    "Classifier",
    "ConfiguredLM",
    "Dense",
    "DifficultyPredictor",
    "LanguageModel",
    "LoRA",
    "MinAtarConv",
    "NatureConv",
    "Optimization",
    "PassRateModule",
    "PassRatePrediction",
    "PolicyModule",
    "PolicyObjective",
    "PretrainedLM",
    "PromptGradients",
    "QNetwork",
    "SampleGradients",
    "TransformersClassifier",
]
