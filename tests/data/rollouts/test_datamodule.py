"""The rollout datamodule: what a step draws, keeps whole, mixes, cuts and remembers."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from callbacks import RolloutReplay
from lit_adaptive.core.policy_losses import aggregate_losses
from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.data.rollouts.layout import Layout, parts
from lit_adaptive.data.rollouts.minibatches import MinibatchBuilder
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization, PolicyObjective
from lit_adaptive.replay import RolloutBuffer, RolloutGroups
from lit_adaptive.rollout.engines.transformers import TransformersEngine
from lit_adaptive.rollout.generation import Completions, SamplingParams
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


class Varied(Reward):
    """1 for completions of an even number of characters: about half of them."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        return [float(len(text) % 2 == 0) for text in completions]


class Watch(Callback):
    """Keeps the batches, and after each step of rollouts a copy of it."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.steps: list[Any] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch | {"loss": outputs["loss"].detach()})
        step = trainer.datamodule.finished_step  # type: ignore[attr-defined]
        if step is not None:
            self.steps.append(step)


def data(demonstration: str | None = None, **more: Any) -> RolloutDataModule:
    given: dict[str, Any] = {
        "batch_size": 6,
        "group_size": 4,
        "sampling": SamplingParams(5),
        "steps_per_epoch": 3,
        "rewards": Scorer([Varied()], workers=0),
        "seed": 5,
    }
    dataset = PromptDataset(
        Arithmetic("train", size=60), columns=["answer"], demonstration=demonstration
    )
    return RolloutDataModule(dataset, **(given | more))


def run(
    module: RolloutDataModule, *callbacks: Callback, objective: Any = None, **more: Any
) -> tuple[Watch, GRPO]:
    seed_everything(3, verbose=False)
    watch = Watch()
    model = GRPO(
        ConfiguredLM(hidden_size=32, layers=1, heads=2),
        objective=objective,
        optimization=Optimization(learning_rate=1e-3),
        max_new_tokens=5,
    )
    trainer = Trainer(
        **({"max_epochs": 2} | more),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        callbacks=[*callbacks, watch],
    )
    trainer.fit(model, module)
    return watch, model


def test_a_batch_holds_whole_groups_with_what_was_drawn_and_written() -> None:
    watch, _ = run(data(), max_epochs=1)
    assert len(watch.batches) == 3
    for batch in watch.batches:
        assert batch["group"].bincount().tolist() == [4] * 6
        # The advantage is the reward less its group's mean, over its deviation.
        for group in range(6):
            own = batch["group"] == group
            reward, advantage = batch["reward"][own], batch["advantage"][own]
            expected = (reward - reward.mean()) / (reward.std() + 1e-4)
            torch.testing.assert_close(advantage, expected.nan_to_num())
        # Fresh from this very policy: the ratio is 1.
        assert batch["age"].eq(0).all()
        assert len(batch["behavior_log_probs"]) == len(batch["target"])


def test_fresh_rollouts_have_ratio_one_and_replayed_ones_have_not() -> None:
    buffer = RolloutBuffer(64)
    module = data(replay=buffer, replay_fraction=0.5, steps_per_epoch=8)

    class Ratios(Watch):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any
        ) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, *rest)
            self.batches[-1]["ratio"] = outputs["ratio"]

    ratios = Ratios()
    run(module, RolloutReplay(), ratios, max_epochs=1)
    replayed = [batch for batch in ratios.batches if bool((batch["age"] > 0).any())]
    assert len(replayed) >= 5
    for batch in ratios.batches:
        fresh = batch["age"] == 0
        torch.testing.assert_close(batch["ratio"][fresh], torch.ones(int(fresh.sum())))
    moved = torch.cat([b["ratio"][b["age"] > 0] - 1 for b in replayed]).abs()
    assert (moved > 1e-4).float().mean() > 0.9
    for batch in replayed:
        # Half of six groups, and none of them in parts.
        assert (batch["age"] > 0).sum() == 12
        assert batch["group"].bincount().tolist() == [4] * 6


def test_the_whole_step_is_fresh_until_the_replay_has_enough() -> None:
    module = data(replay=RolloutBuffer(64), replay_fraction=0.5, steps_per_epoch=4)
    watch, _ = run(module, RolloutReplay(), max_epochs=1)
    assert len(watch.steps[0].fresh) == 6
    assert len(watch.steps[0].keys) == 0
    assert [len(step.fresh) for step in watch.steps[1:]] == [3, 3, 3]
    assert [len(step.keys) for step in watch.steps[1:]] == [3, 3, 3]
    # Only what teaches something is kept.
    kept = module.replay.groups()  # type: ignore[union-attr]
    assert ((kept.mean_reward > 0) & (kept.mean_reward < 1)).all()


def test_replay_halves_what_is_written() -> None:
    alone, mixed = (
        data(steps_per_epoch=9),
        data(replay=RolloutBuffer(64), replay_fraction=0.5, steps_per_epoch=9),
    )
    run(alone, max_epochs=1)
    run(mixed, RolloutReplay(), max_epochs=1)
    assert alone.counters["rollouts"] == 9 * 24
    assert mixed.counters["rollouts"] == 24 + 8 * 12


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_the_update_does_not_depend_on_how_it_is_cut(kind: Any) -> None:
    ends = []
    for accumulate in (1, 4):
        objective = PolicyObjective(loss_type=kind, clip_high=5.0, clip_low=0.9)
        watch, model = run(
            data(), objective=objective, max_epochs=1, accumulate_grad_batches=accumulate
        )
        assert len(watch.batches) == 3 * accumulate
        ends.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=2e-5)


def test_inner_epochs_and_minibatches_see_each_group_once_a_pass() -> None:
    module = data(inner_epochs=2, minibatches=3, steps_per_epoch=2)
    watch, _ = run(module, max_epochs=1)
    assert len(watch.batches) == 2 * 2 * 3
    for step in range(2):
        for epoch in range(2):
            first = step * 6 + epoch * 3
            seen = [b["group"].unique().tolist() for b in watch.batches[first : first + 3]]
            assert sorted(group for part in seen for group in part) == [*range(6)]
            assert all(len(part) == 2 for part in seen)
    # Later updates of a step are off policy by then.
    assert watch.batches[5]["age"].eq(0).all()


def test_clip_center_old_is_told_the_policy_at_the_start_of_the_step() -> None:
    objective = PolicyObjective(clip_center="old")
    module = data(inner_epochs=2, steps_per_epoch=3, replay=RolloutBuffer(64), replay_fraction=0.5)
    watch, _ = run(module, RolloutReplay(), objective=objective, max_epochs=1)
    for batch in watch.batches:
        fresh = (batch["age"] == 0)[batch["sequence"]]
        torch.testing.assert_close(
            batch["old_log_probs"][fresh], batch["behavior_log_probs"][fresh], atol=1e-4, rtol=1e-4
        )
    last = watch.batches[-1]
    replayed = (last["age"] > 0)[last["sequence"]]
    gap = (last["old_log_probs"] - last["behavior_log_probs"])[replayed].abs()
    assert float(gap.max()) > 1e-3


class Flat(Reward):
    """All right for prompts that begin with an even digit, half and half for the others."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        even = [int(prompt[0]) % 2 == 0 for prompt in prompts]
        return [1.0 if flat else float(i % 2) for i, flat in enumerate(even)]


def test_uninformative_groups_are_dropped_or_made_up_for() -> None:
    rewards = Scorer([Flat()], workers=0)
    dropped, _ = run(data(rewards=rewards, drop_uninformative=True), max_epochs=1)
    assert any(len(step.groups) < 6 for step in dropped.steps)
    assert all(len(step.fresh) == 6 for step in dropped.steps)
    assert all(bool((b["advantage"] != 0).all()) for b in dropped.batches)
    filled, _ = run(data(rewards=rewards, drop_uninformative=True, refill=9), max_epochs=1)
    assert all(len(step.groups) == 6 for step in filled.steps)
    assert any(len(step.fresh) > 6 for step in filled.steps)
    assert all(bool((b["advantage"] != 0).all()) for b in filled.batches)


class Never(Reward):
    """No answer is right."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        return [0.0 for _ in completions]


@pytest.mark.parametrize("drop", [False, True])
def test_equal_rewards_change_nothing_and_are_told(drop: bool) -> None:
    module = data(rewards=Scorer([Never()], workers=0), drop_uninformative=drop)
    seed_everything(3, verbose=False)
    before: dict[str, torch.Tensor] = {}

    class First(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            before.update({n: p.detach().clone() for n, p in pl_module.named_parameters()})

    watch, model = run(module, First(), max_epochs=1)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert watch.steps[0].metrics["frac_reward_zero_std"] == 1.0
    assert watch.steps[0].metrics["groups/failed"] == 1.0
    assert all(bool(batch["loss"].isfinite()) for batch in watch.batches)


def test_cut_answers_teach_nothing_but_stay_in_the_baseline() -> None:
    watch, model = run(data(mask_truncated=True, sampling=SamplingParams(30)), max_epochs=1)
    batch = watch.batches[0]
    cut = ~batch["trained"]
    assert bool(cut.any())
    assert not bool(cut.all())
    last = batch["sequence"].diff(append=torch.tensor([-1])).nonzero().flatten()
    ended = torch.isin(batch["target"][last], torch.tensor(model.stops()))
    assert cut.equal(~ended)
    assert float(batch["token_count"]) == float(
        torch.bincount(batch["sequence"], minlength=24)[~cut].sum()
    )
    own = batch["group"] == batch["group"][cut][0]
    reward = batch["reward"][own]
    expected = ((reward - reward.mean()) / (reward.std() + 1e-4)).nan_to_num()
    torch.testing.assert_close(batch["advantage"][own], expected)
    assert watch.steps[0].metrics["completions/clipped_ratio"] == pytest.approx(
        float(cut.float().mean())
    )


def test_long_answers_are_punished_softly() -> None:
    watch, _ = run(data(overlong_cache=4, rewards=Scorer([Never()], workers=0)), max_epochs=1)
    fresh = watch.steps[0].fresh
    torch.testing.assert_close(fresh.reward, ((1 - fresh.lengths) / 4).clamp(-1, 0))


def test_demonstrations_are_not_punished_for_their_length() -> None:
    module = data(
        overlong_cache=4, rewards=Scorer([Never()], workers=0), demonstration="completion"
    )
    fresh = run(module, max_epochs=1)[0].steps[0].fresh
    expected = ((1 - fresh.lengths) / 4).clamp(-1, 0)
    assert bool((expected[fresh.demonstration] < 0).any())
    torch.testing.assert_close(fresh.reward, torch.where(fresh.demonstration, 0.0, expected))


def test_the_replays_own_weights_and_its_age_limit_reach_the_batch() -> None:
    replay = RolloutBuffer(64, policy="prioritized", max_age=2)
    watch, _ = run(
        data(replay=replay, replay_fraction=0.5, replay_beta=1.0, steps_per_epoch=9),
        RolloutReplay(),
        max_epochs=1,
    )
    weights, ages = (torch.cat([b[name] for b in watch.batches]) for name in ("weight", "age"))
    assert bool((weights[ages == 0] == 1).all())
    assert bool((weights[ages > 0] < 1).any())
    assert int(ages.max()) == 2


def test_a_demonstration_takes_the_place_of_an_answer() -> None:
    module = data(demonstration="completion")
    watch, _ = run(module, max_epochs=1)
    batch, step = watch.batches[0], watch.steps[0]
    assert batch["off_policy"].sum() == 6
    assert step.groups.demonstration.view(6, 4).sum(1).tolist() == [1] * 6
    shown = [
        module.dataset.decoded([tokens])[0]
        for tokens, own in zip(
            torch.split(step.groups.tokens, step.groups.lengths.tolist()),
            step.groups.demonstration.tolist(),
            strict=True,
        )
        if own
    ]
    assert shown == [row["answer"] for row in module.texts(step.groups.prompt)]
    assert module.counters["rollouts"] == 3 * 18


# Cutting, without a trainer ----------------------------------------------------------------------


def _groups() -> RolloutGroups:
    source = torch.Generator().manual_seed(0)
    size = torch.tensor([3, 2, 4, 1])
    lengths = torch.tensor([1, 5, 2, 3, 0, 4, 4, 1, 2, 6])
    prompt_lengths = torch.tensor([2, 4, 3, 5])
    tokens, asked = int(lengths.sum()), int(prompt_lengths.sum())
    return RolloutGroups(
        prompt=torch.tensor([7, 3, 9, 3]),
        version=torch.tensor([4, 4, 2, 0]),
        probability=torch.full((4,), 0.1, dtype=torch.float64),
        weight=torch.tensor([1.0, 2.0, 0.5, 1.0]),
        size=size,
        prompt_tokens=torch.arange(100, 100 + asked, dtype=torch.int32),
        prompt_lengths=prompt_lengths,
        tokens=torch.arange(tokens, dtype=torch.int32),
        log_probs=-torch.rand(tokens, generator=source),
        lengths=lengths,
        reward=torch.rand(10, generator=source),
        stopped=torch.arange(10) % 3 != 0,
        demonstration=torch.zeros(10, dtype=torch.bool),
        advantage=torch.randn(10, generator=source),
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_parts_cover_each_rollout_once_a_pass_and_divide_by_the_whole_update(
    ranks: int, accumulate: int, minibatches: int
) -> None:
    groups = _groups()
    trained = groups.stopped
    every = [
        list(parts(groups, trained, Layout(2, minibatches, accumulate, rank, ranks), 11))
        for rank in range(ranks)
    ]
    assert {len(own) for own in every} == {2 * minibatches * accumulate}
    for epoch in range(2):
        for update in range(minibatches):
            at = (epoch * minibatches + update) * accumulate
            mine = [part for own in every for part in own[at : at + accumulate]]
            rollouts = torch.cat([part.rollouts for part in mine])
            counted = rollouts[trained[rollouts]]
            # Divisors add up over micro-batches and ranks to the whole update's.
            assert sum(part.sequences for part in mine) == pytest.approx(len(counted))
            assert sum(part.tokens for part in mine) == pytest.approx(
                float(groups.lengths[counted].sum())
            )
            for rank_parts in (own[at : at + accumulate] for own in every):
                own = torch.cat([part.rollouts for part in rank_parts])
                # A rank has whole groups.
                assert groups.group[own].unique(return_counts=True)[1].tolist() == [
                    int(groups.size[g]) for g in groups.group[own].unique()
                ]
        pass_ = [
            part.rollouts
            for own in every
            for part in own[epoch * minibatches * accumulate :][: minibatches * accumulate]
        ]
        assert torch.cat(pass_).sort().values.tolist() == [*range(10)]


class Told(TransformersEngine):
    """Notes which version of the policy it was told of before it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: list[int] = []

    def generate(self, *asked: Any) -> Completions:
        self.versions.append(self.version)
        return super().generate(*asked)


def test_the_engine_is_told_of_each_new_policy_before_it_writes() -> None:
    engine = Told()
    watch, _ = run(data(engine=engine))
    assert engine.versions == [*range(6)]
    assert [step.fresh.version.unique().tolist() for step in watch.steps] == [[n] for n in range(6)]


class Noise(Callback):
    """Takes from the global stream of random numbers."""

    def on_train_batch_end(self, *_: Any) -> None:
        torch.rand(7)


def test_what_is_random_in_an_update_depends_on_its_step_alone() -> None:
    # Clip-Cov chooses tokens at random, within training_step.
    objective = PolicyObjective(covariance="clip", covariance_share=0.3, covariance_low=-9.0)
    losses = [
        [float(b["loss"]) for b in run(data(inner_epochs=2), *more, objective=objective)[0].batches]
        for more in ((), (Noise(),))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) > 6


class Offered(RolloutBuffer):
    """Notes the versions of the groups that it is offered."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.versions: list[list[int]] = []

    def add(self, groups: RolloutGroups) -> Any:
        self.versions.append(groups.version.tolist())
        return super().add(groups)


def test_a_group_is_offered_to_the_replay_once() -> None:
    replay = Offered(64)
    module = data(replay=replay, replay_fraction=0.5, steps_per_epoch=8)
    watch, _ = run(module, RolloutReplay(), max_epochs=1)
    assert any(len(step.keys) for step in watch.steps)
    assert replay.versions == [[n] * len(step.fresh) for n, step in enumerate(watch.steps)]


def test_some_of_a_step_is_always_fresh() -> None:
    module = data(replay=RolloutBuffer(64), replay_fraction=0.99, steps_per_epoch=8)
    watch, _ = run(module, RolloutReplay(), max_epochs=1)
    replayed = [len(step.keys) for step in watch.steps]
    assert max(replayed) == 5  # of 6 groups
    assert all(len(step.fresh) == 6 - n for step, n in zip(watch.steps, replayed, strict=True))


def test_a_groups_rollouts_stand_together_if_asked_longest_group_first() -> None:
    groups = _groups()
    total = groups.prompt_lengths[groups.group] + groups.lengths
    longest = [int(total[groups.group == g].max()) for g in range(len(groups))]
    (part,) = parts(
        groups, torch.ones(10, dtype=torch.bool), Layout(1, 1, 1, 0, 1), 0, together=True
    )
    order = groups.group[part.rollouts].unique_consecutive().tolist()
    assert sorted(order) == [*range(len(groups))]  # each in one piece
    assert [longest[g] for g in order] == sorted(longest, reverse=True)
    for g in order:
        own = part.rollouts[groups.group[part.rollouts] == g]
        assert total[own].tolist() == sorted(total[own].tolist(), reverse=True)


def test_a_batch_is_laid_out_prompt_then_answer() -> None:
    groups = _groups()
    trained = torch.ones(10, dtype=torch.bool)
    maker = MinibatchBuilder(groups, trained, 4, pad=-1, more={"old": groups.log_probs * 2})
    part = next(iter(parts(groups, trained, Layout(1, 1, 1, 0, 1), 0)))
    batch = maker.batch(part)
    starts = groups.lengths.cumsum(0) - groups.lengths
    prompts = torch.split(groups.prompt_tokens, groups.prompt_lengths.tolist())
    for row, rollout in enumerate(part.rollouts.tolist()):
        group = int(groups.group[rollout])
        said = groups.tokens[starts[rollout] : starts[rollout] + groups.lengths[rollout]]
        whole = torch.cat([prompts[group], said]).long()
        ids = batch["input_ids"][row]
        assert ids[: len(whole)].equal(whole)
        assert ids[len(whole) :].eq(-1).all()
        own = batch["sequence"] == row
        assert batch["target"][own].equal(said.long())
        assert batch["old"][own].equal(batch["behavior_log_probs"][own] * 2)
        places = batch["position"][own] - row * batch["input_ids"].shape[1]
        assert places.tolist() == [*range(len(prompts[group]) - 1, len(whole) - 1)]
        assert int(batch["index"][row]) == int(groups.prompt[group])
        assert int(batch["age"][row]) == 4 - int(groups.version[group])
        assert float(batch["weight"][row]) == float(groups.weight[group])


def test_micro_batches_add_up_to_the_update() -> None:
    groups = _groups()
    trained = torch.ones(10, dtype=torch.bool)

    def total(accumulate: int, ranks: int, kind: Any) -> float:
        found = 0.0
        for rank in range(ranks):
            for part in parts(groups, trained, Layout(1, 1, accumulate, rank, ranks), 0):
                batch = MinibatchBuilder(groups, trained, 4, pad=0, more={}).batch(part)
                losses = batch["target"].double().square() + 1
                count = batch["sequence_count" if kind == "grpo" else "token_count"]
                sequence, size = batch["sequence"], len(batch["index"])
                loss = aggregate_losses(losses, sequence, size, loss_type=kind, count=float(count))
                found += float(loss) / accumulate / ranks
        return found

    for kind in ("grpo", "dapo"):
        whole = total(1, 1, kind)
        assert total(3, 1, kind) == pytest.approx(whole)
        assert total(2, 3, kind) == pytest.approx(whole)  # one rank has an empty micro-batch


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"group_size": 0}, "group_size is 0; it must be at least 1"),
        ({"replay_fraction": 0.5}, "replay_fraction is 0.5, but there is no replay"),
        ({"replay_fraction": 1.0}, r"replay_fraction is 1.0; it must lie in \[0, 1\)"),
        ({"sampling": SamplingParams(5, temperature=0.0)}, "temperature is 0.0; greedy answers"),
        ({"minibatches": 7}, "minibatches is 7, a step has 6 groups"),
        ({"overlong_cache": 9}, "overlong_cache is 9; answers have at most 5 tokens"),
    ],
)
def test_refuses_before_training(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(**more)


def test_a_replay_that_nobody_fills_is_refused() -> None:
    with pytest.raises(ValueError, match=r"add callbacks\.RolloutReplay"):
        run(data(replay=RolloutBuffer(64), replay_fraction=0.5))


def test_another_module_is_refused_by_name() -> None:
    from lit_adaptive.modules import IWSFT

    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"train lit_adaptive\.modules\.GRPO"):
        trainer.fit(IWSFT(ConfiguredLM(), objective="nll"), data())


class Silent(TransformersEngine):
    """Forgets the log-probabilities, in one way or another."""

    def __init__(self, forget: Any) -> None:
        super().__init__()
        self.forget = forget

    def generate(self, *asked: Any) -> Completions:
        found = super().generate(*asked)
        return found._replace(log_probs=self.forget(found.log_probs))


def test_groups_that_the_objective_refuses_are_refused_before_any_answer() -> None:
    engine = Told()
    for objective in (PolicyObjective(), PolicyObjective(scale="none", leave_one_out=True)):
        with pytest.raises(ValueError, match=r"group_size is 1, .* generate at least 2"):
            run(data(group_size=1, engine=engine), objective=objective)
    assert engine.versions == []
    run(data(group_size=1), objective=PolicyObjective(scale="none"), max_epochs=1)


@pytest.mark.parametrize(
    "forget",
    [
        lambda given: None,
        lambda given: [None] * len(given),
        lambda given: given[:-1],
        lambda given: [each[:0] for each in given],
        lambda given: [each * torch.nan for each in given],
    ],
    ids=["none", "nones", "too few", "empty", "nan"],
)
def test_an_engine_without_log_probs_is_refused(forget: Any) -> None:
    with pytest.raises(ValueError, match="Silent gave no finite log-probability"):
        run(data(engine=Silent(forget)))


def test_a_replay_of_another_model_is_refused() -> None:
    buffer = RolloutBuffer(64)
    run(data(replay=buffer, replay_fraction=0.5), RolloutReplay(), max_epochs=1)
    assert len(buffer)
    other = RolloutDataModule(
        PromptDataset(Arithmetic("train", size=60, seed=2)), replay=buffer,
        replay_fraction=0.5, sampling=SamplingParams(5), rewards=Scorer([Varied()], workers=0),
    )  # fmt: skip
    with pytest.raises(ValueError, match="another"):
        run(other, RolloutReplay(), max_epochs=1)


def test_a_group_of_one_with_a_deviation_is_refused() -> None:
    with pytest.raises(ValueError, match="group"):
        run(data(group_size=1), objective=PolicyObjective(scale="group"))
