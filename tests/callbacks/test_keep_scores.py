"""KeepScores writes a file from which another run starts."""

from pathlib import Path

import pytest
import torch
from digits_training import fit_digits

from callbacks import KeepScores, LossRefresh
from lit_adaptive.data import AdaptiveDataModule, LongTailedDigits
from lit_adaptive.samplers import AdaptiveBatchSampler

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")


def test_a_run_can_start_from_the_scores_of_another(tmp_path: Path) -> None:
    _, _, data = fit_digits(tmp_path, LossRefresh(), KeepScores(), sampler=AdaptiveBatchSampler)
    resumed = AdaptiveDataModule(
        LongTailedDigits("train"), AdaptiveBatchSampler, scores=str(tmp_path / "scores.csv")
    )
    torch.testing.assert_close(resumed.sampler.probabilities(), data.sampler.probabilities())


def test_a_sampler_without_scores_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"KeepScores needs 'data\.write_scores'"):
        fit_digits(tmp_path, KeepScores())


def test_another_suffix_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"path is 'scores\.txt'; it must end in .csv or .parquet"):
        KeepScores("scores.txt")
