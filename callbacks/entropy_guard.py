"""Detection of, and reaction to, the collapse of a policy's entropy."""

import dataclasses
import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_adaptive.core.bounds import check_at_least

OnCollapse = Literal["warn", "stop", "bonus"]


class EntropyGuard(Callback):
    """Watches the policy's entropy, and reacts when it stays too low.

    A policy without entropy explores nothing, and its reward stops improving (Cui et al., 2025,
    arXiv:2505.22617). Whenever the module logs its entropy, the guard takes the mean over all
    tokens of the update (all ranks and micro-batches) as a measurement, and updates a moving
    average. It logs ``entropy_guard/average``, ``entropy_guard/floor``, ``entropy_guard/below``
    (consecutive measurements with the average under the floor) and, with ``bonus``,
    ``entropy_guard/bonus``.

    Needs: ``model.advantages``: a policy that logs an update's mean entropy per token, in nats, as
        ``monitor`` (``lit_adaptive.modules.GRPO``); ``batch.target``; with ``bonus`` also
        ``objective.entropy_bonus`` of the module.
    Changes: nothing, or the module's ``objective`` (``bonus``), or ends the training (``stop``).

    Args:
        floor: least acceptable average: a fraction of the initial entropy in (0, 1) if
            ``relative``, otherwise nats per token, above 0.
        relative: whether ``floor`` is relative to the initial entropy.
        patience: consecutive measurements under the floor before the guard reacts, above 0.
        on_collapse: reaction: ``warn`` once, until the entropy recovers; ``stop`` the training; or
            raise the objective's entropy ``bonus``, again after every ``patience`` measurements.
        step: increment of the bonus, above 0.
        max_bonus: upper bound of the bonus, at least ``step``.
        decay: decay rate of the moving average, in [0, 1); 0 keeps only the latest measurement.
        warmup: number of measurements whose mean is the initial entropy, above 0.
        monitor: name under which the module logs its entropy.

    Raises:
        ValueError: if an argument is out of range, or an entropy is not finite or not logged.
    """

    needs = frozenset({"model.advantages", "batch.target"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "model.advantages": "train lit_adaptive.modules.GRPO, which logs its entropy",
        "batch.target": "use lit_adaptive.data.RolloutDataModule",
    }

    def __init__(
        self,
        floor: float = 0.2,
        relative: bool = True,
        patience: int = 3,
        on_collapse: OnCollapse = "warn",
        step: float = 0.001,
        max_bonus: float = 0.01,
        decay: float = 0.8,
        warmup: int = 3,
        monitor: str = "train/entropy",
    ) -> None:
        _check_floor(floor, relative=relative)
        check_at_least(patience=(patience, 1), warmup=(warmup, 1))
        if on_collapse not in ("warn", "stop", "bonus"):
            raise ValueError(f"on_collapse is {on_collapse!r}; it must be warn, stop or bonus")
        if not 0 < step <= max_bonus < math.inf:
            raise ValueError(
                f"step is {step} and max_bonus is {max_bonus}; step must be above 0, and max_bonus "
                "finite and at least step"
            )
        if not 0 <= decay < 1:
            raise ValueError(
                f"decay is {decay}; it must lie in [0, 1) (0 keeps only the latest measurement)"
            )
        self.floor, self.relative, self.patience = floor, relative, patience
        self.on_collapse: OnCollapse = on_collapse
        self.step, self.max_bonus = step, max_bonus
        self.decay, self.warmup, self.monitor = decay, warmup, monitor
        self.average: float | None = None
        self.initial = 0.0  # mean of the first measurements, up to ``warmup``
        self.measured = 0
        self.below = 0
        self.bonus: float | None = None  # current bonus, once the guard has raised it
        self._tokens, self._global_step = 0, -1  # of the update under way
        self._update_ends: int | None = None  # global step of the update under way, if logged

    # Before training -----------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reject a run in which the guard could not measure or react."""
        if stage != "fit":
            return
        log_interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not log_interval:
            raise ValueError(
                f"log_every_n_steps is {log_interval}, so {self.monitor} is never logged and "
                "EntropyGuard cannot measure it: set it above 0, or leave the callback out"
            )
        if self.on_collapse != "bonus":
            return
        bonus: float | None = getattr(getattr(pl_module, "objective", None), "entropy_bonus", None)
        if bonus is None:
            raise ValueError(
                f"on_collapse is 'bonus', but the objective of {type(pl_module).__name__} has no "
                "entropy_bonus: train lit_adaptive.modules.GRPO, or choose warn or stop"
            )
        if bonus >= self.max_bonus:
            raise ValueError(
                f"max_bonus is {self.max_bonus}, but the objective's entropy_bonus is already "
                f"{bonus}: set max_bonus above it"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the bonus of a checkpoint."""
        if self.bonus is not None:
            _set_bonus(pl_module, self.bonus)

    # In training ---------------------------------------------------------------------------------

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Determine whether the entropy of this update will be logged."""
        if self._global_step != trainer.global_step:
            self._global_step, self._tokens = trainer.global_step, 0
        log_interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        step = trainer.global_step + 1
        self._update_ends = step if step % log_interval == 0 else None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """After the last micro-batch of a logged update that has tokens, measure and react."""
        self._tokens += len(batch["target"])
        if trainer.global_step != self._update_ends:
            return
        tokens = torch.tensor(float(self._tokens), device=pl_module.device)
        if trainer.world_size > 1:
            tokens = trainer.strategy.reduce(tokens, reduce_op="sum")
        self._tokens = 0
        if not bool(tokens):
            return
        entropy = self._logged_entropy(trainer)
        if not math.isfinite(entropy):
            raise ValueError(
                f"{self.monitor} is {entropy} at step {trainer.global_step}; an entropy is "
                "finite: look for NaN or infinite logits in the model, and lower the learning rate"
            )
        self._react(entropy, trainer, pl_module)
        pl_module.log_dict(self._metrics(pl_module), batch_size=1)

    def _logged_entropy(self, trainer: Trainer) -> float:
        entropy = trainer.callback_metrics.get(self.monitor)
        if entropy is None:
            raise ValueError(
                f"monitor is {self.monitor!r}, which was not logged at step "
                f"{trainer.global_step}; the logged metrics are "
                f"{sorted(trainer.callback_metrics)}: choose the entropy among them, or leave "
                "EntropyGuard out"
            )
        return float(entropy)

    def _react(self, entropy: float, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a measurement, and react if the average has been too low for too long."""
        self.observe(entropy)
        if self.below == 0 or self.below % self.patience:
            return
        message = (
            f"the policy's average entropy is {self.average:.4g} nats per token, below the floor "
            f"of {self.limit:.4g} for {self.below} measurements (step {trainer.global_step})"
        )
        if self.on_collapse == "bonus":
            self._raise_bonus(pl_module, message)
        elif self.below == self.patience:
            advice = "raise entropy_bonus, clip_high or the temperature, or lower the learning rate"
            if self.on_collapse == "stop":
                trainer.should_stop = True
                advice = f"training stops. Before resuming, {advice}"
            rank_zero_warn(f"{message}: {advice}")

    def observe(self, entropy: float) -> None:
        """Record a measurement in nats per token, finite."""
        average = entropy if self.average is None else self.average
        self.average = self.decay * average + (1 - self.decay) * entropy
        self.measured += 1
        if self.measured <= self.warmup:
            self.initial += (entropy - self.initial) / self.measured
        limit = self.limit
        self.below = self.below + 1 if limit is not None and self.average < limit else 0

    @property
    def limit(self) -> float | None:
        """The floor in nats per token; None until the initial entropy is measured."""
        if not self.relative:
            return self.floor
        return self.floor * self.initial if self.measured >= self.warmup else None

    def _raise_bonus(self, pl_module: LightningModule, message: str) -> None:
        module: Any = pl_module
        current: float = module.objective.entropy_bonus
        if current >= self.max_bonus:
            if self.below == self.patience:
                rank_zero_warn(
                    f"{message}, and entropy_bonus is already {current}: raise max_bonus"
                )
            return
        self.bonus = min(current + self.step, self.max_bonus)
        _set_bonus(pl_module, self.bonus)
        rank_zero_warn(f"{message}: entropy_bonus rises from {current:.4g} to {self.bonus:.4g}")

    def _metrics(self, pl_module: LightningModule) -> dict[str, float]:
        values = {"average": self.average, "floor": self.limit, "below": float(self.below)}
        if self.on_collapse == "bonus":
            module: Any = pl_module
            values["bonus"] = module.objective.entropy_bonus
        return {f"entropy_guard/{name}": v for name, v in values.items() if v is not None}

    def state_dict(self) -> dict[str, Any]:
        """The measurements so far, and the current bonus."""
        return {
            "average": self.average,
            "initial": self.initial,
            "measured": self.measured,
            "below": self.below,
            "bonus": self.bonus,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the measurements and the bonus."""
        self.average, self.initial = state_dict["average"], state_dict["initial"]
        self.measured, self.below = state_dict["measured"], state_dict["below"]
        self.bonus = state_dict["bonus"]


def _set_bonus(pl_module: LightningModule, bonus: float) -> None:
    module: Any = pl_module
    module.objective = dataclasses.replace(module.objective, entropy_bonus=bonus)


def _check_floor(floor: float, *, relative: bool) -> None:
    if relative and not 0 < floor < 1:
        raise ValueError(
            f"floor is {floor}; as a fraction of the initial entropy it must lie in (0, 1): set "
            "relative to false for a floor in nats per token"
        )
    if not 0 < floor < math.inf:
        raise ValueError(f"floor is {floor}; in nats per token it must be above 0 and finite")
