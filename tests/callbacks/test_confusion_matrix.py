"""ConfusionMatrix draws the counts of the predictions, with the names of the classes."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from lit_adaptive.cli.main import main
from lit_adaptive.data import LongTailedDigits

CONFIG = Path(__file__).parents[2] / "configs" / "digits_adaptive.yaml"
NAMES = ["$null$", "one", "two", "as long as a class should not be", *"456789"]


@pytest.mark.filterwarnings("ignore:`isinstance")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_ends_with_the_counts_of_its_last_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LongTailedDigits, "classes", tuple(NAMES))
    drawn: list[tuple[Path, Figure]] = []
    save = Figure.savefig

    def recorded(self: Figure, path: Any, **options: Any) -> None:
        save(self, path, **options)
        drawn.append((Path(path), self))

    monkeypatch.setattr(Figure, "savefig", recorded)
    options = [f"--config={CONFIG}", "--data.batches_per_epoch=10", "--trainer.max_epochs=2"]
    options += ["--trainer.log_every_n_steps=5", "--trainer.enable_progress_bar=false"]
    main(["fit", *options, f"--runs={tmp_path / 'fit'}"])
    (last,) = tmp_path.glob("fit/*/*/checkpoints/last.ckpt")
    for command in ("test", "predict"):
        main([command, *options, f"--runs={tmp_path / command}", f"--ckpt_path={last}"])
    pictures = [each for each in drawn if each[0].name == "confusion_matrix.png"]
    assert [path.relative_to(tmp_path).parts[0] for path, _ in pictures] == ["fit", "test"]
    counts = []
    for path, figure in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
        (axes,) = figure.axes
        counts.append(np.asarray(axes.images[0].get_array()))
        assert [text.get_text() for text in axes.texts] == [str(n) for n in counts[-1].ravel()]
        shown = [*NAMES[:3], f"{NAMES[3][:20]} …", *NAMES[4:]]
        assert [label.get_text() for label in axes.get_yticklabels()] == shown

    validated, tested = counts
    with (last.parents[1] / "metrics.csv").open() as file:
        accuracy = [row["val/accuracy"] for row in csv.DictReader(file) if row["val/accuracy"]]
    assert validated.sum() == len(LongTailedDigits("validation"))
    assert validated.trace() / validated.sum() == pytest.approx(float(accuracy[-1]))
    assert accuracy[-1] != accuracy[0]
    with next(tmp_path.glob("predict/*/*/predictions.csv")).open() as file:
        rows = list(csv.DictReader(file))  # of the test set
    target, predicted = ([row[name] for row in rows] for name in ("target", "predicted"))
    assert np.array_equal(tested, confusion_matrix(target, predicted, labels=NAMES))
    correct = tested.trace() / len(rows)
    assert pictures[1][1].axes[0].get_title() == f"{len(rows):,} samples, {correct:.1%} correct"
