"""The rollout datamodule: what a step holds, replays and resumes, and which options it rejects."""

from itertools import chain
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from rollout_runs import (
    AlwaysWrong,
    EvenLength,
    FixedPriorities,
    StepRecorder,
    VersionRecorder,
    fit_rollouts,
    rollout_data,
)
from tiny_language import fit

from callbacks import RolloutReplay
from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, PolicyObjective
from lit_adaptive.replay import RolloutBuffer, RolloutGroups
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.models.tokenizers import character_tokenizer
from lit_adaptive.rollout.rewards.scorer import Scorer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


def test_a_batch_holds_unsplit_groups_with_normalized_advantages() -> None:
    recorder, _ = fit_rollouts(rollout_data(), max_epochs=1)
    assert len(recorder.batches) == 3
    for batch in recorder.batches:
        assert batch["group"].bincount().tolist() == [4] * 6
        # The advantage is the reward minus its group's mean, divided by its deviation.
        for group in range(6):
            members = batch["group"] == group
            reward, advantage = batch["reward"][members], batch["advantage"][members]
            expected = (reward - reward.mean()) / (reward.std() + 1e-4)
            torch.testing.assert_close(advantage, expected.nan_to_num())
        assert batch["age"].eq(0).all()
        assert len(batch["behavior_log_probs"]) == len(batch["target"])


def test_fresh_rollouts_have_ratio_one_and_replayed_ones_have_not() -> None:
    buffer = RolloutBuffer(64)
    module = rollout_data(replay=buffer, replay_fraction=0.5, steps_per_epoch=8)

    class Ratios(StepRecorder):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any
        ) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, *rest)
            self.batches[-1]["ratio"] = outputs["ratio"]

    ratios = Ratios()
    fit_rollouts(module, RolloutReplay(), ratios, max_epochs=1)
    replayed = [batch for batch in ratios.batches if bool((batch["age"] > 0).any())]
    assert len(replayed) >= 5
    for batch in ratios.batches:
        fresh = batch["age"] == 0
        torch.testing.assert_close(batch["ratio"][fresh], torch.ones(int(fresh.sum())))
    moved = torch.cat([b["ratio"][b["age"] > 0] - 1 for b in replayed]).abs()
    assert (moved > 1e-4).float().mean() > 0.9
    for batch in replayed:
        # Half of six groups, none of them split.
        assert (batch["age"] > 0).sum() == 12
        assert batch["group"].bincount().tolist() == [4] * 6


def test_a_step_is_all_fresh_until_the_replay_buffer_holds_enough() -> None:
    module = rollout_data(replay=RolloutBuffer(64), replay_fraction=0.5, steps_per_epoch=4)
    recorder, _ = fit_rollouts(module, RolloutReplay(), max_epochs=1)
    assert len(recorder.steps[0].fresh) == 6
    assert len(recorder.steps[0].keys) == 0
    assert [len(step.fresh) for step in recorder.steps[1:]] == [3, 3, 3]
    assert [len(step.keys) for step in recorder.steps[1:]] == [3, 3, 3]
    # Only informative groups are kept.
    kept = module.replay.groups()  # type: ignore[union-attr]
    assert ((kept.mean_reward > 0) & (kept.mean_reward < 1)).all()


def test_replay_fraction_is_rounded_to_the_nearest_number_of_groups() -> None:
    # 0.3 of 6 groups are 1.8.
    module = rollout_data(replay=RolloutBuffer(64), replay_fraction=0.3, steps_per_epoch=4)
    recorder, _ = fit_rollouts(module, RolloutReplay(), max_epochs=1)
    assert [len(step.keys) for step in recorder.steps] == [0, 2, 2, 2]
    assert [len(step.groups) for step in recorder.steps] == [6] * 4


def test_replaying_half_the_groups_halves_the_generated_rollouts() -> None:
    without, replaying = (
        rollout_data(steps_per_epoch=9),
        rollout_data(replay=RolloutBuffer(64), replay_fraction=0.5, steps_per_epoch=9),
    )
    fit_rollouts(without, max_epochs=1)
    fit_rollouts(replaying, RolloutReplay(), max_epochs=1)
    assert without.counters["rollouts"] == 9 * 24
    assert replaying.counters["rollouts"] == 24 + 8 * 12


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_the_update_does_not_depend_on_the_number_of_micro_batches(loss_type: Any) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    for accumulate in (1, 4):
        objective = PolicyObjective(loss_type=loss_type, clip_high=5.0, clip_low=0.9)
        recorder, model = fit_rollouts(
            rollout_data(), objective=objective, max_epochs=1, accumulate_grad_batches=accumulate
        )
        assert len(recorder.batches) == 3 * accumulate
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=2e-5)


def test_each_inner_epoch_serves_each_group_once() -> None:
    module = rollout_data(inner_epochs=2, minibatches=3, steps_per_epoch=2)
    recorder, _ = fit_rollouts(module, max_epochs=1)
    assert len(recorder.batches) == 2 * 2 * 3
    for step in range(2):
        for epoch in range(2):
            first = step * 6 + epoch * 3
            batches = recorder.batches[first : first + 3]
            groups = [batch["group"].unique().tolist() for batch in batches]
            assert sorted(chain(*groups)) == [*range(6)]
            assert all(len(minibatch) == 2 for minibatch in groups)
    # Age counts steps, not updates.
    assert recorder.batches[5]["age"].eq(0).all()


def test_clip_center_old_gets_the_log_probs_at_the_start_of_the_step() -> None:
    objective = PolicyObjective(clip_center="old")
    module = rollout_data(
        inner_epochs=2, steps_per_epoch=3, replay=RolloutBuffer(64), replay_fraction=0.5
    )
    recorder, _ = fit_rollouts(module, RolloutReplay(), objective=objective, max_epochs=1)
    for batch in recorder.batches:
        fresh = (batch["age"] == 0)[batch["sequence"]]
        torch.testing.assert_close(
            batch["old_log_probs"][fresh], batch["behavior_log_probs"][fresh], atol=1e-4, rtol=1e-4
        )
    last = recorder.batches[-1]
    replayed = (last["age"] > 0)[last["sequence"]]
    gap = (last["old_log_probs"] - last["behavior_log_probs"])[replayed].abs()
    assert float(gap.max()) > 1e-3


@pytest.mark.parametrize("drop", [False, True])
def test_equal_rewards_leave_the_weights_unchanged_and_are_counted(drop: bool) -> None:
    module = rollout_data(rewards=Scorer([AlwaysWrong()], workers=0), drop_uninformative=drop)
    seed_everything(3, verbose=False)
    before: dict[str, torch.Tensor] = {}

    class InitialWeights(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            before.update({n: p.detach().clone() for n, p in pl_module.named_parameters()})

    recorder, model = fit_rollouts(module, InitialWeights(), max_epochs=1)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert recorder.steps[0].metrics["frac_reward_zero_std"] == 1.0
    assert recorder.steps[0].metrics["groups/failed"] == 1.0
    assert all(bool(batch["loss"].isfinite()) for batch in recorder.batches)


def test_truncated_completions_are_not_trained_on_but_stay_in_the_baseline() -> None:
    datamodule = rollout_data(mask_truncated=True, sampling=SamplingParams(30))
    recorder, model = fit_rollouts(datamodule, max_epochs=1)
    batch = recorder.batches[0]
    truncated = ~batch["trained"]
    assert bool(truncated.any())
    assert not bool(truncated.all())
    last = batch["sequence"].diff(append=torch.tensor([-1])).nonzero().flatten()
    stopped = torch.isin(batch["target"][last], torch.tensor(model.stops()))
    assert truncated.equal(~stopped)
    assert float(batch["token_count"]) == float(
        torch.bincount(batch["sequence"], minlength=24)[~truncated].sum()
    )
    members = batch["group"] == batch["group"][truncated][0]
    reward = batch["reward"][members]
    expected = ((reward - reward.mean()) / (reward.std() + 1e-4)).nan_to_num()
    torch.testing.assert_close(batch["advantage"][members], expected)
    assert recorder.steps[0].metrics["completions/clipped_ratio"] == pytest.approx(
        float(truncated.float().mean())
    )


def test_batches_respect_the_replay_buffers_weights_and_age_limit() -> None:
    replay = RolloutBuffer(64, policy="prioritized", max_age=2)
    recorder, _ = fit_rollouts(
        rollout_data(replay=replay, replay_fraction=0.5, replay_beta=1.0, steps_per_epoch=18),
        RolloutReplay(),
        max_epochs=1,
    )
    weights, ages = (torch.cat([b[name] for b in recorder.batches]) for name in ("weight", "age"))
    assert bool((weights[ages == 0] == 1).all())
    assert bool((weights[ages > 0] < 1).any())
    assert int(ages.max()) == 2


class DrawsRandomNumbers(Callback):
    """Draws from torch's global random stream."""

    def on_train_batch_end(self, *_: Any) -> None:
        torch.rand(7)


def test_random_choices_of_an_update_depend_on_the_step_alone() -> None:
    # Clip-Cov chooses tokens at random, within training_step.
    objective = PolicyObjective(covariance="clip", covariance_share=0.3, covariance_low=-9.0)

    def losses(*callbacks: Callback) -> list[float]:
        datamodule = rollout_data(inner_epochs=2)
        recorder, _ = fit_rollouts(datamodule, *callbacks, objective=objective)
        return [float(batch["loss"]) for batch in recorder.batches]

    undisturbed = losses()
    assert losses(DrawsRandomNumbers()) == undisturbed
    assert len(set(undisturbed)) > 6


class RecordingBuffer(RolloutBuffer):
    """Records the versions of the groups given to ``add``."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.versions: list[list[int]] = []

    def add(self, groups: RolloutGroups) -> Any:
        self.versions.append(groups.version.tolist())
        return super().add(groups)


def test_each_group_is_added_to_the_replay_buffer_once() -> None:
    replay = RecordingBuffer(64)
    module = rollout_data(replay=replay, replay_fraction=0.5, steps_per_epoch=8)
    recorder, _ = fit_rollouts(module, RolloutReplay(), max_epochs=1)
    assert any(len(step.keys) for step in recorder.steps)
    assert replay.versions == [[n] * len(step.fresh) for n, step in enumerate(recorder.steps)]


def test_at_least_one_group_of_a_step_is_fresh() -> None:
    module = rollout_data(replay=RolloutBuffer(64), replay_fraction=0.99, steps_per_epoch=8)
    recorder, _ = fit_rollouts(module, RolloutReplay(), max_epochs=1)
    replayed = [len(step.keys) for step in recorder.steps]
    assert max(replayed) == 5  # of 6 groups
    assert all(len(step.fresh) == 6 - n for step, n in zip(recorder.steps, replayed, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, "group_size is 0; it must be at least 1"),
        ({"replay_fraction": 0.5}, "replay_fraction is 0.5, but there is no replay buffer"),
        ({"replay_fraction": 1.0}, r"replay_fraction is 1.0; it must lie in \[0, 1\)"),
        (
            {"sampling": SamplingParams(repetition_penalty=1.2)},
            "repetition_penalty is 1.2; completions would be sampled from another distribution",
        ),
        (
            {"sampling": SamplingParams(5, temperature=0.0)},
            "temperature is 0.0; greedy completions",
        ),
        ({"minibatches": 7}, "minibatches is 7, but a step has 6 groups"),
        ({"overlong_cache": 9}, "overlong_cache is 9; completions have at most 5 tokens"),
    ],
)
def test_an_option_out_of_range_is_rejected_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rollout_data(**options)


def test_a_replay_buffer_without_the_callback_that_fills_it_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"add callbacks\.RolloutReplay"):
        fit_rollouts(rollout_data(replay=RolloutBuffer(64), replay_fraction=0.5))


def test_a_module_without_advantages_is_rejected() -> None:
    from lit_adaptive.modules import IWSFT

    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"train lit_adaptive\.modules\.GRPO"):
        trainer.fit(IWSFT(ConfiguredLM(), objective="nll"), rollout_data())


def test_groups_that_the_objective_rejects_are_rejected_before_generation() -> None:
    engine = VersionRecorder()
    for objective in (PolicyObjective(), PolicyObjective(scale="none", leave_one_out=True)):
        with pytest.raises(ValueError, match=r"group_size is 1, .* needs at least 2"):
            fit_rollouts(rollout_data(group_size=1, engine=engine), objective=objective)
    assert engine.versions == []


def test_a_replay_buffer_of_another_dataset_is_rejected() -> None:
    buffer = RolloutBuffer(64)
    fit_rollouts(rollout_data(replay=buffer, replay_fraction=0.5), RolloutReplay(), max_epochs=1)
    assert len(buffer)
    other = RolloutDataModule(
        PromptDataset(Arithmetic("train", size=60, seed=2)), replay=buffer,
        replay_fraction=0.5, sampling=SamplingParams(5), rewards=Scorer([EvenLength()], workers=0),
    )  # fmt: skip
    with pytest.raises(ValueError, match="the rollouts are of tokenizer and model"):
        fit_rollouts(other, RolloutReplay(), max_epochs=1)


def test_a_replayed_group_keeps_the_weight_of_its_draw_by_the_sampler() -> None:
    recorder, _ = fit_rollouts(
        rollout_data(
            sampler=FixedPriorities, beta=1.0, replay=RolloutBuffer(64), replay_fraction=0.5
        ),
        RolloutReplay(),
        max_epochs=2,
    )
    weights: dict[tuple[int, int], float] = {}
    replayed = 0
    for step in recorder.steps:
        rows = zip(
            step.groups.prompt.tolist(), step.groups.version.tolist(), step.groups.weight.tolist(),
            strict=True,
        )  # fmt: skip
        for prompt, version, weight in rows:
            if version < step.number:
                replayed += 1
                assert weights[prompt, version] == pytest.approx(weight)
            weights[prompt, version] = weight
    assert replayed > 5
    assert len({round(weight, 4) for weight in weights.values()}) > 3


def test_groups_without_any_signal_are_refused_before_training() -> None:
    # A single rollout minus the mean of its group is 0: nothing could be learnt.
    with pytest.raises(ValueError, match=r"group_size is 1.*advantage.*0"):
        fit_rollouts(rollout_data(group_size=1), objective=PolicyObjective(scale="none"))
    fit_rollouts(rollout_data(group_size=1), objective=PolicyObjective(advantage="signs"))


def test_the_replay_buffers_fingerprint_changes_with_config_and_tokenizer() -> None:
    def fingerprint(characters: str = "0123456789+-*=", **options: Any) -> str | None:
        dataset = PromptDataset(Arithmetic(size=6), character_tokenizer(characters))
        data = RolloutDataModule(
            dataset, batch_size=2, group_size=2, sampling=SamplingParams(2),
            rewards=Scorer([EvenLength()], workers=0), replay=RolloutBuffer(4),
        )  # fmt: skip
        model = ConfiguredLM(hidden_size=16, layers=1, heads=2, seed=0, options=options)
        fit(GRPO(model), data, RolloutReplay(), max_steps=1)
        assert data.replay is not None
        return data.replay.fingerprint

    first = fingerprint()
    assert first == fingerprint()
    changed = (
        fingerprint(rope_theta=77.0),
        fingerprint(rms_norm_eps=0.1),
        fingerprint("0123456789+-*= "),
    )
    assert len({first, *changed}) == 4
