"""A file of the sampler's scores."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._run_files import local_run_directory


class KeepScores(Callback):
    """Writes ``id`` and ``score`` of every sample when training ends, for ``data.scores`` later.

    Needs: ``data.write_scores``.
    Changes: nothing.

    Args:
        path: file name that ends in ``.csv`` or ``.parquet``; relative to the run's directory.

    Raises:
        ValueError: if ``path`` has another suffix.
    """

    needs = frozenset({"data.write_scores"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "data.write_scores": "choose a sampler that learns, such as "
        "lit_adaptive.samplers.AdaptiveBatchSampler, or leave the callback out",
    }

    def __init__(self, path: str = "scores.csv") -> None:
        if Path(path).suffix.lower() not in (".csv", ".parquet"):
            raise ValueError(f"path is {path!r}; it must end in .csv or .parquet")
        self.path = path

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write on rank 0; the scores are equal on all ranks."""
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.write_scores(local_run_directory(trainer) / self.path)
