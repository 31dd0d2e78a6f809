"""TargetSync copies or moves the target network at its interval of optimizer steps."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import TargetSync


def networks() -> Any:
    torch.manual_seed(0)
    return SimpleNamespace(q_net=torch.nn.BatchNorm1d(3), target_net=torch.nn.BatchNorm1d(3))


def sync(callback: TargetSync, module: Any, step: int) -> list[float]:
    """The target's weights after a batch at ``step``, from 0 towards the online network's 1."""
    torch.nn.init.ones_(module.q_net.weight)
    torch.nn.init.zeros_(module.target_net.weight)
    module.q_net.running_mean.fill_(7)
    callback.on_train_batch_end(SimpleNamespace(global_step=step), module, None, None, 0)  # type: ignore[arg-type]
    return module.target_net.weight.tolist()


def test_the_target_is_copied_once_at_every_nth_optimizer_step() -> None:
    module, callback = networks(), TargetSync(every_n_steps=4)
    assert sync(callback, module, 3) == [0, 0, 0]
    assert sync(callback, module, 4) == [1, 1, 1]
    assert module.target_net.running_mean.tolist() == [7, 7, 7]
    assert sync(callback, module, 4) == [0, 0, 0]  # the next batch of an accumulation


def test_a_soft_update_moves_by_tau_and_copies_buffers() -> None:
    module = networks()
    assert sync(TargetSync(every_n_steps=1, tau=0.25), module, 1) == [0.25] * 3
    assert module.target_net.running_mean.tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("options", "words"), [({"every_n_steps": 0}, "every_n_steps is 0"), ({"tau": 0.0}, "tau is 0")]
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TargetSync(**options)
