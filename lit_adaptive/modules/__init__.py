"""LightningModules: a loss, and a per-sample signal beside it."""

from lit_adaptive.modules.base import AdaptiveModule
from lit_adaptive.modules.classifier import Classifier
from lit_adaptive.modules.classifier_networks import Dense, TransformersClassifier
from lit_adaptive.modules.dqn import DQN
from lit_adaptive.modules.networks import MLP, MinAtarConv, NatureConv, QNetwork

__all__ = [
    "DQN",
    "MLP",
    "AdaptiveModule",
    "Classifier",
    "Dense",
    "MinAtarConv",
    "NatureConv",
    "QNetwork",
    "TransformersClassifier",
]
