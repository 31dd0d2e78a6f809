"""Callback of the tests of vLLM: records rollouts, and their probabilities in training."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_adaptive.rollout import SamplingParams, TransformersEngine


class RolloutRecorder(Callback):
    """Writes each step's completions, and the greatest difference of a log-probability.

    Needs: ``data.step``. Changes: nothing.

    Args:
        file: to append a line of JSON per step to.
        kill: process to kill after the first step's rollouts.
    """

    def __init__(self, file: str, kill: int | None = None) -> None:
        self.file, self.kill = Path(file), kill

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        data: Any = trainer.datamodule
        with torch.no_grad(), module.decoding():
            scores, _ = module.policy.score_targets(batch, temperature=batch["temperature"])
        if self.kill is not None and data.step.number == 0:
            os.kill(self.kill, signal.SIGKILL)
        greedy = SamplingParams(12, temperature=0.0)
        prompt = data.dataset.tokens(torch.tensor([0]))
        engines: list[Any] = [data.engine, TransformersEngine()]
        engines[1].attach(module)
        completions = [engine.generate(prompt, 1, greedy, [0]).tokens for engine in engines]
        groups = data.step.groups
        line = {
            "step": data.step.number,
            "version": groups.version.tolist(),
            "tokens": groups.tokens.tolist(),
            "difference": float((scores.log_prob - batch["behavior_log_probs"]).abs().max()),
            "greedy": [rows[0].tolist() for rows in completions],
        }
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")
