"""Base class of the datamodules: serve a sampler's draws, weight them, and save their state."""

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_adaptive.contract import check_pairing
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.corrections import inverse_probability_weights
from lit_adaptive.core.prioritized import importance_sampling_weights
from lit_adaptive.data.seeding import derive_seed, reseed
from lit_adaptive.samplers import AdaptiveSampler, BatchDraw, DrawBatches, IndexSampler

Normalize = Literal["none", "batch", "buffer"]

Batch = dict[str, Any]


def _default_seed() -> int:
    """The seed of ``seed_everything``, the same in every process."""
    return torch.initial_seed() % 2**31


class SampledDataModule(LightningDataModule):
    r"""Serves batches that a sampler drew, with the index, probability and weight of each item.

    The weight is :math:`w_i = (N P(i))^{-\beta}`, optionally divided by :math:`\max_j w_j`, times
    the sampler's loss weight if it has one. It is computed when the batch is served, from the
    probability and the count N at the draw and the current ``beta``, so it is right even if worker
    processes drew the batch several updates ago; ``staleness`` is the number of these updates.

    Each batch seeds torch's global generators from the run's seed, the batch's number and the rank,
    so that dropout in a resumed run is that of the uninterrupted one (``data.seeding``).

    Every rank holds the same sampler, draws the same global batch and serves its share of it; hence
    ``use_distributed_sampler: false``, and one state for all ranks in the checkpoint.

    Args:
        batch_size: items per batch and rank, above 0.
        batches_per_epoch: batches after which an epoch ends, above 0.
        beta: strength of the correction of the sampling bias, in [0, 1]; 1 corrects fully.
            ``callbacks.BetaAnneal`` changes it during training.
        normalize: maximum that weights are divided by: that of the ``"batch"`` over all ranks, that
            of the whole ``"buffer"`` (Schaul et al., 2016, section 3.4), or ``"none"``: weights of
            mean 1, which at ``beta=1`` make the batch's mean an unbiased estimate.
        seed: seed of the sampler; by default that of ``seed_everything``.
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
        check_at_least(batch_size=(batch_size, 1), batches_per_epoch=(batches_per_epoch, 1))
        check_at_least(seed=(seed, -(2**63)))
        if not 0 <= beta <= 1:
            raise ValueError(
                f"beta is {beta}; it must lie in [0, 1] (0: no correction, 1: unbiased)"
            )
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.beta = beta
        self.normalize: Normalize = normalize
        self.seed = _default_seed() if seed is None else seed
        self._seed_given = seed is not None or "PL_GLOBAL_SEED" in os.environ
        self._batches: DrawBatches | None = None
        self._restored: dict[str, Any] | None = None
        self._has_initial_scores = False
        self.staleness = 0

    @property
    def provides(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``."""
        names = {"batch.index", "batch.probability", "batch.weight", "data.sampler", "data.beta"}
        names.add("data.staleness")
        if self.sampler.learns:
            names.add("data.update")
        if self.sampler.follows_progress:
            names.add("data.advance")
        return frozenset(names)

    @property
    def needs(self) -> frozenset[str]:
        """See ``lit_adaptive.contract``: feedback or progress, if the sampler follows them."""
        learns = self.sampler.learns and not self._has_initial_scores
        duties = {"duty.feedback": learns, "duty.progress": self.sampler.follows_progress}
        return frozenset(name for name, due in duties.items() if due)

    remedies: ClassVar[dict[str, str]] = {
        "duty.feedback": "the sampler learns from what it draws, and would stay as it is: add "
        "callbacks.LossRefresh, or RewardRefresh for rewards, to trainer.callbacks (a callback of "
        "your own that calls the datamodule's update declares provides = {'duty.feedback'}), or "
        "set the datamodule's `scores`",
        "duty.progress": "the sampler follows the training's progress, and would stay at the "
        "start: add callbacks.CurriculumProgress to trainer.callbacks, or (InfoBatchSampler) set "
        "anneal to 0",
    }

    def setup(self, stage: str) -> None:
        """Check that module, datamodule, callbacks and trainer fit together.

        Raises:
            ValueError: if a part needs what no other provides, or see ``trainer_errors``.
        """
        if self.trainer is None:
            return
        if errors := self.trainer_errors(self.trainer):
            raise ValueError("\n".join(errors))
        if stage == "fit":
            callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
            check_pairing([self.trainer.lightning_module, self, *callbacks])

    @staticmethod
    def trainer_errors(trainer: Trainer) -> list[str]:
        """A line for each feature of the trainer that cannot act on the draws of a sampler."""
        errors: list[str] = []
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, BatchSizeFinder) for callback in callbacks):
            errors.append(
                "a batch-size finder changes batch_size while the sampler draws, which would "
                "change the draws: leave it out, and set the datamodule's batch_size"
            )
        overfit: float = trainer.overfit_batches  # type: ignore[attr-defined]
        if overfit:
            errors.append(
                f"trainer.overfit_batches is {overfit}, but a sampler draws other batches in each "
                "epoch: leave it out, and train on a dataset of few samples, such as "
                "torch.utils.data.Subset(dataset, range(32))"
            )
        return errors

    def batches(self) -> DrawBatches:
        """The draws of this rank; created on first use, when the number of ranks is known."""
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
        """Batches that the trainer takes per epoch; drawing more ahead would lose draws."""
        limit: int | float | None = getattr(self.trainer, "limit_train_batches", None)
        if not limit:
            return self.batches_per_epoch
        if isinstance(limit, int):
            return min(limit, self.batches_per_epoch)
        return max(1, int(limit * self.batches_per_epoch))

    def epoch(self) -> DrawBatches:
        """The draws of the next epoch, or the rest of the epoch that a checkpoint interrupted."""
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
        loss_weight = self.sampler.loss_weights(draw.index)
        return weight if loss_weight is None else weight * loss_weight

    def advance(self, progress: float) -> None:
        """Pass the fraction of training that is done, in [0, 1], to the sampler."""
        self.sampler.advance(progress)

    def update(self, drawn: dict[str, Tensor], priority: Tensor) -> None:
        """Set the new priorities of drawn items.

        Args:
            drawn: ``index`` ``[K]`` and further identifiers of the items, of all ranks, in rank
                order.
            priority: ``[K]``, finite and not negative, in the order of ``index``.
        """
        assert isinstance(self.sampler, AdaptiveSampler)  # checked by the contract before training
        device = self.sampler.device
        self.sampler.update(drawn["index"].to(device), priority.to(device))

    @abstractmethod
    def train_dataloader(self) -> "ServedBatches":
        """Batches of this rank's share of the draws."""

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state, and the position in the epoch."""
        return {
            "batches": self._epoch_state(),
            "sampler": self.sampler.state_dict(),
            "seed": self.seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue drawing as if the run had never stopped; does nothing outside of training.

        So a checkpoint can be tested, and used for prediction, on data of any size.
        """
        if not self._fitting():
            return
        self.sampler.load_state_dict(state_dict["sampler"])
        self._restored = state_dict["batches"]
        self._restore_seed(state_dict)

    def _restore_seed(self, state_dict: dict[str, Any]) -> None:
        """Reseed the restored sampler if another seed is given; without one keep the state's."""
        seed = int(state_dict.get("seed", self.seed))
        if not self._seed_given:
            self.seed = seed
        elif seed != self.seed:
            self.sampler.reseed(self.seed)

    def _fitting(self) -> bool:
        """Whether a checkpoint's draws are to be restored: not for tests and predictions."""
        return self.trainer is None or self.trainer.state.fn in (None, TrainerFn.FITTING)

    def _epoch_state(self) -> dict[str, Any]:
        """The position in the epoch, and the draws that were prefetched."""
        return self.batches().state_dict() if self._restored is None else self._restored


def in_mid_epoch(trainer: Trainer | None) -> bool:
    """Whether Lightning resumes an epoch rather than starting one."""
    return trainer is not None and trainer.fit_loop.epoch_loop.batch_progress.current.ready > 0


def skip_save_at_this_step(trainer: Trainer | None) -> None:
    """Mark the step that a run resumes from as saved, for checkpoint callbacks.

    ``ModelCheckpoint`` forgets it, and would save that step again after the next *batch*. Under
    gradient accumulation that checkpoint lacks the gradients accumulated so far, so resuming from
    it would not end where the uninterrupted run ends.
    """
    for callback in trainer.checkpoint_callbacks if trainer is not None else []:
        if hasattr(callback, "_last_global_step_saved"):
            callback._last_global_step_saved = trainer.global_step  # type: ignore[union-attr]


class ServedBatches:
    """A loader of one epoch's batches. It has a length, so Lightning fetches no batch ahead.

    The position in the epoch is part of the datamodule's state; the empty ``state_dict`` makes
    Lightning resume the loader in the middle of an epoch.
    """

    def __init__(self, length: int, serve: Callable[[], Iterator[Batch]]) -> None:
        self._length = length
        self._serve = serve

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self._serve()

    def state_dict(self) -> dict[str, Any]:
        """Empty; the datamodule saves the position."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing; the datamodule has restored the position."""
