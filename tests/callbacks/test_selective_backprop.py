"""SelectiveBackprop keeps samples at random, in proportion to CDF(loss)^beta."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from digits_training import BatchRecorder, fit_digits

from callbacks import SelectiveBackprop

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")


def test_the_corrected_mean_over_the_kept_samples_is_unbiased() -> None:
    losses = torch.tensor([0.1, 0.4, 0.9, 2.5])
    total, batches = 0.0, 4000
    selector = SelectiveBackprop(beta=1.0, history=4, correct=True)
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0))
    trainer: Any = SimpleNamespace(world_size=1, global_rank=0, fit_loop=loops)
    for loops.epoch_loop.total_batch_idx in range(batches):
        batch = {"index": torch.arange(4), "weight": torch.ones(4)}
        selected = selector.select(batch, losses, trainer, None)  # type: ignore[arg-type]
        total += float((batch["weight"] * losses)[selected].mean())
    assert total / batches == pytest.approx(float(losses.mean()), rel=0.02)


def test_beta_1_keeps_half_of_the_samples_on_average(tmp_path: Path) -> None:
    recorder = BatchRecorder()
    fit_digits(tmp_path, SelectiveBackprop(), recorder, batches_per_epoch=40, max_epochs=1)
    kept = [len(batch["index"]) / 16 for batch in recorder.batches]
    assert sum(kept) / 40 == pytest.approx(0.5, abs=0.08)


def test_at_least_one_sample_is_kept(tmp_path: Path) -> None:
    recorder = BatchRecorder()
    fit_digits(tmp_path, SelectiveBackprop(beta=1e6), recorder, max_epochs=1)
    assert min(len(batch["index"]) for batch in recorder.batches) == 1


@pytest.mark.parametrize(
    ("options", "words"), [({"beta": -1.0}, "beta is -1"), ({"history": 0}, "history is 0")]
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SelectiveBackprop(**options)
