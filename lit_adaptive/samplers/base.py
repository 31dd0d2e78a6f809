"""What a sampler is: it draws indices, says with which probability, and remembers.

A sampler knows neither Lightning nor the data; it owns the *choice*. Two classes make the seam:

    IndexSampler       draw, insert, remove, state_dict       which index comes next
    AdaptiveSampler    the same, and update(index, priority)  ... and learns from what came of it

A sampler made of others (a curriculum, a mixture) hands on to them what it is told.

Under several ranks all of them hold the same sampler in the same state and draw the same *global*
batch; each takes its share (``lit_adaptive.samplers.batches``). That keeps one law for all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """Indices, and the probability each had at the moment it was drawn.

    The two travel together to the loss. With worker processes the batch in hand was drawn several
    updates ago, so today's probability would give the wrong weight.

    Attributes:
        index: ``[B]`` int64, in ``[0, size)``.
        probability: ``[B]`` float64, in ``(0, 1]``: chance of one single draw to give this index.
    """

    index: Tensor  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    probability: Tensor


class IndexSampler(ABC):
    """Draws with replacement among the indices inserted so far, out of ``range(size)``.

    Args:
        size: number of slots or samples that can ever be drawn, above 0.
        seed: of the sampler's own generator; equal seeds draw equally on every rank.
        device: where indices and probabilities are returned.

    Raises:
        ValueError: if ``size`` is not above 0.
    """

    def __init__(self, size: int, *, seed: int = 0, device: str | torch.device = "cpu") -> None:
        if size <= 0:
            raise ValueError(
                f"size is {size}; a sampler needs at least one index to choose from: "
                "pass the dataset's length or the buffer's capacity"
            )
        self.size = size
        self.device = torch.device(device)
        # Always a CPU generator: the same uniforms, hence the same draws, on every device.
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def learns(self) -> bool:
        """Whether ``update`` changes what is drawn."""
        return False

    @property
    def follows_progress(self) -> bool:
        """Whether ``advance`` changes what is drawn."""
        return False

    @property
    def wants_difficulty(self) -> bool:
        """Whether ``set_difficulty`` must be called before anything can be drawn."""
        return False

    @property
    def wants_groups(self) -> bool:
        """Whether ``set_groups`` must be called before anything can be drawn."""
        return False

    @property
    def wants_lengths(self) -> bool:
        """Whether ``set_lengths`` must be called before anything can be drawn."""
        return False

    @property
    def weighs(self) -> bool:
        """Whether ``loss_weights`` gives weights, rather than None."""
        return False

    def reseed(self, seed: int) -> None:
        """Begin the stream of random numbers that belongs to ``seed``."""
        self.generator.manual_seed(seed)

    def advance(self, progress: float) -> None:  # noqa: B027
        """Tell which share of the training is done, in [0, 1]; most samplers do not care."""

    def set_difficulty(self, difficulty: Tensor) -> None:  # noqa: B027
        """Tell how hard each sample is: ``[size]``; most samplers do not care."""

    def set_groups(self, groups: Tensor) -> None:  # noqa: B027
        """Tell which samples belong together: ``[size]`` integers; most samplers do not care."""

    def set_lengths(self, lengths: Tensor) -> None:  # noqa: B027
        """Tell how long each sample is: ``[size]``; most samplers do not care."""

    def loss_weights(self, index: Tensor) -> Tensor | None:  # noqa: ARG002
        """What to multiply the losses of ``index`` ``[K]`` by, beside the correction of the draw.

        ``[K]`` float64 with mean 1 over all samples, or None where the sampler weights nothing.
        """
        return None

    def probability_of(self, index: Tensor) -> Tensor:
        """Chance of each ``index`` ``[K]`` at the next draw: ``[K]`` float64.

        Raises:
            ValueError: if nothing can be drawn.
        """
        return self.probabilities()[index]

    def _refuse_draw(self, batch_size: int = 1) -> None:
        """What every draw needs: a batch to fill, and items to fill it with."""
        if batch_size <= 0:
            raise ValueError(f"batch_size is {batch_size}; it must be above 0")
        if self.count == 0:
            raise ValueError("nothing was inserted yet, so nothing can be drawn: insert() first")

    def _refuse_state(self, state: dict[str, Any], **own: object) -> None:
        """The state must be of this kind of sampler, this size, and whatever else is ``own``."""
        for name, value in {**own, "size": self.size}.items():
            if name not in state or state[name] != value:
                raise ValueError(
                    f"the state's {name} is {state.get(name)!r}, this sampler's is {value!r}; "
                    "resume with the sampler that was saved. Nothing was changed"
                )

    @property
    @abstractmethod
    def count(self) -> int:
        """How many indices can be drawn now, in ``[0, size]``."""

    @abstractmethod
    def draw(self, batch_size: int) -> Draw:
        """Draw ``batch_size`` indices with replacement.

        Raises:
            ValueError: if nothing can be drawn, or ``batch_size`` is not above 0.
        """

    @abstractmethod
    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, as new items (an index already there counts as new)."""

    @abstractmethod
    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all items; the generator goes on."""

    @abstractmethod
    def probabilities(self) -> Tensor:
        """Chance of each index at the next draw: ``[size]`` float64, sums to 1."""

    @abstractmethod
    def min_probability(self) -> float:
        """Smallest probability among the drawable; it carries the largest importance weight."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything the next draw depends on, as tensors and primitives, copied."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped.

        Raises:
            ValueError: if the state is another sampler's, or of another size; nothing changes then.
        """


class AdaptiveSampler(IndexSampler):
    """A sampler that learns from what came of its draws."""

    @property
    def learns(self) -> bool:
        """Whether ``update`` changes what is drawn."""
        return True

    @property
    def learns_absent(self) -> bool:
        """Whether ``update`` takes what is not inserted, and remembers it until it is."""
        return False

    @abstractmethod
    def scores(self) -> Tensor:
        """What it has learnt, to be kept in a file: ``[size]`` float64, for ``set_scores``."""

    @abstractmethod
    def set_scores(self, score: Tensor) -> None:
        """Begin with what an earlier run learnt: ``[size]``, finite and (but for rewards) >= 0.

        Raises:
            ValueError: naming offending indices, or another length; nothing changes then.
        """

    def forget(self, share: float) -> None:
        """Go back towards uniform by ``share`` in [0, 1] of what was learnt.

        Raises:
            ValueError: if ``share`` is outside [0, 1], or the sampler has no such way back.
        """
        raise ValueError(
            f"{type(self).__name__} cannot forget {share}: choose AdaptiveBatchSampler, "
            "or set forget to 0"
        )

    def _checked_scores(self, score: Tensor) -> Tensor:
        """``score`` as float64 on the sampler's device, if it is one for each index."""
        score = score.detach().to(self.device, torch.float64)
        if score.shape != (self.size,):
            raise ValueError(
                f"there are scores of shape {tuple(score.shape)} for {self.size} samples: "
                "give one for each"
            )
        wrong = ~((score >= 0) & (score < torch.inf))
        if bool(wrong.any()):
            where = wrong.nonzero().flatten()[:8]
            raise ValueError(
                f"the scores of index {where.tolist()} are {score[where].tolist()}; scores are "
                "finite and not negative. Nothing was changed"
            )
        return score

    @abstractmethod
    def update(self, index: Tensor, priority: Tensor) -> None:
        """Give each ``index`` ``[K]`` int64 its new ``priority`` ``[K]``, finite and not negative.

        Of an index given twice the last counts. Samplers that say so take other signals for it,
        such as losses or rewards of any sign.

        Raises:
            ValueError: naming the offending indices, if one is out of range or not inserted, or
                its priority is NaN, infinite or negative; the sampler is unchanged then.
        """


SamplerFactory = Callable[[int], IndexSampler]
"""Given how many items there can be, a sampler over them (``class_path``/``init_args`` in YAML)."""
