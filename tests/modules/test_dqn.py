"""DQN as a LightningModule: its gradient, its target, and the Trainer's flags."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from callbacks import (
    BetaAnneal,
    EpisodeEvaluation,
    PriorityRefresh,
    SamplingMonitor,
    TargetSync,
    TransitionCollector,
)
from lit_adaptive.core.td import double_q_errors, huber_losses
from lit_adaptive.data import TransitionsDataModule
from lit_adaptive.modules import DQN, MLP
from lit_adaptive.samplers import PrioritizedSampler, RankPrioritizedSampler, UniformSampler


def _model(**kwargs: Any) -> DQN:
    torch.manual_seed(0)
    model = DQN(observation_shape=[4], num_actions=2, **kwargs)
    model.configure_model()
    assert model.target_net is not None
    for parameter in model.target_net.parameters():
        torch.nn.init.normal_(parameter)
    model.trainer = Trainer(logger=False, enable_checkpointing=False, log_every_n_steps=0)
    return model


def _batch(size: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "observation": torch.randn(size, 4, generator=generator),
        "action": torch.randint(2, (size,), generator=generator),
        "reward": torch.randn(size, generator=generator),
        "next_observation": torch.randn(size, 4, generator=generator),
        "terminated": torch.rand(size, generator=generator) < 0.3,
        "discount": torch.full((size,), 0.99),
        "weight": torch.rand(size, generator=generator),
    }


@pytest.mark.parametrize("double", [False, True])
def test_gradient_is_the_weighted_td_error_clipped_and_averaged(double: bool) -> None:
    # Schaul et al. (2016), algorithm 1, line 11: the update uses w * delta.
    model, batch = _model(double=double), _batch()
    out = model.training_step(batch, 0)
    out["loss"].backward()
    assert model.q_net is not None
    gradients = [p.grad.clone() for p in model.q_net.parameters() if p.grad is not None]
    model.q_net.zero_grad()
    value = model.q_net(batch["observation"]).gather(1, batch["action"][:, None]).squeeze(1)
    push = (batch["weight"] * out["td_error"].clamp(-1, 1)) / len(value)
    (-(push * value).sum()).backward()
    for grad, parameter in zip(gradients, model.q_net.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad)


def test_the_target_network_gets_no_gradient_and_is_in_no_optimizer() -> None:
    model = _model()
    model.training_step(_batch(), 0)["loss"].backward()
    assert model.target_net is not None
    assert all(p.grad is None for p in model.target_net.parameters())
    held = {id(p) for group in model.configure_optimizers().param_groups for p in group["params"]}
    assert held.isdisjoint({id(p) for p in model.target_net.parameters()})


def test_returns_the_td_errors_the_loss_was_made_of() -> None:
    model, batch = _model(), _batch()
    out = model.training_step(batch, 0)
    assert model.q_net is not None
    assert model.target_net is not None
    expected = double_q_errors(
        model.q_net(batch["observation"]),
        batch["action"],
        batch["reward"],
        batch["discount"],
        batch["terminated"],
        model.q_net(batch["next_observation"]),
        model.target_net(batch["next_observation"]),
    )
    torch.testing.assert_close(out["td_error"], expected.detach())
    torch.testing.assert_close(out["loss"], (batch["weight"] * huber_losses(expected)).mean())
    assert not out["td_error"].requires_grad


def test_configure_model_builds_once() -> None:
    model = _model()
    net = model.q_net
    model.configure_model()
    assert model.q_net is net


def _data(sampler: Any = PrioritizedSampler, **kwargs: Any) -> TransitionsDataModule:
    given = {"capacity": 500, "batch_size": 8, "batches_per_epoch": 12, "num_environments": 2}
    return TransitionsDataModule(
        "CartPole-v1", sampler, evaluation_episodes=2, **{**given, **kwargs}
    )


QUIET: dict[str, Any] = {
    "max_epochs": 1,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}


def _fit(
    data: TransitionsDataModule, model: DQN | None = None, **kwargs: Any
) -> tuple[DQN, Trainer]:
    seed_everything(0, verbose=False)
    model = model or DQN(lambda shape, actions: MLP(shape, actions, hidden=[16]))
    learns = [PriorityRefresh(), BetaAnneal()] if "data.update" in data.provides else []
    trainer = Trainer(
        **{
            **QUIET,
            **kwargs,
        },
        callbacks=[
            TransitionCollector(warmup=20),
            TargetSync(every_n_steps=3),
            EpisodeEvaluation(),
            SamplingMonitor(every_n_steps=1),
            *learns,
        ],
    )
    trainer.fit(model, data)
    return model, trainer


@pytest.mark.parametrize(
    "flags",
    [
        {"gradient_clip_val": 0.5},
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-mixed", "gradient_clip_val": 1.0},
        {"precision": "64-true"},
        {"limit_train_batches": 5, "max_epochs": 2},
        {"val_check_interval": 4},
        {"fast_dev_run": 2},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:`isinstance")
def test_trainer_flags_hold(flags: dict[str, Any]) -> None:
    _, trainer = _fit(_data(), **flags)
    steps = {"accumulate_grad_batches": 4, "limit_train_batches": 10, "fast_dev_run": 2}
    assert trainer.global_step == steps.get(next(iter(flags)), 12)
    assert trainer.callback_metrics["val/return"] > 0


@pytest.mark.filterwarnings("ignore:`isinstance")
@pytest.mark.parametrize("sampler", [UniformSampler, PrioritizedSampler, RankPrioritizedSampler])
def test_dqn_trains_with_any_sampler(sampler: Any) -> None:
    data = _data(sampler)
    _, trainer = _fit(data)
    assert 0 < float(trainer.callback_metrics["sampler/entropy"]) <= 1 + 1e-6
    law = data.sampler.probabilities()
    assert float(law.sum()) == pytest.approx(1)
    drawn = law[law > 0]
    # Uniform stays uniform; the others have learnt from the TD errors.
    assert (float(drawn.max() / drawn.min()) > 1.01) == (sampler is not UniformSampler)


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_target_follows_every_third_step_and_beta_reaches_one() -> None:
    data = _data()
    model, _ = _fit(data)
    assert model.q_net is not None
    assert model.target_net is not None
    same = [
        ours.equal(theirs)
        for ours, theirs in zip(
            model.q_net.parameters(), model.target_net.parameters(), strict=True
        )
    ]
    assert all(same)  # 12 steps: the last was a sync
    assert data.beta == 1.0
    assert data.replay.stale_updates == 0


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_a_checkpoint_alone_is_a_policy(tmp_path: Path) -> None:
    model, trainer = _fit(_data())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = DQN.load_from_checkpoint(
        tmp_path / "one.ckpt", network=lambda shape, actions: MLP(shape, actions, hidden=[16])
    )
    observation = torch.randn(50, 4)
    assert again.act(observation).equal(model.act(observation))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"learning_rate": 0.0}, "learning_rate is 0"), ({"huber_delta": -1.0}, "huber_delta is -1")],
)
def test_an_option_out_of_range_is_rejected_by_name(kwargs: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DQN(**kwargs)  # type: ignore[arg-type]
