"""Selection by reducible holdout loss (RHO-LOSS)."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._batch_selector import BatchSelector
from callbacks._scoring import score_dataset
from lit_adaptive.core.hard_examples import hardest_indices, kept_count, reducible_loss


class ReducibleLossSelector(BatchSelector):
    """Trains on the samples of greatest loss minus a holdout model's loss (RHO-LOSS).

    Mindermann et al. (2022): wrongly labelled and noisy samples are hard for the holdout model too,
    and are not selected. The holdout model's ("irreducible") losses are computed or read once,
    before training, and saved in checkpoints.

    Needs: ``model.per_sample_loss``; ``batch.index``; ``data.scoring_dataloader``.
    Changes: the batch.

    Args:
        holdout: CSV or Parquet file with columns ``id`` and ``score`` (the holdout model's loss),
            or a checkpoint of the same module trained on other data (not for sharded modules).
        keep: fraction of the batch in (0, 1], rounded up, or a number of samples above 1; 0.1 in
            the paper.

    Raises:
        ValueError: if ``keep`` is out of range, or ``holdout`` is missing or does not fit the data.
    """

    needs: frozenset[str] = BatchSelector.needs | {"data.scoring_dataloader"}

    def __init__(self, holdout: str = "holdout.csv", keep: float = 0.1) -> None:
        kept_count(2**31, keep)  # validates
        self.holdout = holdout
        self.keep = keep
        self.irreducible_losses: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reject a missing file before training."""
        if stage == "fit" and not Path(self.holdout).is_file():
            raise ValueError(
                f"holdout is {self.holdout!r}, which is not a file: train a holdout model on other "
                "data and pass its checkpoint, or a file of id and score (its losses)"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read or compute the irreducible losses, unless a checkpoint has restored them."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        losses = self.irreducible_losses
        if losses is None:
            if Path(self.holdout).suffix.lower() in (".csv", ".parquet"):
                losses = data.numbers(self.holdout).float()
            else:
                losses = self._score_with_checkpoint(trainer, pl_module)
        assert isinstance(losses, Tensor)
        self.irreducible_losses = losses
        if len(losses) != data.sampler.size:
            raise ValueError(
                f"there are {len(losses)} irreducible losses for {data.sampler.size} "
                "samples: resume with the dataset of the checkpoint, or start a new run"
            )
        if bool((invalid := ~losses.isfinite()).any()):
            index = invalid.nonzero().flatten()[:8].tolist()
            raise ValueError(f"the holdout model's losses of index {index} are not finite")

    def _score_with_checkpoint(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        checkpoint: Any = torch.load(self.holdout, map_location="cpu", weights_only=True)
        current = {name: value.clone() for name, value in pl_module.state_dict().items()}
        pl_module.load_state_dict(checkpoint["state_dict"])
        try:
            index, losses = score_dataset(trainer, pl_module)
        finally:
            pl_module.load_state_dict(current)
        return torch.empty(len(index)).index_copy_(0, index, losses)

    def select(
        self, batch: dict[str, Any], losses: Tensor, trainer: Trainer, pl_module: LightningModule
    ) -> Tensor:
        """Select the samples of greatest reducible loss."""
        assert self.irreducible_losses is not None  # set in on_train_start
        irreducible = self.irreducible_losses[batch["index"].cpu()].to(losses.device)
        return hardest_indices(reducible_loss(losses, irreducible), keep=self.keep)

    def state_dict(self) -> dict[str, Any]:
        """The irreducible losses."""
        losses = self.irreducible_losses
        return {"irreducible_losses": None if losses is None else losses.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the irreducible losses."""
        losses = state_dict["irreducible_losses"]
        self.irreducible_losses = None if losses is None else losses.clone()
