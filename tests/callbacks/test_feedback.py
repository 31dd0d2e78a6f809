"""Callbacks that write: priorities, beta, the target network, experience."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import BetaAnneal, PriorityRefresh, SamplingMonitor, TargetSync, TransitionCollector


class _Data:
    beta = 0.0

    def update(self, drawn: dict[str, torch.Tensor], priority: torch.Tensor) -> None:
        self.drawn, self.priority = drawn, priority


def _trainer(**kwargs: Any) -> Any:
    given = {"world_size": 1, "global_step": 0, "max_steps": -1, "max_epochs": None}
    return SimpleNamespace(**{**given, "datamodule": _Data(), **kwargs})


def _refresh(callback: PriorityRefresh, td_error: list[float]) -> torch.Tensor:
    trainer = _trainer()
    batch = {"index": torch.arange(len(td_error)), "serial": torch.arange(len(td_error)) + 100}
    outputs = {"td_error": torch.tensor(td_error)}
    callback.on_train_batch_end(trainer, None, outputs, batch, 0)  # type: ignore[arg-type]
    assert trainer.datamodule.drawn["serial"].equal(batch["serial"])
    found: torch.Tensor = trainer.datamodule.priority
    return found


def test_priority_is_the_absolute_error_plus_epsilon() -> None:
    # Schaul et al. (2016), section 3.3: p_i = |delta_i| + epsilon.
    found = _refresh(PriorityRefresh(epsilon=0.25), [-2.0, 0.0, 0.5])
    assert found.tolist() == [2.25, 0.25, 0.75]


def test_clip_bounds_the_error_and_hides_no_nan() -> None:
    found = _refresh(PriorityRefresh(epsilon=0.0, clip=1.0), [-5.0, 0.5, float("nan")])
    assert found[:2].tolist() == [1.0, 0.5]
    assert found[2].isnan()


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_steps": 200}, 200),
        ({"max_epochs": 4, "num_training_batches": 30, "accumulate_grad_batches": 2}, 60),
    ],
)
def test_beta_grows_linearly_and_is_one_when_training_ends(
    limits: dict[str, int], steps: int
) -> None:
    # Schaul et al. (2016), section 3.4 and table 3: from beta_0 = 0.4 to 1 at the end.
    callback = BetaAnneal(start=0.4, end=1.0)
    for share in (0.0, 0.5, 1.0):
        trainer = _trainer(global_step=int(share * steps), **limits)
        callback.on_train_start(trainer, None)  # type: ignore[arg-type]
        assert trainer.datamodule.beta == pytest.approx(0.4 + 0.6 * share)


def test_beta_needs_to_know_when_training_ends() -> None:
    with pytest.raises(ValueError, match="cannot tell when training ends"):
        BetaAnneal().on_train_start(_trainer(), None)  # type: ignore[arg-type]


def _nets() -> Any:
    torch.manual_seed(0)
    return SimpleNamespace(q_net=torch.nn.BatchNorm1d(3), target_net=torch.nn.BatchNorm1d(3))


def _sync(callback: TargetSync, module: Any, step: int) -> torch.Tensor:
    torch.nn.init.ones_(module.q_net.weight)
    torch.nn.init.zeros_(module.target_net.weight)
    module.q_net.running_mean.fill_(7)
    callback.on_train_batch_end(_trainer(global_step=step), module, None, None, 0)
    found: torch.Tensor = module.target_net.weight
    return found


def test_target_is_copied_at_every_nth_optimizer_step_and_once() -> None:
    module, callback = _nets(), TargetSync(every_n_steps=4)
    assert _sync(callback, module, 3).tolist() == [0, 0, 0]
    assert _sync(callback, module, 4).tolist() == [1, 1, 1]
    assert module.target_net.running_mean.tolist() == [7, 7, 7]
    assert _sync(callback, module, 4).tolist() == [0, 0, 0]  # the next batch of an accumulation


def test_soft_target_moves_by_tau() -> None:
    assert _sync(TargetSync(every_n_steps=1, tau=0.25), _nets(), 1).tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PriorityRefresh(epsilon=-1.0), r"epsilon is -1"),
        (lambda: PriorityRefresh(clip=0.0), "clip is 0"),
        (lambda: BetaAnneal(start=2.0), "start is 2"),
        (lambda: BetaAnneal(steps=0), "steps is 0"),
        (lambda: TargetSync(every_n_steps=0), "every_n_steps is 0"),
        (lambda: TargetSync(tau=0.0), "tau is 0"),
        (lambda: SamplingMonitor(every_n_steps=0), "every_n_steps is 0"),
        (lambda: TransitionCollector(transitions_per_batch=0), "transitions_per_batch is 0"),
        (lambda: TransitionCollector(epsilon_end=2.0), "epsilon_end is 2"),
        (lambda: TransitionCollector(epsilon_transitions=0), "epsilon_transitions is 0"),
    ],
)
def test_names_what_is_out_of_range(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_epsilon_falls_linearly_with_the_transitions_collected() -> None:
    callback = TransitionCollector(epsilon_start=1.0, epsilon_end=0.1, epsilon_transitions=100)
    assert callback.epsilon == 1.0
    callback.collected = 50
    assert callback.epsilon == pytest.approx(0.55)
    callback.collected = 1000
    assert callback.epsilon == pytest.approx(0.1)
