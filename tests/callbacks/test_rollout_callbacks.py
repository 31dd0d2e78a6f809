"""RolloutReplay, PromptStatistics and SupervisedWarmup, with a real module and trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from callbacks import PromptStatistics, RolloutReplay, SupervisedWarmup
from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule, read_scores
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization
from lit_adaptive.replay import RolloutBuffer
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer
from lit_adaptive.samplers import PrioritizedSampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


class Even(Reward):
    """``high`` for completions of an even number of characters."""

    def __init__(self, high: float = 1.0) -> None:
        self.high = high

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        return [self.high * (len(text) % 2 == 0) for text in completions]


class Steps(Callback):
    """Keeps the steps that are over."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.datamodule.finished_step is not None:
            self.steps.append(trainer.datamodule.finished_step)


def run(
    *callbacks: Callback, folder: Path, high: float = 1.0, rate: float = 1e-3, **more: Any
) -> tuple[Steps, GRPO, RolloutDataModule]:
    seed_everything(3, verbose=False)
    steps = Steps()
    module = RolloutDataModule(
        PromptDataset(Arithmetic("train", size=12), columns=["answer"]),
        batch_size=4,
        group_size=4,
        sampling=SamplingParams(5),
        steps_per_epoch=6,
        rewards=Scorer([Even(high)], workers=0),
        seed=5,
        **more,
    )
    model = GRPO(
        ConfiguredLM(hidden_size=32, layers=1, heads=2),
        optimization=Optimization(learning_rate=rate),
        max_new_tokens=5,
    )
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        accumulate_grad_batches=2,
        default_root_dir=folder,
        callbacks=[*callbacks, steps],
    )
    trainer.fit(model, module)
    return steps, model, module


def test_each_step_is_kept_once_when_it_is_over(tmp_path: Path) -> None:
    buffer = RolloutBuffer(64, deduplicate=False)
    steps, _, _ = run(RolloutReplay(), folder=tmp_path, replay=buffer)
    assert len(steps.steps) == 6
    informative = sum(
        int(((s.fresh.mean_reward > 0) & (s.fresh.mean_reward < 1)).sum()) for s in steps.steps
    )
    counters = buffer.counters
    assert len(buffer) == informative
    assert counters["dropped_solved"] + counters["dropped_failed"] == 24 - informative


def test_statistics_are_moving_means_and_priorities_follow_them(tmp_path: Path) -> None:
    statistics = PromptStatistics(decay=0.5, epsilon=0.02)
    steps, _, module = run(statistics, folder=tmp_path, sampler=PrioritizedSampler)
    mean: dict[int, float] = {}
    visits = torch.zeros(12, dtype=torch.int64)
    for step in steps.steps:
        for prompt, rate in zip(
            step.fresh.prompt.tolist(), step.fresh.mean_reward.tolist(), strict=True
        ):
            mean[prompt] = rate if prompt not in mean else (mean[prompt] + rate) / 2
            visits[prompt] += 1
    for prompt, rate in mean.items():
        assert float(statistics.mean[prompt]) == pytest.approx(rate)
        expected = rate * (1 - rate) + 0.02
        assert float(module.sampler.scores()[prompt]) == pytest.approx(expected, rel=1e-5)  # type: ignore[attr-defined]
    assert statistics.visits.equal(visits)
    written = read_scores(tmp_path / "prompt_statistics.csv")
    assert len(written.id) == len(mean)


def test_statistics_survive_a_checkpoint(tmp_path: Path) -> None:
    one, other = PromptStatistics(), PromptStatistics()
    run(one, folder=tmp_path)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.visits, other.visits)
    torch.testing.assert_close(one.mean, other.mean, equal_nan=True)


def test_rates_outside_zero_and_one_are_refused_but_not_for_spread(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learnability is made of rates"):
        run(PromptStatistics(), folder=tmp_path, high=5.0, sampler=PrioritizedSampler)
    spread = PromptStatistics("spread")
    run(spread, folder=tmp_path, high=5.0, sampler=PrioritizedSampler)
    assert float(spread.mean.nan_to_num().max()) > 1


def test_warm_up_teaches_before_the_first_step_and_leaves_random_streams_alone(
    tmp_path: Path,
) -> None:
    shown = Arithmetic("train", size=12)
    cold, _, _ = run(folder=tmp_path, rate=1e-30)
    none, _, _ = run(SupervisedWarmup(shown, steps=0), folder=tmp_path, rate=1e-30)
    warm, _, module = run(
        SupervisedWarmup(shown, steps=150, batch_size=12, learning_rate=1e-2),
        folder=tmp_path,
        rate=1e-30,
    )
    for one, other in zip(cold.steps, none.steps, strict=True):
        assert one.fresh.tokens.equal(other.fresh.tokens)
        assert one.fresh.prompt.equal(other.fresh.prompt)
    right = [
        text == row["answer"]
        for text, row in zip(
            module.dataset.decoded(
                torch.split(warm.steps[0].fresh.tokens, warm.steps[0].fresh.lengths.tolist())
            ),
            [r for r in module.texts(warm.steps[0].fresh.prompt) for _ in range(4)],
            strict=True,
        )
    ]
    assert sum(right) / len(right) > 0.6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptStatistics(decay=1.0), r"decay is 1.0; it must lie in \[0, 1\)"),
        (lambda: PromptStatistics(epsilon=0.0), "epsilon is 0.0; it must be above 0"),
        (lambda: PromptStatistics(file="a.txt"), "must end in .csv or .parquet"),
        (lambda: SupervisedWarmup(steps=-1), "steps is -1"),
        (lambda: SupervisedWarmup(batch_size=0), "batch_size is 0"),
        (lambda: SupervisedWarmup(learning_rate=0.0), "learning_rate is 0.0"),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_replay_without_a_buffer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the datamodule a replay"):
        run(RolloutReplay(), folder=tmp_path)
