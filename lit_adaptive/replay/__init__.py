"""Replay of experience: transitions of environments, and groups of rollouts of language models."""

from lit_adaptive.replay.rollouts.buffer import RolloutBuffer, RolloutDraw
from lit_adaptive.replay.rollouts.groups import RolloutGroups
from lit_adaptive.replay.trajectories import TrajectoryBuffer, TrajectoryStore
from lit_adaptive.replay.transitions.buffer import ReplayBuffer
from lit_adaptive.replay.transitions.prioritized import PrioritizedReplayBuffer
from lit_adaptive.replay.transitions.ring import TransitionRing

__all__ = [
    "PrioritizedReplayBuffer",
    "ReplayBuffer",
    "RolloutBuffer",
    "RolloutDraw",
    "RolloutGroups",
    "TrajectoryBuffer",
    "TrajectoryStore",
    "TransitionRing",
]
