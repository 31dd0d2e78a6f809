"""What training found out about each item becomes its priority."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._shared import gather_over_ranks
from lit_adaptive.core.prioritized import proportional_priorities


class PriorityRefresh(Callback):
    """Writes ``|td_error| + epsilon`` of each step's items into the sampler.

    Schaul et al. (2016), section 3.3. Under several ranks all shares are gathered and every rank
    writes all of them in rank order, so the samplers stay equal.

    Needs: ``training_step`` returns ``signal.td_error`` ``[B]``; the batch holds ``batch.index``
    ``[B]``; the datamodule's sampler learns (``data.update``).
    Changes: the sampler's priorities, and nothing else.

    Args:
        epsilon: keeps every item's priority above 0, in the unit of the TD error.
        clip: largest ``|td_error|`` counted, or None; the paper clips to 1 on Atari.
    """

    needs = frozenset({"signal.td_error", "batch.index", "data.update"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "data.update": "choose a sampler that learns, such as "
        "lit_adaptive.samplers.PrioritizedSampler, or leave the callback out",
        "signal.td_error": "choose a module whose training_step returns 'td_error', "
        "such as lit_adaptive.modules.DQN",
    }

    def __init__(self, epsilon: float = 1e-6, clip: float | None = None) -> None:
        if epsilon < 0:
            raise ValueError(f"epsilon is {epsilon}; it must not be negative (the paper adds it)")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip is {clip}; it must be above 0, or null for no clipping")
        self.epsilon = epsilon
        self.clip = clip

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Gather, turn into priorities, write."""
        drawn: dict[str, Tensor] = {key: batch[key] for key in ("index", "serial") if key in batch}
        found: dict[str, Tensor] = {**drawn, "td_error": outputs["td_error"].detach().float()}
        found = gather_over_ranks(found, trainer, pl_module)
        td_error = found.pop("td_error")
        if self.clip is not None:
            # Clamping would hide a NaN's neighbour, infinity: those must still be refused by name.
            td_error = torch.where(
                td_error.isfinite(), td_error.clamp(-self.clip, self.clip), td_error
            )
        priority = proportional_priorities(td_error, epsilon=self.epsilon)
        trainer.datamodule.update(found, priority)  # type: ignore[attr-defined]
