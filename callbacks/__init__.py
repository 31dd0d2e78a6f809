"""Callbacks: feedback from training to sampling, selection, evaluation and reports.

Each callback states its ``Needs`` and ``Changes`` in its docstring, and its needs in the sets
``needs`` and ``provides``, which ``lit_adaptive.contract`` checks before training.
"""

from callbacks.beta_anneal import BetaAnneal
from callbacks.classifier_influence import ClassifierInfluence
from callbacks.completion_table import CompletionTable
from callbacks.completion_writer import CompletionWriter
from callbacks.confusion_matrix import ConfusionMatrix
from callbacks.curriculum_progress import CurriculumProgress
from callbacks.demonstration_influence import DemonstrationInfluence
from callbacks.difficulty_refresh import DifficultyRefresh
from callbacks.entropy_guard import EntropyGuard
from callbacks.episode_evaluation import EpisodeEvaluation
from callbacks.episode_video import EpisodeVideo
from callbacks.export_best import ExportBest
from callbacks.influence_refresh import InfluenceRefresh
from callbacks.keep_scores import KeepScores
from callbacks.learning_curve import LearningCurve
from callbacks.loss_refresh import LossRefresh
from callbacks.memory_report import MemoryReport
from callbacks.newest_checkpoint import NewestCheckpoint
from callbacks.ohem_selector import OHEMSelector
from callbacks.pass_at_k import PassAtK
from callbacks.perf_monitor import PerfMonitor
from callbacks.prediction_table import PredictionTable
from callbacks.priority_refresh import PriorityRefresh
from callbacks.prompt_statistics import PromptStatistics
from callbacks.reducible_loss_selector import ReducibleLossSelector
from callbacks.reference_log_probs import ReferenceLogProbs
from callbacks.rejection_sampling import RejectionSampling
from callbacks.reward_refresh import RewardRefresh
from callbacks.rollout_replay import RolloutReplay
from callbacks.run_clock import RunClock
from callbacks.sample_report import SampleReport
from callbacks.sampling_monitor import SamplingMonitor
from callbacks.selective_backprop import SelectiveBackprop
from callbacks.supervised_warmup import SupervisedWarmup
from callbacks.target_sync import TargetSync
from callbacks.transition_collector import TransitionCollector

__all__ = [
    "BetaAnneal",
    "ClassifierInfluence",
    "CompletionTable",
    "CompletionWriter",
    "ConfusionMatrix",
    "CurriculumProgress",
    "DemonstrationInfluence",
    "DifficultyRefresh",
    "EntropyGuard",
    "EpisodeEvaluation",
    "EpisodeVideo",
    "ExportBest",
    "InfluenceRefresh",
    "KeepScores",
    "LearningCurve",
    "LossRefresh",
    "MemoryReport",
    "NewestCheckpoint",
    "OHEMSelector",
    "PassAtK",
    "PerfMonitor",
    "PredictionTable",
    "PriorityRefresh",
    "PromptStatistics",
    "ReducibleLossSelector",
    "ReferenceLogProbs",
    "RejectionSampling",
    "RewardRefresh",
    "RolloutReplay",
    "RunClock",
    "SampleReport",
    "SamplingMonitor",
    "SelectiveBackprop",
    "SupervisedWarmup",
    "TargetSync",
    "TransitionCollector",
]
