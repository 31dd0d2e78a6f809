"""MemoryReport counts the bytes of parameters, gradients and optimizer."""

import csv
from pathlib import Path

import pytest
from digits_training import fit_digits
from lightning.pytorch.loggers import CSVLogger

from callbacks import MemoryReport

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")


def test_an_optimizer_of_two_moments_takes_twice_the_bytes_of_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_digits(
        tmp_path,
        MemoryReport(),
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=1,
    )
    with (tmp_path / "metrics.csv").open() as file:
        (*_, last) = [row for row in csv.DictReader(file) if row.get("memory/peak")]
    weights = 4 * (64 * 16 + 16 + 16 * 10 + 10)
    assert float(last["memory/gradients"]) == weights
    assert weights <= float(last["memory/parameters"]) < weights + 2000  # metrics have buffers
    # Adam has two numbers for each weight, and one counter for each of the four tensors.
    assert float(last["memory/optimizer"]) == 2 * weights + 4 * 4
    assert float(last["memory/peak"]) > 50 * 2**20  # the interpreter and PyTorch
    assert "memory in MiB: parameters 0.0, gradients 0.0, optimizer 0.0, peak " in (
        capsys.readouterr().out
    )
