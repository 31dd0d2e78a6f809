"""PredictionTable writes the predictions in the dataset's order."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_training import fit_digits

from callbacks import PredictionTable
from lit_adaptive.data import LongTailedDigits


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_predictions_are_those_of_the_model_in_the_datasets_order(tmp_path: Path) -> None:
    trainer, model, data = fit_digits(tmp_path, PredictionTable())
    trainer.predict(model, data)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    dataset = LongTailedDigits("validation")
    with torch.no_grad():
        probability, predicted = model.eval()(dataset.inputs).softmax(1).max(1)
    assert [int(row["id"]) for row in rows] == dataset.ids.tolist()
    assert [int(row["predicted"]) for row in rows] == predicted.tolist()
    assert [int(row["target"]) for row in rows] == dataset.targets.tolist()
    written = [float(row["probability"]) for row in rows]
    assert written == pytest.approx(probability.tolist(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_classes_are_named_as_in_the_dataset(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(LongTailedDigits, "classes", tuple("abcdefghij"))
    trainer, model, data = fit_digits(tmp_path, PredictionTable())
    trainer.predict(model, data)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    targets = LongTailedDigits("validation").targets.tolist()
    assert [row["target"] for row in rows] == ["abcdefghij"[c] for c in targets]
    assert {row["predicted"] for row in rows} <= set("abcdefghij")
