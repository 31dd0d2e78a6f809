"""Storage of rollouts in the replay buffer."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class RolloutReplay(Callback):
    """Adds the fresh groups of each step to the replay buffer after the step's last update.

    Sun et al. (2025, arXiv:2506.05316), algorithm 1, line 6. The buffer decides which groups it
    keeps and which are replayed (``lit_adaptive.replay.RolloutBuffer``).

    Needs: ``data.replay`` and ``data.finished_step``.
    Changes: the replay's contents; logs ``train/replay/*`` counts of the groups it did not keep.
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
        """Add the groups of a finished step, on every rank."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        step = data.finished_step
        if step is None:
            return
        data.replay.add(step.fresh)
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval and trainer.global_step % interval == 0:
            counters = data.replay.counters
            pl_module.log_dict({f"train/replay/{n}": float(v) for n, v in counters.items()})
