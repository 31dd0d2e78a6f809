"""What each sample cost becomes its place in the sampler."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._shared import gather_over_ranks, score_all


class LossRefresh(Callback):
    """Tells the sampler the losses of what it drew, after each batch or at the end of each epoch.

    Under several ranks all shares are gathered and every rank writes all of them in rank order, so
    the samplers stay equal. Where a selector scored more of the batch than it let through, all that
    it scored is told. Logs ``refresh/skipped`` once something was skipped.

    Needs: ``training_step`` returns ``signal.losses`` ``[B]``; the batch holds ``batch.index``
    ``[B]``; the datamodule's sampler learns (``data.update``). With ``rescore_every_n_epochs`` also
    ``model.per_sample_loss`` and ``data.scoring_dataloader``.
    Changes: the sampler's priorities, and nothing else.

    Args:
        every: ``"batch"``, or ``"epoch"``: told all at once at the end of the epoch.
        rescore_every_n_epochs: at the end of every so many epochs score the whole dataset with the
            model as it is then, so that no loss is older; 0: never. It costs a forward pass each.
        forget: share in [0, 1] of what the sampler learnt that it forgets after each epoch.
        on_nan: a loss that is NaN or infinite is an error (``"raise"``), or its sample is left as
            it was and counted (``"skip"``).

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    needs: frozenset[str] = frozenset({"signal.losses", "batch.index", "data.update"})
    provides: frozenset[str] = frozenset()
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
        if rescore_every_n_epochs < 0:
            raise ValueError(
                f"rescore_every_n_epochs is {rescore_every_n_epochs}; it must be above 0, "
                "or 0: never"
            )
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
        """Gather, and tell or keep."""
        found = batch.get("scored") or {"index": batch["index"], "losses": outputs["losses"]}
        if trainer.world_size > 1:
            found = gather_over_ranks(found, trainer, pl_module)
        if self.every == "batch":
            self._tell(trainer, found["index"], found["losses"])
        else:
            self._pending.append((found["index"].cpu(), found["losses"].detach().float().cpu()))
        # Not on_train_epoch_end: resumed from a checkpoint of an epoch's last batch, Lightning
        # leaves that hook out, and what belongs to the epoch would be lost.
        if trainer.is_last_batch:
            self._end_epoch(trainer, pl_module)

    def _tell(self, trainer: Trainer, index: Tensor, losses: Tensor) -> None:
        if losses.requires_grad:
            losses = losses.detach()
        if self.on_nan == "skip":
            sound = losses.isfinite()
            if not bool(sound.all()):
                self.skipped += int((~sound).sum())
                index, losses = index[sound], losses[sound]
        if len(index):
            trainer.datamodule.update({"index": index}, losses)  # type: ignore[attr-defined]

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending:
            index, losses = (torch.cat(part) for part in zip(*self._pending, strict=True))
            self._pending = []
            self._tell(trainer, index, losses)
        every = self.rescore_every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0:
            self._tell(trainer, *score_all(trainer, pl_module))
        if self.forget:
            trainer.datamodule.sampler.forget(self.forget)  # type: ignore[attr-defined]
        if self.skipped:
            pl_module.log("refresh/skipped", float(self.skipped), sync_dist=False)

    def state_dict(self) -> dict[str, Any]:
        """What is kept for the end of the epoch, and how many were skipped."""
        index = [index for index, _ in self._pending]
        losses = [losses for _, losses in self._pending]
        return {
            "index": torch.cat(index) if index else torch.empty(0, dtype=torch.int64),
            "losses": torch.cat(losses) if losses else torch.empty(0),
            "skipped": self.skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on collecting."""
        kept = (state_dict["index"].clone(), state_dict["losses"].clone())
        self._pending = [kept] if len(kept[0]) else []
        self.skipped = int(state_dict["skipped"])
