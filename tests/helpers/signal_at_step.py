"""A callback that sends its own process a signal, in the middle of a step."""

import os
from typing import Any

from lightning.pytorch import Callback


class SignalAtStep(Callback):
    """Sends signal ``number`` before the backward pass of step ``step``."""

    needs = provides = frozenset()

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Send the signal."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)
