"""What is shown of a checkpoint, from a real run and from hostile ones."""

import csv
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from lit_adaptive.cli.main import main

CONFIG = Path(__file__).parents[2] / "configs" / "digits_adaptive.yaml"


def saved(path: Path, **parts: Any) -> Path:
    torch.save({"state_dict": {"w": torch.zeros(3, 2)}, **parts}, path)
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_run_shows_its_sampler_and_writes_it_as_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("--trainer.max_epochs=1", "--data.batches_per_epoch=5")
    main(["fit", "--config", str(CONFIG), f"--runs={tmp_path / 'runs'}", *short])
    (checkpoint,) = tmp_path.glob("runs/*/*/checkpoints/last.ckpt")
    sampler = torch.load(checkpoint, weights_only=True)["AdaptiveDataModule"]["sampler"]
    capsys.readouterr()
    main(["inspect", str(checkpoint), f"--out={tmp_path / 'out'}"])
    shown = capsys.readouterr().out
    (line,) = (each for each in shown.splitlines() if ".sampler.log_weight" in each)
    least, greatest = (float(f"{float(f(sampler['log_weight'])):.4g}") for f in (min, max))
    assert f"{least:.4g} … " in line
    assert f" … {greatest:.4g}" in line
    with (tmp_path / "out" / "AdaptiveDataModule.sampler.csv").open() as file:
        rows = list(csv.DictReader(file))
    written = torch.tensor([float(row["log_weight"]) for row in rows])
    torch.testing.assert_close(written, sampler["log_weight"])
    assert (tmp_path / "out" / "AdaptiveDataModule.sampler.png").stat().st_size > 1_000


def test_parquet_and_vectors_of_several_lengths(tmp_path: Path) -> None:
    part = {"a": torch.arange(3.0), "b": torch.tensor([1, 2, 3]), "long": torch.ones(5)}
    checkpoint = saved(tmp_path / "c.ckpt", part=part)
    main(["inspect", str(checkpoint), f"--out={tmp_path / 'out'}", "--format=parquet"])
    table = pyarrow.parquet.read_table(tmp_path / "out" / "part.3.parquet")
    assert table.to_pydict() == {"a": [0.0, 1.0, 2.0], "b": [1, 2, 3]}
    assert (tmp_path / "out" / "part.5.parquet").is_file()


def test_hostile_keys_are_text_and_stay_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = {"../../up\x1b[31m$x^{": {"v": torch.tensor([1.0, float("nan")])}}
    checkpoint = saved(tmp_path / "c.ckpt", part=hostile)
    main(["inspect", str(checkpoint), f"--out={tmp_path / 'a' / 'b'}"])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "1 … 1 … 1, 1 not finite" in shown
    assert {path.parent for path in tmp_path.rglob("*.csv")} == {tmp_path / "a" / "b"}


class Executed:
    def __reduce__(self) -> Any:
        return (open, ("executed", "w"))


def test_a_checkpoint_with_code_is_refused_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, message in (
        (saved(tmp_path / "c.ckpt", part=Executed()), "weights-only loading rejects"),
        (tmp_path / "nowhere.ckpt", "does not exist"),
    ):
        with pytest.raises(SystemExit):
            main(["inspect", str(path)])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
