"""Options of the optimizer, and the learning rate over a training."""

from typing import Any

import pytest
import torch

from lit_adaptive.modules import Optimization


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": 1.0, "warmup": 1.0}, r"warmup is 1.0; .* \[0, 1\)"),
        ({"learning_rate": 1.0, "weight_decay": -1.0}, "weight_decay is -1.0"),
    ],
)
def test_a_value_out_of_range_is_rejected_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimization(**options)


def test_the_learning_rate_rises_in_the_warmup_and_then_falls_linearly_to_zero() -> None:
    optimization = Optimization(learning_rate=1.0, schedule="linear", warmup=0.2)
    weight = torch.nn.Parameter(torch.ones(1))
    configured = optimization.configure_optimizers([weight], lambda: 10, fused=False)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.0, 0.5, *(step / 8 for step in range(8, 0, -1))])


def test_a_constant_rate_without_warmup_needs_no_length_of_training() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    steps = float("inf")
    constant = Optimization(learning_rate=1.0)
    optimizer = constant.configure_optimizers([weight], lambda: steps, fused=False)
    assert isinstance(optimizer, torch.optim.AdamW)
    cosine = Optimization(learning_rate=1.0, schedule="cosine")
    with pytest.raises(ValueError, match="set max_steps or max_epochs"):
        cosine.configure_optimizers([weight], lambda: steps, fused=False)


def test_a_given_optimizer_replaces_adamw_and_its_schedule() -> None:
    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.3)

    weight = torch.nn.Parameter(torch.ones(1))
    optimization = Optimization(learning_rate=1.0, schedule="cosine", optimizer=sgd)
    optimizer = optimization.configure_optimizers([weight], lambda: 10, fused=False)
    assert isinstance(optimizer, torch.optim.SGD)
