"""How language models are optimized: AdamW, a warm-up, and a schedule over the whole training."""

from collections.abc import Callable, Iterable
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
