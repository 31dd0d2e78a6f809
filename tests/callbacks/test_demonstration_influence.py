"""DemonstrationInfluence: which demonstrations it selects, and resumed runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from quiet_trainer import quiet_trainer
from resumed_runs import assert_same

from callbacks import DemonstrationInfluence
from lit_adaptive.data import DemonstrationDataset, DemonstrationsDataModule, DigitCommands
from lit_adaptive.modules import IWSFT, ConfiguredLM, Optimization

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


def demonstrations(split: Any, size: int, commands: str) -> DemonstrationDataset:
    """Right answers to commands on three digits."""
    source = DigitCommands(split, size=size, digits=3, commands=commands)
    return DemonstrationDataset(source, completion="answer")


class IndexRecorder(Callback):
    """Records the samples of each batch."""

    def __init__(self) -> None:
        self.index: list[list[int]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.index.append(batch["index"].tolist())


def trained(
    steps: int, every: int, *more: Callback, ckpt_path: str | None = None, **options: Any
) -> tuple[DemonstrationInfluence, list[list[int]], IWSFT]:
    """Train on the commands q and v, of which v is validated."""
    seed_everything(1, verbose=False)
    callback = DemonstrationInfluence(
        {"v": demonstrations("validation", 20, "v")},
        every,
        **({"fraction": 0.2, "dimensions": 2048, "samples_at_once": 50} | options),
    )
    recorder = IndexRecorder()
    data = DemonstrationsDataModule(demonstrations("train", 160, "qv"), batch_size=16, seed=4)
    model = IWSFT(
        ConfiguredLM(hidden_size=48, layers=2, heads=4),
        objective="nll",
        optimization=Optimization(learning_rate=3e-3),
        max_new_tokens=0,
    )
    trainer = quiet_trainer(
        max_steps=steps, callbacks=[callback, recorder, *more], enable_checkpointing=bool(more)
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return callback, recorder.index, model


def test_demonstrations_of_the_validated_kind_are_found_and_drawn(tmp_path: Path) -> None:
    callback, drawn, _ = trained(170, 150, keep_ratio=1.0)
    (selected,) = callback._phases
    rows = demonstrations("train", 160, "qv").texts(selected)
    assert len(rows) == 32
    assert sum(row["command"] == "v" for row in rows) / len(rows) >= 0.9
    assert len({index for batch in drawn[:150] for index in batch}) == 160  # the whole pool
    assert {index for batch in drawn[150:] for index in batch} <= {*selected.tolist()}


def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    def saving(folder: Path) -> ModelCheckpoint:
        return ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)

    whole, drawn, model = trained(7, 2, saving(tmp_path / "whole"))
    resumed, rest, again = trained(
        7, 2, saving(tmp_path / "resumed"), ckpt_path=str(tmp_path / "whole" / "step=3.ckpt")
    )
    assert len(whole._phases) == 3
    assert rest == drawn[3:]
    assert_same(resumed._phases, whole._phases)
    for one, other in zip(model.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_metric_of_pass_rates_is_refused() -> None:
    with pytest.raises(ValueError, match="demonstrations have no pass rate"):
        DemonstrationInfluence(metric="learnable_cosine")
