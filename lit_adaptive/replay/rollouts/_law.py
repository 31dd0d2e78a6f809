"""Which groups come next: by mass, without taking one twice, at exactly stated chances."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_adaptive.core.sum_tree import SumTree
from lit_adaptive.replay.rollouts._draws import distinct

Ints = NDArray[np.int64]

HIGHEST, LOWEST = 300.0, -690.0
"""Bounds of the log of a mass in the tree: far from float64's (709 and -708), N masses' sum too."""

CERTAIN = 1 - 1e-9
"""A group whose share of a draw reaches this is taken for certain."""


class WeightedSampler:
    """Draws slots in proportion to masses that are told by their logarithms.

    The tree holds exp(log mass - reference). Logs may grow without end, as those of fresh groups do
    with the policy's version: the reference then follows, and the leaves are written anew. Masses
    below the reference by 690 are held there, at 1e-300, so that every group can be drawn.

    Args:
        capacity: number of slots, above 0.
    """

    def __init__(self, capacity: int) -> None:
        self.tree = SumTree(capacity)
        self.log_mass = torch.full((capacity,), -math.inf, dtype=torch.float64)
        self.reference = 0.0

    def put(self, slot: Ints, log_mass: Tensor) -> None:
        """Give ``slot`` ``[k]`` the masses exp(``log_mass``) ``[k]``, finite logs."""
        if len(slot) == 0:
            return
        index = torch.from_numpy(slot)
        self.log_mass[index] = log_mass
        if float(log_mass.amax()) - self.reference > HIGHEST:
            self.reference = float(self.log_mass.amax())
            self.tree.assign(self._masses(self.log_mass))
        else:
            self.tree.update(index, self._masses(log_mass))

    def _masses(self, log_mass: Tensor) -> Tensor:
        mass = (log_mass - self.reference).clamp(min=LOWEST).exp()
        return torch.where(log_mass == -math.inf, 0.0, mass)

    def remove(self, slot: Ints) -> None:
        """Make ``slot`` ``[k]`` undrawable."""
        index = torch.from_numpy(slot)
        self.log_mass[index] = -math.inf
        self.tree.update(index, torch.zeros(len(slot), dtype=torch.float64))

    def draw(self, uniform: Tensor) -> tuple[Ints, Tensor]:
        r"""K distinct slots, and their chances by draw.

        The chance that slot i is among the K is exactly :math:`\pi_i = \min(1, c\,m_i)`, with the
        c that makes them sum to K; returned is :math:`P(i) = \pi_i / K`, which is mass by total
        unless a group is so heavy that it is taken for certain.

        Args:
            uniform: ``[K]`` in [0, 1), K in ``[1, number of positive masses]``.
        """
        count, tree = len(uniform), self.tree
        certain, certain_mass = self._set_certain_aside(count)
        try:
            rest = count - len(certain)
            taken = np.empty(0, np.int64)
            if rest:
                sums, _, offsets, _ = tree.arrays
                taken = distinct(sums, offsets, tree.capacity, uniform[:rest].numpy())
            chosen = torch.from_numpy(taken)
            chance = tree.priorities[chosen] / (tree.total_priority or 1.0) * rest / count
        finally:
            if len(certain):
                tree.update(certain, certain_mass)
        slot = torch.cat([certain, chosen])
        sure = torch.full((len(certain),), 1 / count, dtype=torch.float64)
        return slot.numpy(), torch.cat([sure, chance]).clamp(min=torch.finfo(torch.float64).tiny)

    def _set_certain_aside(self, count: int) -> tuple[Tensor, Tensor]:
        """Take out of the tree what every draw of ``count`` holds; returns it with its masses."""
        tree = self.tree
        found: list[Tensor] = []
        masses: list[Tensor] = []
        while rest := count - sum(len(part) for part in found):
            width = tree.total_priority / rest
            # An item as wide as a range holds the border of one, so a look at them finds it.
            index, mass = tree.get(torch.arange(rest, dtype=torch.float64) * width)
            wide = mass >= width * CERTAIN
            if not bool(wide.any()):
                break
            index, where = torch.unique(index[wide], return_inverse=True)
            kept = torch.empty(len(index), dtype=torch.float64)
            kept[where] = mass[wide]
            found.append(index)
            masses.append(kept)
            tree.update(index, torch.zeros_like(kept))
        nothing = torch.empty(0)
        return torch.cat([nothing.long(), *found]), torch.cat([nothing.double(), *masses])

    @property
    def nbytes(self) -> int:
        """Bytes of the tree and the logs."""
        return self.tree.nbytes + self.log_mass.nbytes

    def chances(self, slot: Ints) -> Tensor:
        """Mass by total of ``slot`` ``[k]``: ``[k]`` float64."""
        return self.tree.priorities[torch.from_numpy(slot)] / (self.tree.total_priority or 1.0)

    def state_dict(self, slot: Ints) -> dict[str, Any]:
        """Masses of the slots in use, and the reference, copied."""
        index = torch.from_numpy(slot)
        return {
            "log_mass": self.log_mass[index],
            "mass": self.tree.priorities[index],
            "reference": self.reference,
        }

    def restore(self, slot: Ints, state: dict[str, Any]) -> None:
        """Take over what ``check_law_state`` found sound, for these slots."""
        index = torch.from_numpy(slot)
        mass = torch.zeros(self.tree.capacity, dtype=torch.float64)
        mass[index] = state["mass"]
        self.log_mass[index] = state["log_mass"]
        self.reference = state["reference"]
        self.tree.assign(mass)


def check_law_state(state: Any, size: int) -> None:
    """Refuse masses that are none.

    Raises:
        ValueError: if they are not ``size`` finite masses above 0 with their logs.
    """
    sound = isinstance(state, dict) and isinstance(state.get("reference"), float)
    for name in ("log_mass", "mass"):
        value: Any = state.get(name) if sound else None
        sound = (
            sound
            and isinstance(value, Tensor)
            and value.dtype is torch.float64
            and value.shape == (size,)
            and bool(value.isfinite().all())
        )
    if not (sound and bool((state["mass"] > 0).all())):
        raise ValueError(
            f"the state has no {size} finite masses above 0 for its groups: it is damaged"
        )
