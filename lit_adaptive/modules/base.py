"""Base class of the LightningModules, and evaluation mode as a context."""

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
