"""The sampler interface: which index comes next, and with which probability.

    IndexSampler       draws indices
    AdaptiveSampler    draws indices, and learns from the priorities of what it drew

A sampler of your own subclasses one of the two and implements ``draw``, ``state_dict`` and
``load_state_dict``, and ``update`` if it is adaptive. Everything else has a default. Override

    insert, remove, clear, count    to serve a replay buffer or a curriculum
    probabilities                   to be part of a mixture, and for reports
    scores, set_scores              to keep what was learnt for a later run

Samplers know neither Lightning nor the data. With several ranks, all ranks hold the same sampler in
the same state and draw the same *global* batch; each takes its share (``samplers.batches``).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least


class Draw(NamedTuple):
    """Indices, and the probability of each at the moment of the draw.

    The two travel together to the loss: with worker processes a batch was drawn several updates
    before its use, so the current probability would give the wrong weight.

    Attributes:
        index: ``[B]`` int64, in ``[0, size)``.
        probability: ``[B]`` float64, in ``(0, 1]``: that a single draw gives this index.
    """

    index: Tensor  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    probability: Tensor


class IndexSampler(ABC):
    """Draws from the inserted indices out of ``range(size)``.

    Args:
        size: number of samples in the dataset, or of slots in the buffer; above 0.
        seed: of the sampler's own generator; samplers of equal seeds draw equally on every rank.
        device: device of the returned indices and probabilities.

    Raises:
        ValueError: if ``size`` is not above 0.
    """

    def __init__(self, size: int, *, seed: int = 0, device: str | torch.device = "cpu") -> None:
        check_at_least(size=(size, 1), seed=(seed, -(2**63)))
        self.size = size
        self.device = torch.device(device)
        # Always a CPU generator: the same random numbers, hence the same draws, on every device.
        self.generator = torch.Generator().manual_seed(seed)

    # To implement ------------------------------------------------------------------------------

    @abstractmethod
    def draw(self, batch_size: int) -> Draw:
        """Draw ``batch_size`` indices.

        Raises:
            ValueError: if nothing can be drawn, or ``batch_size`` is not above 0.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next draw depends on, as tensors and primitives, copied.

        This implementation returns the class, the size and the generator's state; add your own.
        """
        return {
            "kind": type(self).__name__,
            "size": self.size,
            "generator": self.generator.get_state(),
        }

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume, so that draws continue as if they had never been interrupted.

        This implementation checks the class and the size and restores the generator.

        Raises:
            ValueError: if the state is of another sampler or size, or damaged; nothing changes.
        """
        self._check_state(state)
        self.generator.set_state(state["generator"])

    # What the sampler does and needs ------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """Whether ``update`` changes what is drawn."""
        return False

    @property
    def follows_progress(self) -> bool:
        """Whether ``advance`` changes what is drawn."""
        return False

    @property
    def has_loss_weights(self) -> bool:
        """Whether ``loss_weights`` returns weights rather than None."""
        return False

    @property
    def needs_difficulty(self) -> bool:
        """Whether ``set_difficulty`` must be called before the first draw."""
        return False

    @property
    def needs_groups(self) -> bool:
        """Whether ``set_groups`` must be called before the first draw."""
        return False

    @property
    def needs_lengths(self) -> bool:
        """Whether ``set_lengths`` must be called before the first draw."""
        return False

    @property
    def standalone_reason(self) -> str | None:
        """Why it cannot be part of a mixture or a curriculum; None, the default, if it can.

        It cannot if ``probabilities`` are not those of the very next draw.
        """
        return None

    @property
    def without_replacement(self) -> bool:
        """Whether indices drawn together depend on each other, so that it cannot be mixed."""
        return False

    def reseed(self, seed: int) -> None:
        """Restart the sampler's random numbers from ``seed``."""
        self.generator.manual_seed(seed)

    def advance(self, progress: float) -> None:  # noqa: B027
        """Set the fraction of the training that is done, in [0, 1]; ignored by default."""

    def set_difficulty(self, difficulty: Tensor) -> None:  # noqa: B027
        """Set the difficulty ``[size]`` of all samples; ignored by default."""

    def set_groups(self, groups: Tensor) -> None:  # noqa: B027
        """Set the group ``[size]`` (an integer) of all samples; ignored by default."""

    def set_lengths(self, lengths: Tensor) -> None:  # noqa: B027
        """Set the length ``[size]`` of all samples, such as tokens; ignored by default."""

    def loss_weights(self, index: Tensor) -> Tensor | None:  # noqa: ARG002
        """Factors for the losses of ``index`` ``[K]``, beside the correction of the draw.

        ``[K]`` float64 with mean 1 over all samples; None, the default, stands for ones.
        """
        return None

    # Which indices can be drawn -----------------------------------------------------------------

    @property
    def count(self) -> int:
        """Number of indices that can be drawn now, in ``[0, size]``; by default all."""
        return self.size

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, as new items (even where they are inserted already).

        Raises:
            ValueError: naming indices out of range (nothing changes); or if the sampler's set of
                indices is fixed, the default.
        """
        del index
        raise self._not_implemented("insert", "in a replay buffer or a curriculum")

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again.

        Raises:
            ValueError: as ``insert``.
        """
        del index
        raise self._not_implemented("remove", "in a replay buffer or a curriculum")

    def clear(self) -> None:
        """Remove all indices and forget what was learnt; the generator is not reset.

        Raises:
            ValueError: if the sampler's set of indices is fixed, the default.
        """
        raise self._not_implemented("clear", "in a replay buffer or a curriculum")

    def probabilities(self) -> Tensor:
        """Probability of each index at the next draw: ``[size]`` float64, sums to 1.

        Raises:
            ValueError: if nothing can be drawn, or the sampler does not implement it, the default.
        """
        raise self._not_implemented("probabilities", "in a mixture, and for reports")

    def probability_of(self, index: Tensor) -> Tensor:
        """Probability of each ``index`` ``[K]`` at the next draw: ``[K]`` float64.

        Raises:
            ValueError: as ``probabilities``.
        """
        return self.probabilities()[index]

    def min_probability(self) -> float:
        """Smallest probability of a drawable index; it carries the largest importance weight.

        Raises:
            ValueError: as ``probabilities``.
        """
        probability = self.probabilities()
        return float(probability[probability > 0].min())

    # For subclasses ------------------------------------------------------------------------------

    def _not_implemented(self, method: str, purpose: str) -> ValueError:
        return ValueError(
            f"{type(self).__name__} does not implement {method}, which it needs {purpose}: "
            "implement it, or choose another sampler"
        )

    def _check_draw(self, batch_size: int = 1) -> None:
        """Raise ValueError unless ``batch_size`` indices can be drawn."""
        check_at_least(batch_size=(batch_size, 1))
        if self.count == 0:
            raise ValueError("nothing was inserted yet, so nothing can be drawn: insert() first")

    def _check_state(self, state: dict[str, Any], **settings: object) -> None:
        """Raise ValueError unless the state is of this class, size and ``settings``."""
        expected = {"kind": type(self).__name__, "size": self.size, **settings}
        for name, value in expected.items():
            if name not in state or state[name] != value:
                raise ValueError(
                    f"the state's {name} is {state.get(name)!r}, this sampler's is {value!r}; "
                    "resume with the sampler that was saved. Nothing was changed"
                )


class AdaptiveSampler(IndexSampler):
    """A sampler that learns from the priorities, losses or rewards of what it drew."""

    @abstractmethod
    def update(self, index: Tensor, priority: Tensor) -> None:
        """Set the priority ``[K]``, finite and not negative, of each ``index`` ``[K]`` int64.

        If an index occurs twice, the last priority counts. Samplers whose documentation says so
        take losses or rewards of any sign instead.

        Raises:
            ValueError: naming the offending indices, if one is out of range or not inserted, or
                its priority is NaN, infinite or negative; nothing changes.
        """

    @property
    def learns(self) -> bool:
        """Whether ``update`` changes what is drawn."""
        return True

    @property
    def takes_pass_rates(self) -> bool:
        """Whether ``update`` takes mean rewards in [0, 1] instead of priorities."""
        return False

    @property
    def accepts_absent(self) -> bool:
        """Whether ``update`` accepts indices that are not inserted, for when they will be."""
        return False

    def scores(self) -> Tensor:
        """What was learnt, to be saved for ``set_scores`` of a later run: ``[size]`` float64.

        Raises:
            ValueError: if the sampler does not implement it, the default.
        """
        raise self._not_implemented("scores", "for KeepScores and write_scores")

    def set_scores(self, score: Tensor) -> None:
        """Start from the ``scores`` ``[size]`` of an earlier run.

        Raises:
            ValueError: naming the offending indices, or for another length (nothing changes); or
                if the sampler does not implement it, the default.
        """
        del score
        raise self._not_implemented("set_scores", "to start from given scores")

    def forget(self, fraction: float) -> None:
        """Return towards uniform draws by ``fraction`` in [0, 1] of what was learnt.

        Raises:
            ValueError: if ``fraction`` is outside [0, 1], or the sampler cannot, the default.
        """
        raise ValueError(
            f"{type(self).__name__} cannot forget {fraction}: choose AdaptiveBatchSampler, "
            "or set forget to 0"
        )

    def _check_update(
        self, index: Tensor, value: Tensor, *, name: str, negative: bool = True
    ) -> tuple[Tensor, Tensor]:
        """``index`` ``[K]`` int64 and ``value`` ``[K]`` float64, both on the CPU.

        Args:
            index: indices in ``[0, size)``.
            value: finite numbers.
            name: plural name of the values in errors: "priorities", "losses" or "rewards".
            negative: whether values may be negative.

        Raises:
            ValueError: naming the offending indices.
        """
        index = check_indices(index, self.size)
        if index.shape != value.shape:
            raise ValueError(
                f"index has shape {tuple(index.shape)}, the {name} {tuple(value.shape)}; "
                "both must be [K]"
            )
        value = value.detach().to("cpu", torch.float64)
        self._check_values(index, value, name=name, negative=negative)
        return index, value

    def _check_pass_rates(
        self, index: Tensor, pass_rate: Tensor, *, name: str = "pass rates"
    ) -> tuple[Tensor, Tensor]:
        """As ``_check_update``, for pass rates ``[K]`` in [0, 1], or for their variances."""
        index, rate = self._check_update(index, pass_rate, name=name, negative=False)
        outside = rate > 1
        if bool(outside.any()):
            raise ValueError(
                f"the {name} of index {index[outside][:8].tolist()} are "
                f"{rate[outside][:8].tolist()}; they lie in [0, 1]: scale the rewards, or draw by "
                "the spread of rewards (PrioritizedSampler with callbacks.PromptStatistics, "
                "signal: spread). Nothing was changed"
            )
        return index, rate

    def _check_scores(self, score: Tensor, *, name: str, negative: bool = False) -> Tensor:
        """``score`` ``[size]`` as float64 on the CPU.

        Raises:
            ValueError: naming the offending indices, or for another shape.
        """
        if score.shape != (self.size,):
            raise ValueError(
                f"the {name} have shape {tuple(score.shape)} for {self.size} samples: "
                "give one per sample"
            )
        score = score.detach().to("cpu", torch.float64)
        self._check_values(torch.arange(self.size), score, name=name, negative=negative)
        return score

    def _check_values(self, index: Tensor, value: Tensor, *, name: str, negative: bool) -> None:
        least = -torch.finfo(torch.float64).max if negative else 0.0
        if len(value) and not all(least <= float(bound) < torch.inf for bound in value.aminmax()):
            bad = ~((value >= least) & (value < torch.inf))
            raise ValueError(
                f"the {name} of index {index[bad][:8].tolist()} are {value[bad][:8].tolist()}; "
                f"{name} must be finite{'' if negative else ' and not negative'}: check how they "
                "are computed (NaN in the model, a missing value in a column). Nothing was changed"
            )


SamplerFactory = Callable[[int], IndexSampler]
"""Returns a sampler over a given number of items (``class_path``/``init_args`` in YAML)."""


def check_indices(index: Tensor, size: int) -> Tensor:
    """``index`` ``[K]`` as contiguous int64 on the CPU.

    Raises:
        ValueError: naming the offending indices, if one is outside ``[0, size)``; or if they are
            not one-dimensional integers.
    """
    if index.dim() != 1 or index.is_floating_point() or index.dtype is torch.bool:
        raise ValueError(
            f"index is {index.dtype} of shape {tuple(index.shape)}; pass int64 of shape [K]"
        )
    index = index.detach().to("cpu", torch.int64).contiguous()
    # Bounds first: every update is checked, and masks cost three times as much.
    if len(index) and not all(0 <= int(bound) < size for bound in index.aminmax()):
        outside = (index < 0) | (index >= size)
        raise ValueError(
            f"index out of range: {index[outside][:8].tolist()}; indices lie in [0, {size}). "
            "Nothing was changed"
        )
    return index


def renumbered(values: Tensor, rows: Tensor, initial: Tensor) -> Tensor:
    """Values of rows that have changed places, and initial values of new ones.

    Args:
        values: ``[M, ...]``.
        rows: ``[N]`` int64, place of each row in ``values``; -1 for a new row.
        initial: ``[N, ...]``, of the dtype of the result.

    Returns:
        ``[N, ...]``.
    """
    result, known = initial.clone(), rows >= 0
    result[known] = values[rows[known]].to(initial.dtype)
    return result


def check_max_priority(state: dict[str, Any]) -> float:
    """``max_priority`` of a prioritized sampler's state, which is at least 1 and finite."""
    highest = float(state["max_priority"])
    if not 1 <= highest < torch.inf:
        raise ValueError(f"the state's max_priority is {highest}: it is damaged")
    return highest


def check_inserted(index: Tensor, inserted: Tensor) -> None:
    """Raise ValueError, naming the indices ``[K]`` whose ``inserted`` ``[K]`` is False."""
    if not bool(inserted.all()):
        raise ValueError(
            f"index {index[~inserted][:8].tolist()} was not inserted: insert it first. "
            "Nothing was changed"
        )
