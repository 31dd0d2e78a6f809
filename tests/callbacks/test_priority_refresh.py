"""PriorityRefresh writes absolute TD errors plus epsilon as priorities."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import PriorityRefresh


class SamplerSpy:
    """A datamodule that keeps its last update."""

    def update(self, drawn: dict[str, torch.Tensor], priority: torch.Tensor) -> None:
        self.drawn, self.priority = drawn, priority


def refresh(callback: PriorityRefresh, td_error: list[float]) -> torch.Tensor:
    data = SamplerSpy()
    trainer: Any = SimpleNamespace(world_size=1, datamodule=data)
    batch = {"index": torch.arange(len(td_error)), "serial": torch.arange(len(td_error)) + 100}
    outputs = {"td_error": torch.tensor(td_error)}
    callback.on_train_batch_end(trainer, None, outputs, batch, 0)  # type: ignore[arg-type]
    assert data.drawn["index"].equal(batch["index"])
    assert data.drawn["serial"].equal(batch["serial"])
    return data.priority


def test_the_priority_is_the_absolute_td_error_plus_epsilon() -> None:
    # Schaul et al. (2016), section 3.3: p_i = |delta_i| + epsilon.
    priority = refresh(PriorityRefresh(epsilon=0.25), [-2.0, 0.0, 0.5])
    assert priority.tolist() == [2.25, 0.25, 0.75]


def test_clip_bounds_the_td_error_but_keeps_nan() -> None:
    priority = refresh(PriorityRefresh(epsilon=0.0, clip=1.0), [-5.0, 0.5, float("nan")])
    assert priority[:2].tolist() == [1.0, 0.5]
    assert priority[2].isnan()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"epsilon": -1.0}, r"epsilon is -1"), ({"clip": 0.0}, "clip is 0")],
)
def test_an_option_out_of_range_is_named(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PriorityRefresh(**options)
