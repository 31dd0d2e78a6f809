"""Success statistics of prompts, and their feedback to the sampler."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._run_files import local_run_directory
from lit_adaptive.core.freshness import learnability
from lit_adaptive.data.sources.scores import write_scores
from lit_adaptive.samplers.base import renumbered

PrioritySignal = Literal["learnability", "failure", "spread", "pass_rate"]


class PromptStatistics(Callback):
    """Tracks each prompt's mean reward, and updates the sampler's priorities if it learns.

    The mean is exponential: ``decay * mean + (1 - decay) * new``, where ``new`` is the mean reward
    of the prompt's latest group; the first group sets it. Logs ``train/prompts/seen_unique`` and
    ``train/prompts/mean_reward``.

    Needs: ``data.finished_step``.
    Changes: the sampler's priorities, if it learns (``duty.feedback``). Writes
        ``prompt_statistics.csv`` (``id`` and ``score``: the mean reward) at the end.

    Args:
        signal: what becomes the priority. ``learnability`` is p (1 - p) of the mean reward p, to
            which the squared gradient of a group is proportional (Sun et al., 2025,
            arXiv:2506.05316, theorem 1); ``failure`` is 1 - p, which prefers hard prompts (Kimi
            k1.5); ``spread`` is the standard deviation of the latest group's rewards, the only
            signal for rewards outside [0, 1]; ``pass_rate`` is the mean reward of the latest group,
            for ``DifficultySampler`` and ``GRESOSampler``, which keep statistics of their own.
        decay: decay rate of the mean, in [0, 1).
        epsilon: constant added to each priority (not to pass rates), so that every prompt can be
            drawn; above 0.
        file: file name in the run's directory that ends in ``.csv`` or ``.parquet``; None writes
            no file.

    Raises:
        ValueError: if an argument is out of range, or rewards do not suit the signal.
    """

    needs = frozenset({"data.finished_step"})
    provides = frozenset({"duty.feedback"})
    remedies = {  # noqa: RUF012
        "data.finished_step": "use lit_adaptive.data.RolloutDataModule",
    }

    def __init__(
        self,
        signal: PrioritySignal = "learnability",
        decay: float = 0.5,
        epsilon: float = 0.01,
        file: str | None = "prompt_statistics.csv",
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                f"decay is {decay}; it must lie in [0, 1) (0 keeps only the latest group)"
            )
        if not 0 < epsilon < math.inf:
            raise ValueError(
                f"epsilon is {epsilon}; it must be above 0 and finite, or solved prompts are "
                "never drawn again"
            )
        if file is not None and Path(file).suffix.lower() not in (".csv", ".parquet"):
            raise ValueError(f"file is {file!r}; it must end in .csv or .parquet")
        self.signal: PrioritySignal = signal
        self.decay, self.epsilon, self.file = decay, epsilon, file
        self.mean = torch.empty(0)
        self.visits = torch.empty(0, dtype=torch.int64)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Allocate one entry per prompt, or check those of a checkpoint."""
        sampler: Any = trainer.datamodule.sampler  # type: ignore[attr-defined]
        size: int = sampler.size
        rates = sampler.learns and sampler.takes_pass_rates
        if sampler.learns and rates != (self.signal == "pass_rate"):
            remedy = "pass rates: set signal to pass_rate"
            if not rates:
                remedy = "priorities: set signal to learnability, failure or spread"
            raise ValueError(
                f"signal is {self.signal!r}, but {type(sampler).__name__} learns from {remedy}"
            )
        rows: Tensor | None = trainer.datamodule.checkpoint_rows  # type: ignore[attr-defined]
        if rows is not None and len(self.mean):
            self.mean = renumbered(self.mean, rows, torch.full((size,), torch.nan))
            self.visits = renumbered(self.visits, rows, torch.zeros(size).long())
        if len(self.mean) == 0:
            self.mean, self.visits = torch.full((size,), torch.nan), torch.zeros(size).long()
        elif len(self.mean) != size:
            raise ValueError(
                f"the checkpoint has statistics of {len(self.mean)} prompts, the dataset has "
                f"{size}: resume with the same dataset"
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Update the statistics and priorities from the fresh groups of a finished step."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        step = data.finished_step
        if step is None:
            return
        prompt, latest, deviation = self._observe(step.fresh)
        if data.sampler.learns and len(prompt):
            data.update({"index": prompt}, self._priority(prompt, latest, deviation))
        log_interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if log_interval and trainer.global_step % log_interval == 0:
            known = self.mean[~self.mean.isnan()]
            metrics = {"train/prompts/seen_unique": float((self.visits > 0).sum())}
            if len(known):
                metrics["train/prompts/mean_reward"] = float(known.mean())
            pl_module.log_dict(metrics)

    def _observe(self, fresh: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Update means and visits from groups.

        Returns:
            Prompts whose mean changed ``[k]``, and mean and standard deviation of the rewards of
            the latest group of each ``[k]``.
        """
        group_mean = fresh.mean_reward.float()
        group_deviation = learnability(fresh.reward, fresh.group, len(fresh)).sqrt().float()
        latest: dict[int, float] = {}
        deviation: dict[int, float] = {}
        for group, prompt in enumerate(fresh.prompt.tolist()):
            self.visits[prompt] += 1
            new, mean = float(group_mean[group]), float(self.mean[prompt])
            if new != new:  # no reward applies to any of its completions
                continue
            first = mean != mean
            self.mean[prompt] = new if first else self.decay * mean + (1 - self.decay) * new
            latest[prompt], deviation[prompt] = new, float(group_deviation[group])
        prompts = torch.tensor([*latest], dtype=torch.int64)
        return prompts, torch.tensor([*latest.values()]), torch.tensor([*deviation.values()])

    def _priority(self, prompt: Tensor, latest: Tensor, deviation: Tensor) -> Tensor:
        if self.signal == "pass_rate":
            return latest.double()
        if self.signal == "spread":
            return deviation.double() + self.epsilon
        mean = self.mean[prompt]
        outside = (mean < 0) | (mean > 1)
        if bool(outside.any()):
            raise ValueError(
                f"the mean rewards of prompts {prompt[outside][:8].tolist()} are "
                f"{mean[outside][:8].tolist()}, but signal {self.signal} requires rewards in "
                "[0, 1]: set signal to spread, or scale the rewards"
            )
        failure = 1 - mean.double()
        return (mean * failure if self.signal == "learnability" else failure) + self.epsilon

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the mean rewards of the prompts that have one."""
        if self.file is None or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        known = (~self.mean.isnan()).nonzero().flatten()
        if len(known):
            ids = data.ids
            known_ids = ids[known] if isinstance(ids, Tensor) else [ids[i] for i in known.tolist()]
            path = local_run_directory(trainer) / self.file
            write_scores(path, known_ids, self.mean[known].double())

    def state_dict(self) -> dict[str, Any]:
        """Mean reward and number of visits of every prompt."""
        return {"mean": self.mean.clone(), "visits": self.visits.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the statistics."""
        self.mean, self.visits = state_dict["mean"].clone(), state_dict["visits"].clone()
