"""What the sampler does, as numbers in the log."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_adaptive.core.diagnostics import coverage, effective_sample_size, sampling_entropy

_SHOWN = ("sampler/ess", "sampler/coverage")


class SamplingMonitor(Callback):
    """Logs how unevenly the sampler draws, how old what it draws is, and what the weights cost.

    Every so many steps: ``sampler/ess`` (of the law: as many equally likely items would draw as
    evenly), ``sampler/entropy`` (1 is uniform), ``sampler/max_prob``, ``sampler/coverage`` (share
    of the slots drawn at least once), ``sampler/unique`` (share of the batch that is not a
    repetition), ``sampler/staleness`` (batches served between a draw and its use: 0 without worker
    processes), ``is_weight/mean``, ``max`` and ``ess`` (as a share of the batch) and, with a
    replay, ``replay/size``, ``age_mean`` and ``age_max`` (transitions since the item came).

    ESS and coverage stand in the progress bar.

    Needs: ``data.sampler``; ``data.staleness``; ``batch.index``; ``batch.weight``.
    Changes: nothing.

    Args:
        every_n_steps: optimizer steps between two measurements, above 0; by default ten times the
            trainer's ``log_every_n_steps``. It is O(N), and rounded up to steps that are logged.
    """

    needs = frozenset({"data.sampler", "data.staleness", "batch.index", "batch.weight"})
    provides: frozenset[str] = frozenset()

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps <= 0:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be above 0, or null")
        self.every_n_steps = every_n_steps
        self._drawn = torch.zeros(0, dtype=torch.bool)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Count the draws; measure when it is time."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        # What a selector cut away was drawn too; and it cuts more here and less on another rank.
        index: Tensor = batch.get("scored", batch)["index"].cpu()
        if len(self._drawn) != data.sampler.size:
            self._drawn = torch.zeros(data.sampler.size, dtype=torch.bool)
        self._drawn[_of_all_ranks(index, trainer, pl_module)] = True
        logged: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not logged:
            return
        wanted = self.every_n_steps or 10 * logged
        every = logged * max(1, -(-wanted // logged))
        if trainer.global_step % every == 0:
            found = self._measure(data, index, batch["weight"].detach().cpu())
            for name, value in found.items():
                pl_module.log(name, value, prog_bar=name in _SHOWN, batch_size=len(index))

    def _measure(self, data: Any, index: Tensor, weight: Tensor) -> dict[str, float]:
        law: Tensor = data.sampler.probabilities()
        possible = law[law > 0]
        found = {
            "sampler/ess": float(effective_sample_size(possible)),
            "sampler/entropy": float(sampling_entropy(possible, normalized=True)),
            "sampler/max_prob": float(possible.max()),
            "sampler/coverage": coverage(self._drawn[(law > 0).cpu()]),
            "sampler/unique": len(set(index.tolist())) / len(index),
            "sampler/staleness": float(data.staleness),
            "is_weight/mean": float(weight.mean()),
            "is_weight/max": float(weight.max()),
            "is_weight/ess": float(effective_sample_size(weight)) / len(weight),
        }
        replay: Any = getattr(data, "replay", None)
        if replay is not None:
            age: Tensor = replay.age(index).double()
            found |= {
                "replay/size": float(len(replay)),
                "replay/age_mean": float(age.mean()),
                "replay/age_max": float(age.max()),
            }
        return found

    def state_dict(self) -> dict[str, Any]:
        """Which slots were drawn."""
        return {"drawn": self._drawn.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._drawn = state_dict["drawn"].clone()


def _of_all_ranks(index: Tensor, trainer: Trainer, pl_module: LightningModule) -> Tensor:
    if trainer.world_size == 1:
        return index
    gather_over_ranks: Any = pl_module.all_gather(index)
    everyone: Tensor = gather_over_ranks.flatten().cpu()
    return everyone
