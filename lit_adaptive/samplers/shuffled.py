"""Passes over the data without replacement: all of it, or without some of what is easy.

Where InfoBatch here departs from its paper (Qin et al., 2024, arXiv:2303.04947), and why:
  1. Passes follow one another in a stream; a batch may hold the end of one and the start of the
     next, so batches are always full. A pass ends where its samples end, not where an epoch of
     the trainer does.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.core.hard_examples import infobatch_keep_probabilities
from lit_adaptive.samplers._indices import check_indices
from lit_adaptive.samplers.base import AdaptiveSampler, Draw, IndexSampler


class _PassSampler(IndexSampler):
    """Draws without replacement until the pass is through, then begins another.

    Args:
        size: number of samples that can ever be drawn, above 0.
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the sampler's own generator.
        device: where indices and probabilities are returned.
    """

    kind: str

    def __init__(
        self,
        size: int,
        *,
        filled: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(size, seed=seed, device=device)
        self._member = torch.full((size,), filled)
        self._count = size if filled else 0
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    @abstractmethod
    def _kept(self, member: Tensor) -> Tensor:
        """Who of ``member`` ``[M]`` is in the next pass."""

    @abstractmethod
    def _chance(self, index: Tensor) -> Tensor:
        """Probability of each ``index`` ``[K]`` of the pass under way."""

    @property
    def count(self) -> int:
        """How many indices can be drawn, in ``[0, size]``."""
        return self._count

    def draw(self, batch_size: int) -> Draw:
        """The next ``batch_size`` indices of the pass, and if it ends, of those that follow.

        Raises:
            ValueError: if nothing can be drawn, or ``batch_size`` is not above 0.
        """
        self._refuse_draw(batch_size)
        parts = [self._next(batch_size)]
        missing = batch_size - len(parts[0].index)
        while missing:
            self._begin_pass()
            parts.append(self._next(missing))
            missing -= len(parts[-1].index)
        index, chance = parts[0]
        if len(parts) > 1:
            index = torch.cat([part.index for part in parts])
            chance = torch.cat([part.probability for part in parts])
        return Draw(index.to(self.device), chance.to(self.device))

    def _next(self, number: int) -> Draw:
        """Up to ``number`` of what is left of the pass; copied, as the pass may be rearranged."""
        index = self._order[self._position : self._position + number].clone()
        self._position += len(index)
        return Draw(index, self._chance(index))

    def _begin_pass(self) -> None:
        member = self._member.nonzero().flatten()
        while True:  # a pass that pruned everything would be no pass
            kept = self._kept(member)
            if len(kept):
                break
        self._order = kept[torch.randperm(len(kept), generator=self.generator)]
        self._position = 0

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable; new ones are shuffled into the rest of the pass.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        index = torch.unique(check_indices(index, self.size))
        new = index[~self._member[index]]
        self._member[new] = True
        self._count += len(new)
        if self._position < len(self._order) and len(new):
            rest = torch.cat([self._order[self._position :], new])
            self._order = rest[torch.randperm(len(rest), generator=self.generator)]
            self._position = 0

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable until it is inserted again.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        index = check_indices(index, self.size)
        self._member[index] = False
        self._count = int(self._member.sum())
        rest = self._order[self._position :]
        self._order, self._position = rest[self._member[rest]], 0

    def clear(self) -> None:
        """Forget all items; the generator goes on."""
        self._member.zero_()
        self._count = 0
        self._order, self._position = self._order[:0], 0

    def probabilities(self) -> Tensor:
        """Chance of each index: ``[size]`` float64.

        Raises:
            ValueError: if nothing can be drawn.
        """
        return self.probability_of(torch.arange(self.size))

    def probability_of(self, index: Tensor) -> Tensor:
        """Chance of each ``index`` ``[K]``, 0 for what cannot be drawn: ``[K]`` float64.

        Raises:
            ValueError: if nothing can be drawn.
        """
        self._refuse_draw()
        index = index.cpu()
        return (self._chance(index) * self._member[index]).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Who can be drawn, the rest of the pass, and the generator, copied."""
        return {
            "kind": self.kind,
            "size": self.size,
            "member": self._member.clone(),
            "rest": self._order[self._position :].clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped.

        Raises:
            ValueError: if the state is another sampler's, or of another size; nothing changes then.
        """
        self._refuse_state(state, kind=self.kind)
        member, rest = state["member"], check_indices(state["rest"], self.size)
        if len(member) != self.size or not bool(member[rest].all()):
            raise ValueError("the state's pass holds samples that cannot be drawn: it is damaged")
        self._member = member.clone()
        self._count = int(member.sum())
        self._order, self._position = rest.clone(), 0
        self.generator.set_state(state["generator"])


class ShuffledSampler(_PassSampler):
    """Every sample once in a pass, in random order: what a ``DataLoader`` with ``shuffle`` does.

    The probability of a draw is ``1 / count``: that of a random place in the pass.

    Raises:
        ValueError: if ``size`` is not above 0.
    """

    kind = "shuffled"

    def _kept(self, member: Tensor) -> Tensor:
        return member

    def _chance(self, index: Tensor) -> Tensor:
        return torch.full((len(index),), 1 / self._count, dtype=torch.float64)

    def min_probability(self) -> float:
        """1 / count.

        Raises:
            ValueError: if nothing can be drawn.
        """
        self._refuse_draw()
        return 1 / self._count


class InfoBatchSampler(_PassSampler, AdaptiveSampler):
    r"""Passes that leave out, at random, a share of the samples whose loss is below the mean.

    A draw's probability is :math:`\pi_i / N`, with the chance :math:`\pi_i` that i is in the pass:
    1 - ``prune`` or 1. So the weight of full correction, 1 / (N P), is 1 / (1 - r) or 1 as in the
    paper, and the weighted sum over a pass is unbiased. These probabilities sum to less than 1: to
    the pass's expected length over N.

    Args:
        size: number of samples, above 0.
        prune: r, the chance of an easy sample to be left out, in [0, 1); the paper has 0.5.
        anneal: share of the training, at its end, in which nothing is left out; 0.125 in the paper.
            ``callbacks.CurriculumProgress`` tells the sampler how far it is.
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the sampler's own generator.
        device: where indices and probabilities are returned.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    kind = "infobatch"

    def __init__(
        self,
        size: int,
        *,
        prune: float = 0.5,
        anneal: float = 0.125,
        filled: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(size, filled=filled, seed=seed, device=device)
        if not 0 <= prune < 1:
            raise ValueError(f"prune is {prune}; it must lie in [0, 1)")
        if not 0 <= anneal <= 1:
            raise ValueError(f"anneal is {anneal}; it must lie in [0, 1]")
        self.prune = prune
        self.anneal = anneal
        self._loss = torch.full((size,), math.inf)
        self._included = torch.ones(size)
        self._full = False

    @property
    def follows_progress(self) -> bool:
        """The last passes are full."""
        return self.anneal > 0

    def advance(self, progress: float) -> None:
        """From ``1 - anneal`` on, passes that begin leave nothing out."""
        self._full = self.anneal > 0 and progress >= 1 - self.anneal

    def _kept(self, member: Tensor) -> Tensor:
        loss = self._loss[member]
        keep = infobatch_keep_probabilities(loss, prune=0.0 if self._full else self.prune)
        self._included[member] = keep.float()
        return member[torch.rand(len(member), generator=self.generator) < keep]

    def _chance(self, index: Tensor) -> Tensor:
        return self._included[index].double() / self._count

    def min_probability(self) -> float:
        """Smallest probability among the drawable."""
        self._refuse_draw()
        return float(self._included[self._member].min()) / self._count

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Remember the losses ``priority`` ``[K]`` of ``index`` ``[K]``; the last given counts.

        Raises:
            ValueError: naming the offending indices, if one is out of range or not inserted, or
                its loss is NaN or infinite; nothing changes then.
        """
        index = check_indices(index, self.size)
        loss = priority.detach().cpu().float()
        if index.shape != loss.shape:
            raise ValueError(f"{len(index)} indices have {len(loss)} losses; give one each")
        if bool((wrong := ~loss.isfinite()).any()):
            raise ValueError(
                f"the losses of index {index[wrong][:8].tolist()} are {loss[wrong][:8].tolist()}; "
                "losses are finite: look for NaN in the model. Nothing was changed"
            )
        if not bool(self._member[index].all()):
            absent = index[~self._member[index]]
            raise ValueError(f"index {absent[:8].tolist()} was not inserted: insert it first")
        self._loss[index] = loss

    def clear(self) -> None:
        """Forget all items and losses; the generator goes on."""
        super().clear()
        self._loss.fill_(math.inf)
        self._included.fill_(1)

    def scores(self) -> Tensor:
        """The last losses: ``[size]`` float64; the greatest seen for those not seen."""
        seen = self._loss[self._loss.isfinite()]
        return self._loss.clamp_max(float(seen.max()) if len(seen) else 0.0).double()

    def set_scores(self, score: Tensor) -> None:
        """Begin with the losses ``score`` ``[size]``."""
        self._loss = self._checked_scores(score).cpu().float()

    def state_dict(self) -> dict[str, Any]:
        """The pass under way, losses and chances, and the generator, copied."""
        own = {"loss": self._loss.clone(), "included": self._included.clone(), "full": self._full}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped."""
        super().load_state_dict(state)
        self._loss = state["loss"].clone()
        self._included = state["included"].clone()
        self._full = bool(state["full"])
