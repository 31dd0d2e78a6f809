"""ClassifierInfluence: which samples it selects, and resumed runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from quiet_trainer import quiet_trainer
from resumed_runs import assert_same

from callbacks import ClassifierInfluence
from lit_adaptive.data import (
    AdaptiveDataModule,
    DemonstrationDataset,
    DemonstrationsDataModule,
    DigitCommands,
    LongTailedDigits,
)
from lit_adaptive.modules import IWSFT, Classifier, ConfiguredLM, Dense
from lit_adaptive.samplers import ShuffledSampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:`isinstance"),  # torch's own
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


def trained(
    steps: int, every: int, folder: Path | None = None, **options: Any
) -> tuple[ClassifierInfluence, LongTailedDigits, Classifier]:
    """Train on digits of which 4 of 10 have a wrong label."""
    seed_everything(1, verbose=False)
    dataset = LongTailedDigits("train", imbalance=1, label_noise=0.4)
    data = AdaptiveDataModule(
        dataset,
        val_dataset=LongTailedDigits("validation"),
        batch_size=32,
        sampler=ShuffledSampler,
        beta=0.0,
        seed=4,
    )
    model = Classifier(Dense(64, 10, hidden=[32]), 10, learning_rate=3e-3)
    callback = ClassifierInfluence(every, dimensions=1024)
    callbacks: list[Any] = [callback]
    if folder is not None:
        callbacks.append(ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1))
        options["default_root_dir"] = folder
    trainer = quiet_trainer(
        max_steps=steps,
        callbacks=callbacks,
        enable_checkpointing=folder is not None,
        limit_val_batches=0,
        **{k: v for k, v in options.items() if k != "ckpt_path"},
    )
    trainer.fit(model, data, ckpt_path=options.get("ckpt_path"))
    return callback, dataset, model


def test_images_with_a_right_label_are_found(tmp_path: Path) -> None:
    callback, dataset, _ = trained(120, 60, default_root_dir=tmp_path)
    (selected,) = callback._phases
    right = dataset.targets == dataset.true_targets
    assert float(right.double().mean()) < 0.65
    assert float(right[selected].double().mean()) > 0.9
    assert len(selected) == len(dataset) / 2
    assert len(dataset.targets[selected].unique()) == 10  # of all classes
    assert (tmp_path / "influence.png").stat().st_size > 5_000


def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, _, model = trained(7, 2, tmp_path / "whole")
    start = tmp_path / "whole" / "step=3.ckpt"
    resumed, _, again = trained(7, 2, tmp_path / "resumed", ckpt_path=str(start))
    assert len(whole._phases) == 3
    assert_same(resumed._phases, whole._phases)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_has_no_gradients_or_validation_is_refused() -> None:
    with pytest.raises(ValueError, match="samples have no pass rate"):
        ClassifierInfluence(metric="learnable_cosine")
    dataset = LongTailedDigits("train")
    model = Classifier(Dense(64, 10, hidden=[32]), 10)
    trainer = quiet_trainer(max_steps=1, callbacks=[ClassifierInfluence()])
    with pytest.raises(ValueError, match="there is no val_dataset"):
        trainer.fit(model, AdaptiveDataModule(dataset))
    demonstrations = DemonstrationDataset(DigitCommands(size=80), completion="answer")
    data = DemonstrationsDataModule(demonstrations, batch_size=16)
    with pytest.raises(ValueError, match="IWSFT has no gradients of samples"):
        trainer.fit(IWSFT(ConfiguredLM(hidden_size=8, layers=1, heads=2), objective="nll"), data)


def test_a_projection_that_does_not_fit_the_network_is_refused_before_training() -> None:
    data = AdaptiveDataModule(LongTailedDigits("train"), val_dataset=LongTailedDigits("validation"))
    model = Classifier(Dense(64, 10, hidden=[32]), 10)
    for options, message in (
        ({"dimensions": 10_000}, r"dimensions is 10000; .* number of kept coordinates, about 2410"),
        ({"parameters": "conv"}, r"no trained parameter matches parameters='conv'"),
        (
            {"fraction": 0.01},
            r"fraction is 0\.01, which is \d+ of \d+ samples, but a step draws 32",
        ),
    ):
        trainer = quiet_trainer(max_steps=1, callbacks=[ClassifierInfluence(500, **options)])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            trainer.fit(model, data)
        assert trainer.global_step == 0
