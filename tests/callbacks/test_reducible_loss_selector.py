"""ReducibleLossSelector trains on the samples of greatest reducible loss (RHO-LOSS)."""

from pathlib import Path

import pytest
import torch
from digits_training import BatchRecorder, fit_digits

from callbacks import ReducibleLossSelector
from callbacks._scoring import score_dataset

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")


def test_a_checkpoint_and_a_file_of_its_losses_select_the_same_samples(tmp_path: Path) -> None:
    trainer, model, data = fit_digits(tmp_path / "holdout")
    checkpoint = tmp_path / "holdout.ckpt"
    trainer.save_checkpoint(checkpoint)
    _, losses = score_dataset(trainer, model)
    file = tmp_path / "holdout.csv"
    lines = zip(data.ids.tolist(), losses.tolist(), strict=True)
    file.write_text("id,score\n" + "".join(f"{i},{loss}\n" for i, loss in lines))
    parameters = []
    for holdout in (checkpoint, file):
        recorder = BatchRecorder()
        selector = ReducibleLossSelector(str(holdout), keep=4)
        _, trained, _ = fit_digits(tmp_path, selector, recorder)
        assert selector.irreducible_losses is not None
        torch.testing.assert_close(selector.irreducible_losses, losses)
        for batch in recorder.batches:
            scored = batch["scored"]
            reducible = scored["losses"] - losses[scored["index"]]
            greatest = reducible.sort(descending=True, stable=True).indices[:4].sort().values
            assert batch["index"].equal(scored["index"][greatest])
        parameters.append(trained.state_dict())
    assert all(value.equal(parameters[1][name]) for name, value in parameters[0].items())


def test_a_missing_file_is_rejected_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is not a file"):
        fit_digits(tmp_path, ReducibleLossSelector("nowhere.csv"))


def test_losses_of_another_dataset_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "holdout.csv").touch()
    selector = ReducibleLossSelector(str(tmp_path / "holdout.csv"))
    selector.load_state_dict({"irreducible_losses": torch.ones(5)})
    with pytest.raises(ValueError, match="5 irreducible losses for 283"):
        fit_digits(tmp_path, selector)
