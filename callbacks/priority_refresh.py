"""Feedback of TD errors to the sampler."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._ranks import gather_over_ranks
from lit_adaptive.core.prioritized import proportional_priorities


class PriorityRefresh(Callback):
    """Sets the priority of each batch's items to ``|td_error| + epsilon``.

    Schaul et al. (2016), section 3.3. The TD errors of all ranks are gathered and applied in rank
    order on every rank, so the samplers stay equal.

    Needs: ``training_step`` returns ``signal.td_error`` ``[B]``; the batch holds ``batch.index``
    ``[B]``; the datamodule's sampler learns (``data.update``).
    Changes: the sampler's priorities (``duty.feedback``), and nothing else.

    Args:
        epsilon: constant that keeps every priority above 0, in the unit of the TD error.
        clip: upper bound of ``|td_error|``, above 0, or None; the paper clips to 1 on Atari.

    Raises:
        ValueError: if an argument is out of range.
    """

    needs = frozenset({"signal.td_error", "batch.index", "data.update"})
    provides = frozenset({"duty.feedback"})
    remedies = {  # noqa: RUF012
        "data.update": "choose a sampler that learns, such as "
        "lit_adaptive.samplers.PrioritizedSampler, or leave the callback out",
        "signal.td_error": "choose a module whose training_step returns 'td_error', "
        "such as lit_adaptive.modules.DQN",
    }

    def __init__(self, epsilon: float = 1e-6, clip: float | None = None) -> None:
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilon is {epsilon}; it must be at least 0 and finite")
        if clip is not None and not 0 < clip < math.inf:
            raise ValueError(f"clip is {clip}; it must be above 0 and finite, or null for none")
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
        """Gather the TD errors and update the priorities."""
        values: dict[str, Tensor] = {key: batch[key] for key in ("index", "serial") if key in batch}
        values["td_error"] = outputs["td_error"].detach().float()
        drawn = gather_over_ranks(values, trainer, pl_module)
        td_error = drawn.pop("td_error")
        if self.clip is not None:
            # Only finite values: clamping an infinity would hide it from the sampler's validation.
            td_error = torch.where(
                td_error.isfinite(), td_error.clamp(-self.clip, self.clip), td_error
            )
        priority = proportional_priorities(td_error, epsilon=self.epsilon)
        trainer.datamodule.update(drawn, priority)  # type: ignore[attr-defined]
