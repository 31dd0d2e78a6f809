"""What to do when a policy becomes too sure of itself."""

import dataclasses
import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

OnCollapse = Literal["warn", "stop", "bonus"]


class EntropyGuard(Callback):
    """Watches the policy's entropy, and acts when it stays too low.

    A policy whose entropy is spent explores nothing, and its reward stands still (Cui et al., 2025,
    arXiv:2505.22617). The guard takes the mean entropy of all tokens of an update over all ranks
    and micro-batches, whenever the module logs it, and follows it with a moving average. It logs
    ``entropy_guard/average``, ``entropy_guard/floor``, ``entropy_guard/below`` (measurements in a
    row under the floor) and, with ``bonus``, ``entropy_guard/bonus``.

    Needs: ``model.advantages``: a policy that logs its mean entropy per token, in nats, as
        ``monitor`` in each micro-batch of a step that is logged (``lit_adaptive.modules.GRPO``);
        ``batch.target``; with ``bonus`` also ``objective.entropy_bonus`` of the module.
    Changes: nothing, or the module's ``objective`` (``bonus``), or ends the training (``stop``).

    Args:
        floor: lowest average that is well: if ``relative`` a share in (0, 1) of the entropy at the
            beginning, else nats per token, above 0.
        relative: see ``floor``.
        patience: measurements in a row under the floor before the guard acts, above 0.
        on_collapse: ``warn`` once, until the entropy recovers; ``stop`` the training; or raise the
            entropy ``bonus`` of the objective, again after every ``patience`` measurements.
        step: by how much the bonus is raised, above 0.
        most: the bonus goes no further, at least ``step``.
        decay: of the moving average, in [0, 1); 0: the last measurement alone.
        warmup: measurements whose mean is the entropy at the beginning, above 0.
        monitor: name of the entropy among what the module logs.

    Raises:
        ValueError: naming the argument that is out of its range; if an entropy is not finite, or is
            not logged.
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
        most: float = 0.01,
        decay: float = 0.8,
        warmup: int = 3,
        monitor: str = "train/entropy",
    ) -> None:
        _check_floor(floor, relative=relative)
        for name, count in (("patience", patience), ("warmup", warmup)):
            if count <= 0:
                raise ValueError(f"{name} is {count}; it must be above 0 (measurements)")
        if on_collapse not in ("warn", "stop", "bonus"):
            raise ValueError(f"on_collapse is {on_collapse!r}; it must be warn, stop or bonus")
        if not 0 < step <= most < math.inf:
            raise ValueError(
                f"step is {step} and most {most}; the bonus rises by step, above 0, up to most, "
                "which is finite and at least step"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must lie in [0, 1) (0: the last one alone)")
        self.floor, self.relative, self.patience = floor, relative, patience
        self.on_collapse: OnCollapse = on_collapse
        self.step, self.most = step, most
        self.decay, self.warmup, self.monitor = decay, warmup, monitor
        self.average: float | None = None
        self.beginning = 0.0  # mean of the first measurements
        self.measured = 0
        self.below = 0
        self.bonus: float | None = None  # in force, once the guard has raised it
        self._total, self._tokens = 0.0, 0.0  # of the update under way
        self._due: int | None = None  # the step that it ends with, if it is logged

    # Before training -----------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run in which the guard could not see or act."""
        if stage != "fit":
            return
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every:
            raise ValueError(
                f"log_every_n_steps is {every}, so {self.monitor} is never logged and "
                "EntropyGuard sees nothing: set it above 0, or leave the callback out"
            )
        if self.on_collapse != "bonus":
            return
        now: float | None = getattr(getattr(pl_module, "objective", None), "entropy_bonus", None)
        if now is None:
            raise ValueError(
                f"on_collapse is 'bonus', but the objective of {type(pl_module).__name__} has no "
                "entropy_bonus: train lit_adaptive.modules.GRPO, or choose warn or stop"
            )
        if now >= self.most:
            raise ValueError(
                f"most is {self.most}, and the objective's entropy_bonus is {now} already: set "
                "most above it"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the bonus in force that the checkpoint had."""
        self._total, self._tokens = 0.0, 0.0
        if self.bonus is not None:
            self._put_in_force(pl_module, self.bonus)

    # In training ---------------------------------------------------------------------------------

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Note whether this micro-batch's entropy will be logged."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._due = trainer.global_step + 1 if (trainer.global_step + 1) % every == 0 else None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Add the micro-batch; after the update's last, judge."""
        if self._due is None:
            return
        count = len(batch["target"])
        if count:
            self._total += count * self._logged(trainer)
            self._tokens += count
        if trainer.global_step != self._due:
            return  # gradients are still gathered
        sums = torch.tensor([self._total, self._tokens], device=pl_module.device)
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        self._total, self._tokens = 0.0, 0.0
        total, tokens = sums.tolist()
        if not tokens:
            return  # nothing was trained on
        if not math.isfinite(total):
            raise ValueError(
                f"{self.monitor} is {total / tokens} at step {trainer.global_step}; an entropy is "
                "finite: look for NaN or infinite logits in the model, and lower the learning rate"
            )
        self._judge(total / tokens, trainer, pl_module)
        pl_module.log_dict(self._told(pl_module), batch_size=1)

    def _logged(self, trainer: Trainer) -> float:
        found = trainer.callback_metrics.get(self.monitor)
        if found is None:
            raise ValueError(
                f"monitor is {self.monitor!r}, which was not logged at step "
                f"{trainer.global_step}; there are {sorted(trainer.callback_metrics)}: name the "
                "entropy among them, or leave EntropyGuard out"
            )
        return float(found)

    def _judge(self, entropy: float, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the measurement ``entropy``, and act if it has been too low for too long."""
        self.observe(entropy)
        if self.below == 0 or self.below % self.patience:
            return
        told = (
            f"the policy's entropy is {self.average:.4g} nats per token on average, under the "
            f"floor of {self.limit:.4g} for {self.below} measurements (step {trainer.global_step})"
        )
        if self.on_collapse == "bonus":
            self._raise_bonus(pl_module, told)
        elif self.below == self.patience:
            advice = "raise entropy_bonus, clip_high or the temperature, or lower the learning rate"
            if self.on_collapse == "stop":
                trainer.should_stop = True
                advice = f"training stops. To go on, {advice}"
            rank_zero_warn(f"{told}: {advice}")

    def observe(self, entropy: float) -> None:
        """Take in a measurement, in nats per token, finite."""
        before = entropy if self.average is None else self.average
        self.average = self.decay * before + (1 - self.decay) * entropy
        self.measured += 1
        if self.measured <= self.warmup:
            self.beginning += (entropy - self.beginning) / self.measured
        limit = self.limit
        self.below = self.below + 1 if limit is not None and self.average < limit else 0

    @property
    def limit(self) -> float | None:
        """The floor in nats per token; None while the beginning is not over."""
        if not self.relative:
            return self.floor
        return self.floor * self.beginning if self.measured >= self.warmup else None

    def _raise_bonus(self, pl_module: LightningModule, told: str) -> None:
        module: Any = pl_module
        now: float = module.objective.entropy_bonus
        if now >= self.most:
            if self.below == self.patience:
                rank_zero_warn(f"{told}, and its bonus is {now} already: raise `most`")
            return
        new = min(now + self.step, self.most)
        self._put_in_force(pl_module, new)
        self.bonus = new
        rank_zero_warn(f"{told}: its bonus rises from {now:.4g} to {new:.4g}")

    @staticmethod
    def _put_in_force(pl_module: LightningModule, bonus: float) -> None:
        module: Any = pl_module
        module.objective = dataclasses.replace(module.objective, entropy_bonus=bonus)

    def _told(self, pl_module: LightningModule) -> dict[str, float]:
        found = {"average": self.average, "floor": self.limit, "below": float(self.below)}
        if self.on_collapse == "bonus":
            module: Any = pl_module
            found["bonus"] = module.objective.entropy_bonus
        return {f"entropy_guard/{name}": v for name, v in found.items() if v is not None}

    # Memory --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All measurements so far, and the bonus in force."""
        return {
            "average": self.average,
            "beginning": self.beginning,
            "measured": self.measured,
            "below": self.below,
            "bonus": self.bonus,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from them."""
        self.average, self.beginning = state_dict["average"], state_dict["beginning"]
        self.measured, self.below = state_dict["measured"], state_dict["below"]
        self.bonus = state_dict["bonus"]


def _check_floor(floor: float, *, relative: bool) -> None:
    if relative and not 0 < floor < 1:
        raise ValueError(
            f"floor is {floor}; it is a share of the entropy at the beginning and lies in (0, 1): "
            "set relative to false to give nats per token"
        )
    if not 0 < floor < math.inf:
        raise ValueError(f"floor is {floor}; an entropy in nats per token is above 0 and finite")
