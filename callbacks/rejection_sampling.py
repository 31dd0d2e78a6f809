"""Demonstrations that the model made itself, of which a reward keeps the good ones."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks._jsonl import gathered_rows, run_directory, write_lines
from callbacks._shared import first_of_each, private_rng
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import ExactMatch, Reward, checked_rewards


class RejectionSampling(Callback):
    """Samples completions of every prompt, and writes those that the reward accepts.

    Rejection-sampling fine-tuning (RFT; Yuan et al., 2023, 2308.01825, section 3.3). It runs at the
    start of ``lit-adaptive predict``, over each distinct prompt once, shared among ranks, and
    writes ``rejection_sampling.jsonl`` into the run directory: ``id`` (the first sample's of that
    prompt, with a number), ``prompt``, ``completion``, ``reward``, ``log_prob`` (at the
    temperature), and the dataset's other columns. ``DemonstrationsDataModule`` reads it as a
    dataset, without ``chat``: prompts of chats are written as their template made them.

    The paper keeps completions with distinct lists of equations; here they differ in their text.

    Needs: ``model.sample``; a dataset that tells its prompts (``data.texts``).
    Changes: nothing.

    Args:
        reward: what a completion is worth; by default 1 if it equals the column ``answer``.
        samples: completions of each prompt, above 0.
        temperature: above 0.
        max_new_tokens: of each, above 0.
        top_p: draw from the fewest likeliest tokens of this probability, in (0, 1].
        top_k: draw from so many likeliest tokens; 0: from all.
        keep_at_least: the least reward that is accepted.
        per_prompt: keep at most so many of a prompt, those of greatest reward; 0: all.
        finished: refuse completions that ``max_new_tokens`` cut, whatever their reward.
        split: whose prompts: ``"train"``, ``"val"`` or ``"test"``.
        batch_size: completions that are made at once, above 0; ``samples`` at least.
        seed: of what is drawn, with the rank.

    Raises:
        ValueError: naming the argument that is out of its range; if no completion is accepted.
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
        reward: Reward | None = None,
        samples: int = 8,
        temperature: float = 0.7,
        max_new_tokens: int = 256,
        top_p: float = 1.0,
        top_k: int = 0,
        keep_at_least: float = 1.0,
        per_prompt: int = 0,
        finished: bool = True,
        split: Literal["train", "val", "test"] = "train",
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        for name, value in (("samples", samples), ("batch_size", batch_size)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if not temperature > 0:
            raise ValueError(
                f"temperature is {temperature}; it must be above 0, or all samples of a prompt are "
                "the same"
            )
        if per_prompt < 0:
            raise ValueError(f"per_prompt is {per_prompt}; it must be above 0, or 0: all")
        if keep_at_least != keep_at_least:
            raise ValueError("keep_at_least is nan; give the least reward that is accepted")
        if split not in ("train", "val", "test"):
            raise ValueError(f"split is {split!r}; it must be 'train', 'val' or 'test'")
        self.sampling = SamplingParams(max_new_tokens, temperature, top_p, top_k)
        self.reward: Reward = ExactMatch() if reward is None else reward
        self.samples = samples
        self.keep_at_least = keep_at_least
        self.per_prompt = per_prompt
        self.finished = finished
        self.split = split
        self.batch_size = batch_size
        self.seed = seed

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample, judge, gather and write."""
        dataset = self._dataset(trainer)
        first = _distinct(dataset)
        # As many on every rank, so that a sharded model is asked equally often.
        place = torch.arange(-(-len(first) // trainer.world_size)) * trainer.world_size
        place += trainer.global_rank
        mine = first[place % len(first)]
        texts: list[dict[str, Any]] = dataset.texts(mine)
        # Prompts of like length together: less padding, and batches that end together.
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]["prompt"]))
        size = max(1, self.batch_size // self.samples)
        found: list[dict[str, Any]] = []
        with private_rng(derive_seed(self.seed, 0, trainer.global_rank)):
            for start in range(0, len(order), size):
                part = order[start : start + size]
                rows = self._judged([texts[at] for at in part], mine[part], trainer, pl_module)
                found += [row for at, row in zip(part, rows, strict=True) if place[at] < len(first)]
        everyone = gathered_rows(found, trainer)
        path = run_directory(trainer) / "rejection_sampling.jsonl"
        self._write(sorted(everyone, key=lambda row: row["index"]), dataset, path, trainer)

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

    def _judged(
        self,
        texts: list[dict[str, Any]],
        index: Tensor,
        trainer: Trainer,
        pl_module: LightningModule,
    ) -> list[dict[str, Any]]:
        """For each prompt: its index, its text with all columns, and what was accepted."""
        module: Any = pl_module
        with trainer.precision_plugin.forward_context():
            drawn: list[list[dict[str, Any]]] = module.sample(
                [text["prompt"] for text in texts], self.samples, self.sampling
            )
        flat = [(text, each) for text, row in zip(texts, drawn, strict=True) for each in row]
        names = sorted({name for text in texts for name in text} - {"prompt", "completion"})
        rewards = checked_rewards(
            self.reward,
            [text["prompt"] for text, _ in flat],
            [each["completion"] for _, each in flat],
            {name: [text.get(name) for text, _ in flat] for name in names},
            names=index.repeat_interleave(self.samples).tolist(),
        )
        rows: list[dict[str, Any]] = []
        for at, (text, sampled) in enumerate(zip(texts, drawn, strict=True)):
            of_prompt = rewards[at * self.samples : (at + 1) * self.samples]
            rows.append(
                {
                    "index": int(index[at]),
                    "text": text,
                    "kept": self._accepted(sampled, of_prompt),
                    "drawn": len(sampled),
                    "cut": sum(each["finish"] == "length" for each in sampled),
                    "judged": sum(reward is not None for reward in of_prompt),
                }
            )
        return rows

    def _accepted(
        self, sampled: list[dict[str, Any]], rewards: list[float | None]
    ) -> list[dict[str, Any]]:
        """The distinct completions of a prompt that are good enough, the best first."""
        kept: dict[str, dict[str, Any]] = {}
        for each, reward in zip(sampled, rewards, strict=True):
            if reward is None or reward < self.keep_at_least:
                continue
            if self.finished and each["finish"] != "stop":
                continue
            row = {"completion": each["completion"], "reward": reward, "log_prob": each["log_prob"]}
            kept.setdefault(each["completion"].strip(), row)
        best = sorted(kept.values(), key=lambda row: -row["reward"])
        return best[: self.per_prompt or None]

    def _write(
        self, found: list[dict[str, Any]], dataset: Any, path: Any, trainer: Trainer
    ) -> None:
        """Write what was accepted, and tell how much that is.

        Raises:
            ValueError: if nothing was.
        """
        count = {name: sum(row[name] for row in found) for name in ("drawn", "cut", "judged")}
        none = sum(not row["kept"] for row in found)
        if none == len(found):
            raise ValueError(
                f"of {count['drawn']} completions of {len(found)} prompts none has a reward of at "
                f"least {self.keep_at_least} ({count['judged']} were judged, {count['cut']} cut at "
                f"max_new_tokens={self.sampling.max_new_tokens}), so there is nothing to write: "
                "lower keep_at_least, draw more samples, raise max_new_tokens, or train longer"
            )
        if not trainer.is_global_zero:
            return
        ids: Any = getattr(dataset, "ids", None)
        rows: list[dict[str, Any]] = []
        for row in found:
            name = row["index"] if ids is None else ids[row["index"]]
            name = name.item() if isinstance(name, Tensor) else name
            own = {key: value for key, value in row["text"].items() if key not in ("id", "reward")}
            for number, each in enumerate(row["kept"]):
                rows.append({"id": f"{name}/{number}", **own, **each})
        write_lines(path, rows)
        rank_zero_info(
            f"{len(rows)} of {count['drawn']} completions are kept in {path}; {none} of "
            f"{len(found)} prompts have none"
        )
        logged = {"kept": len(rows), "drawn": count["drawn"], "prompts_without": none}
        for logger in trainer.loggers:
            logger.log_metrics({f"rejection_sampling/{k}": float(v) for k, v in logged.items()})


def _distinct(dataset: Any) -> Tensor:
    """The first sample of each distinct prompt, ascending: ``[G]`` int64."""
    groups: Tensor | None = getattr(dataset, "groups", None)
    if groups is None:
        return torch.arange(len(dataset))
    return first_of_each(groups)[0].sort().values
