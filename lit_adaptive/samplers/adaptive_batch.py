"""AdaBoost-like sampling: draw samples in proportion to weights that rise with their losses."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lit_adaptive.core.boosting import (
    average_duplicates,
    boost_log_weights,
    decay_toward_uniform,
    loss_gains,
)
from lit_adaptive.core.corrections import inverse_probability_weights
from lit_adaptive.core.kernels.boosting import boost_tree, exponentials
from lit_adaptive.samplers.base import check_indices, check_inserted
from lit_adaptive.samplers.tree import TreeSampler

_GREATEST_WEIGHT = 1e30  # the sum of 1e9 such weights is far inside float64


class AdaptiveBatchSampler(TreeSampler):
    """Draws in proportion to weights that rise with the loss; ``core.boosting`` has the equations.

    In a plain loop::

        sampler = AdaptiveBatchSampler(dataset_size=1000, learning_rate=0.1)
        indices, importance_weights = sampler.sample(batch_size=32)
        sampler.update_weights(indices, losses)

    A removed sample keeps its weight until it is inserted again; ``clear`` forgets all weights.

    Args:
        dataset_size: number of samples, above 0.
        learning_rate: eta, at least 0; 0 stays uniform.
        momentum: mu in [0, 1); smooths the losses of each sample over its updates.
        decay: lambda in [0, 1]: fraction of its log weight that a sample loses at each update.
        baseline: normalized loss in [0, 1] that leaves a weight unchanged.
        floor: smallest weight, in (0, 1]; weights start at 1.
        ceiling: greatest weight, at least 1; limits the effect of outliers and wrong labels.
        beta: strength of the bias correction in the weights of ``sample``, in [0, 1]; 1 corrects
            fully.
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the sampler's own generator.
        device: device of the weights and of the draws.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(
        self,
        dataset_size: int,
        learning_rate: float = 0.1,
        *,
        momentum: float = 0.0,
        decay: float = 0.01,
        baseline: float = 0.5,
        floor: float = 0.1,
        ceiling: float = 10.0,
        beta: float = 1.0,
        filled: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(dataset_size, seed=seed, device=device)
        for name, value, least, greatest in (
            ("learning_rate", learning_rate, 0, 1e6),
            ("momentum", momentum, 0, math.nextafter(1, 0)),
            ("decay", decay, 0, 1),
            ("baseline", baseline, 0, 1),
            ("floor", floor, 1 / _GREATEST_WEIGHT, 1),
            ("ceiling", ceiling, 1, _GREATEST_WEIGHT),
            ("beta", beta, 0, 1),
        ):
            if not least <= value <= greatest:
                raise ValueError(f"{name} is {value}; it must lie in [{least:g}, {greatest:g}]")
        self.learning_rate, self.momentum = float(learning_rate), float(momentum)
        self.decay, self.baseline, self.beta = float(decay), float(baseline), float(beta)
        self.bounds = (math.log(floor), math.log(ceiling))
        self._log_weight = torch.zeros(dataset_size, device=self.device)
        self._velocity = torch.zeros(dataset_size if momentum else 0, device=self.device)
        self._inserted = torch.full((dataset_size,), filled, device=self.device)
        if filled:
            self._tree.assign(torch.ones((), dtype=torch.float64).expand(dataset_size))

    @property
    def count(self) -> int:
        """Number of inserted samples, in ``[0, size]``."""
        return len(self._tree)

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, with the weights they had, at first 1."""
        index = check_indices(index, self.size).to(self.device)
        self._tree.update(index, _exp(self._log_weight[index]))
        self._inserted[index] = True

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again; its weight is kept."""
        index = check_indices(index, self.size).to(self.device)
        self._tree.update(index, torch.zeros(len(index), dtype=torch.float64))
        self._inserted[index] = False

    def clear(self) -> None:
        """Remove all samples and forget their weights; the generator is not reset."""
        self._tree.clear()
        self._log_weight.zero_()
        self._velocity.zero_()
        self._inserted.zero_()

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Adjust the weights of ``index`` ``[K]`` int64 by their losses ``priority`` ``[K]``.

        Losses may have any sign. They are compared within this update, so a single loss changes
        nothing. If an index occurs more than once, the mean of its losses counts.
        """
        if self._compiled_update(index, priority):
            return
        index, loss = self._check_update(index, priority, name="losses")
        check_inserted(index, self._inserted[index.to(self.device)].cpu())
        if not self._compiled_update(index, loss):
            self._torch_update(index.to(self.device), loss.to(self.device))

    def _compiled_update(self, index: Tensor, loss: Tensor) -> bool:
        """Update on the CPU; false, with nothing changed, if the input must be checked first."""
        if not (
            self._log_weight.is_cpu
            and index.is_cpu
            and index.dtype is torch.int64
            and index.dim() == 1
            and index.shape == loss.shape
        ):
            return False
        loss = loss.detach() if loss.requires_grad else loss
        if loss.dtype is not torch.float32 or not loss.is_cpu:
            loss = loss.to("cpu", torch.float64)
        return boost_tree(
            self._log_weight.numpy(),
            self._velocity.numpy(),
            index.contiguous().numpy(),
            loss.contiguous().numpy(),
            (self.learning_rate, self.momentum, self.decay, self.baseline, *self.bounds),
            *self._tree.arrays,
        )

    def _torch_update(self, index: Tensor, loss: Tensor) -> None:
        """Update by the reference equations, on any device."""
        distinct, mean = average_duplicates(index, loss)
        velocity = self._velocity[distinct].double() if self.momentum else torch.zeros_like(mean)
        log_weight, velocity = boost_log_weights(
            self._log_weight[distinct].double(),
            velocity,
            loss_gains(mean, baseline=self.baseline),
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            decay=self.decay,
            bounds=self.bounds,
        )
        self._log_weight[distinct] = log_weight.float()
        if self.momentum:
            self._velocity[distinct] = velocity.float()
        self._tree.update(distinct, _exp(self._log_weight[distinct]))

    def update_weights(self, indices: ArrayLike | Tensor, losses: ArrayLike | Tensor) -> None:
        """``update`` for a plain loop: takes tensors, NumPy arrays or lists."""
        self.update(_as_tensor(indices).long(), _as_tensor(losses).double())

    def sample(self, batch_size: int = 32) -> tuple[Tensor, Tensor]:
        """Indices ``[B]`` and importance weights ``[B]`` float64, ``(N P(i))^-beta``.

        At ``beta=1`` the mean of weight times loss over the batch is an unbiased estimate of the
        mean loss over the dataset; at 0 the weights are ones, and hard samples count for more.
        """
        draw = self.draw(batch_size)
        weight = inverse_probability_weights(draw.probability, size=self.count, beta=self.beta)
        return draw.index, weight

    def forget(self, fraction: float) -> None:
        """Shrink all log weights by ``fraction`` in [0, 1]; 1 makes all weights equal. O(size)."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction is {fraction}; it must lie in [0, 1] (1 forgets all)")
        self._log_weight.copy_(decay_toward_uniform(self._log_weight, fraction))
        self._rebuild()

    def _rebuild(self) -> None:
        self._tree.assign(self.weights.mul_(self._inserted))

    @property
    def weights(self) -> Tensor:
        """``[size]`` float64 in [floor, ceiling], also of samples that are not inserted."""
        return _exp(self._log_weight)

    def scores(self) -> Tensor:
        """The weights: ``[size]`` float64."""
        return self.weights.cpu()

    def set_scores(self, score: Tensor) -> None:
        """Start from the weights ``score`` ``[size]``, clipped to floor and ceiling."""
        score = self._check_scores(score, name="weights")
        self._log_weight.copy_(score.log().clamp(*self.bounds))
        self._rebuild()

    def state_dict(self) -> dict[str, Any]:
        """Log weights, velocities, inserted samples and generator, copied."""
        return {
            **super().state_dict(),
            "log_weight": self._log_weight.cpu().clone(),
            "velocity": self._velocity.cpu().clone(),
            "inserted": self._inserted.cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; size, use of momentum and bounds must be those of the state."""
        self._check_state(state)
        log_weight, velocity = state["log_weight"], state["velocity"]
        inserted = state["inserted"]
        low, high = (float(np.float32(bound)) for bound in self.bounds)
        if not (len(log_weight) == len(inserted) == self.size):
            raise ValueError("the state does not have one weight per sample: it is damaged")
        if len(velocity) != len(self._velocity):
            raise ValueError(
                f"the state has {len(velocity)} velocities, this sampler {len(self._velocity)}: "
                "resume with the same momentum"
            )
        if not bool(((log_weight >= low) & (log_weight <= high)).all()):
            raise ValueError(
                f"the state's log weights lie outside [{low:g}, {high:g}]: resume with the same "
                "floor and ceiling"
            )
        self._log_weight.copy_(log_weight)
        self._velocity.copy_(velocity)
        self._inserted.copy_(inserted)
        self._rebuild()
        super().load_state_dict(state)


def _exp(log_weight: Tensor) -> Tensor:
    """``[K]`` float64; on the CPU the same bits as the compiled update, so that a run resumes."""
    if log_weight.is_cpu:
        return torch.from_numpy(exponentials(log_weight.numpy()))
    return log_weight.double().exp()


def _as_tensor(values: ArrayLike | Tensor) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
