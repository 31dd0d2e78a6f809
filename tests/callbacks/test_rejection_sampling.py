"""RejectionSampling writes the accepted completions as a dataset to train on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from callbacks import RejectionSampling
from lit_adaptive.data import Arithmetic, DemonstrationDataset, DemonstrationsDataModule
from lit_adaptive.modules import IWSFT, ConfiguredLM
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.rollout.rewards.base import Reward

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")


class RandomAnswers(LightningModule):
    """Answers a sum with its answer plus a random integer; keeps the prompts."""

    provides = frozenset({"model.sample"})

    def __init__(self, finish: str = "stop", sides: int = 3) -> None:
        super().__init__()
        self.finish, self.sides = finish, sides
        self.prompts: list[list[str]] = []
        self.sampling: SamplingParams | None = None

    def sample(
        self, prompts: list[str], samples: int, sampling: SamplingParams
    ) -> list[list[dict[str, Any]]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.prompts.append(prompts)
        self.sampling = sampling
        rows = []
        for prompt in prompts:
            correct = sum(int(part) for part in prompt.rstrip("=").split("+"))
            offsets = torch.randint(self.sides, (samples,)).tolist()
            rows.append(
                [
                    {"completion": str(correct + k), "log_prob": -1.0 - k, "finish": self.finish}
                    for k in offsets
                ]
            )
        return rows

    def predict_step(self, batch: Any, _: int) -> list[int]:
        return []  # the callback is tested


class Nearness(Reward):
    """Minus the distance from the answer; does not apply to distance 1."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        distance = [int(c) - int(a) for c, a in zip(completions, columns["answer"], strict=True)]
        return [None if d == 1 else -float(d) for d in distance]


SIZE = 30  # of training, three demonstrations of each prompt


def data(**options: Any) -> DemonstrationsDataModule:
    return DemonstrationsDataModule(
        DemonstrationDataset(
            Arithmetic(
                "train", size=SIZE // 3, digits=2, operators="+", demonstrations_per_prompt=3
            )
        ),
        val_dataset=DemonstrationDataset(
            Arithmetic("validation", size=7, digits=2, operators="+"), columns=["answer"]
        ),
        batch_size=8,
        **options,
    )


def predict(
    folder: Path, callback: RejectionSampling, model: LightningModule | None = None, **options: Any
) -> list[dict[str, Any]]:
    seed_everything(3, verbose=False)
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[callback], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.predict(model or RandomAnswers(), data())
    return lines(folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "rejection_sampling.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def prompts_of(source: Any) -> list[str]:
    """The distinct prompts, in order."""
    texts = source.texts(torch.arange(len(source)))
    return list(dict.fromkeys(text["prompt"] for text in texts))


def test_correct_completions_are_kept_once_per_prompt(tmp_path: Path) -> None:
    model = RandomAnswers()
    rows = predict(tmp_path, RejectionSampling(samples=12), model)
    prompts = prompts_of(data().dataset)
    assert len(prompts) == SIZE // 3
    assert sorted(prompt for batch in model.prompts for prompt in batch) == sorted(prompts)
    assert [row["prompt"] for row in rows] == prompts  # of 12 samples at least one is correct
    for row in rows:
        assert row["completion"] == row["answer"]
        assert row["reward"] == 1.0
        assert row["log_prob"] == -1.0
    assert len({row["id"] for row in rows}) == len(rows)
    ids: Any = data().dataset.ids
    assert rows[0]["id"] == f"{ids[0]}/0"
    assert model.sampling == SamplingParams(256, 0.7)


def test_the_file_is_a_dataset_to_train_on(tmp_path: Path) -> None:
    rows = predict(tmp_path, RejectionSampling(samples=12))
    path = str(tmp_path / "rejection_sampling.jsonl")
    again = DemonstrationsDataModule(
        DemonstrationDataset(path, prompt="prompt", completion="completion"), batch_size=4
    )
    texts = again.texts(torch.arange(len(again.dataset)))
    assert [text["prompt"] for text in texts] == [row["prompt"] for row in rows]
    assert [text["completion"] for text in texts] == [row["completion"] for row in rows]
    assert list(again.dataset.ids) == [row["id"] for row in rows]
    assert again.dataset.column("reward").tolist() == [1.0] * len(rows)


def test_distinct_completions_of_greatest_reward_come_first(tmp_path: Path) -> None:
    options: dict[str, Any] = {"reward": Nearness(), "samples": 16, "keep_at_least": -3.0}
    model = RandomAnswers(sides=6)
    rows = predict(tmp_path, RejectionSampling(**options), model)
    for prompt in prompts_of(data().dataset):
        rewards = [row["reward"] for row in rows if row["prompt"] == prompt]
        assert rewards == sorted(set(rewards), reverse=True)
        assert set(rewards) <= {0.0, -2.0, -3.0}
    numbers = [row["id"].rpartition("/")[2] for row in rows]
    assert {"0", "1", "2"} == set(numbers)
    best = predict(tmp_path, RejectionSampling(per_prompt=1, **options), RandomAnswers(sides=6))
    assert best == [row for row in rows if row["id"].endswith("/0")]


def test_prompts_without_an_accepted_completion_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        rows = predict(tmp_path, RejectionSampling(samples=2))
    log = caplog.text + capsys.readouterr().err
    missing = SIZE // 3 - len({row["prompt"] for row in rows})
    assert 0 < missing < SIZE // 3
    assert f"wrote {len(rows)} of {2 * SIZE // 3} completions" in log
    assert f"{missing} of {SIZE // 3} prompts have none" in log


def test_without_an_accepted_completion_there_is_an_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of 40 completions of 10 prompts has a reward of"):
        predict(tmp_path, RejectionSampling(samples=4, keep_at_least=2.0))
    assert not list(tmp_path.iterdir())


def test_truncated_completions_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="40 were scored, 40 truncated at max_new_tokens=256"):
        predict(tmp_path, RejectionSampling(samples=4), RandomAnswers("length"))
    rows = predict(tmp_path, RejectionSampling(samples=4, finished=False), RandomAnswers("length"))
    assert rows


def test_samples_follow_from_the_seed_and_the_global_generator_is_unchanged(tmp_path: Path) -> None:
    state: list[Any] = []

    class Peek(RejectionSampling):
        def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
            before = torch.random.get_rng_state()
            super().on_predict_start(trainer, pl_module)
            state.append(torch.equal(before, torch.random.get_rng_state()))

    first, same, other = (
        predict(
            tmp_path / str(k),
            Peek(Nearness(), 3, keep_at_least=-9, seed=seed),
            RandomAnswers(sides=9),
        )
        for k, seed in enumerate((0, 0, 1))
    )
    assert first == same
    assert first != other
    assert state == [True] * 3


def test_batches_hold_prompts_of_similar_length_within_the_batch_size(tmp_path: Path) -> None:
    model = RandomAnswers()
    predict(tmp_path, RejectionSampling(samples=4, batch_size=13), model)
    assert [len(batch) for batch in model.prompts] == [3, 3, 3, 1]
    lengths = [len(prompt) for batch in model.prompts for prompt in batch]
    assert lengths == sorted(lengths)


def test_split_selects_the_prompts(tmp_path: Path) -> None:
    rows = predict(tmp_path, RejectionSampling(samples=20, split="val"))
    assert [row["prompt"] for row in rows] == prompts_of(data().val_dataset)
    with pytest.raises(ValueError, match="split is 'test', but the datamodule has no test_dataset"):
        predict(tmp_path, RejectionSampling(split="test"))


def test_samples_of_a_language_model_are_scored(tmp_path: Path) -> None:
    class Short(Reward):
        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
            return [float(len(text) <= 2) for text in completions]

    recipe = ConfiguredLM(hidden_size=32, layers=1, heads=2, max_positions=64, seed=1)
    model = IWSFT(recipe, objective="nll", max_new_tokens=2)
    callback = RejectionSampling(Short(), 40, SamplingParams(30), batch_size=200)
    rows = predict(tmp_path, callback, model)
    assert all(len(row["completion"]) <= 2 for row in rows)
    assert all(row["log_prob"] < 0 for row in rows)
    assert {row["prompt"] for row in rows} <= set(prompts_of(data().dataset))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "samples is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sampling": SamplingParams(temperature=0.0)}, "sampling.temperature is 0, so all"),
        ({"per_prompt": -1}, "per_prompt is -1"),
        ({"keep_at_least": float("nan")}, "keep_at_least is nan"),
        ({"split": "all"}, "split is 'all'"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RejectionSampling(**options)


def on_two_ranks(folder: Path) -> None:
    callback = RejectionSampling(Nearness(), 6, keep_at_least=-9, batch_size=12, split="val")
    predict(folder, callback, RandomAnswers(sides=9), devices=2, strategy="ddp")


@pytest.mark.multiprocess
def test_two_ranks_share_the_prompts_and_write_each_once(tmp_path: Path) -> None:
    """Runs this file as a program; seven prompts, so one of the ranks repeats one."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=250, cwd=Path.cwd(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = lines(tmp_path)
    assert list(dict.fromkeys(row["prompt"] for row in rows)) == prompts_of(data().val_dataset)
    assert len({(row["prompt"], row["completion"]) for row in rows}) == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)


if __name__ == "__main__":
    on_two_ranks(Path(sys.argv[1]))
