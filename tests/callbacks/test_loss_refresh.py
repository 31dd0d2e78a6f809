"""LossRefresh: the sampler gets the losses of the drawn samples."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_training import BatchRecorder, fit_digits
from torch import Tensor

from callbacks import LossRefresh
from lit_adaptive.modules import Classifier, Dense
from lit_adaptive.samplers import AdaptiveBatchSampler, InfoBatchSampler, PrioritizedSampler

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")


def test_losses_reach_the_sampler_after_every_batch(tmp_path: Path) -> None:
    recorder = BatchRecorder()
    _, _, data = fit_digits(tmp_path, recorder, LossRefresh(), sampler=PrioritizedSampler)
    expected = torch.ones(len(data.dataset), dtype=torch.float64)  # type: ignore[arg-type]
    for batch, losses in zip(recorder.batches, recorder.losses, strict=True):
        expected[batch["index"]] = losses.double()
    assert data.sampler.scores() == pytest.approx(expected)  # type: ignore[attr-defined]


def test_with_every_epoch_the_sampler_is_updated_once_at_its_end(tmp_path: Path) -> None:
    recorder = BatchRecorder()
    refresh = LossRefresh(every="epoch")
    _, _, data = fit_digits(tmp_path, recorder, refresh, sampler=AdaptiveBatchSampler, max_epochs=1)
    twin = AdaptiveBatchSampler(data.sampler.size)
    twin.update(torch.cat([b["index"] for b in recorder.batches]), torch.cat(recorder.losses))
    assert data.sampler.scores().equal(twin.scores())  # type: ignore[attr-defined]
    for batch in recorder.batches:  # until then the distribution was uniform
        assert batch["probability"].tolist() == pytest.approx([1 / twin.size] * 16)


def test_rescoring_gives_every_sample_the_loss_of_the_current_model(tmp_path: Path) -> None:
    refresh = LossRefresh(rescore_every_n_epochs=2)
    _, model, data = fit_digits(tmp_path, refresh, sampler=PrioritizedSampler)
    digits: Any = data.dataset
    batch = digits.gather(torch.arange(len(digits)))
    with torch.no_grad():
        expected = model.eval().per_sample_loss(batch).double()
    assert data.sampler.scores() == pytest.approx(expected, rel=1e-5)  # type: ignore[attr-defined]


class NaNForSample0(Classifier):
    """A classifier whose loss of sample 0 is NaN."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        outputs = super().training_step(batch, batch_idx)
        outputs["losses"][batch["index"] == 0] = math.nan
        return outputs


def fit_with_nan(folder: Path, refresh: LossRefresh) -> Any:
    return fit_digits(
        folder,
        refresh,
        model=NaNForSample0(Dense(64, 10), 10),
        sampler=lambda size: InfoBatchSampler(size, anneal=0.0),
        batch_size=283,
        batches_per_epoch=1,
        max_epochs=1,
    )


def test_a_nan_loss_is_rejected_with_its_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"index \[0\] are \[nan\]"):
        fit_with_nan(tmp_path, LossRefresh())


def test_a_nan_loss_can_be_skipped_and_is_counted(tmp_path: Path) -> None:
    refresh = LossRefresh(on_nan="skip")
    trainer, _, data = fit_with_nan(tmp_path, refresh)
    assert refresh.skipped == 1
    assert float(trainer.callback_metrics["refresh/skipped"]) == 1
    assert data.sampler._loss.isinf().nonzero().flatten().tolist() == [0]


def test_forgetting_everything_makes_the_distribution_uniform(tmp_path: Path) -> None:
    options: dict[str, Any] = {"sampler": AdaptiveBatchSampler, "max_epochs": 1}
    _, _, keeps = fit_digits(tmp_path, LossRefresh(), **options)
    _, _, forgets = fit_digits(tmp_path, LossRefresh(forget=1.0), **options)
    assert len(keeps.sampler.probabilities().unique()) > 1
    assert len(forgets.sampler.probabilities().unique()) == 1


def test_a_sampler_that_cannot_forget_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PrioritizedSampler cannot forget"):
        fit_digits(tmp_path, LossRefresh(forget=0.5), sampler=PrioritizedSampler)


def test_pending_losses_survive_a_checkpoint() -> None:
    refresh = LossRefresh(every="epoch")
    refresh._pending = [(torch.tensor([3, 1]), torch.tensor([0.5, 2.0]))]
    refresh.skipped = 4
    resumed = LossRefresh(every="epoch")
    resumed.load_state_dict(refresh.state_dict())
    assert resumed.skipped == 4
    assert [part.tolist() for part in resumed._pending[0]] == [[3, 1], [0.5, 2.0]]
    resumed.load_state_dict(LossRefresh().state_dict())
    assert resumed._pending == []


def test_a_sampler_that_does_not_learn_is_rejected_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"LossRefresh needs 'data\.update'.*AdaptiveBatchSampler"):
        fit_digits(tmp_path, LossRefresh())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": "step"}, "every is 'step'"),
        ({"rescore_every_n_epochs": -1}, "rescore_every_n_epochs is -1"),
        ({"forget": 2.0}, r"forget is 2\.0"),
        ({"on_nan": "drop"}, "on_nan is 'drop'"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LossRefresh(**options)
