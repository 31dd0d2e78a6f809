"""CurriculumProgress reports the fraction of training completed to the sampler."""

from pathlib import Path
from typing import Any

import pytest
from digits_training import fit_digits
from lightning.pytorch import Callback

from callbacks import CurriculumProgress
from lit_adaptive.samplers import CurriculumSampler

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")


class DrawableRecorder(Callback):
    """Keeps how many samples can be drawn at the start of each batch."""

    needs = provides = frozenset()

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.counts.append(trainer.datamodule.sampler.count)


@pytest.mark.parametrize(("every_n_batches", "distinct"), [(0, 4), (1, 8)])
def test_the_curriculum_widens_until_the_end_of_training(
    tmp_path: Path, every_n_batches: int, distinct: int
) -> None:
    recorder = DrawableRecorder()
    trainer, _, data = fit_digits(
        tmp_path,
        CurriculumProgress(every_n_batches),
        recorder,
        difficulty="difficulty",
        sampler=lambda n: CurriculumSampler(n, start=0.1, power=1, until=1.0),
        max_epochs=4,
        batches_per_epoch=2,
    )
    assert recorder.counts == sorted(recorder.counts)
    assert len(set(recorder.counts)) == distinct
    assert recorder.counts[0] == 28  # a tenth of 283
    assert data.sampler.count == 283
    assert float(trainer.callback_metrics["sampler/drawable"]) == 1


def test_a_sampler_without_progress_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"CurriculumProgress needs 'data\.advance'"):
        fit_digits(tmp_path, CurriculumProgress())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"every_n_batches": -1}, "every_n_batches is -1"), ({"steps": 0}, "steps is 0")],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CurriculumProgress(**options)
