"""Evaluation of a reinforcement-learning policy."""

import csv
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import CatMetric

from callbacks._run_files import run_directory
from lit_adaptive.rollout.environments.episodes import play_episodes


class EpisodeEvaluation(Callback):
    """Plays one greedy episode per seed of the evaluation batches, and logs the returns.

    Logs ``val/return`` and ``val/length`` (means), ``val/return_min``, ``_max`` and ``_std``
    (``test/...`` in a test), over the episodes of all ranks, for ``ModelCheckpoint`` and
    ``EarlyStopping`` to monitor. Prediction writes ``episodes.csv`` into the run directory.

    Needs: ``model.act``; ``data.make_environment``; batches of ``{"seed": [n]}``.
    Changes: nothing.
    """

    needs = frozenset({"model.act", "data.make_environment"})
    provides: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._returns, self._lengths, self._seeds = (_float64_list() for _ in range(3))

    def _play(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        act: Any = pl_module.act
        keep_going = None
        if trainer.world_size > 1:
            keep_going = partial(trainer.strategy.reduce_boolean_decision, all=False)
        make = partial(data.make_environment, evaluation=True)
        returns, lengths = play_episodes(act, make, batch["seed"].cpu(), keep_going=keep_going)
        self._returns.update(returns.to(pl_module.device))
        self._lengths.update(lengths.to(pl_module.device))
        self._seeds.update(batch["seed"])

    def _gathered(self, pl_module: LightningModule) -> tuple[Tensor, Tensor, Tensor]:
        """Seeds, returns and lengths of all ranks; the lists start empty again."""
        metrics = (self._seeds, self._returns, self._lengths)
        seeds, returns, lengths = (
            torch.as_tensor(metric.to(pl_module.device).compute()).flatten().double().cpu()
            for metric in metrics
        )
        for metric in metrics:
            metric.reset()
        return seeds, returns, lengths

    def _log(self, pl_module: LightningModule, stage: str) -> None:
        _, returns, lengths = self._gathered(pl_module)
        values = {
            "return": returns.mean(),
            "return_min": returns.min(),
            "return_max": returns.max(),
            "return_std": returns.std(correction=0),
            "length": lengths.mean(),
        }
        # Equal on every rank; sync_dist only tells Lightning so.
        for name, value in values.items():
            in_bar = name == "return"
            pl_module.log(f"{stage}/{name}", value.float(), prog_bar=in_bar, sync_dist=True)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Play the episodes of the batch's seeds."""
        self._play(trainer, pl_module, batch)

    on_test_batch_end = on_validation_batch_end
    on_predict_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``val/...``."""
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``test/...``."""
        self._log(pl_module, "test")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write one line per episode, ordered by seed."""
        seeds, returns, lengths = self._gathered(pl_module)
        folder = run_directory(trainer)
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "episodes.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["seed", "return", "length"])
            for seed, episode_return, length in sorted(
                zip(seeds.tolist(), returns.tolist(), lengths.tolist(), strict=True)
            ):
                writer.writerow([int(seed), episode_return, int(length)])


def _float64_list() -> CatMetric:
    metric = CatMetric(nan_strategy="disable")  # a NaN return makes the mean NaN
    metric.set_dtype(torch.float64)  # float32 cannot hold every seed
    return metric
