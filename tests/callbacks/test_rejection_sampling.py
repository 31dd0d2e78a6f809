"""What the reward accepts, and nothing else, becomes a file that can be trained on."""

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


class Dice(LightningModule):
    """Answers a sum with its answer plus a die's throw; writes down what it was asked."""

    provides = frozenset({"model.sample"})

    def __init__(self, finish: str = "stop", sides: int = 3) -> None:
        super().__init__()
        self.finish, self.sides = finish, sides
        self.asked: list[list[str]] = []
        self.sampling: SamplingParams | None = None

    def sample(
        self, prompts: list[str], samples: int, sampling: SamplingParams
    ) -> list[list[dict[str, Any]]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.asked.append(prompts)
        self.sampling = sampling
        found = []
        for prompt in prompts:
            right = sum(int(part) for part in prompt.rstrip("=").split("+"))
            throws = torch.randint(self.sides, (samples,)).tolist()
            found.append(
                [
                    {"completion": str(right + k), "log_prob": -1.0 - k, "finish": self.finish}
                    for k in throws
                ]
            )
        return found

    def predict_step(self, batch: Any, _: int) -> list[int]:
        return []  # only the callback is looked at


class Nearness(Reward):
    """Minus the distance from the answer; does not apply to distance 1."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        apart = [int(c) - int(a) for c, a in zip(completions, columns["answer"], strict=True)]
        return [None if each == 1 else -float(each) for each in apart]


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
    trainer.predict(model or Dice(), data())
    return lines(folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "rejection_sampling.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def prompts_of(source: Any) -> list[str]:
    """The distinct prompts, in order."""
    texts = source.texts(torch.arange(len(source)))
    return list(dict.fromkeys(text["prompt"] for text in texts))


def test_what_is_right_is_kept_once_for_each_prompt(tmp_path: Path) -> None:
    model = Dice()
    found = predict(tmp_path, RejectionSampling(samples=12, temperature=0.5), model)
    prompts = prompts_of(data().dataset)
    assert len(prompts) == SIZE // 3
    assert sorted(prompt for batch in model.asked for prompt in batch) == sorted(prompts)
    assert [row["prompt"] for row in found] == prompts  # 12 throws: each has the right one
    for row in found:
        assert row["completion"] == row["answer"]
        assert row["reward"] == 1.0
        assert row["log_prob"] == -1.0
    assert len({row["id"] for row in found}) == len(found)
    ids: Any = data().dataset.ids
    assert found[0]["id"] == f"{ids[0]}/0"
    assert model.sampling == SamplingParams(256, 0.5)


def test_the_file_is_a_dataset_to_train_on(tmp_path: Path) -> None:
    found = predict(tmp_path, RejectionSampling(samples=12))
    path = str(tmp_path / "rejection_sampling.jsonl")
    again = DemonstrationsDataModule(
        DemonstrationDataset(path, prompt="prompt", completion="completion"), batch_size=4
    )
    texts = again.texts(torch.arange(len(again.dataset)))
    assert [text["prompt"] for text in texts] == [row["prompt"] for row in found]
    assert [text["completion"] for text in texts] == [row["completion"] for row in found]
    assert list(again.dataset.ids) == [row["id"] for row in found]
    assert again.dataset.column("reward").tolist() == [1.0] * len(found)


def test_the_best_distinct_ones_come_first(tmp_path: Path) -> None:
    options: dict[str, Any] = {"reward": Nearness(), "samples": 16, "keep_at_least": -3.0}
    model = Dice(sides=6)
    found = predict(tmp_path, RejectionSampling(**options), model)
    for prompt in prompts_of(data().dataset):
        rewards = [row["reward"] for row in found if row["prompt"] == prompt]
        assert rewards == sorted(set(rewards), reverse=True)
        assert set(rewards) <= {0.0, -2.0, -3.0}
    several = [row["id"].rpartition("/")[2] for row in found]
    assert {"0", "1", "2"} == set(several)
    one = predict(tmp_path, RejectionSampling(per_prompt=1, **options), Dice(sides=6))
    assert one == [row for row in found if row["id"].endswith("/0")]


def test_prompts_without_an_accepted_one_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        found = predict(tmp_path, RejectionSampling(samples=2))
    told = caplog.text + capsys.readouterr().err
    missing = SIZE // 3 - len({row["prompt"] for row in found})
    assert 0 < missing < SIZE // 3
    assert f"{len(found)} of {2 * SIZE // 3} completions are kept" in told
    assert f"{missing} of {SIZE // 3} prompts have none" in told


def test_nothing_accepted_is_an_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of 40 completions of 10 prompts none has a reward of"):
        predict(tmp_path, RejectionSampling(samples=4, keep_at_least=2.0))
    assert not list(tmp_path.iterdir())


def test_completions_that_were_cut_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="40 were judged, 40 cut at max_new_tokens=256"):
        predict(tmp_path, RejectionSampling(samples=4), Dice("length"))
    found = predict(tmp_path, RejectionSampling(samples=4, finished=False), Dice("length"))
    assert found


def test_the_seed_decides_and_the_global_stream_is_left_alone(tmp_path: Path) -> None:
    state: list[Any] = []

    class Peek(RejectionSampling):
        def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
            before = torch.random.get_rng_state()
            super().on_predict_start(trainer, pl_module)
            state.append(torch.equal(before, torch.random.get_rng_state()))

    first, same, other = (
        predict(tmp_path / str(k), Peek(Nearness(), 3, keep_at_least=-9, seed=seed), Dice(sides=9))
        for k, seed in enumerate((0, 0, 1))
    )
    assert first == same
    assert first != other
    assert state == [True] * 3


def test_batches_hold_prompts_of_like_length_and_no_more_than_asked(tmp_path: Path) -> None:
    model = Dice()
    predict(tmp_path, RejectionSampling(samples=4, batch_size=13), model)
    assert [len(batch) for batch in model.asked] == [3, 3, 3, 1]
    lengths = [len(prompt) for batch in model.asked for prompt in batch]
    assert lengths == sorted(lengths)


def test_the_split_says_whose_prompts(tmp_path: Path) -> None:
    found = predict(tmp_path, RejectionSampling(samples=20, split="val"))
    assert [row["prompt"] for row in found] == prompts_of(data().val_dataset)
    with pytest.raises(ValueError, match="split is 'test', but the datamodule has no test_dataset"):
        predict(tmp_path, RejectionSampling(split="test"))


def test_a_language_models_own_samples_are_judged(tmp_path: Path) -> None:
    class Short(Reward):
        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
            return [float(len(each) <= 2) for each in completions]

    recipe = ConfiguredLM(hidden_size=32, layers=1, heads=2, max_positions=32, seed=1)
    model = IWSFT(recipe, objective="nll", max_new_tokens=2)
    callback = RejectionSampling(Short(), 40, 1.0, 30, batch_size=200)
    found = predict(tmp_path, callback, model)
    assert all(len(row["completion"]) <= 2 for row in found)
    assert all(row["log_prob"] < 0 for row in found)
    assert {row["prompt"] for row in found} <= set(prompts_of(data().dataset))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 0}, "samples is 0; it must be above 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"temperature": 0.0}, r"temperature is 0\.0; it must be above 0, or all samples"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"top_p": 2.0}, r"top_p is 2\.0"),
        ({"per_prompt": -1}, "per_prompt is -1"),
        ({"keep_at_least": float("nan")}, "keep_at_least is nan"),
        ({"split": "all"}, "split is 'all'"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RejectionSampling(**wrong)


def on_two_ranks(folder: Path) -> None:
    callback = RejectionSampling(Nearness(), 6, keep_at_least=-9, batch_size=12, split="val")
    predict(folder, callback, Dice(sides=9), devices=2, strategy="ddp")


@pytest.mark.multiprocess
def test_two_ranks_share_the_prompts_and_write_each_once(tmp_path: Path) -> None:
    """Runs this file as a program; seven prompts, so one of the ranks repeats one."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=250, cwd=Path.cwd(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = lines(tmp_path)
    assert list(dict.fromkeys(row["prompt"] for row in found)) == prompts_of(data().val_dataset)
    assert len({(row["prompt"], row["completion"]) for row in found}) == len(found)
    assert len({row["id"] for row in found}) == len(found)


if __name__ == "__main__":
    on_two_ranks(Path(sys.argv[1]))
