"""BetaAnneal moves beta linearly and ends at the end of training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from digits_training import fit_digits
from lightning.pytorch import Callback

from callbacks import BetaAnneal


class BetaRecorder(Callback):
    """Keeps beta at the start of each batch."""

    needs = provides = frozenset()

    def __init__(self) -> None:
        self.beta: list[float] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.beta.append(trainer.datamodule.beta)


@pytest.mark.filterwarnings("ignore:`isinstance")
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": -1, "max_steps": 6}, 6),
        ({"max_epochs": 2, "max_steps": 6}, 6),
        ({"max_epochs": 2}, 8),
        # The last batch of each epoch steps even though its accumulation is not full.
        ({"max_epochs": 3, "batches_per_epoch": 5, "accumulate_grad_batches": 2}, 9),
    ],
)
def test_beta_grows_linearly_and_is_one_when_training_ends(
    tmp_path: Path, options: dict[str, int], steps: int
) -> None:
    # Schaul et al. (2016), section 3.4 and table 3: from beta_0 = 0.4 to 1 at the end.
    recorder = BetaRecorder()
    trainer, _, data = fit_digits(tmp_path, BetaAnneal(0.4, 1.0), recorder, **options)
    assert trainer.global_step == steps
    expected = [0.4 + 0.6 * step / steps for step in range(steps)]
    assert sorted(set(recorder.beta)) == pytest.approx(expected)
    assert data.beta == pytest.approx(1.0)


def test_an_unlimited_training_is_rejected_with_a_remedy() -> None:
    trainer: Any = SimpleNamespace(
        estimated_stepping_batches=float("inf"), max_steps=-1, max_epochs=-1
    )
    with pytest.raises(ValueError, match=r"BetaAnneal needs the length .* or BetaAnneal's `steps`"):
        BetaAnneal().on_train_start(trainer, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"start": 2.0}, "start is 2"), ({"end": -1.0}, "end is -1"), ({"steps": 0}, "steps is 0")],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BetaAnneal(**options)
