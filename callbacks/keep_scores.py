"""What the sampler learnt is kept in a file."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._jsonl import folder_of_logs


class KeepScores(Callback):
    """Writes ``id`` and ``score`` of every sample when training ends, for ``data.scores`` later.

    Needs: ``data.write_scores``.
    Changes: nothing.

    Args:
        path: ends in ``.csv`` or ``.parquet``; relative ones go into the run's directory.
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
        """Write, on one rank: all have the same."""
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.write_scores(folder_of_logs(trainer) / self.path)
