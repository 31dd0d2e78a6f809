"""SamplingMonitor logs the sampler's metrics."""

from pathlib import Path

import pytest
from digits_training import fit_digits

from callbacks import BetaAnneal, LossRefresh, SamplingMonitor
from lit_adaptive.samplers import AdaptiveBatchSampler


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_ess_and_coverage_stand_in_the_progress_bar(tmp_path: Path) -> None:
    trainer, _, data = fit_digits(
        tmp_path,
        SamplingMonitor(every_n_steps=1),
        LossRefresh(),
        BetaAnneal(0.0, 1.0),
        sampler=AdaptiveBatchSampler,
        log_every_n_steps=1,
    )
    assert {"sampler/ess", "sampler/coverage"} <= trainer.progress_bar_metrics.keys()
    assert float(trainer.callback_metrics["sampler/staleness"]) == 0
    assert data.beta == 1


def test_the_interval_must_be_above_0() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        SamplingMonitor(every_n_steps=0)


@pytest.mark.filterwarnings("ignore:`isinstance")
@pytest.mark.parametrize("every", [1, 3])
def test_a_short_run_is_measured_too(tmp_path: Path, every: int) -> None:
    trainer, *_ = fit_digits(tmp_path, SamplingMonitor(), log_every_n_steps=every)  # 8 steps
    assert "sampler/ess" in trainer.callback_metrics
