"""The guard sees the whole update's entropy, acts when it has been too low for too long."""

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
    given = {"steps_per_epoch": 8, "batch_size": 3, "group_size": 4}
    given["rewards"] = Scorer([options.pop("reward", Digits())], workers=0)
    return RolloutDataModule(
        PromptDataset(Arithmetic("train", size=64, digits=1), columns=["answer"]),
        val_dataset=PromptDataset(Arithmetic("validation", size=2, digits=1)),
        sampling=SamplingParams(max_new_tokens=5), **given | options,
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
    given = {"max_epochs": 1, "logger": False, "log_every_n_steps": 1, "accelerator": "cpu"}
    given |= {"enable_progress_bar": False, "enable_checkpointing": False, "limit_val_batches": 0}
    trainer = Trainer(
        callbacks=[*callbacks], enable_model_summary=False, default_root_dir=folder,
        **given | options,
    )  # fmt: skip
    trainer.fit(module or grpo(), source or data(), ckpt_path=resume, weights_only=True)
    return trainer


# Following ----------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0.0, 5.0), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.integers(1, 4),
    st.booleans(),
)
def test_average_floor_and_count_are_those_a_loop_finds(
    entropies: list[float], decay: float, warmup: int, relative: bool
) -> None:
    guard = EntropyGuard(0.5, relative, decay=decay, warmup=warmup)
    below = 0
    for n in range(1, len(entropies) + 1):
        guard.observe(entropies[n - 1])
        average = entropies[0]
        for each in entropies[1:n]:
            average = decay * average + (1 - decay) * each
        floor: float | None = 0.5
        if relative:
            first = entropies[:warmup]
            floor = 0.5 * sum(first) / warmup if n >= warmup else None
        assert guard.average == pytest.approx(average)
        assert guard.limit == (None if floor is None else pytest.approx(floor))
        # Not asked of rounding: what is under the floor by a hair.
        if floor is None or abs(average - floor) > 1e-9:
            below = below + 1 if floor is not None and average < floor else 0
        else:
            below = guard.below
        assert guard.below == below


class Run:
    """A guard at a step of nobody's training; entropies are told it."""

    def __init__(self, **options: Any) -> None:
        given = {"floor": 1.0, "relative": False, "decay": 0.0, "patience": 2}
        self.guard = EntropyGuard(**given | options)
        self.module = SimpleNamespace(objective=PolicyObjective(entropy_bonus=0.001))
        self.trainer = SimpleNamespace(global_step=0, should_stop=False)

    def tell(self, *entropies: float) -> None:
        for each in entropies:
            self.trainer.global_step += 10
            self.guard._judge(each, self.trainer, self.module)  # type: ignore[arg-type]


def test_a_collapse_is_told_once_and_again_after_a_recovery() -> None:
    run = Run()
    run.tell(2.0, 0.9, 1.1, 0.9)
    for step in (50, 100):
        with pytest.warns(UserWarning, match=rf"is 0.8 nats .* of 1 for 2 .* \(step {step}\): ra"):
            run.tell(0.8)
        run.tell(0.7, 0.7, 2.0, 0.9)
    assert not run.trainer.should_stop
    assert run.module.objective == PolicyObjective(entropy_bonus=0.001)


def test_training_stops_if_it_shall() -> None:
    run = Run(on_collapse="stop")
    run.tell(2.0, 0.9)
    assert not run.trainer.should_stop
    with pytest.warns(UserWarning, match="training stops"):
        run.tell(0.9)
    assert run.trainer.should_stop


def test_the_bonus_rises_step_by_step_up_to_the_most() -> None:
    run = Run(on_collapse="bonus", step=0.002, most=0.004)
    run.tell(0.9)
    for old, new in ((0.001, 0.003), (0.003, 0.004)):
        with pytest.warns(UserWarning, match=f"its bonus rises from {old} to {new}"):
            run.tell(0.9)
        assert run.module.objective.entropy_bonus == pytest.approx(new)
        assert run.guard.bonus == run.module.objective.entropy_bonus
        run.tell(0.9)  # not patience measurements since
    run.tell(0.9, 0.9)  # no further, and told once
    run.tell(2.0, 0.9)
    with pytest.warns(UserWarning, match="its bonus is 0.004 already: raise `most`"):
        run.tell(0.9)
    assert run.module.objective == PolicyObjective(entropy_bonus=0.004)


# In training --------------------------------------------------------------------------------------


class Notes(Callback):
    """Keeps the entropy and the tokens of each micro-batch, and what the guard logged."""

    def __init__(self) -> None:
        self.found: list[tuple[int, float, int]] = []
        self.told: dict[int, dict[str, float]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, _: Any, batch: Any, __: int
    ) -> None:
        now = {name: float(value) for name, value in trainer.callback_metrics.items()}
        count = len(batch["target"])
        self.found.append((trainer.global_step, now.get("train/entropy", 0.0), count))
        self.told[trainer.global_step] = now


def test_the_entropy_is_that_of_all_tokens_of_an_update(tmp_path: Path) -> None:
    guard, notes = EntropyGuard(decay=0.0, warmup=2, floor=0.3), Notes()
    options = {"accumulate_grad_batches": 3, "log_every_n_steps": 2}
    fit(tmp_path, guard, notes, source=data(batch_size=4), **options)
    assert [step for step, _, _ in notes.found] == [(n + 1) // 3 for n in range(24)]
    of_update = {}
    for update in (2, 4, 6, 8):  # of three micro-batches each, the last of which made the step
        parts = notes.found[3 * update - 3 : 3 * update]
        of_update[update] = sum(e * n for _, e, n in parts) / sum(n for _, _, n in parts)
        assert len({n for _, _, n in parts}) > 1  # an average of averages would be another
        found = notes.told[update]["entropy_guard/average"]
        assert found == pytest.approx(of_update[update], rel=1e-6)
    assert guard.measured == 4
    assert guard.beginning == pytest.approx((of_update[2] + of_update[4]) / 2, rel=1e-6)
    assert notes.told[8]["entropy_guard/floor"] == pytest.approx(0.3 * guard.beginning)
    assert "entropy_guard/floor" not in notes.told[2]


def test_what_the_guard_sees_is_in_the_log(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    guard = EntropyGuard(100.0, relative=False, on_collapse="bonus", patience=4, most=0.002)
    with pytest.warns(UserWarning, match="its bonus rises from 0.001 to 0.002"):
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
        column = [float(each.split(",")[names.index(f"entropy_guard/{name}")]) for each in rows[1:]]
        assert column == pytest.approx(expected)


def test_a_training_that_shall_stop_does(tmp_path: Path) -> None:
    guard = EntropyGuard(100.0, relative=False, on_collapse="stop", patience=3)
    with pytest.warns(UserWarning, match="training stops"):
        trainer = fit(tmp_path, guard)
    assert trainer.global_step == 3


@pytest.mark.parametrize("saved", [3, 5])  # before the bonus rises, and after
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, saved: int) -> None:
    def guard() -> EntropyGuard:
        return EntropyGuard(
            100.0, relative=False, patience=4, warmup=4, on_collapse="bonus", step=0.05, most=0.1
        )

    def save() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)

    whole, again = guard(), guard()
    source = {"accumulate_grad_batches": 2, "enable_checkpointing": True}
    with pytest.warns(UserWarning, match="its bonus rises"):
        first = fit(tmp_path, whole, save(), **source)
    path = next(tmp_path.glob(f"*step={saved}.ckpt"))
    kept = torch.load(path, weights_only=True)["callbacks"]["EntropyGuard"]
    assert (kept["bonus"] is not None) == (saved == 5)
    other = grpo()
    with pytest.warns(UserWarning, match="its bonus rises"):
        fit(tmp_path, again, save(), module=other, resume=path, **source)
    assert again.state_dict() == whole.state_dict()
    assert whole.bonus == 0.1
    mine: Any = first.lightning_module
    assert other.objective == mine.objective
    assert other.objective.entropy_bonus == whole.bonus
    for name, value in mine.state_dict().items():
        assert value.equal(other.state_dict()[name]), name


def test_a_bonus_that_was_raised_is_paid(tmp_path: Path) -> None:
    states = []
    for most in (0.001, 0.5):
        guard = EntropyGuard(
            100.0, relative=False, on_collapse="bonus", patience=1, step=most, most=most
        )
        with pytest.warns(UserWarning, match="its bonus rises"):
            states.append(fit(tmp_path, guard, max_steps=3).lightning_module.state_dict())
    assert any(not value.equal(states[1][name]) for name, value in states[0].items())


def test_a_step_that_trains_on_nothing_is_passed_over(tmp_path: Path) -> None:
    guard = EntropyGuard()
    fit(tmp_path, guard, source=data(reward=Same(), drop_uninformative=True), max_steps=3)
    assert (guard.measured, guard.average) == (0, None)


def ranks(folder: Path) -> None:
    """What this file does as a program: on two ranks, note what each saw and concluded."""
    guard = EntropyGuard(
        100.0, relative=False, decay=0.0, patience=2, on_collapse="bonus", step=0.05, most=0.1
    )
    notes = Notes()
    source = data(batch_size=3)
    trainer = fit(folder, guard, notes, source=source, devices=2, strategy="ddp", max_steps=3)
    module: Any = trainer.lightning_module
    told = {"found": notes.found, "bonus": module.objective.entropy_bonus}
    told |= {"average": guard.average, "below": guard.below}
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(told))


@pytest.mark.multiprocess
def test_two_ranks_see_the_entropy_of_both_and_conclude_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=250, cwd=Path.cwd(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    last = [each["found"][-1][1:] for each in (one, two)]
    assert last[0][0] != last[1][0]
    mean = sum(e * n for e, n in last) / sum(n for _, n in last)
    assert one["average"] == two["average"] == pytest.approx(mean, rel=1e-6)
    assert (one["below"], one["bonus"]) == (two["below"], two["bonus"]) == (3, 0.05)
    assert done.stderr.count("UserWarning: the policy's entropy is") == 1  # of one rank


# Refusals -----------------------------------------------------------------------------------------


class Odd(GRPO):
    """Logs an entropy of its own, or under another name."""

    name, value = "train/entropy", float("nan")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        found = super().training_step(batch, batch_idx)
        self.log(self.name, self.value if self.global_step == 1 else 1.0)
        return found

    def log_dict(self, *args: Any, **options: Any) -> None:
        """Nothing."""


def odd(name: str, value: float) -> Odd:
    model = ConfiguredLM(hidden_size=16, layers=1, heads=2, max_positions=32, seed=1)
    module = Odd(model, max_new_tokens=0)
    module.name, module.value = name, value
    return module


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_entropy_that_is_not_finite_is_named_and_changes_nothing(
    tmp_path: Path, value: float
) -> None:
    guard = EntropyGuard()
    with pytest.raises(ValueError, match=f"train/entropy is {value} at step 2; an entropy is fini"):
        fit(tmp_path, guard, module=odd("train/entropy", value))
    assert (guard.measured, guard.average) == (1, 1.0)
    guard._total, guard._tokens = 9.0, 1.0  # of an update that broke off is no part of the next
    fit(tmp_path, guard, module=odd("train/entropy", 1.0), max_steps=1)
    assert (guard.measured, guard.average) == (2, 1.0)


def test_an_entropy_that_is_not_logged_is_named(tmp_path: Path) -> None:
    words = (
        r"monitor is 'train/entropy', which was not logged .* there are \['entropy', 'reward'\]: "
    )
    with pytest.raises(ValueError, match=words):
        fit(tmp_path, EntropyGuard(), module=odd("entropy", 1.0))
    fit(tmp_path, guard := EntropyGuard(monitor="entropy"), module=odd("entropy", 1.0))
    assert guard.average == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"floor": 1.0}, r"floor is 1.0; it is a share .* lies in \(0, 1\): set relative to false"),
        ({"floor": 0.0}, r"floor is 0.0; it is a share"),
        ({"floor": 0.0, "relative": False}, "floor is 0.0; an entropy in nats"),
        ({"floor": float("inf"), "relative": False}, "floor is inf; an entropy in nats"),
        ({"patience": 0}, "patience is 0; it must be above 0"),
        ({"warmup": 0}, "warmup is 0; it must be above 0"),
        ({"on_collapse": "panic"}, "on_collapse is 'panic'; it must be warn, stop or bonus"),
        ({"step": 0.0}, "step is 0.0 and most 0.01"),
        ({"step": 0.1, "most": 0.01}, "step is 0.1 and most 0.01"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"decay": -0.1}, "decay is -0.1"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EntropyGuard(**options)


def test_a_guard_that_could_not_see_or_act_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="log_every_n_steps is 0, so train/entropy is never"):
        fit(tmp_path, EntropyGuard(), log_every_n_steps=0)
    bonus = EntropyGuard(on_collapse="bonus", most=0.01)
    with pytest.raises(ValueError, match=r"most is 0.01, and the objective's .* is 0.02 alr"):
        fit(tmp_path, bonus, module=grpo(objective=PolicyObjective(entropy_bonus=0.02)))
    module, trainer = LightningModule(), SimpleNamespace(log_every_n_steps=1)
    with pytest.raises(ValueError, match="objective of LightningModule has no entropy_bonus"):
        bonus.setup(trainer, module, "fit")  # type: ignore[arg-type]
    bonus.setup(trainer, module, "test")  # type: ignore[arg-type]


if __name__ == "__main__":
    ranks(Path(sys.argv[1]))
