"""SelectiveBackprop keeps samples at random, in proportion to CDF(loss)^beta."""

from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from digits_training import BatchRecorder, fit_digits
from torch import Tensor

from callbacks import SelectiveBackprop

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")


def estimates(
    losses: Tensor, history: Tensor, *, beta: float, length: int
) -> list[tuple[float, float]]:
    """Probability and corrected batch mean of each of the 2^B possible selections."""
    pairs: list[tuple[float, float]] = []
    for pattern in product((0.0, 1.0 - 1e-16), repeat=len(losses)):
        selector = SelectiveBackprop(beta=beta, history=length, correct=True)
        selector.load_state_dict({"recent_losses": history})
        selector._uniform = lambda *_, u=pattern: torch.tensor(u, dtype=torch.float64)  # type: ignore[method-assign, misc]
        batch = {"index": torch.arange(len(losses)), "weight": torch.ones(len(losses)).double()}
        selected = selector.select(batch, losses, Mock(world_size=1), Mock())
        recent = torch.cat([history, losses])[-max(length, len(losses)) :]
        chance = (recent[None] <= losses[:, None]).double().mean(1) ** beta
        kept = torch.tensor([u == 0 for u in pattern])
        probability = float(torch.where(kept, chance, 1 - chance).prod())
        pairs.append((probability, float((batch["weight"] * losses.double())[selected].mean())))
    return pairs


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 8.0])
@pytest.mark.parametrize(
    ("losses", "history", "length"),
    [
        ([0.1, 0.4, 0.9, 2.5], [], 4),
        ([0.1, 0.4, 0.9, 2.5], [], 2),  # a history shorter than the batch holds the whole batch
        ([0.01, 0.02, 0.03], [5.0] * 60, 1024),  # easy samples only: mostly none is kept
        ([0.7], [0.1, 3.0, 4.0], 16),
        ([1.0, 1.0], [2.0], 16),
    ],
)
def test_the_corrected_mean_is_unbiased_over_all_selections(
    losses: list[float], history: list[float], length: int, beta: float
) -> None:
    values = torch.tensor(losses)
    pairs = estimates(values, torch.tensor(history), beta=beta, length=length)
    assert sum(probability for probability, _ in pairs) == pytest.approx(1)
    expectation = sum(probability * mean for probability, mean in pairs)
    assert expectation == pytest.approx(float(values.mean()), rel=1e-6)


def test_an_empty_selection_does_not_change_the_model(tmp_path: Path) -> None:
    recorder = BatchRecorder()
    selector = SelectiveBackprop(beta=1e6, correct=True)
    selector._uniform = lambda size, trainer: torch.full((size,), 1.0)  # type: ignore[method-assign, assignment]
    fit_digits(tmp_path, selector, recorder, max_epochs=1)
    assert {float(weight) for batch in recorder.batches for weight in batch["weight"]} == {0.0}


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
