"""DifficultyRefresh: references are rolled out, counted, trained on, and every prompt predicted."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from quiet_trainer import quiet_trainer
from resumed_runs import assert_same
from rollout_runs import AlwaysWrong, StepRecorder, fit_rollouts, rollout_data
from torch import Tensor

from callbacks import DifficultyRefresh, PromptStatistics, RolloutReplay
from lit_adaptive.core import segment_mean
from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.modules import (
    GRPO,
    ConfiguredLM,
    Optimization,
    PassRateModule,
    PolicyObjective,
)
from lit_adaptive.modules.difficulty_predictor import DifficultyPredictor, predictor_loss
from lit_adaptive.replay import RolloutBuffer, RolloutGroups
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer
from lit_adaptive.samplers import DifficultySampler, ShuffledSampler, UniformSampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

DOTS = partial(DifficultySampler, group_size=4, window=2)


def refresh(**options: Any) -> DifficultyRefresh:
    return DifficultyRefresh(**({"references": 10, "hidden_size": 16, "file": None} | options))


def feedback() -> PromptStatistics:
    return PromptStatistics(signal="pass_rate", file=None)


def run(
    callback: DifficultyRefresh, *more: Callback, data: dict[str, Any] | None = None, **options: Any
) -> tuple[StepRecorder, RolloutDataModule]:
    module = rollout_data(**({"sampler": DOTS} | (data or {})))
    recorder, _ = fit_rollouts(module, feedback(), callback, *more, **options)
    return recorder, module


class Digits:
    """Embeds a text as its counts of characters."""

    key = "digits"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, texts: list[str]) -> Tensor:
        self.calls += 1
        return torch.tensor([[float(text.count(c)) for c in "0123456789+-"] for text in texts])


def test_every_second_step_begins_with_references_and_trains_on_the_informative_ones() -> None:
    recorder, module = run(refresh())
    assert [step.number for step in recorder.steps] == [*range(6)]
    for step in recorder.steps:
        groups, fresh = step.groups, step.fresh
        informative = int((fresh.reward.view(-1, 4)[:10].std(1) > 0).sum())
        if step.number % 2:
            assert len(fresh) == 6
        else:
            assert len(fresh) == 10 + 6 - min(informative, 6)
            assert (
                groups.prompt[: min(informative, 6)].tolist()
                == [
                    prompt
                    for row, prompt in enumerate(fresh.prompt[:10].tolist())
                    if fresh.reward.view(-1, 4)[row].std() > 0
                ][:6]
            )
        assert len(groups) == 6
        assert set(fresh.version.tolist()) == {step.number}  # on policy
        assert len(set(fresh.prompt.tolist())) == len(fresh)  # references are left out of draws
    rollouts = sum(len(step.fresh) for step in recorder.steps) * 4
    assert module.counters["rollouts"] == rollouts
    tokens = sum(int(step.fresh.lengths.sum()) for step in recorder.steps)
    assert module.counters["generated_tokens"] == tokens


def test_references_need_not_be_trained_on() -> None:
    recorder, _ = run(refresh(train_on_references=False))
    assert [len(step.fresh) for step in recorder.steps] == [16, 6, 16, 6, 16, 6]
    for step in recorder.steps[::2]:
        assert step.groups.prompt.tolist() == step.fresh.prompt[10:].tolist()


class EvenOperands(Reward):
    """1 if the first operand of the question is even, whatever the answer, for 3 of 4 rollouts."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        even = [int(prompt.split("+")[0].split("-")[0]) % 2 == 0 for prompt in prompts]
        return [float(one and row % 4 > 0) for row, one in enumerate(even)]


class FirstDigit:
    """Embeds a question by the parity of its first operand, and noise."""

    key = "parity"

    def __call__(self, texts: list[str]) -> Tensor:
        even = [float(int(text.split("+")[0].split("-")[0]) % 2 == 0) for text in texts]
        noise = torch.randn(len(texts), 3, generator=torch.Generator().manual_seed(0))
        return torch.cat([torch.tensor(even)[:, None] * 4, noise], 1)


def test_prompts_that_were_never_visited_are_predicted_from_the_references() -> None:
    # Half of the prompts are solved in three of four rollouts, the others never.
    callback = refresh(encoder=FirstDigit(), updates=60, learning_rate=3e-3)
    recorder, module = run(
        callback, data={"rewards": Scorer([EvenOperands()], workers=0)}, max_epochs=4
    )
    sampler: Any = module.sampler
    texts = [row["prompt"] for row in module.dataset.texts(torch.arange(60))]
    even = torch.tensor([int(t.split("+")[0].split("-")[0]) % 2 == 0 for t in texts])
    unseen = (sampler.estimator.successes + sampler.estimator.failures) == 0
    predicted = sampler.estimator.prediction
    assert predicted[even].min() > predicted[~even].max()
    assert predicted[even].mean() > 0.6
    assert predicted[~even].mean() < 0.2
    assert bool(unseen.any())
    last = recorder.steps[-1].fresh.prompt
    assert bool(even[last].all())  # drawn near one half: no hopeless prompt
    assert callback._pool[-1].sum() == 60


def test_it_logs_how_good_the_predictions_are(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    run(refresh(file="difficulty.png"), logger=logger)
    logger.save()
    header, *lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    names = {name for name in header.split(",") if name.startswith("train/difficulty/")}
    expected = {"pearson", "spearman", "calibration", "precision", "precision_bound"}
    expected |= {"precision_random", "informative", "reference_tokens"}
    assert names == {f"train/difficulty/{name}" for name in expected}
    column = header.split(",").index("train/difficulty/reference_tokens")
    values = [float(line.split(",")[column]) for line in lines if line.split(",")[column]]
    assert values == sorted(values)
    assert len({*values}) == 3
    assert (Path(logger.log_dir) / "difficulty.png").stat().st_size > 10_000


def test_without_references_the_latest_groups_serve() -> None:
    recorder, module = run(refresh(references=0))
    assert [len(step.fresh) for step in recorder.steps] == [6] * 6
    sampler: Any = module.sampler
    assert float(sampler.estimator.prediction.std()) > 0


def test_few_references_are_supplemented_by_earlier_observations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[int] = []
    original = DifficultyPredictor.predict

    def predict(self: Any, query: Tensor, reference: Tensor, rate: Tensor, **rest: Any) -> Tensor:
        if len(query) == 60:  # all prompts
            counts.append(len(reference))
        return original(self, query, reference, rate, **rest)

    monkeypatch.setattr(DifficultyPredictor, "predict", predict)
    monkeypatch.setattr("callbacks.difficulty_refresh._ATTENDED", 40)
    run(refresh())
    # 10 references; then 2 steps of 6 groups, of which 4 are informative references, and 10 more.
    assert counts[:3] == [10, 28, 40]


class Unrelated:
    """Embeds texts as random vectors, which say nothing about pass rates."""

    key = "unrelated"

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.randn(len(texts), 64, generator=torch.Generator().manual_seed(0))


def test_no_prompt_is_predicted_or_learnt_from_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing can be predicted here but by attention of a prompt to its own observation.
    shared: list[int] = []

    def watched(
        predictor: Any, query: Tensor, target: Tensor, reference: Tensor, *rest: Any
    ) -> Any:
        shared.append(int((query[:, None] == reference).all(2).sum()))
        return predictor_loss(predictor, query, target, reference, *rest)

    monkeypatch.setattr("callbacks.difficulty_refresh.predictor_loss", watched)
    logger = CSVLogger(tmp_path)
    options = {"updates": 4, "learning_rate": 1e-9, "hidden_size": 64}
    callback = refresh(references=20, encoder=Unrelated(), **options)
    rewards = Scorer([EvenOperands()], workers=0)
    run(callback, data={"rewards": rewards}, max_epochs=4, logger=logger)
    logger.save()
    header, *lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("train/difficulty/pearson")
    pearson = [float(line.split(",")[column]) for line in lines if line.split(",")[column]]
    assert sum(pearson) / len(pearson) < 0.4  # 0.9 of prompts that attend to themselves
    assert len(shared) == 24
    assert not any(shared)


def test_a_run_starts_from_a_predictor_that_was_trained_before(tmp_path: Path) -> None:
    # It predicts by the parity alone before it has learnt anything in the run.
    torch.manual_seed(0)
    module = PassRateModule(4, hidden_size=16)
    vectors = FirstDigit()([f"{number}+1=" for number in range(400)])
    rates = vectors[:, 0] / 4 * 0.75
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(150):
        known, asked = torch.randperm(400)[:80].split(40)
        loss = predictor_loss(
            module.predictor, vectors[asked], rates[asked], vectors[known], rates[known]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path / "offline.ckpt"
    torch.save({"state_dict": module.state_dict()}, path)
    gaps: list[float] = []
    for weights in (None, str(path)):
        callback = refresh(encoder=FirstDigit(), updates=0, weights=weights)
        data = {"rewards": Scorer([EvenOperands()], workers=0), "steps_per_epoch": 1}
        _, rollouts = run(callback, data=data, max_epochs=1)
        sampler: Any = rollouts.sampler
        texts = [row["prompt"] for row in rollouts.dataset.texts(torch.arange(60))]
        even = FirstDigit()(texts)[:, 0] > 0
        predicted = sampler.estimator.prediction
        gaps.append(float(predicted[even].mean() - predicted[~even].mean()))
    assert gaps[1] > 0.5
    assert gaps[1] > gaps[0] + 0.1


def saved_run(folder: Path, replay: str | None, ckpt_path: str | None = None) -> dict[str, Any]:
    """Train two epochs of three steps, with a checkpoint after each; the end of the run."""
    seed_everything(3, verbose=False)
    more = [RolloutReplay()] if replay else []
    options: dict[str, Any] = {}
    if replay:
        options = {"replay": RolloutBuffer(16, policy=replay), "replay_fraction": 0.5}  # type: ignore[arg-type]
    recorder, callback = StepRecorder(), refresh(replay_priorities=replay == "fresh")
    model = GRPO(
        ConfiguredLM(hidden_size=32, layers=1, heads=2),
        optimization=Optimization(learning_rate=1e-3),
        max_new_tokens=5,
    )
    trainer = quiet_trainer(
        max_epochs=2,
        callbacks=[
            *(feedback(), callback, *more, recorder),
            ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1),
        ],
        enable_checkpointing=True,
    )
    trainer.fit(model, rollout_data(sampler=DOTS, **options), ckpt_path=ckpt_path)
    assert callback.predictor is not None
    return {
        "weights": torch.cat([p.detach().flatten() for p in model.policy.parameters()]),
        "prompts": [step.fresh.prompt.tolist() for step in recorder.steps],
        "predictor": callback.predictor.state_dict(),
        "pool": callback._pool,
    }


@pytest.mark.parametrize("replay", [None, "uniform", "fresh"])
def test_a_run_killed_twice_ends_as_the_uninterrupted_one(
    tmp_path: Path, replay: str | None
) -> None:
    whole = saved_run(tmp_path / "whole", replay)
    _ = saved_run(tmp_path / "once", replay, str(tmp_path / "whole" / "step=1.ckpt"))
    twice = saved_run(tmp_path / "twice", replay, str(tmp_path / "once" / "step=4.ckpt"))
    assert twice["prompts"] == whole["prompts"][4:]
    for name in ("weights", "predictor", "pool"):
        assert_same(twice[name], whole[name])


class ReplayRecorder(Callback):
    """Groups in the replay, their probabilities, and all estimates, after every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[RolloutGroups, Tensor, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        data = trainer.datamodule
        if data.finished_step is not None:
            buffer = data.replay
            rates = data.sampler.pass_rates()
            self.steps.append((buffer.groups(), buffer.probabilities()[1], rates))


def test_replay_priorities_are_multiplied_by_the_estimated_signal() -> None:
    # |A| times p (1 - p) of the pass rates as they were estimated at the latest refresh.
    buffer = RolloutBuffer(24, policy="prioritized", alpha=1.0)
    recorder = ReplayRecorder()
    options = {"replay": buffer, "replay_fraction": 0.5, "steps_per_epoch": 4}
    run(refresh(replay_priorities=True), RolloutReplay(), recorder, data=options, max_epochs=1)
    for step in (1, 2):  # a refresh follows step 1; in step 2 the estimates move, not the factors
        groups, probability, _ = recorder.steps[step]
        p = recorder.steps[1][2][groups.prompt]
        advantage = segment_mean(groups.advantage.abs().double(), groups.group, len(groups))
        expected = (advantage + 1e-6) * p * (1 - p)
        assert len(groups) > 4
        torch.testing.assert_close(probability, expected / expected.sum())


def test_an_encoder_is_asked_once_and_its_embeddings_are_kept(tmp_path: Path) -> None:
    first, second = Digits(), Digits()
    run(refresh(encoder=first, cache_dir=str(tmp_path)), max_epochs=1)
    run(refresh(encoder=second, cache_dir=str(tmp_path)), max_epochs=1)
    assert (first.calls, second.calls) == (1, 0)
    assert len([*tmp_path.glob("embeddings-*.npy")]) == 1


def test_a_checkpoint_of_another_encoder_is_refused() -> None:
    callback = refresh()
    run(callback, max_epochs=1)
    with pytest.raises(ValueError, match=r"policy's hidden states\", this run's of 'digits'"):
        refresh(encoder=Digits()).load_state_dict(callback.state_dict())


def test_all_references_failed_is_survived() -> None:
    recorder, _ = run(refresh(), data={"rewards": Scorer([AlwaysWrong()], workers=0)})
    assert all(len(step.groups) == 6 for step in recorder.steps)


class Long(Reward):
    """2 for every completion."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        return [2.0 for _ in completions]


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"references": 61}, {}, "references is 61, but there are 60 prompts"),
        ({}, {"rewards": Scorer([Long()], workers=0)}, "rewards of .*2.0.*spread"),
        ({"replay_priorities": True}, {}, "replay_priorities is true, but .*policy to prioritized"),
        ({"replay_priorities": True}, {"replay": RolloutBuffer(9)}, "replay_priorities is true"),
        ({}, {"sampler": UniformSampler}, "data.sampler to .*DifficultySampler"),
        ({}, {"group_size": 3}, "group_size is 3, but 4 in the sampler"),
    ],
)
def test_runs_that_cannot_work_are_refused(
    options: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(refresh(**options), data=data)


@pytest.mark.parametrize(
    "options",
    [{"every_n_steps": 0}, {"references": -1}, {"learning_rate": 0.0}, {"file": "a.pdf"}],
    ids=str,
)
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is "):
        DifficultyRefresh(**options)


def test_duplicate_prompts_are_rolled_out_like_any_others() -> None:
    rows = [{"prompt": f"{n % 7}+1=", "answer": str(n % 7 + 1)} for n in range(20)]
    dataset = PromptDataset(rows, columns=["answer"])
    module = RolloutDataModule(
        dataset, DOTS, batch_size=4, group_size=4, sampling=SamplingParams(4), steps_per_epoch=2
    )
    recorder, _ = fit_rollouts(module, feedback(), refresh(references=5), max_epochs=1)
    assert len(recorder.steps) == 2


class OnlySevens(Reward):
    """Even lengths are right, but only for questions that begin with 7: a tenth of them."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        pairs = zip(prompts, completions, strict=True)
        return [float(prompt[0] == "7" and len(text) % 2 == 0) for prompt, text in pairs]


class TokensUntil(Callback):
    """The generated tokens after which questions that begin with 7 are solved by a share."""

    def __init__(self, share: float) -> None:
        self.share, self.tokens = share, float("inf")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        data = trainer.datamodule
        if trainer.global_step % 5 or self.tokens < float("inf"):
            return
        texts = data.dataset.texts(torch.arange(len(data.dataset)))
        sevens = torch.tensor([i for i, row in enumerate(texts) if row["prompt"][0] == "7"])
        data.engine.attach(pl_module)
        seeds = [*range(len(sevens))]
        answers = data.engine.generate(
            data.dataset.tokens(sevens), 4, SamplingParams(5), seeds
        ).tokens
        even = [len(text) % 2 == 0 for text in data.dataset.decode_completions(answers)]
        if sum(even) / len(even) >= self.share:
            self.tokens = data.counters["generated_tokens"]


def tokens_until(share: float, sampler: Any, *callbacks: Callback) -> float:
    seed_everything(2, verbose=False)
    data = RolloutDataModule(
        PromptDataset(Arithmetic("train", size=400), columns=["answer"]),
        sampler,
        rewards=Scorer([OnlySevens()], workers=0),
        batch_size=8,
        group_size=4,
        sampling=SamplingParams(5),
        steps_per_epoch=70,
        seed=2,
    )
    model = GRPO(
        ConfiguredLM(hidden_size=32, layers=1, heads=2),
        objective=PolicyObjective(scale="none"),
        optimization=Optimization(learning_rate=3e-3),
        max_new_tokens=0,
    )
    meter = TokensUntil(share)
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0, callbacks=[*callbacks, meter])
    trainer.fit(model, data)
    return meter.tokens


@pytest.mark.parametrize("references", [0, 6])
def test_it_learns_from_fewer_generated_tokens_than_uniform_draws(references: int) -> None:
    # References included. Over four seeds and for equal tokens, questions that begin with 7 are
    # solved by 0.54 to 0.76 (no references) and 0.42 to 0.76 (six), and by 0.30 to 0.47 if drawn
    # uniformly; this is the third seed.
    uniform = tokens_until(0.45, ShuffledSampler)
    selected = tokens_until(
        0.45, DOTS, feedback(), refresh(references=references, learning_rate=3e-3)
    )
    assert selected < 0.8 * uniform < float("inf")
