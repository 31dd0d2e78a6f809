"""A small GRPO run on sums, and rewards and groups for its tests."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from quiet_trainer import quiet_trainer
from rollout_training import EvenLength

from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization
from lit_adaptive.replay import RolloutGroups
from lit_adaptive.rollout.engines.transformers import TransformersEngine
from lit_adaptive.rollout.generation import Completions, SamplingParams
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer
from lit_adaptive.samplers import PrioritizedSampler


class AlwaysWrong(Reward):
    """0 for every completion."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        return [0.0 for _ in completions]


class VersionRecorder(TransformersEngine):
    """Records the version of the policy at each call of ``generate``."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: list[int] = []

    def generate(self, *arguments: Any) -> Completions:
        self.versions.append(self.version)
        return super().generate(*arguments)


class StepRecorder(Callback):
    """Records every batch, and every step of rollouts when it is finished."""

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


def rollout_data(demonstration: str | None = None, **options: Any) -> RolloutDataModule:
    """60 questions; options as ``RolloutDataModule`` has them."""
    defaults: dict[str, Any] = {
        "batch_size": 6,
        "group_size": 4,
        "sampling": SamplingParams(5),
        "steps_per_epoch": 3,
        "rewards": Scorer([EvenLength()], workers=0),
        "seed": 5,
    }
    dataset = PromptDataset(
        Arithmetic("train", size=60), columns=["answer"], demonstration=demonstration
    )
    return RolloutDataModule(dataset, **(defaults | options))


class FixedPriorities(PrioritizedSampler):
    """Draws each index with a probability in proportion to index + 1, and learns nothing."""

    learns = False

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(size, **options)
        self.update(torch.arange(size), torch.arange(1.0, size + 1))


def fit_rollouts(
    datamodule: RolloutDataModule, *callbacks: Callback, objective: Any = None, **options: Any
) -> tuple[StepRecorder, GRPO]:
    """Train a tiny model on ``datamodule``; options as ``Trainer`` has them."""
    seed_everything(3, verbose=False)
    recorder = StepRecorder()
    model = GRPO(
        ConfiguredLM(hidden_size=32, layers=1, heads=2),
        objective=objective,
        optimization=Optimization(learning_rate=1e-3),
        max_new_tokens=5,
    )
    trainer = quiet_trainer(
        **({"max_epochs": 2} | options),
        log_every_n_steps=1,
        callbacks=[*callbacks, recorder],
    )
    trainer.fit(model, datamodule)
    return recorder, model


def ragged_groups() -> RolloutGroups:
    """Four groups of 3, 2, 4 and 1 rollouts; one rollout has no tokens."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([3, 2, 4, 1])
    lengths = torch.tensor([1, 5, 2, 3, 0, 4, 4, 1, 2, 6])
    prompt_lengths = torch.tensor([2, 4, 3, 5])
    tokens, prompt_tokens = int(lengths.sum()), int(prompt_lengths.sum())
    return RolloutGroups(
        prompt=torch.tensor([7, 3, 9, 3]),
        version=torch.tensor([4, 4, 2, 0]),
        probability=torch.full((4,), 0.1, dtype=torch.float64),
        weight=torch.tensor([1.0, 2.0, 0.5, 1.0]),
        size=size,
        prompt_tokens=torch.arange(100, 100 + prompt_tokens, dtype=torch.int32),
        prompt_lengths=prompt_lengths,
        tokens=torch.arange(tokens, dtype=torch.int32),
        log_probs=-torch.rand(tokens, generator=generator),
        lengths=lengths,
        reward=torch.rand(10, generator=generator),
        stopped=torch.arange(10) % 3 != 0,
        demonstration=torch.zeros(10, dtype=torch.bool),
        advantage=torch.randn(10, generator=generator),
    )
