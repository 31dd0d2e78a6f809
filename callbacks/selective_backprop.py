"""Selective backpropagation."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._batch_selector import BatchSelector
from callbacks._ranks import gather_over_ranks
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.corrections import inclusion_weights
from lit_adaptive.core.hard_examples import selective_backprop_probabilities


class SelectiveBackprop(BatchSelector):
    """Keeps each sample with probability CDF(loss)^beta among recent losses (Jiang et al., 2019).

    If no sample is selected, the one of greatest loss is kept (with ``correct``, at weight 0). The
    random numbers follow from seed, batch number and rank, so a resumed run selects the same
    samples.

    Needs: ``model.per_sample_loss``; ``batch.index``; ``batch.weight``.
    Changes: the batch.

    Args:
        beta: selectivity, at least 0; the paper uses 1 (keeps half on average), 2 (a third) ...
        history: number of recent losses, over all ranks, that form the CDF; above 0. Those of the
            current batch always do, so that every sample can be selected.
        correct: divide the weights by the selection probabilities, so that the batch mean is an
            unbiased estimate of the mean over the full batch.
        seed: seed of the random numbers.

    Raises:
        ValueError: if an argument is out of range, or a loss is NaN.
    """

    needs: frozenset[str] = BatchSelector.needs | {"batch.weight"}

    def __init__(
        self, beta: float = 1.0, history: int = 1024, correct: bool = False, seed: int = 0
    ) -> None:
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta is {beta}; the selectivity must be at least 0 and finite")
        check_at_least(history=(history, 1), seed=(seed, -(2**63)))
        self.beta = beta
        self.history = history
        self.correct = correct
        self.seed = seed
        self._recent_losses = torch.empty(0)

    def select(
        self, batch: dict[str, Any], losses: Tensor, trainer: Trainer, pl_module: LightningModule
    ) -> Tensor:
        """Select at random, in proportion to CDF(loss)^beta."""
        all_losses = gather_over_ranks({"losses": losses}, trainer, pl_module)["losses"].cpu()
        all_losses = all_losses.float()
        if bool(all_losses.isnan().any()):
            index = batch["index"][losses.isnan()].tolist()
            raise ValueError(f"the losses of index {index} are NaN: look for NaN in the model")
        length = max(self.history, len(all_losses))
        self._recent_losses = torch.cat([self._recent_losses, all_losses])[-length:]
        probability = selective_backprop_probabilities(
            losses.cpu().float(), self._recent_losses, beta=self.beta
        )
        uniform = self._uniform(len(probability), trainer)
        kept = uniform < probability
        selected = kept.nonzero().flatten()
        if self.correct:
            # Without any selection the estimate, a sum over the selected, is 0.
            correction = torch.zeros_like(probability)
            kept_fraction = len(selected) / len(probability)
            correction[selected] = inclusion_weights(probability[selected]) * kept_fraction
            batch["weight"] = batch["weight"] * correction.to(batch["weight"])
        return selected if len(selected) else losses.argmax().cpu()[None]

    def _uniform(self, size: int, trainer: Trainer) -> Tensor:
        """Uniform random numbers ``[size]`` in [0, 1) of this batch on this rank."""
        batch_number = trainer.fit_loop.epoch_loop.total_batch_idx
        stream = batch_number * trainer.world_size + trainer.global_rank
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + stream) % 2**63)
        return torch.rand(size, generator=generator, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """The recent losses."""
        return {"recent_losses": self._recent_losses.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the recent losses."""
        self._recent_losses = state_dict["recent_losses"].clone()
