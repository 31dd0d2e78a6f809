"""The best model of a run as a folder for transformers, peft and vLLM."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._run_files import run_directory
from lit_adaptive.modules.language.export import check_export, export_checkpoint
from lit_adaptive.modules.language.recipes import DTypeName


class ExportBest(Callback):
    """Exports the best checkpoint at the end of training, as ``lit-adaptive export`` does.

    The best one is that of the first ``ModelCheckpoint`` with a monitor.

    Needs: ``model.recipe``.
    Changes: nothing.

    Args:
        folder: to write to, new or empty; by default ``export`` in the run's directory.
        merge: add the LoRA to the weights, and write a model without adapters.
        dtype: data type of the weights; by default that of the checkpoint.

    Raises:
        ValueError: before training, if there is no such ``ModelCheckpoint``, the folder is not
            empty, or the options do not fit the model.
    """

    needs: frozenset[str] = frozenset({"model.recipe"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "model.recipe": "only language models (IWSFT, GRPO) are exported; checkpoints hold the "
        "weights of others (state_dict)",
    }

    def __init__(
        self, folder: str | None = None, merge: bool = False, dtype: DTypeName | None = None
    ) -> None:
        self.folder, self.merge = folder, merge
        self.dtype: DTypeName | None = dtype
        self._target = Path()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check folder, options and checkpoints."""
        if not any(getattr(each, "monitor", None) for each in trainer.checkpoint_callbacks):
            raise ValueError(
                "ExportBest exports the best checkpoint, but none of the callbacks chooses one: "
                "add lightning.pytorch.callbacks.ModelCheckpoint with a monitor"
            )
        module: Any = pl_module
        self._target = run_directory(trainer) / "export" if not self.folder else Path(self.folder)
        check_export(module.recipe, self._target, merge=self.merge)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export."""
        monitored = (c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None))
        best = getattr(next(monitored), "best_model_path", "")
        if best and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            export_checkpoint(best, self._target, merge=self.merge, dtype=self.dtype)
        trainer.strategy.barrier()
