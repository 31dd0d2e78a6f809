"""Metrics of the sampler."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._ranks import gather_over_ranks
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.diagnostics import coverage, effective_sample_size, sampling_entropy

_IN_PROGRESS_BAR = ("sampler/ess", "sampler/coverage")


class SamplingMonitor(Callback):
    """Logs the sampling distribution's concentration, the draws' staleness, and the weights.

    ``sampler/ess``: effective sample size of the distribution; ``sampler/entropy``, normalized (1:
    uniform); ``sampler/max_prob``; ``sampler/coverage``: fraction of the samples drawn at least
    once; ``sampler/unique``: fraction of distinct samples in the batch; ``sampler/staleness``:
    batches served between a draw and its use (0 without worker processes); ``is_weight/mean``,
    ``max`` and ``ess`` (as a fraction of the batch); with a replay ``replay/size``, ``age_mean``
    and ``age_max`` (in transitions added since). ESS and coverage stand in the progress bar.

    Needs: ``data.sampler``; ``data.staleness``; ``batch.index``; ``batch.weight``.
    Changes: nothing.

    Args:
        every_n_steps: optimizer steps between two measurements, above 0, rounded up to steps that
            are logged; by default ten times the trainer's ``log_every_n_steps``, but at most a
            tenth of the training. A measurement is O(N).

    Raises:
        ValueError: if ``every_n_steps`` is out of range.
    """

    needs = frozenset({"data.sampler", "data.staleness", "batch.index", "batch.weight"})
    provides: frozenset[str] = frozenset()

    def __init__(self, every_n_steps: int | None = None) -> None:
        check_at_least(every_n_steps=(every_n_steps, 1))
        self.every_n_steps = every_n_steps
        self._drawn = torch.zeros(0, dtype=torch.bool)
        self._interval = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Round the interval up to steps that are logged; 0 if none is."""
        log_interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        steps = trainer.estimated_stepping_batches
        interval = self.every_n_steps or math.ceil(max(1, min(10 * log_interval, steps / 10)))
        self._interval = log_interval and log_interval * -(-interval // log_interval)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Record the draws; measure if it is due."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        # The full batch before a selector: it was drawn, and its size is equal on every rank.
        index: Tensor = batch.get("scored", batch)["index"].cpu()
        if len(self._drawn) != data.sampler.size:
            self._drawn = torch.zeros(data.sampler.size, dtype=torch.bool)
        gathered = gather_over_ranks({"index": index}, trainer, pl_module)
        self._drawn[gathered["index"].cpu()] = True
        if self._interval and trainer.global_step % self._interval == 0:
            metrics = self._measure(data, index, batch["weight"].detach().cpu())
            for name, value in metrics.items():
                in_bar = name in _IN_PROGRESS_BAR
                pl_module.log(name, value, prog_bar=in_bar, batch_size=len(index))

    def _measure(self, data: Any, index: Tensor, weight: Tensor) -> dict[str, float]:
        probability: Tensor = data.sampler.probabilities()
        drawable = probability > 0
        positive = probability[drawable]
        metrics = {
            "sampler/ess": float(effective_sample_size(positive)),
            "sampler/entropy": float(sampling_entropy(positive, normalized=True)),
            "sampler/max_prob": float(positive.max()),
            "sampler/coverage": coverage(self._drawn[drawable.cpu()]),
            "sampler/unique": len(set(index.tolist())) / len(index),
            "sampler/staleness": float(data.staleness),
            "is_weight/mean": float(weight.mean()),
            "is_weight/max": float(weight.max()),
            "is_weight/ess": float(effective_sample_size(weight)) / len(weight),
        }
        replay: Any = getattr(data, "replay", None)
        if replay is not None:
            age: Tensor = replay.age(index).double()
            metrics |= {
                "replay/size": float(len(replay)),
                "replay/age_mean": float(age.mean()),
                "replay/age_max": float(age.max()),
            }
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Which samples have been drawn."""
        return {"drawn": self._drawn.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore which samples have been drawn."""
        self._drawn = state_dict["drawn"].clone()
