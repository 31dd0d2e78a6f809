"""Rejection sampling: a dataset of the model's own good completions."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from callbacks._ranks import equal_share, first_of_each_group, gather_rows
from callbacks._run_files import run_directory, sample_id, write_jsonl
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.seeding import derive_seed, reseed
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import COMPLETION_IDS, Reward
from lit_adaptive.rollout.rewards.scorer import Scorer, as_scorer

_SAMPLING = SamplingParams(max_new_tokens=256, temperature=0.7)


class RejectionSampling(Callback):
    """Samples completions of every prompt, and writes those that the reward accepts.

    Rejection-sampling fine-tuning (RFT; Yuan et al., 2023, arXiv:2308.01825, section 3.3). It runs
    at the start of ``lit-adaptive predict``, over the distinct prompts of a split, and writes
    ``rejection_sampling.jsonl`` into the run directory: ``id`` (that of the prompt's first sample,
    with a number), ``prompt``, ``completion``, ``reward``, ``log_prob`` (at the sampling
    temperature), and the dataset's other columns. ``DemonstrationsDataModule`` reads the file as a
    dataset, without ``chat``: prompts are written as the chat template rendered them.

    The paper keeps completions with distinct lists of equations; here they differ in their text.

    Needs: ``model.sample``; a dataset with texts (``data.texts``).
    Changes: nothing.

    Args:
        reward: scores completions; by default 1 if one equals the column ``answer``, 0 otherwise.
        samples: completions per prompt, above 0.
        sampling: how completions are sampled; its temperature must be above 0.
        keep_at_least: least reward of an accepted completion.
        per_prompt: greatest number of completions kept per prompt, those of greatest reward; 0
            keeps all.
        finished: whether to reject completions truncated at ``max_new_tokens``.
        split: the split whose prompts are used: ``"train"``, ``"val"`` or ``"test"``.
        batch_size: completions per call of the model, above 0; at least ``samples`` are generated.
        seed: seed of the sampling, combined with the rank.

    Raises:
        ValueError: if an argument is out of range, or no completion is accepted.
    """

    needs: frozenset[str] = frozenset({"model.sample", "data.texts"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "model.sample": "choose a module that can sample, such as lit_adaptive.modules.IWSFT",
        "data.texts": "choose a datamodule whose dataset has texts(index), such as "
        "lit_adaptive.data.DemonstrationsDataModule",
    }

    def __init__(
        self,
        reward: Reward | Scorer | None = None,
        samples: int = 8,
        sampling: SamplingParams = _SAMPLING,
        keep_at_least: float = 1.0,
        per_prompt: int = 0,
        finished: bool = True,
        split: Literal["train", "val", "test"] = "train",
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        check_at_least(samples=(samples, 1), batch_size=(batch_size, 1), per_prompt=(per_prompt, 0))
        if sampling.temperature == 0:
            raise ValueError(
                "sampling.temperature is 0, so all completions of a prompt are equal: set it "
                "above 0"
            )
        if keep_at_least != keep_at_least:
            raise ValueError("keep_at_least is nan; set the least reward of an accepted completion")
        if split not in ("train", "val", "test"):
            raise ValueError(f"split is {split!r}; it must be 'train', 'val' or 'test'")
        self.scorer = as_scorer(reward)
        self.samples = samples
        self.sampling = sampling
        self.keep_at_least = keep_at_least
        self.per_prompt = per_prompt
        self.finished = finished
        self.split = split
        self.batch_size = batch_size
        self.seed = seed

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample, score, gather and write."""
        dataset = self._dataset(trainer)
        first = _distinct_prompts(dataset)
        share = equal_share(len(first), trainer)
        index = first[share % len(first)]
        texts: list[dict[str, Any]] = dataset.texts(index)
        # Sorted by length: less padding, and batches whose completions end together.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]["prompt"]))
        size = max(1, self.batch_size // self.samples)
        local: list[dict[str, Any]] = []
        with isolate_rng():
            reseed(derive_seed(self.seed, 0, trainer.global_rank))
            for start in range(0, len(order), size):
                part = order[start : start + size]
                rows = self._sample([texts[row] for row in part], index[part], trainer, pl_module)
                local += [row for at, row in zip(part, rows, strict=True) if share[at] < len(first)]
        prompts = sorted(gather_rows(local, trainer), key=lambda row: row["index"])
        path = run_directory(trainer) / "rejection_sampling.jsonl"
        self._write(prompts, dataset, path, trainer)

    def _dataset(self, trainer: Trainer) -> Any:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        name = "dataset" if self.split == "train" else f"{self.split}_dataset"
        dataset: Any = getattr(data, name, None)
        if dataset is None or not len(dataset):
            raise ValueError(
                f"split is {self.split!r}, but the datamodule has no {name}: give it one, or "
                "choose another split"
            )
        return dataset

    def _sample(
        self,
        texts: list[dict[str, Any]],
        index: Tensor,
        trainer: Trainer,
        pl_module: LightningModule,
    ) -> list[dict[str, Any]]:
        """Sample and score completions of some prompts.

        Returns:
            For each prompt its ``index``, its row ``text``, the ``kept`` completions, and how many
            were ``drawn``, ``truncated`` and ``scored``.
        """
        module: Any = pl_module
        with trainer.precision_plugin.forward_context():
            samples: list[list[dict[str, Any]]] = module.sample(
                [text["prompt"] for text in texts], self.samples, self.sampling
            )
        flat_texts = [text for text in texts for _ in range(self.samples)]
        names = sorted({name for text in texts for name in text} - {"prompt", "completion"})
        flat_samples = [sample for row in samples for sample in row]
        columns = {name: [text.get(name) for text in flat_texts] for name in names}
        columns[COMPLETION_IDS] = [sample.get("tokens") for sample in flat_samples]
        flat_rewards = self.scorer.judge(
            [text["prompt"] for text in flat_texts],
            [sample["completion"] for sample in flat_samples],
            columns,
        )
        rows: list[dict[str, Any]] = []
        for number, (text, sampled) in enumerate(zip(texts, samples, strict=True)):
            rewards = flat_rewards[number * self.samples : (number + 1) * self.samples]
            rows.append(
                {
                    "index": int(index[number]),
                    "text": text,
                    "kept": self._accept(sampled, rewards),
                    "drawn": len(sampled),
                    "truncated": sum(sample["finish"] == "length" for sample in sampled),
                    "scored": sum(reward is not None for reward in rewards),
                }
            )
        return rows

    def _accept(
        self, samples: list[dict[str, Any]], rewards: list[float | None]
    ) -> list[dict[str, Any]]:
        """Distinct accepted completions of a prompt, those of greatest reward first."""
        accepted: dict[str, dict[str, Any]] = {}
        for sample, reward in zip(samples, rewards, strict=True):
            if reward is None or reward < self.keep_at_least:
                continue
            if self.finished and sample["finish"] != "stop":
                continue
            row = {"completion": sample["completion"], "reward": reward}
            accepted.setdefault(
                sample["completion"].strip(), row | {"log_prob": sample["log_prob"]}
            )
        ranked = sorted(accepted.values(), key=lambda row: -row["reward"])
        return ranked[: self.per_prompt or None]

    def _write(
        self, prompts: list[dict[str, Any]], dataset: Any, path: Path, trainer: Trainer
    ) -> None:
        """Write the accepted completions, and log their number.

        Raises:
            ValueError: if there are none.
        """
        count = {
            name: sum(prompt[name] for prompt in prompts)
            for name in ("drawn", "truncated", "scored")
        }
        without = sum(not prompt["kept"] for prompt in prompts)
        if without == len(prompts):
            raise ValueError(
                f"none of {count['drawn']} completions of {len(prompts)} prompts has a reward of "
                f"at least {self.keep_at_least} ({count['scored']} were scored, "
                f"{count['truncated']} truncated at max_new_tokens="
                f"{self.sampling.max_new_tokens}): lower keep_at_least, draw more samples, raise "
                "max_new_tokens, or train longer"
            )
        if not trainer.is_global_zero:
            return
        ids: Any = getattr(dataset, "ids", None)
        rows: list[dict[str, Any]] = []
        for prompt in prompts:
            name = sample_id(ids, prompt["index"])
            columns = {k: v for k, v in prompt["text"].items() if k not in ("id", "reward")}
            for number, completion in enumerate(prompt["kept"]):
                rows.append({"id": f"{name}/{number}", **columns, **completion})
        write_jsonl(path, rows)
        rank_zero_info(
            f"wrote {len(rows)} of {count['drawn']} completions to {path}; {without} of "
            f"{len(prompts)} prompts have none"
        )
        metrics = {"kept": len(rows), "drawn": count["drawn"], "prompts_without": without}
        for logger in trainer.loggers:
            logger.log_metrics({f"rejection_sampling/{k}": float(v) for k, v in metrics.items()})


def _distinct_prompts(dataset: Any) -> Tensor:
    """Index of the first sample of each distinct prompt, ascending: ``[G]`` int64."""
    groups: Tensor | None = getattr(dataset, "groups", None)
    if groups is None:
        return torch.arange(len(dataset))
    return first_of_each_group(groups)[0].sort().values
