"""Returns of greedy episodes."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from lightning.pytorch import Trainer

from callbacks import EpisodeEvaluation
from lit_adaptive.data import TransitionsDataModule
from lit_adaptive.modules import DQN


class OneStep(gymnasium.Env[Any, Any]):
    """Episodes of one step; every second one has a reward of NaN."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self.reward = math.nan if seed is not None and seed % 2 else 1.0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """End it."""
        return np.zeros(2, np.float32), self.reward, True, False, {}


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_a_nan_return_is_not_dropped_from_the_mean() -> None:
    gymnasium.register("OneStepNaN-v0", OneStep)
    data = TransitionsDataModule("OneStepNaN-v0", evaluation_episodes=4, seed=0)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[EpisodeEvaluation()]
    )
    (metrics,) = trainer.validate(DQN(), data, verbose=False)
    assert math.isnan(metrics["val/return"])
    assert metrics["val/length"] == 1
