"""OHEMSelector trains on the samples of greatest loss."""

from pathlib import Path

import pytest
import torch
from digits_training import BatchRecorder, fit_digits

from callbacks import LossRefresh, OHEMSelector
from lit_adaptive.samplers import PrioritizedSampler

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")


def test_trains_on_the_hardest_quarter_and_updates_the_sampler_with_all_losses(
    tmp_path: Path,
) -> None:
    recorder = BatchRecorder()
    trainer, _, data = fit_digits(
        tmp_path, OHEMSelector(keep=0.25), recorder, LossRefresh(), sampler=PrioritizedSampler
    )
    expected = torch.ones(data.sampler.size, dtype=torch.float64)
    for batch in recorder.batches:
        scored = batch["scored"]
        assert len(scored["losses"]) == 16
        hardest = scored["losses"].sort(descending=True, stable=True).indices[:4].sort().values
        assert batch["index"].equal(scored["index"][hardest])
        assert len(batch["input"]) == len(batch["target"]) == len(batch["weight"]) == 4
        expected[scored["index"]] = scored["losses"].double()
    assert float(trainer.callback_metrics["select/kept"]) == 0.25
    assert data.sampler.scores() == pytest.approx(expected)  # type: ignore[attr-defined]


def test_more_samples_than_a_batch_has_are_rejected_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 17, but the batch has 16"):
        fit_digits(tmp_path, OHEMSelector(keep=17))


def test_keep_must_be_above_0() -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        OHEMSelector(keep=0)
