"""What the AdaBoost-like samplers share: a weight for each sample, learnt from losses."""

import math
from abc import abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lit_adaptive.core.boosting import boosted, forgotten, gains
from lit_adaptive.core.kernels import boosting as loops
from lit_adaptive.core.sum_tree import SumTree
from lit_adaptive.samplers._indices import check_indices
from lit_adaptive.samplers.base import AdaptiveSampler

_WIDEST = 1e30  # of weights: their sum over 1e9 samples stays far inside float64


class BoostedSampler(AdaptiveSampler):
    """Weights that rise with a sample's loss; ``core.boosting`` has the equations.

    Subclasses say what the weights are for: to draw by, or to multiply losses by. Removing a sample
    keeps its weight, and inserting it gives it back; ``clear`` forgets all.

    Args:
        dataset_size: number of samples, above 0.
        learning_rate: eta, at least 0; 0 stays uniform.
        momentum: mu in [0, 1); smooths each sample's losses over its visits.
        decay: lambda in [0, 1]: how much of its log weight a sample forgets at each of its updates.
        baseline: the normalised loss in [0, 1] at which a weight stays.
        floor: least weight, in (0, 1]; 1 is where all begin.
        ceiling: greatest weight, at least 1; it bounds what outliers and wrong labels can claim.
        nonfinite: what to do with a loss that is NaN or infinite: ``"raise"``, or ``"skip"`` the
            sample and count it in ``skipped``.
        beta: how much of the sampling bias the weights of ``sample`` correct, in [0, 1].
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the sampler's own generator.
        device: where weights live and draws are returned.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    kind: str

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
        nonfinite: Literal["raise", "skip"] = "raise",
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
            ("floor", floor, 1 / _WIDEST, 1),
            ("ceiling", ceiling, 1, _WIDEST),
            ("beta", beta, 0, 1),
        ):
            if not least <= value <= greatest:
                raise ValueError(f"{name} is {value}; it must lie in [{least:g}, {greatest:g}]")
        if nonfinite not in ("raise", "skip"):
            raise ValueError(f"nonfinite is {nonfinite!r}; it must be 'raise' or 'skip'")
        self.learning_rate, self.momentum, self.decay = learning_rate, momentum, decay
        self.baseline, self.beta, self.nonfinite = baseline, beta, nonfinite
        self.bounds = (math.log(floor), math.log(ceiling))
        self.skipped = 0
        self._tree = SumTree(dataset_size, device=self.device)
        self._log_weight = torch.zeros(dataset_size, device=self.device)
        self._velocity = torch.zeros(dataset_size if momentum else 0, device=self.device)
        self._inserted = torch.full((dataset_size,), filled, device=self.device)
        self._here = self.device.type == "cpu"
        if self._here:  # views, made once: making them costs more than the loop
            self._views = self._log_weight.numpy(), self._velocity.numpy()
        self._count = dataset_size if filled else 0
        if filled:
            self._tree.assign(torch.ones((), dtype=torch.float64).expand(dataset_size))

    # What can be drawn ---------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many samples are inserted, in ``[0, size]``."""
        return self._count

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, with the weights they had, at first 1.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        index = check_indices(index, self.size).to(self.device)
        self._tree.update(index, self._masses(self._log_weight[index]))
        self._mark(index, inserted=True)

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again; its weight is kept.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        index = check_indices(index, self.size).to(self.device)
        self._tree.update(index, torch.zeros(len(index), dtype=torch.float64))
        self._mark(index, inserted=False)

    def _mark(self, index: Tensor, *, inserted: bool) -> None:
        self._inserted[index] = inserted
        self._count = len(self._tree)

    def clear(self) -> None:
        """Forget all samples and weights; the generator goes on."""
        self._tree.clear()
        self._log_weight.zero_()
        self._velocity.zero_()
        self._inserted.zero_()
        self._count = 0

    # What is learnt ------------------------------------------------------------------------------

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Move the weights of ``index`` ``[K]`` int64 by their losses ``priority`` ``[K]``.

        Losses may have any sign; they are compared within this update, so one alone moves nothing.
        Of an index given more than once the mean loss counts.

        Raises:
            ValueError: naming the offending indices, if one is out of range or not inserted, or
                (unless ``nonfinite="skip"``) its loss is NaN or infinite; nothing changes then.
        """
        if index.shape != priority.shape or index.dim() != 1:
            raise ValueError(
                f"index has shape {tuple(index.shape)}, the losses {tuple(priority.shape)}; "
                "both must be [K]"
            )
        loss = priority.detach() if priority.requires_grad else priority
        if loss.dtype is not torch.float32:  # which the compiled loop takes as it is
            loss = loss.double()
        if not (self._here and index.is_cpu and loss.is_cpu and index.dtype is torch.int64):
            index, loss = index.to(self.device, torch.int64), loss.to(self.device)
        if self.nonfinite == "skip" and not bool((fine := loss.isfinite()).all()):
            self.skipped += int((~fine).sum())
            index, loss = index[fine], loss[fine]
        if not (self._boost_here if index.is_cpu else self._boost_there)(index, loss):
            raise ValueError(self._complaint(index, loss))

    def _boost_here(self, index: Tensor, loss: Tensor) -> bool:
        sums, low, offsets, positive = self._tree.arrays
        kept = loops.boost_tree(
            *self._views,
            index.contiguous().numpy(),
            loss.contiguous().numpy(),
            (self.learning_rate, self.momentum, self.decay, self.baseline, *self.bounds),
            sums,
            low,
            offsets,
            positive,
        )
        return kept != loops.BAD

    def _boost_there(self, index: Tensor, loss: Tensor) -> bool:
        inside = (index >= 0) & (index < self.size)
        if not bool((inside & loss.isfinite() & self._inserted[index.where(inside, 0)]).all()):
            return False
        into, inverse, times = torch.unique(index, return_inverse=True, return_counts=True)
        mean = torch.zeros(len(into), dtype=torch.float64, device=self.device)
        mean = mean.index_add(0, inverse, loss / times[inverse])
        known = self._velocity[into] if self.momentum else torch.zeros_like(mean)
        moved, velocity = boosted(
            self._log_weight[into].double(),
            known.double(),
            gains(mean, baseline=self.baseline),
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            decay=self.decay,
            bounds=self.bounds,
        )
        self._log_weight[into] = moved.float()
        if self.momentum:
            self._velocity[into] = velocity.float()
        self._tree.update(into, self._masses(self._log_weight[into]))
        return True

    def _complaint(self, index: Tensor, loss: Tensor) -> str:
        index = check_indices(index.cpu(), self.size)
        wrong = ~loss.cpu().isfinite()
        if bool(wrong.any()):
            return (
                f"the losses of index {index[wrong][:8].tolist()} are "
                f"{loss.cpu()[wrong][:8].tolist()}; losses are finite: look for NaN in the model, "
                "or let the sampler skip and count them (nonfinite: skip). Nothing was changed"
            )
        absent = index[~self._inserted.cpu()[index]]
        return f"index {absent[:8].tolist()} was not inserted: insert it first. Nothing was changed"

    def update_weights(self, indices: ArrayLike | Tensor, losses: ArrayLike | Tensor) -> None:
        """``update`` for a plain loop: takes tensors, NumPy arrays or lists."""
        self.update(_as_tensor(indices).long(), _as_tensor(losses).double())

    @abstractmethod
    def sample(self, batch_size: int = 32) -> tuple[Tensor, Tensor]:
        """Indices ``[B]`` int64 and what to multiply their losses by ``[B]`` float64."""

    def forget(self, share: float) -> None:
        """Draw all weights towards uniform: log weights shrink by ``share`` in [0, 1]. O(size).

        Raises:
            ValueError: if ``share`` is outside [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it must lie in [0, 1] (1 makes weights equal)")
        self._log_weight.copy_(forgotten(self._log_weight, share))
        self._refill()

    def _refill(self) -> None:
        self._tree.assign(self._masses(self._log_weight).mul_(self._inserted))

    @staticmethod
    def _masses(log_weight: Tensor) -> Tensor:
        if not log_weight.is_cpu:
            return log_weight.double().exp()
        mass = np.empty(len(log_weight))
        loops.exponentials(log_weight.numpy(), mass)
        return torch.from_numpy(mass)

    @property
    def weights(self) -> Tensor:
        """``[size]`` float64 in [floor, ceiling]; of samples that are not inserted, too."""
        return self._masses(self._log_weight)

    def scores(self) -> Tensor:
        """The weights: ``[size]`` float64."""
        return self.weights.cpu()

    def set_scores(self, score: Tensor) -> None:
        """Begin with the weights ``score`` ``[size]``, brought between floor and ceiling.

        Raises:
            ValueError: naming offending indices, or another length; nothing changes then.
        """
        log_weight = self._checked_scores(score).log().clamp(*self.bounds)
        self._log_weight.copy_(log_weight)
        self._refill()

    # The law of the weights ----------------------------------------------------------------------

    def _law(self, index: Tensor | None = None) -> Tensor:
        """Each weight's share of their sum: of all, or of ``index``."""
        self._refuse_draw()
        mass = self._tree.priorities if index is None else self._tree.priorities[index]
        return mass / self._tree.total_priority

    def state_dict(self) -> dict[str, Any]:
        """Log weights, velocities, who is inserted and the generator, copied."""
        return {
            "kind": self.kind,
            "size": self.size,
            "log_weight": self._log_weight.cpu().clone(),
            "velocity": self._velocity.cpu().clone(),
            "inserted": self._inserted.cpu().clone(),
            "skipped": self.skipped,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped.

        Raises:
            ValueError: if the state is another sampler's, of another size or momentum, or damaged;
                nothing changes then.
        """
        self._refuse_state(state, kind=self.kind)
        log_weight, velocity = state["log_weight"], state["velocity"]
        inserted = state["inserted"]
        low, high = (float(np.float32(bound)) for bound in self.bounds)
        if not (len(log_weight) == len(inserted) == self.size):
            raise ValueError("the state has not one weight for each sample: it is damaged")
        if len(velocity) != len(self._velocity):
            raise ValueError(
                f"the state has {len(velocity)} velocities, this sampler {len(self._velocity)}: "
                "resume with momentum on, or off, as it was"
            )
        if not bool(((log_weight >= low) & (log_weight <= high)).all()):
            raise ValueError(
                f"the state's log weights lie outside [{low:g}, {high:g}]: resume with the same "
                "floor and ceiling"
            )
        self._log_weight.copy_(log_weight)
        self._velocity.copy_(velocity)
        self._inserted.copy_(inserted)
        self.skipped = int(state["skipped"])
        self._refill()
        self._count = len(self._tree)
        self.generator.set_state(state["generator"])

    @property
    def nbytes(self) -> int:
        """Bytes that weights and accounts take: 13.6 a sample, 17.6 with momentum."""
        own = (self._log_weight, self._velocity, self._inserted)
        return self._tree.nbytes + sum(each.nbytes for each in own)


def _as_tensor(values: ArrayLike | Tensor) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
