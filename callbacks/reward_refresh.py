"""What samples are worth becomes how often they are drawn."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._shared import first_of_each, gather_over_ranks, private_rng
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.rollout.rewards.base import ExactMatch, Reward, checked_rewards


class RewardRefresh(Callback):
    """Tells the sampler the reward of every sample, when training starts and every few epochs.

    What is rewarded is the dataset's own completions, or completions that the current policy makes
    up: then each prompt is completed ``samples`` times, and all its samples get the mean reward
    (by the columns of the first of them).
    Where the reward does not apply (None), a sample keeps the one it had. Under several ranks each
    scores its share, and every rank tells all, so the samplers stay equal. A resumed run does not
    score again what it has scored. Logs ``reward/mean``, ``reward/min``, ``reward/max``, and
    ``reward/not_applicable``, the share of samples that the reward does not apply to.

    Needs: the datamodule's sampler learns (``data.update``), such as ``RewardWeightedSampler``; its
    dataset tells prompts and completions (``data.texts``). With ``source: policy`` also
    ``model.complete``.
    Changes: the sampler's rewards, and nothing else.

    Args:
        reward: what a completion is worth; by default 1 if it equals the column ``answer``.
        every_n_epochs: score again at the end of every so many epochs; 0: only at the start.
        source: ``"demonstrations"``: the dataset's completions; ``"policy"``: the model's own.
        samples: completions of each prompt, above 0, of which the mean reward is taken; only with
            ``source: policy``.
        batch_size: completions that are made up and rewarded at once, above 0.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    needs: frozenset[str] = frozenset({"data.update", "data.texts"})
    provides: frozenset[str] = frozenset()
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
        reward: Reward | None = None,
        every_n_epochs: int = 1,
        source: Literal["demonstrations", "policy"] = "demonstrations",
        samples: int = 1,
        batch_size: int = 64,
    ) -> None:
        if every_n_epochs < 0:
            raise ValueError(
                f"every_n_epochs is {every_n_epochs}; it must be above 0, or 0: only at the start"
            )
        if source not in ("demonstrations", "policy"):
            raise ValueError(f"source is {source!r}; it must be 'demonstrations' or 'policy'")
        for name, value in (("samples", samples), ("batch_size", batch_size)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if samples > 1 and source != "policy":
            raise ValueError(
                f"samples is {samples}, but a demonstration is one completion: "
                "choose source: policy, or leave samples out"
            )
        self.reward: Reward = ExactMatch() if reward is None else reward
        self.every_n_epochs = every_n_epochs
        self.source = source
        self.samples = samples
        self.batch_size = batch_size
        self.refreshes = 0
        self._resumed = False
        if source == "policy":
            self.needs = self.needs | {"model.complete"}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score and tell, unless a run is resumed whose sampler knows the rewards already."""
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
        """At the end of an epoch, score and tell if it is time."""
        # Not on_train_epoch_end: Lightning leaves it out after some resumes.
        every = self.every_n_epochs
        if trainer.is_last_batch and every and (trainer.current_epoch + 1) % every == 0:
            self._refresh(trainer, pl_module)

    def _refresh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reward = self.score_all(trainer, pl_module)
        self.refreshes += 1
        applies = ~reward.isnan()
        index = applies.nonzero().flatten()
        logged = {"reward/not_applicable": 1 - float(applies.double().mean())}
        if len(index):
            told = reward[index]
            trainer.datamodule.update({"index": index}, told)  # type: ignore[attr-defined]
            least, greatest = (float(bound) for bound in told.aminmax())
            logged |= {
                "reward/mean": float(told.mean()),
                "reward/min": least,
                "reward/max": greatest,
            }
        pl_module.log_dict(logged, sync_dist=False)

    def score_all(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """The reward of every sample: ``[N]`` float64, NaN where it does not apply.

        Under several ranks all must call it together.

        Raises:
            ValueError: naming the samples whose reward is no finite number.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        first, unit = self._units(data.dataset)
        # As many on every rank, so that a sharded model is asked equally often.
        place = torch.arange(-(-len(first) // trainer.world_size)) * trainer.world_size
        place += trainer.global_rank
        rows = first[place % len(first)]
        parts = torch.split(rows, max(1, self.batch_size // self.samples))
        with private_rng(derive_seed(data.seed, self.refreshes, trainer.global_rank)):
            found = [self._score(data.dataset, part, trainer, pl_module) for part in parts]
        everyone = gather_over_ranks(
            {"place": place, "reward": torch.cat(found)}, trainer, pl_module
        )
        place, reward = everyone["place"].cpu(), everyone["reward"].cpu()
        counted = place < len(first)
        by_unit = torch.empty(len(first), dtype=torch.float64)
        by_unit[place[counted]] = reward[counted]
        return by_unit[unit]

    def _units(self, dataset: Any) -> tuple[Tensor, Tensor]:
        """The first sample of each thing that is rewarded, and which thing each sample is."""
        everything = torch.arange(len(dataset))
        groups: Tensor | None = getattr(dataset, "groups", None)
        if self.source == "demonstrations" or groups is None:
            return everything, everything
        return first_of_each(groups)

    def _score(
        self, dataset: Any, rows: Tensor, trainer: Trainer, pl_module: LightningModule
    ) -> Tensor:
        """Rewards of some samples ``[B]``: the mean over a sample's completions that it has."""
        times = self.samples
        texts: list[dict[str, Any]] = [text for text in dataset.texts(rows) for _ in range(times)]
        prompts = [text["prompt"] for text in texts]
        if self.source == "policy":
            completions = _completed(prompts, trainer, pl_module)
        else:
            completions = [text["completion"] for text in texts]
        names = {name for text in texts for name in text} - {"prompt", "completion"}
        columns = {name: [text.get(name) for text in texts] for name in sorted(names)}
        rewards = checked_rewards(
            self.reward,
            prompts,
            completions,
            columns,
            names=rows.repeat_interleave(times).tolist(),
        )
        found = torch.tensor(
            [torch.nan if value is None else value for value in rewards], dtype=torch.float64
        )
        return found.view(-1, times).nanmean(1)

    def state_dict(self) -> dict[str, Any]:
        """How often it has scored."""
        return {"refreshes": self.refreshes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; the sampler's own state holds the rewards."""
        self.refreshes = int(state_dict["refreshes"])
        self._resumed = self.refreshes > 0


def _completed(prompts: list[str], trainer: Trainer, pl_module: LightningModule) -> list[str]:
    """The policy's completions, without dropout."""
    module: Any = pl_module
    with evaluation_mode(pl_module), trainer.precision_plugin.forward_context():
        completions: list[str] = module.complete(prompts)
    return completions
