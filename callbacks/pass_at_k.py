"""How often one of k sampled answers is right."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric

from callbacks._jsonl import gathered_rows
from callbacks._shared import private_rng
from lit_adaptive.core.advantages import pass_at_k
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward, checked_rewards

_REMEDY = (
    "give the datamodule a val_dataset, and prompts to it (lit_adaptive.data.RolloutDataModule or "
    "DemonstrationsDataModule), or leave PassAtK out"
)


class _Question(NamedTuple):
    """A prompt of the validation set, and what its answers are judged by."""

    place: int
    prompt: str
    columns: dict[str, Any]


class PassAtK(Callback):
    """Answers each prompt of the validation set several times, and logs pass@k and mean@n.

    ``val/pass@k`` is the chance that one of k answers is right, without bias from n = ``samples``
    (Chen et al., 2021, arXiv:2107.03374, equation 1), ``val/mean@n`` the mean reward of the n, both
    averaged over prompts; ``val/cut@n`` is the share of answers that ``max_new_tokens`` cut, and
    ``val/pass_prompts`` how many prompts were judged. Answers to which no reward applies do not
    count; a prompt with fewer than k that do is left out of pass@k.

    Each distinct prompt that ``limit_val_batches`` leaves is asked once, and its answers are judged
    by the columns of its first row. Ranks take batches of prompts in turn. What is random follows
    from the seed and the batch's number: it is the same in every epoch and on any number of ranks,
    and no other random stream is touched.

    Needs: ``model.sample``; validation batches of ``prompt`` (texts), ``index``, ``counted`` and
        the columns that the reward asks for.
    Changes: nothing.

    Args:
        k: each from 1 to ``samples``.
        samples: answers to a prompt, above 0.
        temperature: above 0, if there are several samples.
        top_p: see ``lit_adaptive.rollout.SamplingParams``.
        top_k: the same.
        max_new_tokens: of an answer; by default that of the datamodule's ``sampling``, or else of
            the module's greedy answers.
        every_n_epochs: of training, above 0; ``validate`` always answers.
        max_prompts: at most so many, spread evenly over the set; by default all.
        reward: judges answers; by default the module's.
        threshold: an answer is right from this reward on.
        batch_prompts: prompts that are answered at once, above 0.
        seed: of what is drawn.

    Raises:
        ValueError: naming the argument that is out of its range, or what the validation set lacks.
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
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int | None = None,
        every_n_epochs: int = 1,
        max_prompts: int | None = None,
        reward: Reward | None = None,
        threshold: float = 1.0,
        batch_prompts: int = 64,
        seed: int = 0,
    ) -> None:
        for name, value in (
            ("samples", samples),
            ("every_n_epochs", every_n_epochs),
            ("max_prompts", 1 if max_prompts is None else max_prompts),
            ("batch_prompts", batch_prompts),
        ):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if not k or min(k) < 1 or max(k) > samples:
            raise ValueError(
                f"k is {[*k]} and samples {samples}; of n answers pass@k is known for k from 1 to "
                "n: raise samples, or lower k"
            )
        if samples > 1 and temperature == 0:
            raise ValueError(
                f"temperature is 0, and samples {samples}; greedy answers are all equal: set it "
                "above 0, or samples and k to 1"
            )
        if threshold != threshold:
            raise ValueError("threshold is nan; give the least reward of a right answer")
        most = 1 if max_new_tokens is None else max_new_tokens
        SamplingParams(most, temperature, top_p, top_k)  # refuses what it must
        self.k, self.samples = tuple(sorted(set(k))), samples
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.max_new_tokens = max_new_tokens
        self.every_n_epochs, self.max_prompts = every_n_epochs, max_prompts
        self.reward, self.threshold = reward, threshold
        self.batch_prompts, self.seed = batch_prompts, seed
        self._found: list[_Question] = []
        names = [*(f"pass@{each}" for each in self.k), f"mean@{samples}", f"cut@{samples}"]
        self._means = {name: MeanMetric() for name in names}
        self._prompts = SumMetric()

    # Before --------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run without a validation set, or without a limit to answers."""
        if stage not in ("fit", "validate"):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "val_dataset", True) is None:
            raise ValueError(f"PassAtK answers validation prompts, and there are none: {_REMEDY}")
        self._sampling(trainer, pl_module)

    def _sampling(self, trainer: Trainer, pl_module: LightningModule) -> SamplingParams:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        trained: Any = getattr(data, "sampling", None)
        most = self.max_new_tokens
        if most is None:
            most = trained.max_new_tokens if isinstance(trained, SamplingParams) else None
        most = most or getattr(pl_module, "max_new_tokens", 0)
        if not most:
            raise ValueError(
                "max_new_tokens is None, and neither the datamodule nor the module says how long "
                "an answer may be: set PassAtK's max_new_tokens"
            )
        return SamplingParams(most, self.temperature, self.top_p, self.top_k)

    def _reward(self, pl_module: LightningModule) -> Reward:
        found: Reward | None = self.reward or getattr(pl_module, "reward", None)
        if found is None:
            raise ValueError(
                f"reward is None, and a {type(pl_module).__name__} has none of its own: set "
                "PassAtK's reward, such as lit_adaptive.rollout.ExactMatch"
            )
        return found

    # Validation ----------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the questions of the last one."""
        self._found = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take down the questions, in sanity checks too: there they are refused early."""
        missing = [name for name in ("prompt", "index", "counted") if name not in batch]
        if missing:
            raise ValueError(f"validation batches have no {missing}: {_REMEDY}")
        columns = {n: v for n, v in batch.items() if n != "prompt" and isinstance(v, list)}
        reward = self._reward(pl_module)
        column: str | None = getattr(reward, "column", None)
        if column is not None and column not in columns:
            raise ValueError(
                f"the reward {type(reward).__name__} needs the column {column!r}, and validation "
                f"batches have {sorted(columns) or 'none'}: name it in the datamodule's columns, "
                "or give PassAtK another reward"
            )
        prompts, counted = batch["prompt"], batch["counted"].tolist()
        for at, index in enumerate(batch["index"].tolist()):
            if counted[at]:
                own = {name: values[at] for name, values in columns.items()}
                self._found.append(_Question(index, prompts[at], own))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer, judge and log over all ranks."""
        epoch = trainer.current_epoch + 1
        fitting = trainer.state.fn == TrainerFn.FITTING
        if trainer.sanity_checking or (fitting and epoch % self.every_n_epochs):
            return
        asked = self._distinct(gathered_rows(self._found, trainer))
        sampling = self._sampling(trainer, pl_module)
        self._reset(pl_module.device)
        size, ranks, rank = self.batch_prompts, trainer.world_size, trainer.global_rank
        batches = -(-len(asked) // size)
        # As many on every rank, so that a sharded model is asked equally often.
        for turn in range(0, batches, ranks):
            number = min(turn + rank, batches - 1)
            part = asked[number * size : (number + 1) * size]
            with (
                private_rng(derive_seed(self.seed, number)),
                trainer.precision_plugin.forward_context(),
            ):
                module: Any = pl_module
                drawn = module.sample([each.prompt for each in part], self.samples, sampling)
            if turn + rank < batches:
                self._judge(part, drawn, pl_module)
        self._log(pl_module)

    def _distinct(self, found: list[_Question]) -> list[_Question]:
        """Each prompt once, in the dataset's order, and no more than are wanted."""
        once: dict[str, _Question] = {}
        for each in sorted(found, key=lambda question: question.place):
            once.setdefault(each.prompt, each)
        every = [*once.values()]
        most = self.max_prompts
        if most is None or most >= len(every):
            return every
        return [every[at * len(every) // most] for at in range(most)]

    def _reset(self, device: torch.device) -> None:
        """Empty metrics, which a rank without questions may ask too."""
        for metric in (*self._means.values(), self._prompts):
            metric.to(device).reset()
            metric.update(torch.empty(0, device=device))

    def _judge(
        self, part: list[_Question], drawn: list[list[dict[str, Any]]], pl_module: LightningModule
    ) -> None:
        """Add a batch's answers, ``samples`` of each question, to the metrics."""
        flat = [each for row in drawn for each in row]
        own = [question for question in part for _ in range(self.samples)]
        names = sorted({name for question in part for name in question.columns})
        rewards = checked_rewards(
            self._reward(pl_module),
            [question.prompt for question in own],
            [each["completion"] for each in flat],
            {name: [question.columns.get(name) for question in own] for name in names},
            names=[question.place for question in own],
        )
        told = [torch.nan if reward is None else reward for reward in rewards]
        reward = torch.tensor(told, dtype=torch.float64).view(len(part), self.samples)
        cut = torch.tensor([float(each["finish"] == "length") for each in flat])
        self._add(reward, cut, pl_module.device)

    def _add(self, reward: Tensor, cut: Tensor, device: torch.device) -> None:
        """Add rewards ``[P, samples]``, NaN where none applies, and what was cut ``[n]``."""
        judged = ~reward.isnan()
        total = judged.sum(1)
        right = (reward >= self.threshold).sum(1)
        for k in self.k:
            enough = total >= k
            if bool(enough.any()):
                rate = pass_at_k(right[enough], total[enough], k)
                self._means[f"pass@{k}"].update(rate.float().to(device))
        some = total > 0
        if bool(some.any()):
            mean = reward.nan_to_num().sum(1)[some] / total[some]
            self._means[f"mean@{self.samples}"].update(mean.float().to(device))
        self._means[f"cut@{self.samples}"].update(cut.to(device))
        self._prompts.update(some.sum().float().to(device))

    def _log(self, pl_module: LightningModule) -> None:
        """Log what any rank measured; every rank logs the same."""
        for name, metric in self._means.items():
            value = metric.compute()
            if not bool(value.isnan()):  # of nothing
                shown = name == f"pass@{self.k[0]}"
                pl_module.log(f"val/{name}", value, prog_bar=shown, sync_dist=True)
        pl_module.log("val/pass_prompts", self._prompts.compute(), sync_dist=True)
