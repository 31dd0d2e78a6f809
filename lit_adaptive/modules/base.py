"""What the modules here share."""

from typing import Any

from lightning.pytorch import LightningModule


class AdaptiveModule(LightningModule):
    """A LightningModule whose training step returns, beside the loss, a signal for each sample."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; Lightning's note of the running hook goes the short way.

        The trainer writes ``_current_fx_name`` about 44 times a step. ``nn.Module`` checks each
        time whether the name is a parameter's, which on a small network is 5 % of the step.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)
