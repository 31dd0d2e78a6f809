"""Evaluation by several sampled answers to each prompt: pass@k."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric

from callbacks._ranks import gather_rows
from lit_adaptive.core.advantages import pass_at_k
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.seeding import derive_seed, reseed
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import COMPLETION_IDS, Reward
from lit_adaptive.rollout.rewards.scorer import Scorer, as_scorer

_REMEDY = (
    "give the datamodule a val_dataset with prompts (lit_adaptive.data.RolloutDataModule or "
    "DemonstrationsDataModule), or leave PassAtK out"
)


class _Prompt(NamedTuple):
    """A prompt of the validation set."""

    sample: int  # index in the validation set
    text: str
    columns: dict[str, Any]  # for the reward


class PassAtK(Callback):
    """Answers each prompt of the validation set several times, and logs pass@k and mean@n.

    ``val/pass@k`` is an unbiased estimate, from n = ``samples`` answers, of the probability that at
    least one of k answers is correct (Chen et al., 2021, arXiv:2107.03374, equation 1);
    ``val/mean@n`` is the mean reward of the n answers; both are averaged over prompts.
    ``val/truncated@n`` is the fraction of answers truncated at ``max_new_tokens``, and
    ``val/pass_prompts`` the number of prompts scored. Answers to which the reward does not apply do
    not count; a prompt with fewer than k that do is left out of pass@k.

    Each distinct prompt within ``limit_val_batches`` is answered once, and scored with the columns
    of its first row. Ranks take batches of prompts in turn. The random numbers follow from the seed
    and the batch's number: they are equal in every epoch and for any number of ranks, and the
    global generators are left unchanged.

    Needs: ``model.sample``; validation batches of ``prompt`` (texts), ``index``, ``counted`` and
        the columns that the reward reads.
    Changes: nothing.

    Args:
        k: values of k, each from 1 to ``samples``.
        samples: answers per prompt, above 0.
        sampling: how answers are sampled; by default at temperature 1, with the
            ``max_new_tokens`` of the datamodule's ``sampling``, or else of the module.
        every_n_epochs: interval in epochs during training, above 0; ``validate`` always evaluates.
        max_prompts: greatest number of prompts, spread evenly over the set; by default all.
        reward: scores answers; by default the module's.
        threshold: least reward of a correct answer.
        batch_prompts: prompts answered at once, above 0.
        seed: seed of the sampling.

    Raises:
        ValueError: if an argument is out of range, or the validation set does not suit the reward.
    """

    needs = frozenset({"model.sample"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "model.sample": "choose a module that can sample, such as lit_adaptive.modules.GRPO",
    }

    def __init__(
        self,
        k: Sequence[int] = (1, 4, 16),
        samples: int = 16,
        sampling: SamplingParams | None = None,
        every_n_epochs: int = 1,
        max_prompts: int | None = None,
        reward: Reward | Scorer | None = None,
        threshold: float = 1.0,
        batch_prompts: int = 64,
        seed: int = 0,
    ) -> None:
        check_at_least(
            samples=(samples, 1),
            every_n_epochs=(every_n_epochs, 1),
            max_prompts=(max_prompts, 1),
            batch_prompts=(batch_prompts, 1),
            seed=(seed, -(2**63)),
        )
        if not k or min(k) < 1 or max(k) > samples:
            raise ValueError(
                f"k is {[*k]} and samples is {samples}; pass@k can be estimated for k from 1 to "
                "samples: raise samples, or lower k"
            )
        if samples > 1 and sampling is not None and sampling.temperature == 0:
            raise ValueError(
                f"sampling.temperature is 0 and samples is {samples}; greedy answers are all "
                "equal: set the temperature above 0, or samples and k to 1"
            )
        if not math.isfinite(threshold):
            raise ValueError(
                f"threshold is {threshold}; it is the least reward of a correct answer and must be "
                "finite"
            )
        self.k, self.samples, self.sampling = tuple(sorted(set(k))), samples, sampling
        self.every_n_epochs, self.max_prompts = every_n_epochs, max_prompts
        self.threshold = threshold
        self.scorer = None if reward is None else as_scorer(reward)
        self.batch_prompts, self.seed = batch_prompts, seed
        self._prompts: list[_Prompt] = []
        names = [*(f"pass@{k}" for k in self.k), f"mean@{samples}", f"truncated@{samples}"]
        self._means = {name: MeanMetric() for name in names}
        self._scored_prompts = SumMetric()

    # Configuration -------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reject a run without a validation set, or without a limit on the answers' length."""
        if stage not in ("fit", "validate"):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "val_dataset", True) is None:
            raise ValueError(f"PassAtK answers validation prompts, but there are none: {_REMEDY}")
        self._sampling_params(trainer, pl_module)

    def _sampling_params(self, trainer: Trainer, pl_module: LightningModule) -> SamplingParams:
        if self.sampling is not None:
            return self.sampling
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        training: Any = getattr(data, "sampling", None)
        limit: int = getattr(training or pl_module, "max_new_tokens", 0)
        if not limit:
            raise ValueError(
                "sampling is None, and neither the datamodule nor the module limits the length of "
                "answers: set PassAtK's sampling"
            )
        return SamplingParams(limit)

    def _reward_scorer(self, pl_module: LightningModule) -> Scorer:
        scorer: Scorer | None = self.scorer or getattr(pl_module, "scorer", None)
        if scorer is None:
            raise ValueError(
                f"reward is None, and {type(pl_module).__name__} has no reward: set PassAtK's "
                "reward, such as lit_adaptive.rollout.ExactMatch"
            )
        return scorer

    # Validation ----------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with no prompts."""
        self._prompts = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the prompts of a batch; the sanity check finds unsuitable batches early."""
        missing = [name for name in ("prompt", "index", "counted") if name not in batch]
        if missing:
            raise ValueError(f"validation batches have no {missing}: {_REMEDY}")
        columns = {n: v for n, v in batch.items() if n != "prompt" and isinstance(v, list)}
        scorer = self._reward_scorer(pl_module)
        absent = sorted(scorer.columns - columns.keys())
        if absent:
            raise ValueError(
                f"the reward {', '.join(scorer.names)} needs the column {absent[0]!r}, but "
                f"validation batches have {sorted(columns) or 'none'}: name it in the datamodule's "
                "columns, or give PassAtK another reward"
            )
        texts, counted = batch["prompt"], batch["counted"].tolist()
        for row, index in enumerate(batch["index"].tolist()):
            if counted[row]:
                row_columns = {name: values[row] for name, values in columns.items()}
                self._prompts.append(_Prompt(index, texts[row], row_columns))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer and score the prompts, and log over all ranks."""
        epoch = trainer.current_epoch + 1
        fitting = trainer.state.fn == TrainerFn.FITTING
        if trainer.sanity_checking or (fitting and epoch % self.every_n_epochs):
            return
        prompts = self._distinct(gather_rows(self._prompts, trainer))
        sampling = self._sampling_params(trainer, pl_module)
        self._reset(pl_module.device)
        size, ranks, rank = self.batch_prompts, trainer.world_size, trainer.global_rank
        batches = -(-len(prompts) // size)
        # A rank without a batch left repeats the last: a sharded model runs equally often on each.
        for start in range(0, batches, ranks):
            number = min(start + rank, batches - 1)
            part = prompts[number * size : (number + 1) * size]
            with isolate_rng(), trainer.precision_plugin.forward_context():
                reseed(derive_seed(self.seed, number))
                module: Any = pl_module
                answers = module.sample([prompt.text for prompt in part], self.samples, sampling)
            if start + rank < batches:
                self._score(part, answers, pl_module)
        self._log(pl_module)

    def _distinct(self, prompts: list[_Prompt]) -> list[_Prompt]:
        """At most ``max_prompts`` distinct prompts, in the dataset's order."""
        by_text: dict[str, _Prompt] = {}
        for prompt in sorted(prompts, key=lambda prompt: prompt.sample):
            by_text.setdefault(prompt.text, prompt)
        distinct = [*by_text.values()]
        count = min(self.max_prompts or len(distinct), len(distinct))
        return [distinct[number * len(distinct) // count] for number in range(count)]

    def _reset(self, device: torch.device) -> None:
        """Reset the metrics, and update them with nothing, so that any rank can compute them."""
        for metric in (*self._means.values(), self._scored_prompts):
            metric.to(device).reset()
            metric.update(torch.empty(0, device=device))

    def _score(
        self,
        prompts: list[_Prompt],
        answers: list[list[dict[str, Any]]],
        pl_module: LightningModule,
    ) -> None:
        """Add a batch's answers, ``samples`` for each prompt, to the metrics."""
        flat_answers = [answer for row in answers for answer in row]
        flat_prompts = [prompt for prompt in prompts for _ in range(self.samples)]
        names = sorted({name for prompt in prompts for name in prompt.columns})
        columns = {name: [prompt.columns.get(name) for prompt in flat_prompts] for name in names}
        columns[COMPLETION_IDS] = [answer.get("tokens") for answer in flat_answers]
        rewards = self._reward_scorer(pl_module).judge(
            [prompt.text for prompt in flat_prompts],
            [answer["completion"] for answer in flat_answers],
            columns,
        )
        values = [torch.nan if reward is None else reward for reward in rewards]
        reward = torch.tensor(values, dtype=torch.float64).view(len(prompts), self.samples)
        truncated = torch.tensor([float(answer["finish"] == "length") for answer in flat_answers])
        self._update(reward, truncated, pl_module.device)

    def _update(self, reward: Tensor, truncated: Tensor, device: torch.device) -> None:
        """Update the metrics.

        Args:
            reward: ``[P, samples]``, NaN where the reward does not apply.
            truncated: 1 for each truncated answer, 0 for others, ``[P * samples]``.
            device: the metrics' device.
        """
        applies = (~reward.isnan()).sum(1)
        correct = (reward >= self.threshold).sum(1)
        for k in self.k:
            enough = applies >= k
            if bool(enough.any()):
                rate = pass_at_k(correct[enough], applies[enough], k)
                self._means[f"pass@{k}"].update(rate.float().to(device))
        scored = applies > 0
        if bool(scored.any()):
            mean = reward.nan_to_num().sum(1)[scored] / applies[scored]
            self._means[f"mean@{self.samples}"].update(mean.float().to(device))
        self._means[f"truncated@{self.samples}"].update(truncated.to(device))
        self._scored_prompts.update(scored.sum().float().to(device))

    def _log(self, pl_module: LightningModule) -> None:
        """Log the metrics that have a value on any rank; the values are equal on all."""
        for name, metric in self._means.items():
            value = metric.compute()
            if not bool(value.isnan()):
                in_bar = name == f"pass@{self.k[0]}"
                pl_module.log(f"val/{name}", value, prog_bar=in_bar, sync_dist=True)
        pl_module.log("val/pass_prompts", self._scored_prompts.compute(), sync_dist=True)
