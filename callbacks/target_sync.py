"""The target network follows the online one."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class TargetSync(Callback):
    """Copies the online network into the target every so many steps, or a little of it each time.

    Mnih et al. (2015) copy it whole every 10,000 updates; Lillicrap et al. (2016) move it by
    ``tau = 0.001`` at each. Steps are the optimizer's, so accumulation and resuming change nothing.

    Needs: ``model.target_net`` beside ``q_net``, of the same shape.
    Changes: the target network's parameters and buffers (``duty.target_sync``).

    Args:
        every_n_steps: optimizer steps between two syncs, above 0.
        tau: how far the target moves, in (0, 1]; 1 copies.
    """

    needs = frozenset({"model.target_net"})
    provides = frozenset({"duty.target_sync"})

    def __init__(self, every_n_steps: int = 1_000, tau: float = 1.0) -> None:
        if every_n_steps <= 0:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be above 0")
        if not 0 < tau <= 1:
            raise ValueError(f"tau is {tau}; it must lie in (0, 1] (1 copies the network whole)")
        self.every_n_steps = every_n_steps
        self.tau = tau
        self._synced_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run has done the sync of the step it was saved at."""
        self._synced_at = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Sync, once for each optimizer step that is due."""
        step = trainer.global_step
        if step == self._synced_at or step % self.every_n_steps:
            return
        self._synced_at = step
        online: Any = pl_module.q_net
        target: Any = pl_module.target_net
        ours, theirs = list(target.parameters()), list(online.parameters())
        if self.tau == 1:
            _copy(ours, theirs)
        else:
            for own, other in zip(ours, theirs, strict=True):
                own.lerp_(other, self.tau)
        _copy(list(target.buffers()), list(online.buffers()))


def _copy(into: list[Tensor], source: list[Tensor]) -> None:
    for ours, theirs in zip(into, source, strict=True):
        ours.copy_(theirs)
