"""EntropyGuard measures the entropy of whole updates, and reacts when it stays too low."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from callbacks.entropy_guard import EntropyGuard
from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization, PolicyObjective
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


class Digits(Reward):
    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in completions]


class Same(Reward):
    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return [0.5] * len(completions)


def data(**options: Any) -> RolloutDataModule:
    defaults = {"steps_per_epoch": 8, "batch_size": 3, "group_size": 4}
    defaults["rewards"] = Scorer([options.pop("reward", Digits())], workers=0)
    return RolloutDataModule(
        PromptDataset(Arithmetic("train", size=64, digits=1), columns=["answer"]),
        val_dataset=PromptDataset(Arithmetic("validation", size=2, digits=1)),
        sampling=SamplingParams(max_new_tokens=5), **defaults | options,
    )  # fmt: skip


def grpo(**options: Any) -> GRPO:
    model = ConfiguredLM(hidden_size=16, layers=1, heads=2, max_positions=32, seed=1)
    return GRPO(model, optimization=Optimization(learning_rate=3e-3), max_new_tokens=0, **options)


def fit(
    folder: Path,
    *callbacks: Callback,
    module: LightningModule | None = None,
    source: Any = None,
    resume: Any = None,
    **options: Any,
) -> Trainer:
    seed_everything(3, verbose=False)
    defaults = {"max_epochs": 1, "logger": False, "log_every_n_steps": 1, "accelerator": "cpu"}
    defaults |= {
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
    }
    trainer = Trainer(
        callbacks=[*callbacks], enable_model_summary=False, default_root_dir=folder,
        **defaults | options,
    )  # fmt: skip
    trainer.fit(module or grpo(), source or data(), ckpt_path=resume, weights_only=True)
    return trainer


# Average ------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0.0, 5.0), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.integers(1, 4),
    st.booleans(),
)
def test_average_floor_and_count_are_those_of_a_plain_loop(
    entropies: list[float], decay: float, warmup: int, relative: bool
) -> None:
    guard = EntropyGuard(0.5, relative, decay=decay, warmup=warmup)
    below = 0
    for n in range(1, len(entropies) + 1):
        guard.observe(entropies[n - 1])
        average = entropies[0]
        for entropy in entropies[1:n]:
            average = decay * average + (1 - decay) * entropy
        floor: float | None = 0.5
        if relative:
            first = entropies[:warmup]
            floor = 0.5 * sum(first) / warmup if n >= warmup else None
        assert guard.average == pytest.approx(average)
        assert guard.limit == (None if floor is None else pytest.approx(floor))
        # An average within rounding of the floor may count either way.
        if floor is None or abs(average - floor) > 1e-9:
            below = below + 1 if floor is not None and average < floor else 0
        else:
            below = guard.below
        assert guard.below == below


class Run:
    """A guard without a training, for entropies from a test."""

    def __init__(self, **options: Any) -> None:
        defaults = {"floor": 1.0, "relative": False, "decay": 0.0, "patience": 2}
        self.guard = EntropyGuard(**defaults | options)
        self.module = SimpleNamespace(objective=PolicyObjective(entropy_bonus=0.001))
        self.trainer = SimpleNamespace(global_step=0, should_stop=False)

    def measure(self, *entropies: float) -> None:
        for entropy in entropies:
            self.trainer.global_step += 10
            self.guard._react(entropy, self.trainer, self.module)  # type: ignore[arg-type]


def test_a_collapse_is_reported_once_and_again_after_a_recovery() -> None:
    run = Run()
    run.measure(2.0, 0.9, 1.1, 0.9)
    for step in (50, 100):
        with pytest.warns(UserWarning, match=rf"is 0.8 nats .* of 1 for 2 .* \(step {step}\): ra"):
            run.measure(0.8)
        run.measure(0.7, 0.7, 2.0, 0.9)
    assert not run.trainer.should_stop
    assert run.module.objective == PolicyObjective(entropy_bonus=0.001)


def test_on_collapse_stop_stops_the_training() -> None:
    run = Run(on_collapse="stop")
    run.measure(2.0, 0.9)
    assert not run.trainer.should_stop
    with pytest.warns(UserWarning, match="training stops"):
        run.measure(0.9)
    assert run.trainer.should_stop


def test_the_bonus_rises_step_by_step_up_to_max_bonus() -> None:
    run = Run(on_collapse="bonus", step=0.002, max_bonus=0.004)
    run.measure(0.9)
    for old, new in ((0.001, 0.003), (0.003, 0.004)):
        with pytest.warns(UserWarning, match=f"entropy_bonus rises from {old} to {new}"):
            run.measure(0.9)
        assert run.module.objective.entropy_bonus == pytest.approx(new)
        assert run.guard.bonus == run.module.objective.entropy_bonus
        run.measure(0.9)  # fewer than patience measurements since
    run.measure(0.9, 0.9)  # the bonus rises no further, and one warning says so
    run.measure(2.0, 0.9)
    with pytest.warns(UserWarning, match="entropy_bonus is already 0.004: raise max_bonus"):
        run.measure(0.9)
    assert run.module.objective == PolicyObjective(entropy_bonus=0.004)


# In training --------------------------------------------------------------------------------------


class MetricsRecorder(Callback):
    """Keeps step, entropy and token count of each micro-batch, and the metrics of each step."""

    def __init__(self) -> None:
        self.micro_batches: list[tuple[int, float, int]] = []
        self.metrics: dict[int, dict[str, float]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, _: Any, batch: Any, __: int
    ) -> None:
        now = {name: float(value) for name, value in trainer.callback_metrics.items()}
        count = len(batch["target"])
        self.micro_batches.append((trainer.global_step, now.get("train/entropy", 0.0), count))
        self.metrics[trainer.global_step] = now


def test_the_measured_entropy_is_that_logged_for_an_update(tmp_path: Path) -> None:
    guard, notes = EntropyGuard(decay=0.0, warmup=2, floor=0.3), MetricsRecorder()
    options = {"accumulate_grad_batches": 3, "log_every_n_steps": 2}
    fit(tmp_path, guard, notes, source=data(batch_size=4), **options)
    entropy = {update: notes.metrics[update]["train/entropy"] for update in (2, 4, 6, 8)}
    for update, value in entropy.items():
        assert notes.metrics[update]["entropy_guard/average"] == pytest.approx(value, rel=1e-6)
    assert guard.measured == 4
    assert guard.initial == pytest.approx((entropy[2] + entropy[4]) / 2, rel=1e-6)
    assert notes.metrics[8]["entropy_guard/floor"] == pytest.approx(0.3 * guard.initial)
    assert "entropy_guard/floor" not in notes.metrics[2]


def test_average_floor_and_bonus_are_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    guard = EntropyGuard(100.0, relative=False, on_collapse="bonus", patience=4, max_bonus=0.002)
    with pytest.warns(UserWarning, match="entropy_bonus rises from 0.001 to 0.002"):
        fit(
            tmp_path, guard, module=grpo(objective=PolicyObjective(entropy_bonus=0.001)),
            logger=logger, max_steps=6,
        )  # fmt: skip
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    for name, expected in (
        ("below", [1, 2, 3, 4, 5, 6]),
        ("bonus", [0.001] * 3 + [0.002] * 3),
        ("floor", [100] * 6),
    ):
        column = [float(row.split(",")[names.index(f"entropy_guard/{name}")]) for row in rows[1:]]
        assert column == pytest.approx(expected)


def test_a_training_stops_after_patience_measurements(tmp_path: Path) -> None:
    guard = EntropyGuard(100.0, relative=False, on_collapse="stop", patience=3)
    with pytest.warns(UserWarning, match="training stops"):
        trainer = fit(tmp_path, guard)
    assert trainer.global_step == 3


@pytest.mark.parametrize("saved", [3, 5])  # before the bonus rises, and after
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, saved: int) -> None:
    def guard() -> EntropyGuard:
        return EntropyGuard(
            100.0,
            relative=False,
            patience=4,
            warmup=4,
            on_collapse="bonus",
            step=0.05,
            max_bonus=0.1,
        )

    def save() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)

    whole, resumed = guard(), guard()
    source = {"accumulate_grad_batches": 2, "enable_checkpointing": True}
    with pytest.warns(UserWarning, match="entropy_bonus rises"):
        first = fit(tmp_path, whole, save(), **source)
    path = next(tmp_path.glob(f"*step={saved}.ckpt"))
    saved_state = torch.load(path, weights_only=True)["callbacks"]["EntropyGuard"]
    assert (saved_state["bonus"] is not None) == (saved == 5)
    module = grpo()
    with pytest.warns(UserWarning, match="entropy_bonus rises"):
        fit(tmp_path, resumed, save(), module=module, resume=path, **source)
    assert resumed.state_dict() == whole.state_dict()
    assert whole.bonus == 0.1
    expected: Any = first.lightning_module
    assert module.objective == expected.objective
    assert module.objective.entropy_bonus == whole.bonus
    for name, value in expected.state_dict().items():
        assert value.equal(module.state_dict()[name]), name


def test_a_raised_bonus_changes_the_training(tmp_path: Path) -> None:
    states = []
    for max_bonus in (0.001, 0.5):
        guard = EntropyGuard(
            100.0,
            relative=False,
            on_collapse="bonus",
            patience=1,
            step=max_bonus,
            max_bonus=max_bonus,
        )
        with pytest.warns(UserWarning, match="entropy_bonus rises"):
            states.append(fit(tmp_path, guard, max_steps=3).lightning_module.state_dict())
    assert any(not value.equal(states[1][name]) for name, value in states[0].items())


def test_a_step_without_tokens_is_skipped(tmp_path: Path) -> None:
    guard = EntropyGuard()
    fit(tmp_path, guard, source=data(reward=Same(), drop_uninformative=True), max_steps=3)
    assert (guard.measured, guard.average) == (0, None)


def ranks(folder: Path) -> None:
    """Train on two ranks, and write what each measured; this file as a program."""
    guard = EntropyGuard(
        100.0, relative=False, decay=0.0, patience=2, on_collapse="bonus", step=0.05, max_bonus=0.1
    )
    notes = MetricsRecorder()
    source = data(batch_size=3)
    trainer = fit(folder, guard, notes, source=source, devices=2, strategy="ddp", max_steps=3)
    module: Any = trainer.lightning_module
    results = {"micro_batches": notes.micro_batches, "bonus": module.objective.entropy_bonus}
    results |= {"average": guard.average, "below": guard.below}
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(results))


@pytest.mark.multiprocess
def test_two_ranks_measure_the_entropy_of_both_and_react_equally(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=250, cwd=Path.cwd(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    last = [results["micro_batches"][-1][1:] for results in (one, two)]
    assert last[0][0] == last[1][0]  # and logs the mean over both
    assert one["average"] == two["average"] == pytest.approx(last[0][0], rel=1e-6)
    assert (one["below"], one["bonus"]) == (two["below"], two["bonus"]) == (3, 0.05)
    assert done.stderr.count("UserWarning: the policy's average entropy is") == 1  # on one rank


# Validation ---------------------------------------------------------------------------------------


class Odd(GRPO):
    """Logs a fixed entropy, or logs it under another name."""

    name, value = "train/entropy", float("nan")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().training_step(batch, batch_idx)
        self.log(self.name, self.value if self.global_step == 1 else 1.0)
        return outputs

    def log_dict(self, *args: Any, **options: Any) -> None:
        """Nothing."""


def odd(name: str, value: float) -> Odd:
    model = ConfiguredLM(hidden_size=16, layers=1, heads=2, max_positions=32, seed=1)
    module = Odd(model, max_new_tokens=0)
    module.name, module.value = name, value
    return module


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_entropy_that_is_not_finite_is_rejected_and_not_recorded(
    tmp_path: Path, value: float
) -> None:
    guard = EntropyGuard()
    with pytest.raises(ValueError, match=f"train/entropy is {value} at step 2; an entropy is fini"):
        fit(tmp_path, guard, module=odd("train/entropy", value))
    assert (guard.measured, guard.average) == (1, 1.0)
    guard._total, guard._tokens = 9.0, 1.0  # left over from the failed update
    fit(tmp_path, guard, module=odd("train/entropy", 1.0), max_steps=1)
    assert (guard.measured, guard.average) == (2, 1.0)


def test_an_entropy_that_is_not_logged_is_rejected(tmp_path: Path) -> None:
    words = (
        r"monitor is 'train/entropy', which was not logged .* metrics are \['entropy', 'reward'\]: "
    )
    with pytest.raises(ValueError, match=words):
        fit(tmp_path, EntropyGuard(), module=odd("entropy", 1.0))
    fit(tmp_path, guard := EntropyGuard(monitor="entropy"), module=odd("entropy", 1.0))
    assert guard.average == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"floor": 1.0}, r"floor is 1.0; as a fraction .* lie in \(0, 1\): set relative to false"),
        ({"floor": 0.0}, "floor is 0.0; as a fraction"),
        ({"floor": 0.0, "relative": False}, "floor is 0.0; in nats per token"),
        ({"floor": float("inf"), "relative": False}, "floor is inf; in nats per token"),
        ({"patience": 0}, "patience is 0; it must be at least 1"),
        ({"warmup": 0}, "warmup is 0; it must be at least 1"),
        ({"on_collapse": "panic"}, "on_collapse is 'panic'; it must be warn, stop or bonus"),
        ({"step": 0.0}, "step is 0.0 and max_bonus is 0.01"),
        ({"step": 0.1, "max_bonus": 0.01}, "step is 0.1 and max_bonus is 0.01"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"decay": -0.1}, "decay is -0.1"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EntropyGuard(**options)


def test_a_guard_that_cannot_measure_or_react_is_rejected_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="log_every_n_steps is 0, so train/entropy is never"):
        fit(tmp_path, EntropyGuard(), log_every_n_steps=0)
    bonus = EntropyGuard(on_collapse="bonus", max_bonus=0.01)
    with pytest.raises(ValueError, match=r"max_bonus is 0.01, but the objective's .* already 0.02"):
        fit(tmp_path, bonus, module=grpo(objective=PolicyObjective(entropy_bonus=0.02)))
    module, trainer = LightningModule(), SimpleNamespace(log_every_n_steps=1)
    with pytest.raises(ValueError, match="objective of LightningModule has no entropy_bonus"):
        bonus.setup(trainer, module, "fit")  # type: ignore[arg-type]
    bonus.setup(trainer, module, "test")  # type: ignore[arg-type]


if __name__ == "__main__":
    ranks(Path(sys.argv[1]))
