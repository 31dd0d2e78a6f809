"""Which of the drawn samples are worth a backward pass: scored all, trained on few.

Each selector scores the batch by a forward pass without gradients, then cuts the batch down to what
it chose, with index, probability and weight. So it can be combined with any sampler: draw more
(``batch_size``), keep the best. ``core.hard_examples`` has the rules and their papers.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._shared import gather_over_ranks, losses_of, score_all
from lit_adaptive.core.corrections import inclusion_weights
from lit_adaptive.core.hard_examples import (
    hardest_indices,
    kept_count,
    reducible_loss,
    selective_backprop_probabilities,
)


class BatchSelector(Callback):
    """Scores what was drawn and lets some of it through.

    What was scored goes on as ``batch["scored"]``, for ``LossRefresh``. Logs ``select/kept``, the
    share let through.

    Needs: ``model.per_sample_loss``; ``batch.index``.
    Changes: the batch.
    """

    needs: frozenset[str] = frozenset({"model.per_sample_loss", "batch.index"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "model.per_sample_loss": "choose a module with per_sample_loss(batch), "
        "such as lit_adaptive.modules.Classifier",
    }

    @abstractmethod
    def choose(
        self, batch: dict[str, Any], losses: Tensor, trainer: Trainer, pl_module: LightningModule
    ) -> Tensor:
        """Places ``[K]`` int64 of the chosen in the batch, at least one, by ``losses`` ``[B]``."""

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Score, choose, cut."""
        losses = losses_of(batch, trainer, pl_module)
        size = len(losses)
        scored = {"index": batch["index"], "losses": losses}
        chosen = self.choose(batch, losses, trainer, pl_module)
        for name, value in batch.items():
            batch[name] = _cut(value, chosen, size)
        batch["scored"] = scored
        pl_module.log("select/kept", len(chosen) / size, sync_dist=False, batch_size=size)


def _cut(value: Any, chosen: Tensor, size: int) -> Any:
    """The chosen entries of whatever holds one for each sample."""
    if isinstance(value, Tensor):
        return value[chosen.to(value.device)] if value.dim() and len(value) == size else value
    if isinstance(value, dict):
        return {name: _cut(part, chosen, size) for name, part in value.items()}
    if isinstance(value, (list, tuple)) and len(value) == size:
        return [value[place] for place in chosen.tolist()]
    return value


class OHEMSelector(BatchSelector):
    """Keeps the samples of greatest loss. Online hard example mining (Shrivastava et al., 2016).

    Under several ranks each keeps the hardest of its own share. The choice is biased by design, and
    no weight corrects it: it has no guard against wrong labels.

    Needs: ``model.per_sample_loss``; ``batch.index``.
    Changes: the batch.

    Args:
        keep: a share of the batch in (0, 1], rounded up, or a whole number of samples above 1.
    """

    def __init__(self, keep: float = 0.5) -> None:
        kept_count(2**31, keep)
        self.keep = keep

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a number that no batch can hold, before training."""
        size: int | None = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
        if stage == "fit" and size is not None:
            kept_count(size, self.keep)

    def choose(
        self, batch: dict[str, Any], losses: Tensor, trainer: Trainer, pl_module: LightningModule
    ) -> Tensor:
        """The hardest."""
        return hardest_indices(losses, keep=self.keep)


class SelectiveBackprop(BatchSelector):
    """Keeps each sample with chance CDF(loss)^beta among recent losses (Jiang et al., 2019).

    With ``correct`` the kept are weighted by the inverse of their chance, times what is kept over
    what was drawn: the batch's mean then estimates the mean over all that was drawn, without bias.
    Where chance keeps nothing, the hardest sample is kept. The dice follow from seed, batch and
    rank, so a resumed run needs no memory of them.

    Needs: ``model.per_sample_loss``; ``batch.index``; ``batch.weight``.
    Changes: the batch.

    Args:
        beta: selectivity, at least 0; the paper has 1 (half kept on average), 2 (a third) ...
        history: how many recent losses of all ranks the CDF is taken over, above 0.
        correct: undo the bias.
        seed: of the dice.
    """

    needs: frozenset[str] = BatchSelector.needs | {"batch.weight"}

    def __init__(
        self, beta: float = 1.0, history: int = 1024, correct: bool = False, seed: int = 0
    ) -> None:
        if not beta >= 0:
            raise ValueError(f"beta is {beta}; the selectivity must not be negative")
        if history <= 0:
            raise ValueError(f"history is {history}; it must be above 0")
        self.beta = beta
        self.history = history
        self.correct = correct
        self.seed = seed
        self._recent = torch.empty(0)

    def choose(
        self, batch: dict[str, Any], losses: Tensor, trainer: Trainer, pl_module: LightningModule
    ) -> Tensor:
        """Those whom the dice favour."""
        everyone = gather_over_ranks({"losses": losses}, trainer, pl_module)["losses"].cpu()
        if bool(everyone.isnan().any()):
            where = batch["index"][losses.isnan()].tolist()
            raise ValueError(f"the losses of index {where} are NaN: look for NaN in the model")
        self._recent = torch.cat([self._recent, everyone])[-self.history :]
        chance = selective_backprop_probabilities(losses.cpu(), self._recent, beta=self.beta)
        place = trainer.fit_loop.epoch_loop.total_batch_idx * trainer.world_size
        dice = torch.Generator().manual_seed(
            (self.seed * 1_000_003 + place + trainer.global_rank) % 2**63
        )
        kept = torch.rand(len(chance), generator=dice, dtype=torch.float64) < chance
        if not bool(kept.any()):
            kept[losses.argmax()] = True
        chosen = kept.nonzero().flatten()
        if self.correct:
            weight = inclusion_weights(chance[chosen]) * len(chosen) / len(chance)
            target: Tensor = batch["weight"]
            corrected = target.clone()
            corrected[chosen.to(target.device)] *= weight.to(target)
            batch["weight"] = corrected
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """The recent losses."""
        return {"recent": self._recent.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self._recent = state_dict["recent"].clone()


class ReducibleLossSelector(BatchSelector):
    """Keeps the samples whose loss exceeds a holdout model's the most: RHO-LOSS.

    Mindermann et al. (2022): what is wrongly labelled or noisy is hard for the holdout model too,
    and scores low. The holdout model's losses are found once, before training: read from a file, or
    by a pass over the dataset with a checkpoint of the same module trained on other data.

    Needs: ``model.per_sample_loss``; ``batch.index``; ``data.scoring_dataloader``.
    Changes: the batch.

    Args:
        holdout: CSV or Parquet file of ``id`` and ``score`` (the holdout model's loss), or a
            checkpoint (not for sharded models, which need the file).
        keep: a share of the batch in (0, 1], rounded up, or a whole number above 1; 0.1 in the
            paper.
    """

    needs: frozenset[str] = BatchSelector.needs | {"data.scoring_dataloader"}

    def __init__(self, holdout: str = "holdout.csv", keep: float = 0.1) -> None:
        kept_count(2**31, keep)
        self.holdout = holdout
        self.keep = keep
        self.irreducible: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a file that is not there, before training."""
        if stage == "fit" and not Path(self.holdout).is_file():
            raise ValueError(
                f"holdout is {self.holdout!r}, which is no file: train a holdout model on other "
                "data and give its checkpoint, or a file of id and score (its losses)"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the irreducible losses, unless a checkpoint brought them."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        known = self.irreducible
        if known is None:
            if Path(self.holdout).suffix.lower() in (".csv", ".parquet"):
                known = data.numbers(self.holdout).float()
            else:
                known = self._by_checkpoint(trainer, pl_module)
        assert isinstance(known, Tensor)
        self.irreducible = known
        if len(known) != data.sampler.size:
            raise ValueError(
                f"there are {len(known)} irreducible losses for {data.sampler.size} "
                "samples: resume with the dataset that was saved, or find them anew"
            )
        if bool((wrong := ~known.isfinite()).any()):
            where = wrong.nonzero().flatten()[:8].tolist()
            raise ValueError(f"the holdout model's losses of index {where} are not finite")

    def _by_checkpoint(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        saved: Any = torch.load(self.holdout, map_location="cpu", weights_only=True)
        own = {name: value.clone() for name, value in pl_module.state_dict().items()}
        pl_module.load_state_dict(saved["state_dict"])
        try:
            index, losses = score_all(trainer, pl_module)
        finally:
            pl_module.load_state_dict(own)
        return torch.empty(len(index)).index_copy_(0, index, losses)

    def choose(
        self, batch: dict[str, Any], losses: Tensor, trainer: Trainer, pl_module: LightningModule
    ) -> Tensor:
        """Those with most left to learn."""
        assert self.irreducible is not None  # found in on_train_start
        expected = self.irreducible[batch["index"].cpu()].to(losses.device)
        return hardest_indices(reducible_loss(losses, expected), keep=self.keep)

    def state_dict(self) -> dict[str, Any]:
        """The irreducible losses."""
        known = self.irreducible
        return {"irreducible": None if known is None else known.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them over."""
        known = state_dict["irreducible"]
        self.irreducible = None if known is None else known.clone()
