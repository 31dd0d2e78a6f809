"""Scoring the dataset leaves the model as it was."""

from pathlib import Path

import pytest
import torch
from digits_training import fit_digits

from callbacks._scoring import score_dataset
from lit_adaptive.modules import Classifier


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_scoring_changes_neither_mode_nor_statistics(tmp_path: Path) -> None:
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 10)
    )
    trainer, model, data = fit_digits(tmp_path, model=Classifier(network, 10))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    index, losses = score_dataset(trainer, model)
    assert model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert index.equal(torch.arange(data.sampler.size))
    assert losses.equal(score_dataset(trainer, model)[1])  # without dropout
