"""Optimizer and learning-rate schedule of the language-model modules."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_adaptive.core.shares import share_count

Schedule = Literal["constant", "linear", "cosine"]
OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


@dataclass(frozen=True)
class Optimization:
    """AdamW with a warm-up and a learning-rate schedule, or a given optimizer and scheduler.

    Args:
        learning_rate: peak learning rate of AdamW, above 0.
        weight_decay: decoupled weight decay of AdamW, at least 0.
        betas: AdamW's decay rates of the gradient's first and second moment.
        schedule: learning rate after the warm-up, over the whole training.
        warmup: fraction of training in which the learning rate rises linearly from 0, in [0, 1).
        optimizer: optimizer to use instead of AdamW; the learning rate, weight decay and betas
            above are then ignored.
        lr_scheduler: scheduler to use instead of ``schedule`` and ``warmup``; it is stepped after
            each optimizer step.

    Raises:
        ValueError: if an argument is out of range.
    """

    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = "constant"
    warmup: float = 0.0
    optimizer: OptimizerFactory | None = None
    lr_scheduler: SchedulerFactory | None = None

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate is {self.learning_rate}; it must be above 0 and finite"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay is {self.weight_decay}; it must be at least 0 and finite"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; both must lie in [0, 1)")
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"warmup is {self.warmup}; it is a fraction of training and must lie in [0, 1)"
            )

    def configure_optimizers(
        self, parameters: Iterable[Tensor], steps: Callable[[], float], *, fused: bool
    ) -> Any:
        """Return value of ``LightningModule.configure_optimizers``.

        Args:
            parameters: model parameters; those that require gradients are optimized.
            steps: returns the number of optimizer steps of the whole training.
            fused: whether to use the fused implementation; parameters must be plain tensors.
        """
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        if self.optimizer is not None:
            optimizer = self.optimizer(trainable)
        else:
            optimizer = adamw(
                trainable, self.learning_rate, self.weight_decay, self.betas, fused=fused
            )
        if self.lr_scheduler is not None:
            scheduler: Any = self.lr_scheduler(optimizer)
        elif self.optimizer is not None or (self.schedule == "constant" and not self.warmup):
            return optimizer
        else:
            scheduler = learning_rate_schedule(optimizer, self.schedule, self.warmup, steps())
        return {
            "optimizer": optimizer,
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
    """AdamW over ``parameters``; ``fused`` requires plain tensors."""
    return torch.optim.AdamW(
        parameters, lr=learning_rate, weight_decay=weight_decay, betas=betas, fused=fused
    )


def learning_rate_schedule(
    optimizer: Optimizer, schedule: Schedule, warmup: float, steps: float
) -> Any:
    """Scheduler that rises from 0 for ``warmup * steps`` steps, then follows ``schedule``.

    Raises:
        ValueError: if ``steps`` is infinite, because training has no limit.
    """
    from transformers import get_scheduler

    if not steps < float("inf"):
        raise ValueError(
            f"schedule {schedule!r} with a warm-up of {warmup} needs the length of training: set "
            "max_steps or max_epochs, or use schedule 'constant' with warmup 0"
        )
    return get_scheduler(
        "constant_with_warmup" if schedule == "constant" else schedule,
        optimizer,
        num_warmup_steps=share_count(warmup, int(steps), rounding=round),
        num_training_steps=int(steps),
    )
