"""SampleReport on real runs: exact counts, exact resumption, no side effects."""

import csv
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from matplotlib.image import imread
from torch import Tensor, nn
from torch.utils.data import Dataset

from callbacks._ranks import gather_over_ranks
from callbacks.sample_report import MAX_PENDING, MAX_SNAPSHOTS, SampleReport
from lit_adaptive.data import AdaptiveDataModule
from lit_adaptive.report.samples import probability_histogram
from lit_adaptive.samplers import PrioritizedSampler

NOISE = ("`isinstance", ".*does not have many workers", "You passed in a `val_", "The dirpath has")
pytestmark = [pytest.mark.filterwarnings(f"ignore:{start}") for start in NOISE]

SIZE, BATCH = 30, 8


class Pictures(Dataset[dict[str, Any]]):
    """Noise on top of a brightness per class; reading an item draws random numbers."""

    def __init__(self, dtype: torch.dtype = torch.int64, noise: float = 0.1) -> None:
        self.label = torch.arange(SIZE).remainder(3).to(dtype)
        pixels = torch.rand(SIZE, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        self.pixels = pixels + self.label[:, None, None, None]
        self.noise = noise

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = torch.randn(1, 6, 6) + random.random()
        return {"input": self.pixels[index] + self.noise * noise, "target": self.label[index]}


class Linear(LightningModule):
    """A linear classifier that returns per-sample losses."""

    provides = frozenset({"signal.losses"})

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.net = nn.Linear(36, 3)
        self.fails_at = fails_at

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        if self.global_step == self.fails_at:
            raise RuntimeError("the run failed")
        logits = self.net(batch["input"].flatten(1))
        losses = nn.functional.cross_entropy(logits, batch["target"].long(), reduction="none")
        return {"loss": (batch["weight"] * losses).mean(), "losses": losses.detach()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Learn(Callback):
    """Sets priorities from losses; records the samples served and the distributions."""

    needs: frozenset[str] = frozenset()
    provides = frozenset({"duty.feedback"})

    def __init__(self, updates_at_end: bool = False) -> None:
        self.updates_at_end = updates_at_end
        self.served: list[tuple[int, float, int]] = []
        self.distributions: list[Tensor] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.distributions.append(trainer.datamodule.sampler.probabilities().clone())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        index, losses = batch["index"], outputs["losses"]
        self.served += zip(index.tolist(), losses.tolist(), batch["target"].tolist(), strict=True)
        drawn = gather_over_ranks({"index": index, "losses": losses}, trainer, pl_module)
        trainer.datamodule.update(drawn, drawn["losses"] + 0.1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.updates_at_end:
            priority = 1.0 + torch.arange(SIZE) % (2 + trainer.current_epoch)
            trainer.datamodule.update({"index": torch.arange(SIZE)}, priority)


def _fit(folder: Path, *callbacks: Callback, **kwargs: Any) -> Trainer:
    seed_everything(5, verbose=False)
    data = AdaptiveDataModule(
        kwargs.pop("dataset", None) or Pictures(),
        PrioritizedSampler,
        batch_size=BATCH,
        num_workers=kwargs.pop("workers", 0),
        batches_per_epoch=kwargs.pop("batches", 4),
    )
    module, checkpoint = kwargs.pop("module", None) or Linear(), kwargs.pop("ckpt_path", None)
    options: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "use_distributed_sampler": False,
        "logger": [CSVLogger(folder, "runs", "one")],
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks),
        "log_every_n_steps": 1,
    }
    trainer = Trainer(**{**options, **kwargs}, callbacks=list(callbacks))
    trainer.fit(module, data, ckpt_path=checkpoint)
    return trainer


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs" / "one" / "samples.csv").open() as file:
        return list(csv.DictReader(file))


def _assert_figure(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path)[..., :3]
    assert 0.01 < (pixels.mean(-1) < 0.9).mean() < 0.9


def _assert_reports(folder: Path, served: list[tuple[int, float, int]]) -> None:
    """The figure exists, and the table has the counts of a plain loop."""
    _assert_figure(folder / "runs" / "one" / "sample_report.png")
    draws, losses, classes = [0] * SIZE, dict[int, float](), dict[int, int]()
    for index, loss, target in served:
        draws[index] += 1
        losses[index], classes[index] = loss, target
    rows = _rows(folder)
    assert [int(row["index"]) for row in rows] == list(range(SIZE))
    assert [int(row["draws"]) for row in rows] == draws
    assert [row["class"] for row in rows] == [str(classes.get(i, "")) for i in range(SIZE)]
    written = {i: float(row["last_loss"]) for i, row in enumerate(rows) if row["last_loss"]}
    assert written == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(("workers", "batches"), [(0, 4), (1, 4), (0, MAX_PENDING // 2)])
def test_the_table_counts_the_samples_served(tmp_path: Path, workers: int, batches: int) -> None:
    learn = Learn()
    trainer = _fit(tmp_path, learn, SampleReport(), workers=workers, batches=batches)
    assert len(learn.served) == 3 * batches * BATCH
    _assert_reports(tmp_path, learn.served)
    distribution = trainer.datamodule.sampler.probabilities() * SIZE
    written = [float(row["relative_probability"]) for row in _rows(tmp_path)]
    assert written == pytest.approx(distribution.tolist(), rel=1e-5)
    files = {path.name for path in (tmp_path / "runs" / "one").glob("sample*")}
    assert files == {"sample_report.png", "samples.csv"}


def test_the_distribution_is_recorded_from_before_training_to_its_end(tmp_path: Path) -> None:
    learn, report = Learn(updates_at_end=True), SampleReport()
    # The report comes first: at the end of an epoch it precedes Learn's update.
    trainer = _fit(tmp_path, report, learn)
    distributions = [*learn.distributions, trainer.datamodule.sampler.probabilities()]
    state = report.state_dict()
    assert state["epochs"].tolist() == [0, 1, 2, 3]
    assert state["histogram"].equal(
        torch.stack([probability_histogram(distribution) for distribution in distributions])
    )
    assert len({str(row.tolist()) for row in state["histogram"]}) == 4  # it changed in every epoch


def test_figures_during_training_are_named_after_epochs(tmp_path: Path) -> None:
    _fit(tmp_path, Learn(), SampleReport(every_n_epochs=2, examples=3), max_epochs=5)
    written = sorted((tmp_path / "runs" / "one").glob("*.png"))
    endings = ["-epoch=1", "-epoch=3", ""]
    assert [path.stem for path in written] == [f"sample_report{ending}" for ending in endings]
    for path in written:
        _assert_figure(path)


def test_only_integers_are_classes_and_the_dataset_completes_them(tmp_path: Path) -> None:
    def classes(name: str, dataset: Pictures) -> dict[str, set[str]]:
        _fit(tmp_path / name, Learn(), SampleReport(), dataset=dataset, max_epochs=1)
        rows = _rows(tmp_path / name)
        assert any(row["draws"] == "0" for row in rows)
        return {str(i): {row["class"] for row in rows[i::3]} for i in range(3)}

    assert classes("real", Pictures(torch.float32)) == {"0": {""}, "1": {""}, "2": {""}}
    dataset: Any = Pictures()
    dataset.targets = dataset.label.tolist()
    assert classes("known", dataset) == {"0": {"0"}, "1": {"1"}, "2": {"2"}}
    dataset.targets = [2 - c for c in dataset.targets]  # disagrees with the batches
    assert set.union(*classes("other", dataset).values()) == {"", "0", "1", "2"}


def test_the_report_does_not_change_the_run(tmp_path: Path) -> None:
    plain, watched = Learn(), Learn()
    one = _fit(tmp_path / "plain", plain)
    other = _fit(tmp_path / "watched", watched, SampleReport(every_n_epochs=1))
    assert plain.served == watched.served
    for name, value in one.lightning_module.state_dict().items():
        assert value.equal(other.lightning_module.state_dict()[name]), name
    _fit(tmp_path / "silent", Learn(), SampleReport(every_n_epochs=1), logger=False)
    assert not (tmp_path / "silent").exists()


def test_a_failed_run_is_reported_and_its_exception_propagates(tmp_path: Path) -> None:
    learn = Learn()
    with pytest.raises(RuntimeError, match="the run failed"):
        _fit(tmp_path, learn, SampleReport(), module=Linear(fails_at=5))
    assert len(learn.served) == 5 * BATCH
    _assert_reports(tmp_path, learn.served)
    with pytest.raises(RuntimeError, match="the run failed"):
        _fit(tmp_path / "at once", Learn(), SampleReport(), module=Linear(fails_at=0))
    assert not list((tmp_path / "at once").rglob("sample*"))  # no sample was drawn


def test_a_failing_report_does_not_hide_the_exception_of_the_run(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("callbacks.sample_report.draw_sample_report", None)
    warned = pytest.warns(
        UserWarning, match=r"the sample report could not be drawn: .*not callable"
    )
    with warned, pytest.raises(RuntimeError, match="the run failed"):
        _fit(tmp_path, Learn(), SampleReport(), module=Linear(fails_at=5))


def _plain(state: dict[str, Any]) -> dict[str, str]:
    """A state as text, in which NaN equals NaN."""
    return {k: str(v.tolist()) if isinstance(v, Tensor) else str(v) for k, v in state.items()}


def test_a_resumed_run_reports_the_same_as_the_uninterrupted_run(tmp_path: Path) -> None:
    def run(name: str, start: Path | None = None, **kwargs: Any) -> tuple[SampleReport, Path]:
        report = SampleReport()
        saver = ModelCheckpoint(tmp_path / name, every_n_train_steps=1, save_top_k=-1)
        # Without noise: a checkpoint does not hold the random state of augmentation.
        kwargs |= {"dataset": Pictures(noise=0.0), "ckpt_path": start}
        _fit(tmp_path / f"{name}-run", Learn(), report, saver, **kwargs)
        return report, tmp_path / f"{name}-run" / "runs" / "one"

    whole, there = run("whole")
    with pytest.raises(RuntimeError, match="failed"):
        run("broken", next((tmp_path / "whole").glob("*step=2.ckpt")), module=Linear(fails_at=6))
    # From an epoch's middle, its last batch (4 of 4), the run's last; and for a second time.
    for name, step in (("whole", 2), ("whole", 4), ("whole", 7), ("whole", 12), ("broken", 6)):
        start = next((tmp_path / name).glob(f"*step={step}.ckpt"))
        again, here = run(f"from-{name}-{step}", start)
        assert _plain(again.state_dict()) == _plain(whole.state_dict())
        for file in ("samples.csv", "sample_report.png"):
            assert (here / file).read_bytes() == (there / file).read_bytes(), (name, step, file)


def _counting(size: int = SIZE) -> tuple[SampleReport, Any]:
    data = SimpleNamespace(sampler=PrioritizedSampler(size))
    trainer: Any = SimpleNamespace(world_size=1, current_epoch=0, datamodule=data, more={})
    report = SampleReport()
    report.setup(trainer, None, "fit")  # type: ignore[arg-type]
    return report, trainer


def _serve(report: SampleReport, trainer: Any, index: list[int], losses: list[float]) -> None:
    batch = {"index": torch.tensor(index), "target": torch.tensor(index) % 3, **trainer.more}
    report.on_train_batch_end(trainer, trainer, {"losses": torch.tensor(losses)}, batch, 0)


def test_the_last_loss_of_a_repeated_index_is_kept() -> None:
    report, trainer = _counting()
    _serve(report, trainer, [3, 4, 3], [1.0, 2.0, 3.0])
    _serve(report, trainer, [4, 5], [4.0, 5.0])
    state = report.state_dict()
    assert state["draws"][3:6].tolist() == [2, 2, 1]
    assert state["last_loss"][3:6].tolist() == [3.0, 4.0, 5.0]
    assert state["target"][2:6].tolist() == [-1, 0, 1, 2]


def test_the_state_is_a_copy_that_loads_with_weights_only(tmp_path: Path) -> None:
    report, trainer = _counting()
    report.on_train_start(trainer, None)  # type: ignore[arg-type]
    _serve(report, trainer, [1, 2], [1.0, 2.0])
    state = report.state_dict()
    torch.save(state, tmp_path / "state.pt")
    again, _ = _counting()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    before = _plain(state)
    for one in (report, again):
        _serve(one, trainer, [1, 7], [3.0, 4.0])
    assert _plain(again.state_dict()) == _plain(report.state_dict())
    assert _plain(state) == before


def test_a_checkpoint_of_another_dataset_is_rejected_and_nothing_changes() -> None:
    report, trainer = _counting(SIZE)
    _serve(report, trainer, [1], [1.0])
    before = report.state_dict()
    other = _counting(SIZE + 1)[0].state_dict()
    with pytest.raises(
        ValueError, match=r"has draws of 31 samples.*draws from 30.*Nothing was changed"
    ):
        report.load_state_dict(other)
    with pytest.raises(ValueError, match="shapes"):
        report.load_state_dict({**before, "last_loss": torch.zeros(4)})
    assert _plain(report.state_dict()) == _plain(before)
    late = SampleReport()
    late.load_state_dict(other)  # before there is a sampler to compare with
    with pytest.raises(ValueError, match=r"counted draws of 31 samples.*draws from 30"):
        late.setup(trainer, None, "fit")  # type: ignore[arg-type]


@pytest.mark.parametrize(("epochs", "stride"), [(MAX_SNAPSHOTS, 2), (3 * MAX_SNAPSHOTS, 4)])
def test_snapshots_of_a_long_run_stay_few_and_even(epochs: int, stride: int) -> None:
    report, trainer = _counting(2)
    resumed, _ = _counting(2)
    for trainer.current_epoch in range(epochs):
        for one in (report, resumed):
            one.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
            one.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        if trainer.current_epoch % 100 == 7:
            state = resumed.state_dict()
            resumed, _ = _counting(2)
            resumed.load_state_dict(state)
    state = report.state_dict()
    assert _plain(resumed.state_dict()) == _plain(state)
    assert len(state["epochs"]) <= MAX_SNAPSHOTS + 1
    assert state["epochs"].tolist() == [*range(0, epochs, stride), epochs]


def test_an_option_out_of_range_is_named() -> None:
    for name, value in (("every_n_epochs", -1), ("examples", -1), ("examples", 65)):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            SampleReport(**{name: value})
    report, trainer = _counting()
    with pytest.raises(ValueError, match=r"shape \[1\].*index \[2\].*one loss per sample"):
        _serve(report, trainer, [1, 2], [1.0])
    trainer.datamodule = None
    with pytest.raises(ValueError, match="has no sampler to report on"):
        report.setup(trainer, None, "fit")  # type: ignore[arg-type]


@pytest.mark.parametrize("with_csv", [True, False])
def test_weights_and_biases_gets_the_figure(
    tmp_path: Path, monkeypatch: Any, with_csv: bool
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers: list[Any] = [WandbLogger(project="samples", offline=True, save_dir=tmp_path)]
    loggers += [CSVLogger(tmp_path, "runs", "one")] * with_csv
    try:
        _fit(tmp_path, Learn(), SampleReport(every_n_epochs=1), logger=loggers, max_epochs=2)
    finally:
        wandb.finish()
    media = list(tmp_path.glob("wandb/offline-run-*/files/media/images/sample_report_*.png"))
    assert len(media) == 3  # after each epoch, and at the end
    for path in media:
        _assert_figure(path)
    written = {path.read_bytes() for path in (tmp_path / "runs").rglob("*.png")}
    assert written == ({path.read_bytes() for path in media} if with_csv else set())


def test_ranks_are_counted_when_a_selector_keeps_a_different_number_on_each() -> None:
    report, trainer = _counting()

    def all_gather(local: dict[str, Tensor]) -> dict[str, Tensor]:
        """Stacked by rank; the other rank kept one sample more, of equally many scored: 9."""
        other = {"index": [3, 5, 9, -1], "losses": [2.5, 3.5, 4.5, -1.0], "target": [0, 2, 0, -1]}
        return {name: torch.stack([local[name], torch.tensor(other[name])]) for name in local}

    trainer.world_size, trainer.all_gather = 2, all_gather
    trainer.more = {"scored": {"index": torch.tensor([1, 2, 3, 4]), "losses": torch.ones(4)}}
    _serve(report, trainer, [1, 3], [0.5, 1.5])
    state = report.state_dict()
    assert {i: n for i, n in enumerate(state["draws"].tolist()) if n} == {1: 1, 3: 2, 5: 1, 9: 1}
    assert state["last_loss"][[1, 3, 5, 9]].tolist() == [0.5, 2.5, 3.5, 4.5]
    assert state["last_loss"].isnan().sum() == SIZE - 4


def _start(folder: Path, fails_at: int) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, __file__, str(folder), str(fails_at)]
    return subprocess.run(command, capture_output=True, check=False, timeout=120)


@pytest.mark.multiprocess
def test_two_processes_hold_equal_counts_and_one_writes(tmp_path: Path) -> None:
    _start(tmp_path, -1).check_returncode()
    (one, first), (other, second) = (torch.load(tmp_path / f"rank-{r}.pt") for r in (0, 1))
    assert _plain(one) == _plain(other)
    # Batch by batch, rank 0's share and then rank 1's.
    starts = range(0, len(first), BATCH)
    served = [item for i in starts for item in [*first[i : i + BATCH], *second[i : i + BATCH]]]
    assert len(served) == 3 * 4 * 2 * BATCH
    _assert_reports(tmp_path, served)


@pytest.mark.multiprocess
def test_a_failing_rank_leaves_a_report_and_no_deadlock(tmp_path: Path) -> None:
    assert _start(tmp_path, 3).returncode != 0
    assert sum(int(row["draws"]) for row in _rows(tmp_path)) == 3 * 2 * BATCH
    _assert_figure(tmp_path / "runs" / "one" / "sample_report.png")


if __name__ == "__main__":  # started by _start, and by Lightning for rank 1
    where, learn, report = Path(sys.argv[1]), Learn(), SampleReport()
    rank = int(os.environ.get("LOCAL_RANK", 0))
    linear = Linear(int(sys.argv[2]) if rank == 1 else -1)
    _fit(where, learn, report, module=linear, devices=2, strategy="ddp")
    torch.save((report.state_dict(), learn.served), where / f"rank-{rank}.pt")
