"""Where experience is kept: transitions in a ring of tensors, and who chooses among them."""

from lit_adaptive.replay.rollouts.buffer import RolloutBuffer
from lit_adaptive.replay.rollouts.groups import RolloutGroups
from lit_adaptive.replay.transitions.buffer import ReplayBuffer
from lit_adaptive.replay.transitions.prioritized import PrioritizedReplayBuffer
from lit_adaptive.replay.transitions.ring import TransitionRing

__all__ = [
    "PrioritizedReplayBuffer",
    "ReplayBuffer",
    "RolloutBuffer",
    "RolloutGroups",
    "TransitionRing",
]
