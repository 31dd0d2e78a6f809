"""Feedback: what training found out becomes what is drawn next.

Each callback says what it needs and what it changes, in two lines of its docstring and in the sets
``needs`` and ``provides`` that ``lit_adaptive.contract`` checks before training.
"""

from callbacks.beta_anneal import BetaAnneal
from callbacks.collector import TransitionCollector
from callbacks.evaluation import EpisodeEvaluation
from callbacks.learning_curve import LearningCurve
from callbacks.monitors import SamplingMonitor
from callbacks.priority_refresh import PriorityRefresh
from callbacks.target_sync import TargetSync

__all__ = [
    "BetaAnneal",
    "EpisodeEvaluation",
    "LearningCurve",
    "PriorityRefresh",
    "SamplingMonitor",
    "TargetSync",
    "TransitionCollector",
]
