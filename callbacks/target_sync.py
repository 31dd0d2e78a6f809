"""Updates of the target network."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least


class TargetSync(Callback):
    """Copies the online network into the target network, or moves the target towards it.

    Mnih et al. (2015) copy every 10,000 updates; Lillicrap et al. (2016) move by ``tau = 0.001`` at
    each update. Steps are optimizer steps, so gradient accumulation does not change the interval.

    Needs: ``model.target_net`` beside ``q_net``, of the same architecture.
    Changes: the target network's parameters and buffers (``duty.target_sync``).

    Args:
        every_n_steps: optimizer steps between two updates of the target, above 0.
        tau: step size of the target towards the online network, in (0, 1]; 1 copies.

    Raises:
        ValueError: if an argument is out of range.
    """

    needs = frozenset({"model.target_net"})
    provides = frozenset({"duty.target_sync"})

    def __init__(self, every_n_steps: int = 1_000, tau: float = 1.0) -> None:
        check_at_least(every_n_steps=(every_n_steps, 1))
        if not 0 < tau <= 1:
            raise ValueError(f"tau is {tau}; it must lie in (0, 1] (1 copies the network)")
        self.every_n_steps = every_n_steps
        self.tau = tau
        self._last_sync = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the checkpoint of a resumed run includes the update of its step."""
        self._last_sync = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the target once per optimizer step at which it is due."""
        step = trainer.global_step
        if step == self._last_sync or step % self.every_n_steps:
            return
        self._last_sync = step
        online: Any = pl_module.q_net
        target: Any = pl_module.target_net
        _move(target.parameters(), online.parameters(), self.tau)
        _move(target.buffers(), online.buffers(), 1.0)


def _move(target: Any, source: Any, tau: float) -> None:
    """Move each target tensor towards its source; 1 copies exactly, integers too."""
    pair: tuple[Tensor, Tensor]
    for pair in zip(target, source, strict=True):
        if tau == 1:
            pair[0].copy_(pair[1])
        else:
            pair[0].lerp_(pair[1], tau)
