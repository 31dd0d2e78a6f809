"""Base classes of the LightningModules, and evaluation mode as a context."""

from abc import abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn


class AdaptiveModule(LightningModule):
    """A LightningModule whose training step returns the loss and a signal per sample."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; skip ``nn.Module``'s checks for the name of the running hook.

        The trainer writes ``_current_fx_name`` about 44 times a step. ``nn.Module`` checks each
        time whether the name is a parameter's, which is 5 % of the step of a small network.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _logs_now(self) -> bool:
        """Whether this training step is logged; each ``self.log`` costs as much as a layer."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (self.global_step + 1) % every == 0


class EvaluatedModule(AdaptiveModule):
    """A module that is evaluated on validation and test batches in the same way."""

    @abstractmethod
    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        """Update the metrics of ``stage`` (``val`` or ``test``) with a batch."""

    @abstractmethod
    def _report(self, stage: str) -> None:
        """Log the metrics of ``stage`` over all ranks, and reset them."""

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Update the validation metrics."""
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics over all ranks."""
        self._report("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Update the test metrics."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics over all ranks."""
        self._report("test")


@contextmanager
def evaluation_mode(module: nn.Module) -> Generator[None]:
    """Put ``module`` into evaluation mode without gradients, and restore each submodule's mode."""
    training = [submodule for submodule in module.modules() if submodule.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for submodule in training:
            submodule.training = True
