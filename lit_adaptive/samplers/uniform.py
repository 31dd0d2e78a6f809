"""Uniform draws with replacement among the items that are there, in O(B)."""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.kernels.compiled import compiled
from lit_adaptive.samplers._indices import check_indices
from lit_adaptive.samplers.base import Draw, IndexSampler


class UniformSampler(IndexSampler):
    """Every inserted index is equally likely.

    The inserted indices stand in the front of an array; a removed one changes places with the last.

    Args:
        size: number of slots or samples that can ever be drawn, above 0.
        filled: True: all indices can be drawn from the start (a dataset); False: none (a buffer).
        seed: of the sampler's own generator.
        device: where indices and probabilities are returned.

    Raises:
        ValueError: if ``size`` is not above 0.
    """

    def __init__(
        self,
        size: int,
        *,
        filled: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(size, seed=seed, device=device)
        self._item = torch.arange(size)  # a permutation: the drawable, then the others
        self._place = torch.arange(size)  # its inverse
        self._count = size if filled else 0

    @property
    def count(self) -> int:
        """How many indices can be drawn now, in ``[0, size]``."""
        return self._count

    def draw(self, batch_size: int) -> Draw:
        """Draw ``batch_size`` indices with replacement, all equally likely.

        Raises:
            ValueError: if nothing can be drawn, or ``batch_size`` is not above 0.
        """
        self._refuse_draw(batch_size)
        place = torch.randint(self._count, (batch_size,), generator=self.generator)
        probability = torch.full((batch_size,), 1 / self._count, dtype=torch.float64)
        return Draw(self._item[place].to(self.device), probability.to(self.device))

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        index = check_indices(index, self.size)
        self._count = _move(
            self._item.numpy(), self._place.numpy(), self._count, index.numpy(), True
        )

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        index = check_indices(index, self.size)
        self._count = _move(
            self._item.numpy(), self._place.numpy(), self._count, index.numpy(), False
        )

    def clear(self) -> None:
        """Forget all items; the generator goes on."""
        self._item = torch.arange(self.size)
        self._place = torch.arange(self.size)
        self._count = 0

    def probabilities(self) -> Tensor:
        """``[size]`` float64: 1 / count for each drawable index.

        Raises:
            ValueError: if nothing can be drawn.
        """
        chance = torch.zeros(self.size, dtype=torch.float64)
        chance[self._item[: self._count]] = self.min_probability()
        return chance.to(self.device)

    def probability_of(self, index: Tensor) -> Tensor:
        """1 / count for each drawable ``index`` ``[K]``, else 0: ``[K]`` float64."""
        drawable = self._place[index.cpu()] < self._count
        return (drawable.double() * self.min_probability()).to(self.device)

    def min_probability(self) -> float:
        """1 / count.

        Raises:
            ValueError: if nothing can be drawn.
        """
        self._refuse_draw()
        return 1 / self._count

    def state_dict(self) -> dict[str, Any]:
        """The drawable indices in their order, and the generator."""
        return {
            "kind": "uniform",
            "size": self.size,
            "count": self._count,
            "item": self._item.clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped.

        Raises:
            ValueError: if the state is another sampler's, or of another size; nothing changes then.
        """
        self._refuse_state(state, kind="uniform")
        item: Tensor = state["item"]
        count = int(state["count"])
        permutation = item.sort().values.equal(torch.arange(self.size))
        if not (permutation and 0 <= count <= self.size):
            raise ValueError("the state's items are no permutation of all: it is damaged")
        self.generator.set_state(state["generator"])
        self._item = item.clone()
        self._place = torch.empty_like(item)
        self._place[item] = torch.arange(self.size)
        self._count = count


@compiled
def _move(item: Any, place: Any, count: int, index: Any, drawable: bool) -> int:
    """Bring each index to the drawable front, or out of it; returns the new count."""
    for k in range(index.size):
        here = place[index[k]]
        if (here < count) == drawable:
            continue
        border = count if drawable else count - 1
        other = item[border]
        item[border], item[here] = index[k], other
        place[index[k]], place[other] = border, here
        count += 1 if drawable else -1
    return count
