"""Short trainings of tiny language models, shared by the tests of modules."""

from typing import Any

from lightning.pytorch import Callback, seed_everything
from quiet_trainer import quiet_trainer

from lit_adaptive.data import (
    Arithmetic,
    DemonstrationDataset,
    DemonstrationsDataModule,
    PromptDataset,
    RolloutDataModule,
)
from lit_adaptive.rollout.generation import SamplingParams

TINY: dict[str, Any] = {"hidden_size": 32, "layers": 1, "heads": 2, "seed": 0}


def demonstrations(**options: Any) -> DemonstrationsDataModule:
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(16)]
    return DemonstrationsDataModule(DemonstrationDataset(rows, **options), batch_size=4, seed=1)


def rollouts(**options: Any) -> RolloutDataModule:
    data = PromptDataset(Arithmetic("train", size=12), columns=["answer"])
    defaults: dict[str, Any] = {"batch_size": 2, "group_size": 4, "steps_per_epoch": 2, "seed": 5}
    return RolloutDataModule(data, **(defaults | {"sampling": SamplingParams(6)} | options))


def fit(module: Any, data: Any, *callbacks: Callback, **options: Any) -> Any:
    seed_everything(1, verbose=False)
    trainer = quiet_trainer(**({"max_epochs": 1} | options), callbacks=[*callbacks])
    trainer.fit(module, data)
    return trainer


class Recorder(Callback):
    """Keeps the batches, and what the module logs in each step."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.values: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        self.batches.append(arguments[2])
        self.values.append({k: float(v) for k, v in trainer.callback_metrics.items()})
