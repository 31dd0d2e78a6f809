"""A small training on digits, shared by the tests of callbacks for supervised training."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything
from quiet_trainer import quiet_trainer
from torch import Tensor

from lit_adaptive.data import AdaptiveDataModule, LongTailedDigits
from lit_adaptive.modules import Classifier, Dense
from lit_adaptive.samplers import ShuffledSampler


class BatchRecorder(Callback):
    """Records the batch and the losses of each step."""

    needs = provides = frozenset()

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, _: int):
        self.batches.append(dict(batch))
        self.losses.append(outputs["losses"].clone())


def fit_digits(
    folder: Path,
    *callbacks: Callback,
    sampler: Any = ShuffledSampler,
    model: Classifier | None = None,
    batch_size: int = 16,
    batches_per_epoch: int = 4,
    difficulty: str | None = None,
    **options: Any,
) -> tuple[Trainer, Classifier, AdaptiveDataModule]:
    """Train for two epochs of four batches, unless ``options`` of the trainer say otherwise."""
    seed_everything(5, verbose=False)
    data = AdaptiveDataModule(
        LongTailedDigits("train"),
        sampler,
        val_dataset=LongTailedDigits("validation"),
        batch_size=batch_size,
        batches_per_epoch=batches_per_epoch,
        difficulty=difficulty,
        beta=1.0,
    )
    model = model or Classifier(Dense(64, 10, hidden=[16]), 10)
    trainer = quiet_trainer(
        default_root_dir=folder,
        limit_val_batches=0,
        callbacks=list(callbacks),
        **{"max_epochs": 2} | options,
    )
    trainer.fit(model, data)
    return trainer, model, data
