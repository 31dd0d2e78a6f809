"""What a step's rollouts become: groups to be trained on again."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class RolloutReplay(Callback):
    """Keeps each step's fresh groups for later steps, once the step is over.

    Sun et al. (2025, arXiv:2506.05316), algorithm 1, line 6. Which groups are kept, and which are
    drawn again, the replay itself says (``lit_adaptive.replay.RolloutBuffer``).

    Needs: ``data.replay`` and ``data.finished_step``.
    Changes: the replay's contents; logs ``replay/*`` counts of what it did not keep.
    """

    needs = frozenset({"data.replay", "data.finished_step"})
    provides = frozenset({"duty.rollout_replay"})
    remedies = {  # noqa: RUF012
        "data.replay": "give the datamodule a replay (lit_adaptive.replay.RolloutBuffer) and a "
        "replay_fraction, or leave the callback out",
        "data.finished_step": "use lit_adaptive.data.RolloutDataModule",
    }

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Add the groups of a step that is over; all ranks hold the same."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        step = data.finished_step
        if step is None:
            return
        data.replay.add(step.fresh)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            counters = data.replay.counters
            pl_module.log_dict({f"train/replay/{n}": float(v) for n, v in counters.items()})
