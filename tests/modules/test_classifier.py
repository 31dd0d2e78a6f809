"""The classifier: its loss, signal, metrics and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ReduceLROnPlateau
from quiet_trainer import quiet_trainer
from sklearn.metrics import f1_score, recall_score
from torch import nn
from torch.nn.functional import cross_entropy

from lit_adaptive.core.hard_examples import focal_loss
from lit_adaptive.data import AdaptiveDataModule, LongTailedDigits
from lit_adaptive.modules import Classifier, Dense, TransformersClassifier


def _batch(size: int = 6) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "input": torch.randn(size, 4, generator=generator),
        "target": torch.randint(3, (size,), generator=generator),
        "weight": torch.rand(size, generator=generator) + 0.5,
    }


class _Quiet:
    log_every_n_steps = 0
    world_size = 1


def _step(model: Classifier, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    model._trainer = _Quiet()  # type: ignore[assignment]
    return model.training_step(batch, 0)


def test_loss_is_the_weighted_mean_and_the_signal_is_unweighted() -> None:
    model, batch = Classifier(Dense(4, 3), 3), _batch()
    output = _step(model, batch)
    expected = cross_entropy(model(batch["input"]), batch["target"], reduction="none")
    torch.testing.assert_close(output["losses"], expected.detach())
    assert not output["losses"].requires_grad
    torch.testing.assert_close(output["loss"], (batch["weight"] * expected).mean())
    torch.testing.assert_close(model.per_sample_loss(batch), expected)


def test_focal_training_keeps_the_cross_entropy_as_its_signal() -> None:
    model, batch = Classifier(Dense(4, 3), 3, focal_gamma=2.0), _batch()
    output = _step(model, batch)
    logits = model(batch["input"])
    focal = focal_loss(logits, batch["target"], gamma=2.0)
    torch.testing.assert_close(output["loss"], (batch["weight"] * focal).mean())
    plain = cross_entropy(logits, batch["target"], reduction="none")
    torch.testing.assert_close(output["losses"], plain.detach())


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_metrics_agree_with_scikit_learn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = AdaptiveDataModule(
        LongTailedDigits("train"), val_dataset=LongTailedDigits("validation"), batch_size=32
    )
    model = Classifier(Dense(64, 10, hidden=[]), 10)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, enable_checkpointing=False,
        use_distributed_sampler=False, default_root_dir=tmp_path, **quiet,
    )  # fmt: skip
    trainer.fit(model, data)
    output = {name: float(value) for name, value in trainer.callback_metrics.items()}
    held_out = LongTailedDigits("validation")
    with torch.no_grad():
        logits = model(held_out.inputs)
    predicted, true = logits.argmax(1).numpy(), held_out.targets.numpy()
    assert output["val/macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert output["val/accuracy"] == pytest.approx((predicted == true).mean())
    recall = recall_score(true, predicted, average=None)
    for c in range(10):
        assert output[f"val/recall_{c}"] == pytest.approx(recall[c])
    expected = float(cross_entropy(logits, held_out.targets))
    assert output["val/loss"] == pytest.approx(expected, rel=1e-5)
    predictions = trainer.predict(model, data)
    assert predictions is not None
    assert torch.cat([each["predicted"] for each in predictions]).tolist() == predicted.tolist()  # type: ignore[call-overload]
    tested = trainer.test(model, data, verbose=False)
    assert tested[0]["test/macro_f1"] == pytest.approx(output["val/macro_f1"])


def test_padding_samples_are_in_no_metric() -> None:
    model = Classifier(nn.Identity(), 3)
    batch = {
        "input": torch.eye(3),
        "target": torch.tensor([0, 1, 0]),
        "counted": torch.tensor([True, True, False]),
    }
    model._evaluate(batch, "val")
    assert float(model.metrics["val"].compute()["accuracy"]) == 1.0  # type: ignore[operator]
    expected = cross_entropy(torch.eye(3)[:2], torch.tensor([0, 1]))
    assert float(model.mean_loss["val"].compute()) == pytest.approx(float(expected))  # type: ignore[operator]


def test_a_network_with_the_wrong_number_of_outputs_is_rejected() -> None:
    message = r"returns \(6, 4\) for 6 samples; it must return \[6, 3\]: set its outputs"
    with pytest.raises(ValueError, match=message):
        _step(Classifier(Dense(4, 4), 3), _batch())


def test_a_target_outside_the_classes_is_rejected() -> None:
    batch = _batch()
    batch["target"][2] = 7
    with pytest.raises(ValueError, match="targets range from 0 to 7"):
        _step(Classifier(Dense(4, 3), 3), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes is 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1"),
        ({"focal_gamma": -1.0}, "focal_gamma is -1"),
    ],
)
def test_an_option_out_of_range_is_rejected_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(Dense(4, 3), **{"num_classes": 3, **options})


def test_a_given_optimizer_and_scheduler_are_used() -> None:
    model = Classifier(
        Dense(4, 3),
        3,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1),
    )
    built = model.configure_optimizers()
    assert isinstance(built["optimizer"], torch.optim.SGD)
    assert isinstance(built["lr_scheduler"]["scheduler"], torch.optim.lr_scheduler.StepLR)


def test_a_transformers_model_is_a_network(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    tiny = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=3,
    )  # fmt: skip
    BertForSequenceClassification(tiny).save_pretrained(tmp_path)
    network = TransformersClassifier(str(tmp_path), 3, frozen_backbone=True)
    batch = {
        "input": {
            "input_ids": torch.randint(40, (5, 7)),
            "attention_mask": torch.ones(5, 7, dtype=torch.int64),
        },
        "target": torch.tensor([0, 1, 2, 0, 1]),
        "weight": torch.ones(5),
    }
    model = Classifier(network, 3)
    _step(model, batch)["loss"].backward()
    trained = [name for name, each in network.named_parameters() if each.grad is not None]
    assert trained
    assert all("classifier" in name or "pooler" not in name for name in trained)
    with pytest.raises(ValueError, match="task is 'sound'"):
        TransformersClassifier(str(tmp_path), 3, task="sound")


@pytest.mark.parametrize(
    "target",
    [torch.zeros(6, 3), torch.zeros(6), torch.zeros(6, 1).long(), torch.zeros(6).bool()],
    ids=["several labels", "real", "column", "bool"],
)
def test_targets_that_are_no_class_numbers_are_rejected_at_the_first_batch(
    target: torch.Tensor,
) -> None:
    with pytest.raises(ValueError, match=r"targets of a batch are .*class numbers, int64 \[B\]"):
        _step(Classifier(Dense(4, 3), 3), _batch() | {"target": target})


def test_a_network_of_another_width_is_rejected_with_both_shapes() -> None:
    model = Classifier(Dense(5, 3), 3)
    with pytest.raises(ValueError, match=r"input \[6, 4\] .*6x4 and 5x.*in_features"):
        _step(model, _batch())


class _Named(torch.utils.data.TensorDataset):
    classes = ("cat", "dog", "eel")


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_metrics_name_the_classes_and_a_plateau_of_a_metric_lowers_the_learning_rate(
    tmp_path: Path,
) -> None:
    data = _Named(torch.randn(12, 4), torch.arange(12) % 3)
    model = Classifier(
        Dense(4, 3),
        3,
        learning_rate=1e-6,
        lr_scheduler=lambda optimizer: ReduceLROnPlateau(
            optimizer, "val/loss", factor=0.5, patience=0, threshold=0.5
        ),
    )
    trainer = quiet_trainer(default_root_dir=tmp_path, max_epochs=3)
    trainer.fit(model, AdaptiveDataModule(data, val_dataset=data, batch_size=4))
    names = {name for name in trainer.callback_metrics if "recall" in name}
    assert names == {"val/recall_cat", "val/recall_dog", "val/recall_eel"}
    optimizer: Any = model.optimizers()
    assert optimizer.param_groups[0]["lr"] == 2.5e-7


def test_a_plateau_without_a_metric_is_rejected() -> None:
    plain = torch.optim.lr_scheduler.ReduceLROnPlateau
    with pytest.raises(ValueError, match=r"lightning.pytorch.cli.ReduceLROnPlateau .*monitor"):
        Classifier(Dense(4, 3), 3, lr_scheduler=plain).configure_optimizers()
