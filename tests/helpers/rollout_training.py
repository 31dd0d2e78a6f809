"""A small GRPO training, shared by the tests of callbacks for rollouts."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, seed_everything
from quiet_trainer import quiet_trainer

from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer


class EvenLength(Reward):
    """``high`` for completions of an even number of characters, 0 for others."""

    def __init__(self, high: float = 1.0) -> None:
        self.high = high

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        return [self.high * (len(text) % 2 == 0) for text in completions]


class StepRecorder(Callback):
    """Records the finished rollout steps."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.datamodule.finished_step is not None:
            self.steps.append(trainer.datamodule.finished_step)


def fit_rollouts(
    *callbacks: Callback,
    folder: Path,
    high: float = 1.0,
    learning_rate: float = 1e-3,
    **options: Any,
) -> tuple[list[Any], GRPO, RolloutDataModule]:
    """Train for six rollout steps of four prompts; returns the steps, the model and the data."""
    seed_everything(3, verbose=False)
    recorder = StepRecorder()
    data = RolloutDataModule(
        PromptDataset(Arithmetic("train", size=12), columns=["answer"]),
        batch_size=4,
        group_size=4,
        sampling=SamplingParams(5),
        steps_per_epoch=6,
        rewards=Scorer([EvenLength(high)], workers=0),
        seed=5,
        **options,
    )
    model = GRPO(
        ConfiguredLM(hidden_size=32, layers=1, heads=2),
        optimization=Optimization(learning_rate=learning_rate),
        max_new_tokens=5,
    )
    trainer = quiet_trainer(
        max_epochs=1,
        log_every_n_steps=1,
        accumulate_grad_batches=2,
        default_root_dir=folder,
        callbacks=[*callbacks, recorder],
    )
    trainer.fit(model, data)
    return recorder.steps, model, data
