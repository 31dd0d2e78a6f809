"""An update's gradient and logged values do not depend on how it is cut into micro-batches."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from quiet_trainer import quiet_trainer
from torch.utils.data import DataLoader

from lit_adaptive.data import Arithmetic, DemonstrationDataset, DemonstrationsDataModule
from lit_adaptive.modules import IWSFT, Classifier, ConfiguredLM, Optimization

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


class Recorder(Callback):
    """The gradient that the first update uses, and the values logged last."""

    def __init__(self) -> None:
        self.gradient = torch.empty(0)
        self.metrics: dict[str, float] = {}

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
        if gradients and not len(self.gradient):
            self.gradient = torch.cat(gradients).clone()

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        self.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}


def fit(module: Any, data: Any, accumulate: int) -> Recorder:
    seed_everything(1, verbose=False)
    recorder = Recorder()
    trainer = quiet_trainer(
        max_steps=2,
        limit_val_batches=0,
        log_every_n_steps=1,
        accumulate_grad_batches=accumulate,
        callbacks=[recorder],
    )
    trainer.fit(module, data)
    return recorder


class Sums(DemonstrationsDataModule):
    """Sums of one to four digits, in order: answers of different lengths."""

    def __init__(self, batch_size: int) -> None:
        rows = DemonstrationDataset(Arithmetic("train", size=64, digits=4))
        super().__init__(rows, batch_size=batch_size, seed=5)


def language(**options: Any) -> IWSFT:
    model = ConfiguredLM(hidden_size=32, layers=1, heads=2, max_positions=32, seed=1)
    frozen = {"reference": "frozen"} if options.get("objective") == "iw" else {}
    rate = Optimization(learning_rate=0.01)
    return IWSFT(model, optimization=rate, max_new_tokens=0, **options, **frozen)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("objective", ["nll", "iw", "dft"])
def test_fine_tuning_in_micro_batches_is_that_of_the_whole_batch(
    objective: str, reduction: str
) -> None:
    whole = fit(language(objective=objective, reduction=reduction), Sums(8), 1)
    cut = fit(language(objective=objective, reduction=reduction), Sums(1), 8)
    torch.testing.assert_close(cut.gradient, whole.gradient, rtol=1e-4, atol=1e-6)
    assert whole.metrics.keys() == cut.metrics.keys() != set()
    for name, value in whole.metrics.items():
        assert cut.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


class UnequalBatches(LightningDataModule):
    """Five samples as a batch, or as batches of three and two."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def train_dataloader(self) -> Any:
        source = torch.Generator().manual_seed(0)
        inputs, targets = torch.randn(5, 3, generator=source), torch.tensor([0, 1, 1, 0, 2])
        weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
        rows = [
            {"input": x, "target": t, "weight": w, "index": torch.arange(len(x))}
            for x, t, w in zip(
                inputs.split(self.sizes), targets.split(self.sizes), weight.split(self.sizes),
                strict=True,
            )
        ]  # fmt: skip
        return DataLoader(rows, batch_size=None)


def test_a_classifier_in_unequal_micro_batches_is_that_of_the_whole_batch() -> None:
    def module() -> Classifier:
        torch.manual_seed(0)
        return Classifier(torch.nn.Linear(3, 3), num_classes=3)

    whole = fit(module(), UnequalBatches([5]), 1)
    cut = fit(module(), UnequalBatches([3, 2]), 2)
    torch.testing.assert_close(cut.gradient, whole.gradient)
    assert cut.metrics == pytest.approx(whole.metrics)
