"""Optimizer and learning-rate schedule of the language-model modules."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw as adamw_step
from torch.optim.lr_scheduler import LRScheduler

from lit_adaptive.core.shares import share_count

Schedule = Literal["constant", "linear", "cosine"]
OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

_LEAST_MOVED = 0.9
"""Fraction of the weights that a step of the learning rate must be able to change."""


@dataclass(frozen=True)
class Optimization:
    """AdamW with a warm-up and a learning-rate schedule, or a given optimizer and scheduler.

    Weights in bfloat16 or float16 lose updates smaller than half the distance to the next number,
    |w| / 512 in bfloat16: with a learning rate of 1e-5 nearly all of them. A warning says so;
    ``master_weights`` is the remedy.

    Args:
        learning_rate: peak learning rate of AdamW, above 0.
        weight_decay: decoupled weight decay of AdamW, at least 0.
        betas: AdamW's decay rates of the gradient's first and second moment.
        schedule: learning rate after the warm-up, over the whole training.
        warmup: fraction of training in which the learning rate rises linearly from 0, in [0, 1).
        optimizer: optimizer to use instead of AdamW; the learning rate, weight decay and betas
            above are then ignored.
        master_weights: let AdamW update a float32 copy of weights in lower precision, and round it
            to the weights after each step. Needs 12 bytes more per such weight.
        lr_scheduler: scheduler to use instead of ``schedule`` and ``warmup``; it is stepped after
            each optimizer step, ``lightning.pytorch.cli.ReduceLROnPlateau`` after each epoch.

    Raises:
        ValueError: if an argument is out of range, or ``master_weights`` is set with ``optimizer``.
    """

    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = "constant"
    warmup: float = 0.0
    optimizer: OptimizerFactory | None = None
    lr_scheduler: SchedulerFactory | None = None
    master_weights: bool = False

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
        if self.master_weights and self.optimizer is not None:
            raise ValueError(
                "master_weights is true, but an optimizer is given, which updates the weights "
                "itself: leave out one of the two"
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
            make = _MasterAdamW if self.master_weights else torch.optim.AdamW
            options: dict[str, Any] = {"fused": True} if fused and not self.master_weights else {}
            optimizer = make(
                trainable,
                lr=self.learning_rate,
                weight_decay=self.weight_decay,
                betas=self.betas,
                **options,
            )
        if not self.master_weights:
            warn_of_lost_updates(optimizer)
        if self.lr_scheduler is not None:
            scheduler: Any = self.lr_scheduler(optimizer)
        elif self.optimizer is not None or (self.schedule == "constant" and not self.warmup):
            return optimizer
        else:
            scheduler = learning_rate_schedule(optimizer, self.schedule, self.warmup, steps())
        return scheduled(optimizer, scheduler, "step")


def scheduled(optimizer: Optimizer, scheduler: Any, interval: Literal["step", "epoch"]) -> Any:
    """Return value of ``configure_optimizers`` for an optimizer with a scheduler.

    Args:
        optimizer: the optimizer.
        scheduler: its scheduler. ``lightning.pytorch.cli.ReduceLROnPlateau`` names the metric that
            it follows (``monitor``), and is stepped after each epoch.
        interval: when any other scheduler is stepped.

    Raises:
        ValueError: if the scheduler is a ``ReduceLROnPlateau`` without ``monitor``.
    """
    if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval},
        }
    if not isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "lr_scheduler is torch.optim.lr_scheduler.ReduceLROnPlateau, which does not name the "
            "metric that it follows: use lightning.pytorch.cli.ReduceLROnPlateau and set its "
            "monitor, for example to val/loss"
        )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor},
    }


class _MasterAdamW(torch.optim.AdamW):
    """AdamW (without amsgrad) that updates float32 copies of weights in lower precision.

    The copies and the moments are float32 and part of the state; after each step the weights are
    the copies, rounded (Micikevicius et al., 2018, arXiv:1710.03740, section 3.1).
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; the same as that of AdamW on the float32 copies."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            states = [self._state_of(weight) for weight in weights]
            adamw_step(
                [state["master"] for state in states],
                [weight.grad.float() for weight in weights],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for weight, state in zip(weights, states, strict=True):
                weight.copy_(state["master"])
        return loss

    def _state_of(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            master = weight.detach().to(torch.float32, copy=True)
            state["step"] = torch.tensor(0.0, dtype=torch.float32)
            state["master"], state["exp_avg"] = master, torch.zeros_like(master)
            state["exp_avg_sq"] = torch.zeros_like(master)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state in float32; ``Optimizer`` would cast it to the weights' dtype."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        for name, weight in zip(names, weights, strict=True):
            for key, value in state_dict["state"].get(name, {}).items():
                if key != "step":
                    copy = value.detach().to(weight.device, torch.float32, copy=True)
                    self.state[weight][key] = copy


def warn_of_lost_updates(optimizer: Optimizer) -> None:
    """Warn if a step of the learning rate leaves weights in low precision as they are."""
    moved, total, dtypes = 0, 0, set[str]()
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        for parameter in group["params"]:
            weight: Any = parameter.detach()
            if weight.is_meta or torch.finfo(weight.dtype).bits >= 32:
                continue
            weight = weight.to_local() if hasattr(weight, "to_local") else weight
            moved += int((weight.add(rate) != weight).sum())
            total += weight.numel()
            dtypes.add(str(weight.dtype).removeprefix("torch."))
    if moved < _LEAST_MOVED * total:
        rank_zero_warn(
            f"learning_rate is {max(rates):g} and weights are {' and '.join(sorted(dtypes))}: a "
            f"step of that size changes {moved / total:.1%} of them, the others are rounded back "
            "(a change must exceed half the distance to the next number, |w| / 512 in bfloat16). "
            "Set optimization.master_weights to true, train float32 weights with precision "
            "bf16-mixed, or train a LoRA"
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
