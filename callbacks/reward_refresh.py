"""Feedback of rewards to the sampler."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from callbacks._ranks import equal_share, first_of_each_group, gather_over_ranks
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.seeding import derive_seed, reseed
from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.rollout.rewards.base import COMPLETION_IDS, Reward
from lit_adaptive.rollout.rewards.scorer import Scorer, as_scorer


class RewardRefresh(Callback):
    """Updates the sampler with the reward of every sample, at the start and every few epochs.

    The reward scores the dataset's completions, or completions by the current policy: then each
    prompt is completed ``samples`` times, and all its samples get the mean reward (with the columns
    of its first sample). A sample to which the reward does not apply (None) keeps its value. Ranks
    share the work, and every rank applies all rewards, so the samplers stay equal. A resumed run
    does not repeat the scoring. Logs ``reward/mean``, ``reward/min``, ``reward/max``, and
    ``reward/not_applicable``, the fraction of samples to which the reward does not apply.

    Needs: the datamodule's sampler learns (``data.update``), such as ``RewardWeightedSampler``; its
    dataset has prompts and completions as text (``data.texts``). With ``source: policy`` also
    ``model.complete``.
    Changes: the sampler's rewards (``duty.feedback``), and nothing else.

    Args:
        reward: scores completions; by default 1 if one equals the column ``answer``, 0 otherwise.
        every_n_epochs: interval in epochs at whose end samples are scored again; 0 scores them
            only at the start.
        source: completions to score: those of the dataset (``"demonstrations"``) or the model's
            (``"policy"``).
        samples: completions per prompt, above 0; above 1 only with ``source: policy``.
        batch_size: completions that are generated and scored at once, above 0.

    Raises:
        ValueError: if an argument is out of range.
    """

    needs: frozenset[str] = frozenset({"data.update", "data.texts"})
    provides = frozenset({"duty.feedback"})
    remedies = {  # noqa: RUF012
        "data.update": "choose a sampler that learns, such as "
        "lit_adaptive.samplers.RewardWeightedSampler, or leave the callback out",
        "data.texts": "choose a datamodule whose dataset has texts(index), such as "
        "lit_adaptive.data.DemonstrationsDataModule",
        "model.complete": "choose a module that can complete prompts, such as "
        "lit_adaptive.modules.IWSFT, or source: demonstrations",
    }

    def __init__(
        self,
        reward: Reward | Scorer | None = None,
        every_n_epochs: int = 1,
        source: Literal["demonstrations", "policy"] = "demonstrations",
        samples: int = 1,
        batch_size: int = 64,
    ) -> None:
        check_at_least(
            every_n_epochs=(every_n_epochs, 0), samples=(samples, 1), batch_size=(batch_size, 1)
        )
        if source not in ("demonstrations", "policy"):
            raise ValueError(f"source is {source!r}; it must be 'demonstrations' or 'policy'")
        if samples > 1 and source != "policy":
            raise ValueError(
                f"samples is {samples}, but a demonstration is one completion: "
                "choose source: policy, or leave samples out"
            )
        self.scorer = as_scorer(reward)
        self.every_n_epochs = every_n_epochs
        self.source = source
        self.samples = samples
        self.batch_size = batch_size
        self.refreshes = 0
        self._resumed = False
        if source == "policy":
            self.needs = self.needs | {"model.complete"}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the sampler, unless the checkpoint of a resumed run holds the rewards."""
        if not self._resumed:
            self._refresh(trainer, pl_module)
        self._resumed = False

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the sampler at the end of an epoch if it is due."""
        # Not on_train_epoch_end, which Lightning skips after some resumes.
        interval = self.every_n_epochs
        if trainer.is_last_batch and interval and (trainer.current_epoch + 1) % interval == 0:
            self._refresh(trainer, pl_module)

    def _refresh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reward = self.score_all(trainer, pl_module)
        self.refreshes += 1
        applies = ~reward.isnan()
        index = applies.nonzero().flatten()
        metrics = {"reward/not_applicable": 1 - float(applies.double().mean())}
        if len(index):
            known = reward[index]
            trainer.datamodule.update({"index": index}, known)  # type: ignore[attr-defined]
            metrics["reward/mean"] = float(known.mean())
            metrics["reward/min"], metrics["reward/max"] = map(float, known.aminmax())
        pl_module.log_dict(metrics, sync_dist=False)

    def score_all(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """Compute the reward of every sample; all ranks must call it.

        Returns:
            Rewards ``[N]`` float64, NaN where the reward does not apply.

        Raises:
            ValueError: if a reward is not finite.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        first, unit = self._units(data.dataset)
        share = equal_share(len(first), trainer)
        parts = torch.split(first[share % len(first)], max(1, self.batch_size // self.samples))
        with isolate_rng():
            reseed(derive_seed(data.seed, self.refreshes, trainer.global_rank))
            rewards = [self._score(data.dataset, part, trainer, pl_module) for part in parts]
        local = {"position": share, "reward": torch.cat(rewards)}
        gathered = gather_over_ranks(local, trainer, pl_module)
        position, reward = gathered["position"].cpu(), gathered["reward"].cpu()
        counted = position < len(first)
        by_unit = torch.empty(len(first), dtype=torch.float64)
        by_unit[position[counted]] = reward[counted]
        return by_unit[unit]

    def _units(self, dataset: Any) -> tuple[Tensor, Tensor]:
        """Units that get a reward of their own: samples, or prompts if the policy completes them.

        Returns:
            The first sample of each unit, and the unit of each sample.
        """
        groups: Tensor | None = getattr(dataset, "groups", None)
        if self.source == "demonstrations" or groups is None:
            samples = torch.arange(len(dataset))
            return samples, samples
        return first_of_each_group(groups)

    def _score(
        self, dataset: Any, index: Tensor, trainer: Trainer, pl_module: LightningModule
    ) -> Tensor:
        """Mean reward of each sample's completions ``[B]``, NaN where none applies."""
        texts: list[dict[str, Any]] = [
            text for text in dataset.texts(index) for _ in range(self.samples)
        ]
        prompts = [text["prompt"] for text in texts]
        if self.source == "policy":
            completions = _complete(prompts, trainer, pl_module)
        else:
            completions = [text["completion"] for text in texts]
        names = {name for text in texts for name in text} - {"prompt", "completion"}
        columns = {name: [text.get(name) for text in texts] for name in sorted(names)}
        tokenizer: Any = getattr(dataset, "tokenizer", None)
        if tokenizer is not None:
            encoded = tokenizer(completions, add_special_tokens=False)
            columns[COMPLETION_IDS] = encoded["input_ids"]
        rewards = self.scorer.judge(prompts, completions, columns)
        values = [torch.nan if reward is None else reward for reward in rewards]
        return torch.tensor(values, dtype=torch.float64).view(-1, self.samples).nanmean(1)

    def state_dict(self) -> dict[str, Any]:
        """Number of refreshes."""
        return {"refreshes": self.refreshes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number; the sampler's own state holds the rewards."""
        self.refreshes = int(state_dict["refreshes"])
        self._resumed = self.refreshes > 0


def _complete(prompts: list[str], trainer: Trainer, pl_module: LightningModule) -> list[str]:
    """Completions by the policy in evaluation mode."""
    module: Any = pl_module
    with evaluation_mode(pl_module), trainer.precision_plugin.forward_context():
        completions: list[str] = module.complete(prompts)
    return completions
