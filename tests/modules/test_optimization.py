"""Options of the optimizer, and the learning rate over a training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from quiet_trainer import quiet_trainer
from tiny_language import TINY, demonstrations, fit

from lit_adaptive.cli.main import AdaptiveCLI
from lit_adaptive.modules import IWSFT, ConfiguredLM, Optimization

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": 1.0, "warmup": 1.0}, r"warmup is 1.0; .* \[0, 1\)"),
        ({"learning_rate": 1.0, "weight_decay": -1.0}, "weight_decay is -1.0"),
        (
            {"learning_rate": 1.0, "optimizer": torch.optim.SGD, "master_weights": True},
            "master_weights is true, but an optimizer is given",
        ),
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


def test_master_weights_follow_adamw_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    start = (0.02 * torch.randn(50, 20, generator=generator)).bfloat16()
    options: dict[str, Any] = {"weight_decay": 0.1, "betas": (0.9, 0.95), "learning_rate": 1e-5}
    ours, float32, plain = (
        torch.nn.Parameter(start.clone().to(dtype))
        for dtype in (torch.bfloat16, torch.float32, torch.bfloat16)
    )
    optimizers = [
        Optimization(**options, master_weights=True),
        Optimization(**options),
        Optimization(**options),
    ]
    built = [
        optimization.configure_optimizers([weight], lambda: 1, fused=False)
        for optimization, weight in zip(optimizers[:2], (ours, float32), strict=True)
    ]
    with pytest.warns(UserWarning, match="Set optimization.master_weights to true"):
        built.append(optimizers[2].configure_optimizers([plain], lambda: 1, fused=False))
    for _ in range(40):
        gradient = torch.randn(50, 20, generator=generator).bfloat16() + 1
        for weight, optimizer in zip((ours, float32, plain), built, strict=True):
            weight.grad = gradient.to(weight.dtype)
            optimizer.step()
    assert torch.equal(built[0].state[ours]["master"], float32)
    assert torch.equal(ours, float32.bfloat16())
    assert (plain == start).float().mean() > 0.8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_given_optimizer_whose_steps_are_lost_is_named(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.full((8,), 0.5, dtype=dtype))

    def adamax(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adamax(parameters, lr=1e-5)

    optimization = Optimization(learning_rate=1.0, optimizer=adamax)
    name = str(dtype).removeprefix("torch.")
    with pytest.warns(UserWarning, match=rf"is 1e-05 and weights are {name}: .* changes 0.0%"):
        optimization.configure_optimizers([weight], lambda: 1, fused=False)


def bf16_weights(learning_rate: float, steps: int, **options: Any) -> tuple[Any, Any, Any]:
    """Weights before and after training in bf16-true; the module."""
    recorder: list[Any] = []

    class Start(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            recorder.extend(p.detach().clone() for p in pl_module.policy.parameters())

    optimization = Optimization(learning_rate=learning_rate, **options)
    module = IWSFT(
        ConfiguredLM(**TINY), objective="nll", optimization=optimization, max_new_tokens=0
    )
    fit(module, demonstrations(), Start(), precision="bf16-true", max_steps=steps)
    return recorder, [*module.policy.parameters()], module


def moved(before: Any, after: Any) -> float:
    changed = sum(int((x.float() != y.float()).sum()) for x, y in zip(before, after, strict=True))
    return changed / sum(x.numel() for x in before)


def test_bfloat16_weights_that_cannot_move_are_named_and_master_weights_move() -> None:
    with pytest.warns(UserWarning, match="learning_rate is 1e-05 and weights are bfloat16: a step"):
        before, after, _ = bf16_weights(1e-5, 4)
    assert moved(before, after) < 0.2  # those near 0
    before, after, module = bf16_weights(1e-5, 4, master_weights=True)
    optimizer = module.optimizers(use_pl_optimizer=False)
    masters = [optimizer.state[weight]["master"] for weight in after]
    assert moved(before, masters) > 0.9  # all that have a gradient
    for master, weight in zip(masters, after, strict=True):
        assert torch.equal(master.bfloat16(), weight)


def test_master_weights_go_on_exactly_after_a_resume(tmp_path: Path) -> None:
    def run(steps: int, ckpt_path: str | None = None) -> tuple[Any, Any]:
        optimization = Optimization(learning_rate=1e-5, master_weights=True)
        module = IWSFT(
            ConfiguredLM(**TINY), objective="nll", optimization=optimization, max_new_tokens=0
        )
        seed_everything(1, verbose=False)
        trainer = quiet_trainer(precision="bf16-true", max_steps=steps)
        trainer.fit(module, demonstrations(), ckpt_path=ckpt_path)
        return trainer, module

    trainer, _ = run(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    _, resumed = run(4, str(tmp_path / "two.ckpt"))
    _, whole = run(4)
    states = [
        [module.optimizers(use_pl_optimizer=False).state[p] for p in module.policy.parameters()]
        for module in (resumed, whole)
    ]
    for left, right in zip(*states, strict=True):
        for name in ("master", "exp_avg", "exp_avg_sq"):
            assert left[name].dtype == torch.float32
            assert torch.equal(left[name], right[name])


@pytest.mark.parametrize(
    ("config", "option", "monitor", "rate", "shrink"),
    [
        ("digits_adaptive", "model", "val/loss", 3e-3, ["--data.batches_per_epoch=2"]),
        (
            *("sft", "model.optimization", "val/nll", 2e-3),
            [
                *("--data.dataset.source.size=128", "--data.val_dataset.source.size=16"),
                "--trainer.check_val_every_n_epoch=1",
            ],
        ),
        (
            *("dapo", "model.optimization", "train/reward", 2e-4),
            [
                *("--data.dataset.source.size=50", "--data.val_dataset.source.size=16"),
                *("--data.steps_per_epoch=1", "--data.batch_size=4", "--data.group_size=4"),
                "--trainer.callbacks=[]",  # among them a long warm-up
            ],
        ),
    ],
    ids=["Classifier", "IWSFT", "GRPO"],
)
def test_a_plateau_of_its_metric_lowers_the_learning_rate_of_every_module(
    config: str, option: str, monitor: str, rate: float, shrink: list[str], tmp_path: Path
) -> None:
    # No metric improves by a factor of 1e9, so each epoch but the first halves the rate.
    scheduler = {"monitor": monitor, "patience": 0, "factor": 0.5, "mode": "max", "threshold": 1e9}
    configs = Path(__file__).parents[2] / "configs"
    cli = AdaptiveCLI(
        [
            *("fit", "--config", str(configs / f"{config}.yaml"), "--runs", str(tmp_path)),
            f"--{option}.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
            *(f"--{option}.lr_scheduler.{name}={value}" for name, value in scheduler.items()),
            *("--trainer.max_epochs=4", "--trainer.log_every_n_steps=1", *shrink),
            "--trainer.enable_progress_bar=false",
        ]
    )
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate / 8)
