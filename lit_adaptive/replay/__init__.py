"""Where experience is kept: transitions in a ring of tensors, and who chooses among them."""

from lit_adaptive.replay.buffer import ReplayBuffer
from lit_adaptive.replay.groups import RolloutGroups
from lit_adaptive.replay.prioritized import PrioritizedReplayBuffer
from lit_adaptive.replay.ring import TransitionRing
from lit_adaptive.replay.rollouts import RolloutBuffer

__all__ = [
    "PrioritizedReplayBuffer",
    "ReplayBuffer",
    "RolloutBuffer",
    "RolloutGroups",
    "TransitionRing",
]
