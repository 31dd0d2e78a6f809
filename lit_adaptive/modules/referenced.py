"""A policy that is trained: its optimizer, and the reference that it is compared with."""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.modules.generator import GeneratingModule
from lit_adaptive.modules.language_model import LanguageModel, read
from lit_adaptive.modules.optimization import Optimization


class ReferencedModule(GeneratingModule):
    """A policy beside a frozen copy of it, or beside itself without adapters."""

    optimization: Optimization
    _frozen: tuple[LanguageModel, ...] = ()  # a tuple: no part of the state

    def _freeze(self) -> LanguageModel:
        """Keep a copy of the model as it begins."""
        frozen = self.built().requires_grad_(requires_grad=False).eval()
        self._frozen = (frozen,)
        return frozen

    def on_fit_start(self) -> None:
        """The frozen reference goes where the model is."""
        for frozen in self._frozen:
            frozen.to(self.device)

    @torch.no_grad()
    def _reference_log_probs(self, batch: dict[str, Any], reference: str, **more: Any) -> Tensor:
        """Of a batch's targets ``[K]``, by the reference ``adapter_off`` or ``frozen``."""
        if reference == "adapter_off":
            with self.policy.model.disable_adapter():
                return read(self.policy, batch, **more)[0].log_prob
        return read(self._frozen[0], batch, **more)[0].log_prob

    def configure_optimizers(self) -> Any:
        """AdamW and its schedule, or what was given."""
        return self.optimization.configure_optimizers(
            self.policy.parameters(),
            lambda: self.trainer.estimated_stepping_batches,
            fused=self.device_mesh is None,
        )
