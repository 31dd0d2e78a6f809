"""Base classes of the LightningModules, and evaluation mode as a context."""

import math
from abc import abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

Scalar = Tensor | float


class UpdateStatistics:
    """Statistics of one optimizer update, over its micro-batches and over all ranks.

    Every rank must add the same names; a mean of count 0 on all ranks is left out.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Scalar, Scalar]] = {}
        self._maxima: dict[str, Scalar] = {}
        self._effective: dict[str, tuple[str, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._sums or self._maxima)

    def add_mean(self, name: str, total: Scalar, count: Scalar) -> None:
        """Add a micro-batch's sum of a quantity, and the number of its terms."""
        old_total, old_count = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = old_total + total, old_count + count

    def add_values(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Add the mean of ``values`` ``[K]``, or of those where ``mask`` ``[K]`` is true."""
        values = values.detach().float()
        if mask is None:
            return self.add_mean(name, values.sum(), len(values))
        return self.add_mean(name, torch.where(mask, values, 0.0).sum(), mask.sum())

    def add_max(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Add the maximum of ``values`` ``[K]``, or of those where ``mask`` ``[K]`` is true."""
        values = values.detach().float()
        if mask is not None:
            values = torch.where(mask, values, -math.inf)
        least = torch.full((1,), -math.inf, dtype=values.dtype, device=values.device)
        largest = torch.cat([values, least]).max()
        if name in self._maxima:
            largest = torch.maximum(largest, torch.as_tensor(self._maxima[name]))
        self._maxima[name] = largest

    def add_ess(self, name: str, weights: Tensor, mask: Tensor | None = None) -> None:
        """Add weights ``[K]``, or those where ``mask`` is true, to their effective sample size.

        It is the fraction (mean of w)^2 / mean of w^2, in (0, 1].
        """
        parts = f"{name} mean", f"{name} square"
        self.add_values(parts[0], weights, mask)
        self.add_values(parts[1], weights.square(), mask)
        self._effective[name] = parts

    def compute(self, reduce: Callable[[Tensor, str], Tensor]) -> dict[str, float]:
        """Means and maxima by name, and start anew.

        Args:
            reduce: reduces a tensor over the ranks by ``sum`` or ``max``.
        """
        values: dict[str, float] = {}
        if self._sums:
            pairs = [
                torch.as_tensor(v).double().cpu() for pair in self._sums.values() for v in pair
            ]
            sums = reduce(torch.stack(pairs), "sum").view(-1, 2).tolist()
            values |= {
                name: total / count
                for name, (total, count) in zip(self._sums, sums, strict=True)
                if count
            }
        if self._maxima:
            maxima = torch.stack([torch.as_tensor(v).cpu() for v in self._maxima.values()])
            for name, value in zip(self._maxima, reduce(maxima, "max").tolist(), strict=True):
                if value > -math.inf:
                    values[name] = value
        for name, (mean, square) in self._effective.items():
            if mean in values:
                values[name] = values.pop(mean) ** 2 / max(values.pop(square), 1e-30)
        self._sums, self._maxima, self._effective = {}, {}, {}
        return values


class AdaptiveModule(LightningModule):
    """A LightningModule whose training step returns the loss and a signal per sample.

    What a training step adds to ``statistics`` is logged when its optimizer update is complete.
    """

    def __init__(self) -> None:
        super().__init__()
        self.statistics = UpdateStatistics()
        self._divisors: list[float] = []  # of the micro-batches of the update under way

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; skip ``nn.Module``'s checks for the name of the running hook.

        The trainer writes ``_current_fx_name`` about 44 times a step. ``nn.Module`` checks each
        time whether the name is a parameter's, which is 5 % of the step of a small network.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _logs_now(self) -> bool:
        """Whether this training step is logged; each ``self.log`` costs as much as a layer."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (self.global_step + 1) % every == 0

    @property
    def _may_fuse(self) -> bool:
        """Whether an optimizer may be fused: not if sharded, or clipped in mixed precision."""
        clips = self._trainer is not None and bool(self.trainer.gradient_clip_val)
        return self.device_mesh is None and not (clips and "mixed" in self.trainer.precision)

    def _mean_over_ranks(self, *values: Scalar) -> list[Tensor]:
        """Mean of each value over the ranks."""
        if self.trainer.world_size == 1:
            return [torch.as_tensor(value).float() for value in values]
        means = torch.stack([torch.as_tensor(v, device=self.device).float() for v in values])
        return list(self.trainer.strategy.reduce(means, reduce_op="mean"))

    def _update_divisor(self, count: float) -> float:
        """Divisor of the sum of a micro-batch's losses.

        The first micro-batch of an update is divided by its own count, and so are the others;
        ``on_before_optimizer_step`` scales the accumulated gradient so that it is that of the sum
        of all losses divided by the sum of all counts, however the update is split.

        Args:
            count: terms of this micro-batch's sum, as a mean over ranks.
        """
        self._divisors.append(max(count, 1.0))
        return self._divisors[0]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Divide the accumulated gradient by the count of the whole update; log statistics."""
        accumulated: int = self.trainer.accumulate_grad_batches
        if self._divisors and accumulated > 1:
            scale = self._divisors[0] * accumulated / sum(self._divisors)
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        self._divisors = []
        if self.statistics:
            self.log_dict(self._finish_statistics(self.statistics.compute(self._reduce)))

    def _finish_statistics(self, values: dict[str, float]) -> dict[str, float]:
        """What is logged of an update: ``values``, means and maxima by name, unless overridden."""
        return values

    def _reduce(self, values: Tensor, operation: str) -> Tensor:
        if self.trainer.world_size == 1:
            return values
        values = self.trainer.strategy.reduce(values.to(self.device), reduce_op=operation)
        return values.cpu()


class EvaluatedModule(AdaptiveModule):
    """A module that is evaluated on validation and test batches in the same way."""

    @abstractmethod
    def _evaluate(self, batch: dict[str, Any], stage: str) -> Any:
        """Update the metrics of ``stage`` (``val`` or ``test``); return the step's output."""

    @abstractmethod
    def _report(self, stage: str) -> None:
        """Log the metrics of ``stage`` over all ranks, and reset them."""

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """Update the validation metrics."""
        return self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics over all ranks."""
        self._report("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """Update the test metrics."""
        return self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics over all ranks."""
        self._report("test")


@contextmanager
def evaluation_mode(module: nn.Module) -> Generator[None]:
    """Put ``module`` into evaluation mode without gradients, and restore each submodule's mode."""
    training = [submodule for submodule in module.modules() if submodule.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for submodule in training:
            submodule.training = True
