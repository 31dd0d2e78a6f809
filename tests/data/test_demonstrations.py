"""The datamodule of demonstrations: splits, what is read in order, YAML."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from quiet_trainer import quiet_trainer

from lit_adaptive.data import (
    Arithmetic,
    DemonstrationDataset,
    DemonstrationsDataModule,
    PromptDataset,
    SampledDataModule,
)
from lit_adaptive.modules import IWSFT, ConfiguredLM
from lit_adaptive.rollout.models.tokenizers import character_tokenizer
from lit_adaptive.samplers import PrioritizedSampler

TOKENIZER = character_tokenizer()
SUMS = Arithmetic(size=120, digits=4, demonstrations_per_prompt=2, correct=0.5, wrong=0.5)


class _Trainer:
    """The place of a process among others."""

    def __init__(self, rank: int, world: int) -> None:
        self.global_rank, self.world_size = rank, world


def _dataset(source: Any = SUMS, **options: Any) -> DemonstrationDataset:
    return DemonstrationDataset(source, TOKENIZER, max_length=32, **options)


def _module(
    source: Any = SUMS, reading: dict[str, Any] | None = None, **options: Any
) -> DemonstrationsDataModule:
    dataset = _dataset(source, **(reading or {}))
    return DemonstrationsDataModule(dataset, **{"batch_size": 8, **options})


def test_a_pass_holds_every_sample_with_its_weight() -> None:
    data = _module(batch_size=10)
    batches = list(data.train_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).sort().values.equal(torch.arange(240))
    assert all(batch["weight"].eq(1).all() for batch in batches)
    for batch in batches:
        assert int(batch["sequence"].max()) == 9
        texts = [row["completion"] for row in data.texts(batch["index"])]
        completions = [
            TOKENIZER.decode(batch["target"][batch["sequence"] == i], skip_special_tokens=True)
            for i in range(10)
        ]
        assert completions == texts


@pytest.mark.parametrize("workers", [0, 2])
def test_any_sampler_draws_and_worker_processes_read_the_cache(
    workers: int, tmp_path: Path
) -> None:
    data = _module(
        reading={"packing": True, "cache_dir": str(tmp_path)},
        sampler=PrioritizedSampler,
        num_workers=workers,
        seed=3,
        batches_per_epoch=3,
    )
    data.set_reference(torch.arange(float(data.dataset.offsets[-1])))
    for batch in data.train_dataloader():
        assert batch["ref_log_probs"].shape == batch["target"].shape
        expected = data.dataset.gather(batch["index"])
        assert expected["input_ids"].equal(batch["input_ids"])
        assert expected["ref_log_probs"].equal(batch["ref_log_probs"])
    data.update({"index": torch.arange(240)}, torch.rand(240))


def test_the_prompts_of_the_validation_share_are_held_out_whatever_the_order() -> None:
    def split(rows: list[Any]) -> tuple[set[str], set[str]]:
        data = _module(rows, validation_share=0.25)
        assert isinstance(data.val_dataset, DemonstrationDataset)
        parts = (data.dataset, data.val_dataset)
        assert data.sampler.size == len(data.dataset)
        assert "prompt_ids" in next(iter(data.val_dataloader()))
        assert "prompt_ids" not in next(iter(data.train_dataloader()))
        texts = [part.texts(torch.arange(len(part))) for part in parts]
        assert {row["id"] for row in texts[0]} == set(data.ids)
        train, held_out = ({row["prompt"] for row in part} for part in texts)
        assert sum(map(len, texts)) == len(rows)
        assert not train & held_out
        return train, held_out

    rows = [SUMS[i] for i in range(len(SUMS))]
    train, held_out = split(rows)
    assert 0.15 < len(held_out) / 120 < 0.35
    assert split(rows[::-1]) == (train, held_out)
    fewer = split(rows[40:])
    assert fewer[1] <= held_out  # a prompt's place depends on nothing but the prompt
    assert fewer[0] <= train
    with pytest.raises(ValueError, match=r"validation_share is 1\.5"):
        _module(validation_share=1.5)
    with pytest.raises(ValueError, match=r"of the 1 different prompts of list (all|none) fall"):
        _module(rows[:2], validation_share=0.5)
    with pytest.raises(ValueError, match="and val_dataset is given"):
        _module(validation_share=0.5, val_dataset=_dataset())


def test_validation_batches_have_similar_lengths_and_cover_every_sample_once() -> None:
    held_out = Arithmetic("validation", size=90, digits=5)
    for size, ranks in ((8, 1), (4, 3)):
        seen: list[int] = []
        padding, lengths, widths = 0, [], []
        for rank in range(ranks):
            data = _module(val_dataset=_dataset(held_out, columns=["answer"]), eval_batch_size=size)
            data.trainer = _Trainer(rank, ranks)  # type: ignore[assignment]
            batches = list(data.val_dataloader())
            lengths.append(len(batches))
            for batch in batches:
                seen += batch["index"][batch["counted"]].tolist()
                padding += int((batch["input_ids"] == 0).sum())
                rows = [held_out[i] for i in batch["index"].tolist()]
                assert batch["prompt"] == [row["prompt"] for row in rows]
                assert batch["answer"] == [row["answer"] for row in rows]
            widths.append([batch["input_ids"].shape[1] for batch in batches])
        assert sorted(seen) == list(range(90))
        assert len(set(lengths)) == 1
        # All ranks read the same lengths at once; the first batches are not the longest.
        assert all(max(each) - min(each) <= 2 for each in zip(*widths, strict=True))
        assert widths[0] != sorted(widths[0], reverse=True)
        assert isinstance(data.val_dataset, DemonstrationDataset)
        parts = data.val_dataset.lengths.sort(descending=True).values.split(size * ranks)
        shares = [part[rank::ranks] for part in parts for rank in range(ranks)]
        assert padding == int(sum((share.max() - share).sum() for share in shares))
    scored = [i for batch in _module().scoring_dataloader() for i in batch["index"].tolist()]
    assert sorted(scored) == list(range(240))


def test_provides_names_the_keys_of_a_batch() -> None:
    provides = _module().provides
    names = ("input_ids", "position_ids", "target", "position", "sequence", "index", "weight")
    assert {f"batch.{name}" for name in names} <= provides
    assert {"data.texts", "data.scoring_dataloader"} <= provides


def test_a_difficulty_and_scores_come_from_columns() -> None:
    data = _module(sampler=PrioritizedSampler, scores="reward", difficulty="difficulty")
    assert data.numbers("difficulty").equal(SUMS.column("difficulty"))
    probability = data.sampler.probabilities()
    assert float(probability[SUMS.column("reward") == 1].min()) > float(
        probability[SUMS.column("reward") == 0].max()
    )


def _parsed(init_args: dict[str, Any], folder: Path) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(SampledDataModule, "data")
    config = {
        "data": {"class_path": "lit_adaptive.data.DemonstrationsDataModule", "init_args": init_args}
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return parser.instantiate(parser.parse_args(["--config", str(file)])).data


def test_yaml_builds_it_from_a_dataset_class_or_a_path(tmp_path: Path) -> None:
    sums = {
        "class_path": "lit_adaptive.data.Arithmetic",
        "init_args": {"size": 30, "correct": 0.5, "sloppy": 0.5},
    }
    test = {"class_path": "lit_adaptive.data.Arithmetic", "init_args": {"split": "test", "size": 9}}
    tokenizer = _saved(tmp_path)
    datamodule = _parsed(
        {
            "dataset": {"source": sums, "tokenizer": tokenizer, "packing": True},
            "sampler": {"class_path": "lit_adaptive.samplers.PrioritizedSampler"},
            "val_dataset": {"source": test, "tokenizer": tokenizer, "columns": ["answer"]},
            "batch_size": 4,
            "eval_batch_size": 5,
            "difficulty": "difficulty",
        },
        tmp_path,
    )
    assert isinstance(datamodule, DemonstrationsDataModule)
    assert isinstance(datamodule.sampler, PrioritizedSampler)
    assert (len(datamodule.dataset), len(datamodule.val_dataset), datamodule.eval_batch_size) == (
        30,
        9,
        5,
    )  # type: ignore[arg-type]
    assert next(iter(datamodule.train_dataloader()))["target"].dim() == 1

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(SUMS[i]) + "\n" for i in range(50)))
    dataset = {"source": str(file), "max_length": 30, "overlong": "truncate_left"}
    datamodule = _parsed({"dataset": dataset, "validation_share": 0.3}, tmp_path)
    assert len(datamodule.dataset) + len(datamodule.val_dataset) == 50
    assert datamodule.tokenizer.eos_token == "<eos>"


def _saved(folder: Path) -> str:
    TOKENIZER.save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_prompts_without_answers_are_predicted_and_may_have_a_column_target() -> None:
    prompts = PromptDataset([{"prompt": f"{i}+1=", "target": "x"} for i in range(5)])
    demonstrations = DemonstrationDataset([{"prompt": "1+1=", "completion": "2"}] * 4)
    data = DemonstrationsDataModule(demonstrations, test_dataset=prompts, batch_size=2)
    model = IWSFT(ConfiguredLM(hidden_size=16, layers=1, heads=2, seed=0), max_new_tokens=2)
    trainer = quiet_trainer()
    predicted: Any = trainer.predict(model, data)
    rows = sorted(zip(predicted[0]["index"].tolist(), predicted[0]["prompt"], strict=True))
    assert rows == [(i, f"{i}+1=") for i in range(5)]
    assert len(predicted[0]["completion"]) == 5
    trainer.test(model, data, verbose=False)
