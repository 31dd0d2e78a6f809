"""What all datamodules around a sampler share: serving draws, weighting them, remembering them."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_adaptive.contract import check_pairing
from lit_adaptive.core.corrections import inverse_probability_weights
from lit_adaptive.core.prioritized import importance_sampling_weights
from lit_adaptive.data.seeding import derive_seed, reseed
from lit_adaptive.samplers import AdaptiveSampler, BatchDraw, DrawBatches, IndexSampler

Normalize = Literal["none", "batch", "buffer"]

Batch = dict[str, Any]


def _seed_of_the_run() -> int:
    """What ``seed_everything`` set, the same in every process."""
    return torch.initial_seed() % 2**31


class SampledDataModule(LightningDataModule):
    r"""Serves batches that a sampler drew, each item with its index, probability and weight.

    The weight is :math:`w_i = (N P(i))^{-\beta}`, divided by :math:`\max_j w_j` or not, times the
    sampler's own loss weight if it has one. It is made when the batch is served, from the
    probability and the count N at the draw and the ``beta`` of now, so it is right even when worker
    processes drew the batch several updates ago; ``staleness`` says how many.

    With each batch torch's global random streams begin anew, from the seed, the batch's number and
    the rank: dropout in a resumed run is that of the uninterrupted one (``data.randomness``).

    Every rank holds the same sampler and draws the same global batch, of which it serves its share;
    hence ``use_distributed_sampler: false`` and one state for all ranks in the checkpoint.

    Args:
        batch_size: items per batch and rank, above 0.
        batches_per_epoch: batches after which an epoch ends, above 0.
        beta: how much of the sampling bias the weights correct, in [0, 1]; 1 is all of it.
            ``callbacks.BetaAnneal`` moves it during training.
        normalize: the maximum that weights are divided by: the ``"batch"``'s (over all ranks), the
            whole ``"buffer"``'s (Schaul et al., 2016, section 3.4), or ``"none"``: weights of mean
            1, which at ``beta=1`` make the batch's mean an unbiased estimate.
        seed: of the sampler; by default that of ``seed_everything``.
    """

    sampler: IndexSampler

    def __init__(
        self,
        *,
        batch_size: int,
        batches_per_epoch: int,
        beta: float,
        normalize: Normalize,
        seed: int | None,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("batches_per_epoch", batches_per_epoch)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if not 0 <= beta <= 1:
            raise ValueError(
                f"beta is {beta}; it must lie in [0, 1] (0: no correction, 1: unbiased)"
            )
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.beta = beta
        self.normalize: Normalize = normalize
        self.seed = _seed_of_the_run() if seed is None else seed
        self._batches: DrawBatches | None = None
        self._restored: dict[str, Any] | None = None
        self.staleness = 0

    @property
    def provides(self) -> frozenset[str]:
        """What this datamodule offers to modules and callbacks (see ``lit_adaptive.contract``)."""
        names = {"batch.index", "batch.probability", "batch.weight", "data.sampler", "data.beta"}
        names.add("data.staleness")
        if self.sampler.learns:
            names.add("data.update")
        if self.sampler.follows_progress:
            names.add("data.advance")
        return frozenset(names)

    def setup(self, stage: str) -> None:
        """Refuse a run whose parts do not fit together, before training."""
        if stage == "fit" and self.trainer is not None:
            callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
            check_pairing([self.trainer.lightning_module, self, *callbacks])

    def batches(self) -> DrawBatches:
        """The draws of this rank; made on first use, when the number of ranks is known."""
        if self._batches is None:
            trainer = self.trainer
            self._batches = DrawBatches(
                self.sampler,
                self.batch_size,
                self._consumed(),
                rank=trainer.global_rank if trainer else 0,
                world_size=trainer.world_size if trainer else 1,
                normalize=self.normalize,
            )
        return self._batches

    def _consumed(self) -> int:
        """How many batches of an epoch the trainer takes; drawing more ahead would lose draws."""
        limit: int | float | None = getattr(self.trainer, "limit_train_batches", None)
        if not limit:
            return self.batches_per_epoch
        if isinstance(limit, int):
            return min(limit, self.batches_per_epoch)
        return max(1, int(limit * self.batches_per_epoch))

    def epoch(self) -> DrawBatches:
        """The draws of the epoch that begins, or that a checkpoint was taken in the middle of."""
        batches = self.batches()
        if self._restored is not None:
            if in_mid_epoch(self.trainer):
                batches.load_state_dict(self._restored)
                skip_save_at_this_step(self.trainer)
            else:
                batches.number = int(self._restored["number"])
            self._restored = None
        return batches

    def weighted(self, batch: Batch, draw: BatchDraw) -> Batch:
        """``batch`` with the draw's ``index``, ``probability`` and ``weight``, each ``[B]``."""
        batch["index"] = draw.index
        batch["probability"] = draw.probability
        batch["weight"] = self._weights(draw).float()
        self.staleness = draw.staleness
        reseed(derive_seed(self.seed, draw.number, self.batches().rank))
        return batch

    def _weights(self, draw: BatchDraw) -> Tensor:
        if self.normalize == "none":
            weight = inverse_probability_weights(
                draw.probability, size=draw.drawable, beta=self.beta
            )
        else:
            weight = importance_sampling_weights(
                draw.probability, beta=self.beta, min_probability=draw.min_probability
            )
        own = self.sampler.loss_weights(draw.index)
        return weight if own is None else weight * own

    def advance(self, progress: float) -> None:
        """Tell the sampler which share of the training is done, in [0, 1]."""
        self.sampler.advance(progress)

    def update(self, drawn: dict[str, Tensor], priority: Tensor) -> None:
        """Give drawn items their new ``priority`` ``[K]``, finite and not negative.

        Args:
            drawn: ``index`` ``[K]`` and whatever else tells the items, of all ranks, in rank order.
            priority: in the order of ``index``.
        """
        assert isinstance(self.sampler, AdaptiveSampler)  # refused by the contract before training
        device = self.sampler.device
        self.sampler.update(drawn["index"].to(device), priority.to(device))

    @abstractmethod
    def train_dataloader(self) -> "ServedBatches":
        """Batches of this rank's share of the draws."""

    def state_dict(self) -> dict[str, Any]:
        """The sampler's memory, and how far the epoch has come."""
        return {"batches": self._place(), "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on drawing as if the run had never stopped; nothing where nothing is drawn.

        So a checkpoint can be tested, and asked for predictions, on data of any other size.
        """
        if not self._fitting():
            return
        self.sampler.load_state_dict(state_dict["sampler"])
        self._restored = state_dict["batches"]

    def _fitting(self) -> bool:
        """Whether what a checkpoint holds of the draws is wanted: not where only a test runs."""
        return self.trainer is None or self.trainer.state.fn in (None, TrainerFn.FITTING)

    def _place(self) -> dict[str, Any]:
        """How far the epoch has come, and which draws are under way to the model."""
        return self.batches().state_dict() if self._restored is None else self._restored


def in_mid_epoch(trainer: Trainer | None) -> bool:
    """Whether Lightning goes on with an epoch rather than beginning one."""
    return trainer is not None and trainer.fit_loop.epoch_loop.batch_progress.current.ready > 0


def skip_save_at_this_step(trainer: Trainer | None) -> None:
    """Tell checkpoint callbacks that the step resumed from is saved already.

    ``ModelCheckpoint`` forgets it, and would save that step again after the next *batch*. Under
    gradient accumulation that is a checkpoint without the gradients gathered so far, so resuming
    from it would not end where the uninterrupted run ends.
    """
    for callback in trainer.checkpoint_callbacks if trainer is not None else []:
        if hasattr(callback, "_last_global_step_saved"):
            callback._last_global_step_saved = trainer.global_step  # type: ignore[union-attr]


class ServedBatches:
    """An epoch of batches. It has a length, so Lightning does not fetch one ahead.

    Its place in the epoch is part of the datamodule's state; the empty ``state_dict`` tells
    Lightning that it can be resumed in the middle of an epoch.
    """

    def __init__(self, length: int, serve: Callable[[], Iterator[Batch]]) -> None:
        self._length = length
        self._serve = serve

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self._serve()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the datamodule saves it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the datamodule restored it."""
