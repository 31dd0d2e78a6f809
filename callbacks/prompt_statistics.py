"""How often each prompt is answered rightly, and what that makes of its chance to be drawn."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._jsonl import folder_of_logs
from lit_adaptive.core.freshness import learnability
from lit_adaptive.data.sources.tables import write_scores

Signal = Literal["learnability", "failure", "spread"]


class PromptStatistics(Callback):
    """Follows each prompt's mean reward, and tells the sampler if it learns.

    The mean is a moving one: a group's mean reward counts ``1 - decay``, its first visit wholly.
    ``learnability`` p (1 - p) is greatest for prompts that succeed half of the time, to which the
    squared gradient of a group is proportional (Sun et al., 2025, arXiv:2506.05316, theorem 1);
    ``failure`` 1 - p prefers hard ones (Kimi k1.5); ``spread`` is the standard deviation of the
    last group's rewards. With rewards outside [0, 1] only ``spread`` makes sense.

    Needs: ``data.finished_step``.
    Changes: the sampler's priorities, if it learns; nothing otherwise. Writes
    ``prompt_statistics.csv`` (``id`` and ``score``: the mean reward) at the end.

    Args:
        signal: what becomes the priority.
        decay: of the moving mean, in [0, 1).
        epsilon: added to each priority, so that no prompt is given up; above 0.
        file: ends in ``.csv`` or ``.parquet``, in the run's folder; None: none is written.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    needs = frozenset({"data.finished_step"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "data.finished_step": "use lit_adaptive.data.RolloutDataModule",
    }

    def __init__(
        self,
        signal: Signal = "learnability",
        decay: float = 0.5,
        epsilon: float = 0.01,
        file: str | None = "prompt_statistics.csv",
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must lie in [0, 1) (0: the last visit alone)")
        if not epsilon > 0:
            raise ValueError(
                f"epsilon is {epsilon}; it must be above 0, or solved prompts are lost"
            )
        if file is not None and Path(file).suffix.lower() not in (".csv", ".parquet"):
            raise ValueError(f"file is {file!r}; it must end in .csv or .parquet")
        self.signal: Signal = signal
        self.decay, self.epsilon, self.file = decay, epsilon, file
        self.mean = torch.empty(0)
        self.visits = torch.empty(0, dtype=torch.int64)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One place for each prompt."""
        size: int = trainer.datamodule.sampler.size  # type: ignore[attr-defined]
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
        """Learn from the fresh groups of a step that is over."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        step = data.finished_step
        if step is None:
            return
        prompt, deviation = self._learn(step.fresh)
        if data.sampler.learns and len(prompt):
            data.update({"index": prompt}, self._priority(prompt, deviation))
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            known = self.mean[~self.mean.isnan()]
            found = {"prompts/seen_unique": float((self.visits > 0).sum())}
            if len(known):
                found["prompts/mean_reward"] = float(known.mean())
            pl_module.log_dict({f"train/{name}": value for name, value in found.items()})

    def _learn(self, fresh: Any) -> tuple[Tensor, Tensor]:
        """The prompts whose statistics changed ``[k]``, and their rewards' deviation ``[k]``."""
        mean = fresh.mean_reward.float()
        spread = learnability(fresh.reward, fresh.group, len(fresh)).sqrt().float()
        found: dict[int, float] = {}
        for group, prompt in enumerate(fresh.prompt.tolist()):
            self.visits[prompt] += 1
            now, before = float(mean[group]), float(self.mean[prompt])
            if now != now:  # no reward applied to any of its answers
                continue
            new = now if before != before else self.decay * before + (1 - self.decay) * now
            self.mean[prompt] = new
            found[prompt] = float(spread[group])
        return torch.tensor([*found], dtype=torch.int64), torch.tensor([*found.values()])

    def _priority(self, prompt: Tensor, deviation: Tensor) -> Tensor:
        if self.signal == "spread":
            return deviation.double() + self.epsilon
        mean = self.mean[prompt]
        outside = (mean < 0) | (mean > 1)
        if bool(outside.any()):
            raise ValueError(
                f"the mean rewards of prompts {prompt[outside][:8].tolist()} are "
                f"{mean[outside][:8].tolist()}; {self.signal} is made of rates in [0, 1]: set "
                "signal to spread, or scale the rewards"
            )
        failure = 1 - mean.double()
        return (mean * failure if self.signal == "learnability" else failure) + self.epsilon

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the mean rewards of the prompts that were visited; the others' are missing."""
        if self.file is None or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        known = (~self.mean.isnan()).nonzero().flatten()
        if len(known):
            ids = data.ids
            chosen = ids[known] if isinstance(ids, Tensor) else [ids[i] for i in known.tolist()]
            write_scores(folder_of_logs(trainer) / self.file, chosen, self.mean[known].double())

    def state_dict(self) -> dict[str, Any]:
        """Of all prompts."""
        return {"mean": self.mean.clone(), "visits": self.visits.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.mean, self.visits = state_dict["mean"].clone(), state_dict["visits"].clone()
