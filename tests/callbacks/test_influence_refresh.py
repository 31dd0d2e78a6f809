"""InfluenceRefresh: which prompts it selects, what it logs, and resumed runs."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from quiet_trainer import quiet_trainer
from resumed_runs import assert_same
from rollout_runs import (
    AlwaysWrong,
    StepRecorder,
    fit_rollouts,
    rollout_data,
)
from torch import Tensor

from callbacks import (
    DifficultyRefresh,
    InfluenceRefresh,
    PromptStatistics,
    RolloutReplay,
    SupervisedWarmup,
)
from lit_adaptive.core.influence import InfluenceMetric
from lit_adaptive.data import Arithmetic, DigitCommands, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization
from lit_adaptive.replay import RolloutBuffer, RolloutGroups
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.scorer import Scorer
from lit_adaptive.samplers import DifficultySampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


def validation(size: int = 6) -> PromptDataset:
    return PromptDataset(Arithmetic("validation", size=size, digits=1), columns=["answer"])


class Recorded(InfluenceRefresh):
    """Records the scores of the last selection, and what the replay and the sampler had then."""

    def _best(self, scores: Tensor, data: Any) -> Tensor:
        self.scores = scores
        if self.fuse_with:
            self.pass_rates = data.sampler.pass_rates()
            self.replayed = data.replay.groups().prompt, data.replay.probabilities()[1]
        return super()._best(scores, data)


def influence(folder: Path, **options: Any) -> InfluenceRefresh:
    defaults: dict[str, Any] = {
        "validation": {"sums": validation()},
        "every_n_steps": 2,
        "fraction": 0.25,
        "validation_samples": 4,
        "dimensions": 256,
        "keep_ratio": 1.0,
        "folder": str(folder / "trajectories"),
    }
    kind = Recorded if options.pop("recorded", False) else InfluenceRefresh
    return kind(**(defaults | options))


def test_only_the_selected_prompts_are_drawn_until_the_next_phase(tmp_path: Path) -> None:
    callback = influence(tmp_path, families="answer")
    recorder, _ = fit_rollouts(rollout_data(), callback, default_root_dir=tmp_path)
    assert [len(phase) for phase in callback._phases] == [15, 15, 15]
    for number, step in enumerate(recorder.steps):
        drawn = set(step.fresh.prompt.tolist())
        assert drawn <= set(callback._phases[number // 2].tolist())
    assert len({tuple(phase.tolist()) for phase in callback._phases}) > 1
    assert (tmp_path / "influence.png").stat().st_size > 5_000


def test_a_sampler_by_difficulty_draws_inside_the_selection(tmp_path: Path) -> None:
    # CROPI with DOTS and Rollout Replay; references too are prompts of the selection.
    data = rollout_data(
        sampler=lambda size: DifficultySampler(size, group_size=4, window=2),
        replay=RolloutBuffer(12),
        replay_fraction=0.5,
    )
    callback = influence(tmp_path, metric="learnable_cosine")
    refresh = DifficultyRefresh(2, 4, hidden_size=8, updates=2, file=None)
    feedback = PromptStatistics(signal="pass_rate", file=None)
    recorder, _ = fit_rollouts(data, callback, feedback, refresh, RolloutReplay())
    assert len(callback._phases) == 3
    for number, step in enumerate(recorder.steps):
        assert {*step.fresh.prompt.tolist()} <= {*callback._phases[number // 2].tolist()}


@pytest.mark.parametrize("metric", ["cosine", "influence_function"])
def test_prompts_of_the_validated_kind_are_found(metric: InfluenceMetric, tmp_path: Path) -> None:
    # Two commands are trained on, one of them is validated; their operations differ.
    seed_everything(0, verbose=False)
    pool = PromptDataset(
        DigitCommands(size=120, digits=3, commands="qv"), columns=["answer", "command"]
    )
    target = PromptDataset(
        DigitCommands("validation", size=20, digits=3, commands="v"), columns=["answer"]
    )
    data = RolloutDataModule(pool, batch_size=4, group_size=8, sampling=SamplingParams(4))
    callback = InfluenceRefresh(
        {"v": target},
        1,
        fraction=0.2,
        retried=0.0,
        validation_samples=8,
        metric=metric,
        dimensions=2048,
        folder=str(tmp_path),
    )
    warmup = SupervisedWarmup(
        DigitCommands(size=800, digits=3, commands="qv", seed=1), steps=250, learning_rate=3e-3
    )
    model = GRPO(
        ConfiguredLM(hidden_size=64, layers=2, heads=4),
        optimization=Optimization(learning_rate=1e-4),
    )
    quiet_trainer(max_steps=1, callbacks=[warmup, callback]).fit(model, data)
    rows = pool.texts(callback._phases[0])
    share = sum(row["command"] == "v" for row in rows) / len(rows)
    assert len(rows) >= 10
    assert share >= 0.9


def test_ranks_by_difficulty_and_by_replay_are_fused_with_those_by_influence(
    tmp_path: Path,
) -> None:
    data = rollout_data(
        sampler=lambda size: DifficultySampler(size, group_size=4),
        replay=RolloutBuffer(60, policy="prioritized", alpha=1.0),
        replay_fraction=0.5,
    )
    callback = influence(
        tmp_path, recorded=True, retried=0.0, every_n_steps=3, fuse_with=["difficulty", "replay"]
    )
    statistics = PromptStatistics(signal="pass_rate")
    fit_rollouts(data, callback, statistics, RolloutReplay(), default_root_dir=tmp_path)
    assert isinstance(callback, Recorded)
    influences, selected = callback.scores[0].tolist(), callback._phases[-1].tolist()
    nearness = (-(callback.pass_rates - 0.5).abs()).tolist()
    likeliest = [0.0] * 60
    for prompt, own in zip(*(part.tolist() for part in callback.replayed), strict=True):
        likeliest[prompt] = max(likeliest[prompt], own)
    known = [prompt for prompt in range(60) if not math.isnan(influences[prompt])]
    fused = dict.fromkeys(known, 0.0)
    for row in (nearness, likeliest, influences):
        for prompt in known:
            fused[prompt] += 1 / (1 + sum(other > row[prompt] for other in row))
    assert selected == sorted(sorted(known, key=lambda prompt: -fused[prompt])[:15])
    assert selected != sorted(sorted(known, key=lambda prompt: -influences[prompt])[:15])


@pytest.mark.parametrize(("name", "remedy"), [("replay", "data.replay"), ("difficulty", "sampler")])
def test_ranks_of_what_is_not_there_are_refused(name: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"fuse_with names {name}.*set .*{remedy}"):
        fit_rollouts(rollout_data(), influence(tmp_path, fuse_with=[name]))


class Logged(Callback):
    """Records what is logged about the influence after each step."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        logged = trainer.callback_metrics.items()
        self.metrics.append({k: float(v) for k, v in logged if "influence" in k})


def test_the_probes_are_rolled_out_and_compared(tmp_path: Path) -> None:
    callback, logged = influence(tmp_path, probes=20), Logged()
    data = rollout_data()
    recorder, _ = fit_rollouts(data, callback, logged, default_root_dir=tmp_path)
    assert len(recorder.steps[0].fresh) > 6  # the step's own and the probes
    for metrics in logged.metrics:
        assert -1 <= metrics["train/influence/agreement"] <= 1
        for name in ("top_overlap", "split_half_overlap"):
            assert metrics[f"train/influence/{name}"] in (0.0, 0.5, 1.0)  # two of 20 are the best
    halves = [metrics["train/influence/split_half_overlap"] for metrics in logged.metrics]
    assert min(halves) < 1  # they are different rollouts


@pytest.mark.parametrize("sign", [1, -1])
def test_probes_with_the_stored_rollouts_agree_and_with_opposite_rewards_disagree(
    sign: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, logged, data = influence(tmp_path, probes=20), Logged(), rollout_data()

    def stored(index: Tensor, *, train: bool) -> tuple[RolloutGroups, dict[str, float]]:
        assert not train
        groups = callback.buffer.select(index)
        return replace(groups, reward=sign * groups.reward), {}

    monkeypatch.setattr(data, "roll_out", stored)
    fit_rollouts(data, callback, logged, default_root_dir=tmp_path, max_epochs=1)
    first = logged.metrics[0]
    assert first["train/influence/agreement"] == pytest.approx(sign, abs=1e-5)
    assert first["train/influence/top_overlap"] == (sign == 1)


def saved_run(folder: Path, ckpt_path: str | None = None) -> dict[str, Any]:
    seed_everything(3, verbose=False)
    recorder, callback = StepRecorder(), influence(folder)
    model = GRPO(
        ConfiguredLM(hidden_size=32, layers=1, heads=2),
        optimization=Optimization(learning_rate=1e-3),
        max_new_tokens=5,
    )
    checkpoint = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = quiet_trainer(
        max_epochs=2, callbacks=[callback, recorder, checkpoint], enable_checkpointing=True
    )
    trainer.fit(model, rollout_data(), ckpt_path=ckpt_path)
    return {
        "weights": torch.cat([p.detach().flatten() for p in model.policy.parameters()]),
        "prompts": [step.fresh.prompt.tolist() for step in recorder.steps],
        "phases": callback._phases,
    }


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_killed_twice_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = saved_run(tmp_path / "whole")
    _ = saved_run(tmp_path / "once", str(tmp_path / "whole" / "step=1.ckpt"))
    twice = saved_run(tmp_path / "twice", str(tmp_path / "once" / "step=4.ckpt"))
    assert twice["prompts"] == whole["prompts"][4:]
    for name in ("weights", "phases"):
        assert_same(twice[name], whole[name])
    assert not (tmp_path / "twice" / "trajectories").exists()  # nothing is rolled out again
    (tmp_path / "whole" / "trajectories").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="which is not there: put them back, or set folder"):
        saved_run(tmp_path / "lost", str(tmp_path / "whole" / "step=1.ckpt"))


def test_prompts_without_gradient_are_retried_and_counted(tmp_path: Path) -> None:
    callback = influence(tmp_path, recorded=True, retried=0.5, fraction=0.5)
    fit_rollouts(rollout_data(), callback, max_steps=1, max_epochs=1)
    without = callback.scores.isnan().all(0)  # type: ignore[attr-defined]
    assert 15 < int(without.sum()) < 60
    assert int(without[callback._phases[0]].sum()) == 15


def test_a_pool_without_gradients_is_refused(tmp_path: Path) -> None:
    data = rollout_data(rewards=Scorer([AlwaysWrong()], workers=0))
    with pytest.raises(ValueError, match="none of the 6 validation prompts has a gradient"):
        fit_rollouts(data, influence(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"validation_samples": 1}, "validation_samples is 1"),
        ({"retried": 1.0}, "retried is 1.0"),
        ({"probes": -1}, "probes is -1"),
        ({"fuse_with": ["age"]}, "fuse_with is 'age'; it must be one of .*'replay'"),
        ({"fuse_with": ["replay"], "fusion": "max"}, "set fusion to reciprocal_rank"),
        ({"keep_ratio": 0.0}, "keep_ratio is 0.0"),
        ({"constant": -1.0}, "constant is -1.0"),
        ({"fusion": "mean"}, "fusion is 'mean'"),
        ({"metric": "angle"}, "metric is 'angle'; it must be one of .*'inner_product'"),
        ({"ratio": "group"}, "ratio is 'group'; it must be one of .*'prefix'"),
        ({"projection": "sparse"}, "projection is 'sparse'; it must be one of .*'rademacher'"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"samples_at_once": 0}, "samples_at_once is 0"),
    ],
)
def test_options_out_of_range_are_named(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        influence(tmp_path, **options)


def test_no_validation_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation is empty"):
        fit_rollouts(rollout_data(), influence(tmp_path, validation=None))


def test_a_fraction_below_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is 3 of 60 samples, but a step draws 6"):
        fit_rollouts(rollout_data(), influence(tmp_path, fraction=0.05))


def test_a_column_of_families_that_does_not_exist_is_refused_before_training(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=r"no column 'family'; its columns are .*'answer'"):
        fit_rollouts(rollout_data(), influence(tmp_path, families="family"))
    assert not (tmp_path / "trajectories").exists()
