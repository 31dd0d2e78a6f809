"""Batches of samples that are about equally long, whatever they are drawn by."""

from typing import Any

import torch
from torch import Tensor

from lit_adaptive.samplers._indices import check_indices
from lit_adaptive.samplers.base import AdaptiveSampler, Draw, SamplerFactory
from lit_adaptive.samplers.shuffled import ShuffledSampler


class BucketedSampler(AdaptiveSampler):
    """Has an inner sampler draw several batches at once, and cuts them by length.

    The draws are sorted by length (in random order where it is equal) and handed out batch by
    batch, in random order. Which samples are drawn, how often, and their probabilities stay those
    of the inner sampler, as they were at the draw: what is learnt meanwhile shows after at most
    ``batches - 1`` batches. ``count`` and ``min_probability`` are those of that draw, too, since
    weights are made of them.

    Asked for another batch size, it cuts anew what is pending; less than one batch of it is lost.

    Args:
        size: number of samples, above 0.
        inner: what draws.
        batches: how many (global) batches are drawn at once, above 0; more waste less padding.
        filled: True: all samples can be drawn from the start; False: none.
        seed: of the generator that orders batches; the inner sampler's derives from it.

    Raises:
        ValueError: if ``batches`` is not above 0.
    """

    kind = "bucketed"

    def __init__(
        self,
        size: int,
        inner: SamplerFactory = ShuffledSampler,
        *,
        batches: int = 16,
        filled: bool = True,
        seed: int = 0,
    ) -> None:
        if batches <= 0:
            raise ValueError(f"batches is {batches}; it must be above 0 (1 sorts nothing)")
        self.inner = inner(size)
        super().__init__(size, seed=seed, device=self.inner.device)
        self.batches = batches
        self._lengths: Tensor | None = None
        self._discard()
        self.reseed(seed)
        if not filled:
            self.clear()

    def _discard(self) -> None:
        """Nothing is pending, and nothing was handed out."""
        self._index = torch.empty(0, dtype=torch.int64)
        self._probability = torch.empty(0, dtype=torch.float64)
        self._cut = 0  # the batch size that it was cut for
        self._drawable = 0  # at the draw of what is pending
        self._least: float | None = None  # at the draw of what was handed out last

    # What can be drawn ---------------------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """If the inner sampler does."""
        return self.inner.learns

    @property
    def learns_absent(self) -> bool:
        """If the inner sampler does."""
        return isinstance(self.inner, AdaptiveSampler) and self.inner.learns_absent

    @property
    def follows_progress(self) -> bool:
        """If the inner sampler does."""
        return self.inner.follows_progress

    @property
    def wants_difficulty(self) -> bool:
        """If the inner sampler does."""
        return self.inner.wants_difficulty

    @property
    def wants_groups(self) -> bool:
        """If the inner sampler does."""
        return self.inner.wants_groups

    @property
    def wants_lengths(self) -> bool:
        """Until they are given."""
        return self._lengths is None

    @property
    def weighs(self) -> bool:
        """If the inner sampler does."""
        return self.inner.weighs

    def reseed(self, seed: int) -> None:
        """Begin the streams that belong to ``seed``; what is pending is discarded."""
        self.generator.manual_seed(seed)
        self.inner.reseed((seed + 1) * 1_000_003 % 2**31)
        self._discard()

    def advance(self, progress: float) -> None:
        """Tell the inner sampler."""
        self.inner.advance(progress)

    def set_difficulty(self, difficulty: Tensor) -> None:
        """Tell the inner sampler."""
        self.inner.set_difficulty(difficulty)

    def set_groups(self, groups: Tensor) -> None:
        """Tell the inner sampler."""
        self.inner.set_groups(groups)

    def set_lengths(self, lengths: Tensor) -> None:
        """Say how long each sample is: ``[size]``, finite and not negative, such as tokens.

        Raises:
            ValueError: if there is not one for each sample, or one is NaN, infinite or negative
                (its index is named); nothing changes then.
        """
        lengths = lengths.detach().cpu().double()
        if lengths.shape != (self.size,):
            raise ValueError(
                f"there are lengths of shape {tuple(lengths.shape)} for {self.size} samples: "
                "give one for each"
            )
        if bool((wrong := ~((lengths >= 0) & lengths.isfinite())).any()):
            where = wrong.nonzero().flatten()[:8].tolist()
            raise ValueError(
                f"the lengths of index {where} are {lengths[where].tolist()}; a length is finite "
                "and not negative"
            )
        self.inner.set_lengths(lengths)
        self._lengths = lengths

    @property
    def count(self) -> int:
        """How many indices could be drawn when what comes next was drawn; see the class."""
        return self._drawable if len(self._index) else self.inner.count

    def insert(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` drawable, from the next draw of the inner sampler on."""
        self.inner.insert(index)

    def remove(self, index: Tensor) -> None:
        """Make ``index`` ``[K]`` undrawable; what is pending of it is struck out, and cut anew.

        Raises:
            ValueError: naming indices out of range; nothing changes then.
        """
        gone = torch.zeros(self.size, dtype=torch.bool)
        gone[check_indices(index, self.size)] = True
        self.inner.remove(index)
        if len(self._index) and bool(gone[self._index].any()):
            kept = ~gone[self._index]
            self._index, self._probability = self._index[kept], self._probability[kept]
            self._recut(self._cut)

    def clear(self) -> None:
        """Forget all samples and what is pending; lengths and the generators stay."""
        self.inner.clear()
        self._discard()

    # What is drawn, and learnt -------------------------------------------------------------------

    def draw(self, batch_size: int) -> Draw:
        """The next batch of about equally long samples.

        Raises:
            ValueError: if no lengths were given, nothing can be drawn, or ``batch_size`` is not
                above 0.
        """
        if self._lengths is None:
            raise ValueError(
                "this sampler has no lengths to sort by: give the datamodule a dataset with "
                "`lengths`, or call set_lengths"
            )
        self._refuse_draw(batch_size)
        if batch_size != self._cut:
            self._recut(batch_size)
        if not len(self._index):
            self._draw_ahead(batch_size)
        index, self._index = self._index[:batch_size], self._index[batch_size:]
        probability, self._probability = (
            self._probability[:batch_size],
            self._probability[batch_size:],
        )
        return Draw(index.to(self.device), probability.to(self.device))

    def _draw_ahead(self, batch_size: int) -> None:
        drawable = self.inner.count
        draw = self.inner.draw(batch_size * self.batches)
        self._drawable, self._least = drawable, self.inner.min_probability()
        self._index, self._probability = draw.index.cpu(), draw.probability.cpu()
        self._recut(batch_size)

    def _recut(self, batch_size: int) -> None:
        """Sort what is pending, cut it in batches, put these in random order."""
        self._cut = batch_size
        whole = len(self._index) // batch_size
        if not whole:
            self._index, self._probability = self._index[:0], self._probability[:0]
            return
        assert self._lengths is not None
        # In random order first: equally long ones would stay in the draw's, which may ascend.
        order = torch.randperm(len(self._index), generator=self.generator)[: whole * batch_size]
        order = order[torch.argsort(self._lengths[self._index[order]], stable=True)]
        turn = torch.randperm(whole, generator=self.generator)
        order = order.view(whole, batch_size)[turn].flatten()
        self._index, self._probability = self._index[order], self._probability[order]

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Hand on what came of ``index`` ``[K]``.

        Raises:
            ValueError: as the inner sampler's ``update``; or if it does not learn.
        """
        self._learner("update").update(index, priority)

    def _learner(self, asked: str) -> AdaptiveSampler:
        if not isinstance(self.inner, AdaptiveSampler):
            raise ValueError(
                f"{type(self.inner).__name__} learns nothing, so {asked} has no use: choose an "
                "inner sampler that learns, such as RewardWeightedSampler"
            )
        return self.inner

    def loss_weights(self, index: Tensor) -> Tensor | None:
        """Those of the inner sampler."""
        return self.inner.loss_weights(index)

    def probabilities(self) -> Tensor:
        """Those of the inner sampler's next draw: ``[size]`` float64."""
        return self.inner.probabilities()

    def probability_of(self, index: Tensor) -> Tensor:
        """Chance of each ``index`` ``[K]`` at the inner sampler's next draw: ``[K]`` float64."""
        return self.inner.probability_of(index)

    def min_probability(self) -> float:
        """Smallest when what was handed out last was drawn; see the class."""
        return self.inner.min_probability() if self._least is None else self._least

    def forget(self, share: float) -> None:
        """Let the inner sampler forget."""
        self._learner("forget").forget(share)

    def scores(self) -> Tensor:
        """What the inner sampler learnt; 1 for each sample if it learns nothing."""
        if isinstance(self.inner, AdaptiveSampler):
            return self.inner.scores()
        return torch.ones(self.size, dtype=torch.float64)

    def set_scores(self, score: Tensor) -> None:
        """Begin with what an earlier run's inner sampler learnt."""
        self._learner("set_scores").set_scores(score)

    def state_dict(self) -> dict[str, Any]:
        """The inner sampler's state, what is pending, and the generator, copied."""
        return {
            "kind": self.kind,
            "size": self.size,
            "batches": self.batches,
            "inner": self.inner.state_dict(),
            "index": self._index.clone(),
            "probability": self._probability.clone(),
            "cut": self._cut,
            "drawable": self._drawable,
            "least": self._least,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that the draws go on as if they had never stopped.

        Raises:
            ValueError: if the state is another sampler's, of another size or number of batches, or
                damaged; nothing changes then.
        """
        self._refuse_state(state, kind=self.kind, batches=self.batches)
        index, probability, cut = state["index"], state["probability"], int(state["cut"])
        if index.shape != probability.shape or (len(index) and (cut <= 0 or len(index) % cut)):
            raise ValueError(
                f"the state holds {len(index)} draws and {len(probability)} probabilities, cut in "
                f"batches of {cut}: it is damaged"
            )
        check_indices(index, self.size)
        self.inner.load_state_dict(state["inner"])
        self._index, self._probability = index.clone(), probability.clone()
        self._cut, self._drawable = cut, int(state["drawable"])
        self._least = None if state["least"] is None else float(state["least"])
        self.generator.set_state(state["generator"])
