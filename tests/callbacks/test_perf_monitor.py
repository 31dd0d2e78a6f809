"""PerfMonitor: seconds by purpose, rates and FLOPs of real runs."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.throughput import Throughput
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from rollout_runs import fit_rollouts, rollout_data
from rollout_training import EvenLength

from callbacks import PerfMonitor
from lit_adaptive.report.curves import read_metrics
from lit_adaptive.rollout.rewards.scorer import Scorer

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")  # Lightning's own


class Clock(Callback):
    """A clock that training, what follows each batch, and each validation advance."""

    now = 0.0

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.now += 1.0

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.now += 0.125

    def on_validation_epoch_end(self, *arguments: Any) -> None:
        self.now += 64.0


class SlowReward(EvenLength):
    """Advances the clock at each call."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float]:
        self.clock.now += 0.25
        return super().__call__(prompts, completions, **columns)


def test_seconds_are_divided_by_purpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[dict[str, Any]] = []
    update, clock = Throughput.update, Clock()

    def recorded(self: Throughput, **values: Any) -> None:
        updates.append(values)
        update(self, **values)

    monkeypatch.setattr(Throughput, "update", recorded)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    rewards = Scorer([SlowReward(clock)], workers=0)
    recorder, model = fit_rollouts(
        rollout_data(val_dataset=rollout_data().dataset, rewards=rewards),
        clock,
        PerfMonitor(window_size=2),
        logger=CSVLogger(tmp_path, name="", version=""),
        limit_val_batches=1,
    )
    series = {name: y for name, (_, y) in read_metrics(tmp_path / "metrics.csv").items()}
    parts = ("generation", "rewards", "training", "other")
    assert {name: series[f"train/seconds/{name}"] for name in parts} == {
        "generation": [0.0] * 6,
        "rewards": [0.25] * 6,
        "training": [1.0] * 6,
        "other": [0.0, *[0.125] * 5],  # of other callbacks, and not of validations
    }
    assert series["train/device/samples_per_sec"][0] == pytest.approx(24 / 1.375)
    # Batches without validation's: cumulative samples and trained tokens, and FLOPs of each.
    trained = [values for values in updates if values["lengths"] is not None][:3]
    tokens = [len(batch["target"]) for batch in recorder.batches]
    assert [values["lengths"] for values in trained] == torch.tensor(tokens[:3]).cumsum(0).tolist()
    assert [values["samples"] for values in trained] == [24, 48, 72]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    padded = [batch["input_ids"].numel() for batch in recorder.batches]
    assert [values["flops"] for values in trained] == [6 * parameters * n for n in padded[:3]]


def test_a_window_of_one_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="window_size is 1"):
        PerfMonitor(1)
