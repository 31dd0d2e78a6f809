"""How language models are optimized: AdamW, a warm-up, and a schedule over the whole training."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Schedule = Literal["constant", "linear", "cosine"]
OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


def check_optimization(learning_rate: float, weight_decay: float, warmup: float) -> None:
    """Refuse numbers out of range.

    Raises:
        ValueError: naming the argument.
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}; it must be above 0")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay is {weight_decay}; it must not be negative")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is {warmup}; it is a share of training and lies in [0, 1)")


@dataclass(frozen=True)
class Optimization:
    """How a module's parameters are optimized.

    Args:
        learning_rate: of AdamW, above 0.
        weight_decay: of AdamW, at least 0.
        betas: of AdamW.
        schedule: of the learning rate after the warm-up, over the whole training.
        warmup: share of training in which the learning rate rises from 0, in [0, 1).
        optimizer: builds another one; the learning rate, decay and betas are its own then.
        lr_scheduler: builds another schedule, stepped after each optimizer step.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    schedule: Schedule
    warmup: float
    optimizer: OptimizerFactory | None
    lr_scheduler: SchedulerFactory | None

    def __post_init__(self) -> None:
        check_optimization(self.learning_rate, self.weight_decay, self.warmup)

    def configured(
        self, parameters: Iterable[Tensor], steps: Callable[[], float], *, fused: bool
    ) -> Any:
        """What ``configure_optimizers`` returns.

        Args:
            parameters: those that require gradients are optimized.
            steps: says how many there will be.
            fused: whether parameters are plain tensors.
        """
        trained = [each for each in parameters if each.requires_grad]
        if self.optimizer is not None:
            built = self.optimizer(trained)
        else:
            built = adamw(trained, self.learning_rate, self.weight_decay, self.betas, fused=fused)
        if self.lr_scheduler is not None:
            scheduler: Any = self.lr_scheduler(built)
        elif self.optimizer is not None or (self.schedule == "constant" and not self.warmup):
            return built
        else:
            scheduler = scheduled(built, self.schedule, self.warmup, steps())
        return {
            "optimizer": built,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def adamw(
    parameters: Iterable[Tensor],
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    *,
    fused: bool,
) -> Optimizer:
    """AdamW, fused where parameters are plain tensors."""
    return torch.optim.AdamW(
        parameters, lr=learning_rate, weight_decay=weight_decay, betas=betas, fused=fused
    )


def scheduled(optimizer: Optimizer, schedule: Schedule, warmup: float, steps: float) -> Any:
    """A learning rate that rises from 0 for ``warmup`` of ``steps``, then follows ``schedule``.

    Raises:
        ValueError: if it is not known when training ends.
    """
    from transformers import get_scheduler

    if not steps < float("inf"):
        raise ValueError(
            f"the schedule {schedule!r} with a warm-up of {warmup} must know when training ends: "
            "set max_steps or max_epochs, or schedule constant and warmup 0"
        )
    return get_scheduler(
        "constant_with_warmup" if schedule == "constant" else schedule,
        optimizer,
        num_warmup_steps=round(warmup * steps),
        num_training_steps=int(steps),
    )
