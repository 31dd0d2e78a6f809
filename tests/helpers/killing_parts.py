"""A reward, an engine and a callback that kill the process they run in, named in YAML."""

import os
import signal
from typing import Any

from lightning.pytorch import Callback

from lit_adaptive.rollout.engines.transformers import TransformersEngine
from lit_adaptive.rollout.rewards.base import Reward


class EvenLength(Reward):
    """1 for completions of an even number of characters, which an untrained model produces.

    Args:
        die_at: number of completions after which the process is killed; -1: never.
    """

    def __init__(self, die_at: int = -1) -> None:
        self.die_at, self.scored = die_at, 0

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        self.scored += len(completions)
        if 0 <= self.die_at <= self.scored:
            os.kill(os.getpid(), signal.SIGKILL)
        return [float(len(text) % 2 == 0) for text in completions]


class KillingEngine(TransformersEngine):
    """Kills the process while generating.

    Args:
        die_at: version of the policy at which it does; -1: never.
    """

    def __init__(self, die_at: int = -1) -> None:
        super().__init__(max_rows=8)
        self.die_at = die_at

    def generate(self, *arguments: Any) -> Any:
        completions = super().generate(*arguments)
        if self.version == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return completions


class KillsWhileSaving(Callback):
    """Kills the process while a checkpoint is assembled.

    Needs: nothing. Changes: nothing.
    """

    def __init__(self, at: int = -1) -> None:
        self.at = at

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
