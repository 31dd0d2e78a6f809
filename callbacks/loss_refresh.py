"""Feedback of per-sample losses to the sampler."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._ranks import gather_over_ranks
from callbacks._scoring import score_dataset
from lit_adaptive.core.bounds import check_at_least


class LossRefresh(Callback):
    """Updates the sampler with the losses of the drawn samples, after each batch or each epoch.

    The losses of all ranks are gathered and applied in rank order on every rank, so the samplers
    stay equal. Behind a selector such as ``OHEMSelector`` the losses of the full batch are used.
    Logs ``refresh/skipped``, the number of samples skipped so far, once it is above 0.

    Needs: ``training_step`` returns ``signal.losses`` ``[B]``; the batch holds ``batch.index``
    ``[B]``; the datamodule's sampler learns (``data.update``). With ``rescore_every_n_epochs`` also
    ``model.per_sample_loss`` and ``data.scoring_dataloader``.
    Changes: the sampler's priorities (``duty.feedback``), and nothing else.

    Args:
        every: when to update the sampler: after each ``"batch"``, or at the end of each
            ``"epoch"``.
        rescore_every_n_epochs: interval in epochs at whose end every sample of the dataset is
            scored with the current model, at the cost of a forward pass each; 0 disables it.
        forget: fraction of the sampler's learned state to forget after each epoch, in [0, 1].
        on_nan: what to do with a NaN or infinite loss: ``"raise"`` an error, or ``"skip"`` the
            sample and leave its priority unchanged.

    Raises:
        ValueError: if an argument is out of range.
    """

    needs: frozenset[str] = frozenset({"signal.losses", "batch.index", "data.update"})
    provides = frozenset({"duty.feedback"})
    remedies = {  # noqa: RUF012
        "data.update": "choose a sampler that learns, such as "
        "lit_adaptive.samplers.AdaptiveBatchSampler, or leave the callback out",
        "signal.losses": "choose a module whose training_step returns 'losses' [B], "
        "such as lit_adaptive.modules.Classifier",
    }

    def __init__(
        self,
        every: Literal["batch", "epoch"] = "batch",
        rescore_every_n_epochs: int = 0,
        forget: float = 0.0,
        on_nan: Literal["raise", "skip"] = "raise",
    ) -> None:
        if every not in ("batch", "epoch"):
            raise ValueError(f"every is {every!r}; it must be 'batch' or 'epoch'")
        check_at_least(rescore_every_n_epochs=(rescore_every_n_epochs, 0))
        if not 0 <= forget <= 1:
            raise ValueError(f"forget is {forget}; it must lie in [0, 1]")
        if on_nan not in ("raise", "skip"):
            raise ValueError(f"on_nan is {on_nan!r}; it must be 'raise' or 'skip'")
        self.every = every
        self.rescore_every_n_epochs = rescore_every_n_epochs
        self.forget = forget
        self.on_nan = on_nan
        self.skipped = 0
        self._pending: list[tuple[Tensor, Tensor]] = []
        if rescore_every_n_epochs:
            self.needs = self.needs | {"model.per_sample_loss", "data.scoring_dataloader"}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Gather the losses, and update the sampler now or at the end of the epoch."""
        scored = batch.get("scored") or {"index": batch["index"], "losses": outputs["losses"]}
        if trainer.world_size > 1:
            scored = gather_over_ranks(scored, trainer, pl_module)
        if self.every == "batch":
            self._update(trainer, scored["index"], scored["losses"])
        else:
            self._pending.append((scored["index"].cpu(), scored["losses"].detach().float().cpu()))
        # Not on_train_epoch_end: Lightning skips that hook when a run resumes from a checkpoint of
        # an epoch's last batch, and the update of that epoch would be lost.
        if trainer.is_last_batch:
            self._end_epoch(trainer, pl_module)

    def _update(self, trainer: Trainer, index: Tensor, losses: Tensor) -> None:
        if losses.requires_grad:
            losses = losses.detach()
        if self.on_nan == "skip":
            finite = losses.isfinite()
            if not bool(finite.all()):
                self.skipped += int((~finite).sum())
                index, losses = index[finite], losses[finite]
        if len(index):
            trainer.datamodule.update({"index": index}, losses)  # type: ignore[attr-defined]

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending:
            index, losses = (torch.cat(part) for part in zip(*self._pending, strict=True))
            self._pending = []
            self._update(trainer, index, losses)
        interval = self.rescore_every_n_epochs
        if interval and (trainer.current_epoch + 1) % interval == 0:
            self._update(trainer, *score_dataset(trainer, pl_module))
        if self.forget:
            trainer.datamodule.sampler.forget(self.forget)  # type: ignore[attr-defined]
        if self.skipped:
            pl_module.log("refresh/skipped", float(self.skipped), sync_dist=False)

    def state_dict(self) -> dict[str, Any]:
        """The losses pending until the end of the epoch, and the number of skipped samples."""
        index = [index for index, _ in self._pending]
        losses = [losses for _, losses in self._pending]
        return {
            "index": torch.cat(index) if index else torch.empty(0, dtype=torch.int64),
            "losses": torch.cat(losses) if losses else torch.empty(0),
            "skipped": self.skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the pending losses and the count."""
        pending = (state_dict["index"].clone(), state_dict["losses"].clone())
        self._pending = [pending] if len(pending[0]) else []
        self.skipped = int(state_dict["skipped"])
