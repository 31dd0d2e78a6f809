"""Memory of a training."""

import resource
import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves

_MIB = 2**20


class MemoryReport(Callback):
    """Logs the bytes that a rank needs for its parameters, gradients and optimizer, and the peak.

    ``memory/parameters`` (frozen ones and buffers included), ``memory/gradients`` (of parameters
    that are trained) and ``memory/optimizer`` are sums over tensors, of sharded ones the rank's
    part. ``memory/peak`` is on GPUs the most that PyTorch had allocated at once, else the largest
    resident set of the process since its start, with the interpreter and libraries. The peak is
    the largest of all ranks. Logged after each epoch; when training ends, one line is printed.

    Needs: nothing.
    Changes: nothing.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new peak on the GPU."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        memory = self._bytes(trainer, pl_module)
        peak = float(memory.pop("memory/peak"))
        pl_module.log_dict({name: float(value) for name, value in memory.items()})
        pl_module.log("memory/peak", peak, sync_dist=trainer.world_size > 1, reduce_fx="max")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        if trainer.is_global_zero:
            parts = ", ".join(
                f"{name.removeprefix('memory/')} {value / _MIB:.1f}"
                for name, value in self._bytes(trainer, pl_module).items()
            )
            print(f"memory in MiB: {parts}")

    def _bytes(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int]:
        parameters = list(pl_module.parameters())
        state = [leaf for each in trainer.optimizers for leaf in tree_leaves(dict(each.state))]
        return {
            "memory/parameters": _sum([*parameters, *pl_module.buffers()]),
            "memory/gradients": _sum([each for each in parameters if each.requires_grad]),
            "memory/optimizer": _sum([leaf for leaf in state if isinstance(leaf, Tensor)]),
            "memory/peak": _peak(pl_module.device),
        }


def _sum(tensors: list[Tensor]) -> int:
    return sum(_local(each).nbytes for each in tensors)


def _local(tensor: Any) -> Tensor:
    """The rank's part of a sharded tensor."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
