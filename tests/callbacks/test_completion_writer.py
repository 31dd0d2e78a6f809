"""CompletionWriter writes every prompt once, in order, with its log-probabilities."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor

from callbacks import CompletionWriter
from lit_adaptive.data import Arithmetic, DemonstrationDataset, DemonstrationsDataModule
from lit_adaptive.modules import IWSFT, ConfiguredLM

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")

SIZE = 23  # not divisible by two ranks and batches of 5: padding rows must not be written


def module(max_new_tokens: int = 4) -> IWSFT:
    model = ConfiguredLM(hidden_size=32, layers=1, heads=2, max_positions=32, seed=1)
    return IWSFT(model, objective="nll", max_new_tokens=max_new_tokens)


def data(validation: Any = None, **options: Any) -> DemonstrationsDataModule:
    return DemonstrationsDataModule(
        DemonstrationDataset(Arithmetic("train", size=64, digits=2)),
        val_dataset=DemonstrationDataset(
            validation or Arithmetic("validation", size=SIZE, digits=2), columns=["answer"]
        ),
        batch_size=8,
        eval_batch_size=5,
        **options,
    )


def predict(folder: Path, model: LightningModule | None = None, **options: Any) -> list[Any]:
    seed_everything(3, verbose=False)
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[CompletionWriter()],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.predict(model or module(), data())
    return lines(folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "completions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_prompt_is_answered_in_the_datasets_order(tmp_path: Path) -> None:
    model = module()
    rows = predict(tmp_path, model)
    source = data()
    texts = source.val_dataset.texts(torch.arange(SIZE))  # type: ignore[union-attr]
    assert [row["prompt"] for row in rows] == [text["prompt"] for text in texts]
    assert [row["answer"] for row in rows] == [text["answer"] for text in texts]
    ids: Any = source.val_dataset.ids  # type: ignore[union-attr]
    assert [row["id"] for row in rows] == list(ids)
    for row in rows:
        assert row["log_prob"] == pytest.approx(sum(row["log_probs"]), abs=1e-4)
        assert len(row["tokens"]) == len(row["log_probs"])
        assert row["finish"] == ("length" if row["tokens"][-1] not in model.stops() else "stop")
        assert row["reward"] == float(row["completion"].strip() == row["answer"])
        assert model.detokenize([torch.tensor(row["tokens"])]) == [row["completion"]]


def test_log_probs_are_the_models(tmp_path: Path) -> None:
    model = module()
    rows = predict(tmp_path, model)
    source = data()
    for row in rows[:5]:
        prompt = source.encode_prompts([row["prompt"]])[0]
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *row["tokens"]]])
            log_probs = model.policy.model(input_ids=ids).logits[0].log_softmax(-1)
        tokens = torch.tensor(row["tokens"])[:, None]
        expected = log_probs[len(prompt) - 1 : -1].gather(1, tokens)[:, 0]
        assert row["log_probs"] == pytest.approx(expected.tolist(), abs=1e-4)


class Answers(LightningModule):
    """Returns fixed answers, and further outputs."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.more = more

    def predict_step(self, batch: dict[str, Any], _: int) -> dict[str, Any]:
        counted: Tensor = batch["counted"]
        index = batch["index"][counted]
        n = len(index)
        return {
            "index": index,
            "prompt": [f"p{i}" for i in index.tolist()],
            "completion": [f"größer {i}\n" for i in index.tolist()],
            "tokens": [[1, 2]] * n,
            "log_probs": [[-0.123456789, -1e-9]] * n,
            "finish": ["length"] * n,
            **{name: [value] * n for name, value in self.more.items()},
        }


def test_texts_are_readable_and_numbers_rounded(tmp_path: Path) -> None:
    rows = predict(tmp_path, Answers())
    assert [row["completion"] for row in rows] == [f"größer {i}\n" for i in range(SIZE)]
    assert rows[0]["log_probs"] == [-0.12346, 0.0]
    assert rows[0]["log_prob"] == -0.12346
    assert "reward" not in rows[0]
    assert "größer" in (tmp_path / "completions.jsonl").read_text(encoding="utf-8")


def test_a_reward_that_does_not_apply_is_null(tmp_path: Path) -> None:
    assert {row["reward"] for row in predict(tmp_path, Answers(reward=None))} == {None}


def test_a_second_prediction_starts_empty(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[CompletionWriter()],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    for _ in range(2):
        trainer.predict(Answers(), data())
        assert len(lines(tmp_path)) == SIZE


def test_a_module_without_completions_is_named(tmp_path: Path) -> None:
    class Silent(LightningModule):
        def predict_step(self, batch: Any, _: int) -> Any:
            return {"index": batch["index"]}

    with pytest.raises(ValueError, match="predict_step of Silent returned no prompt, completion"):
        predict(tmp_path, Silent())


@pytest.mark.multiprocess
def test_two_ranks_write_the_same_file_as_one(tmp_path: Path) -> None:
    """Runs this file as a program in two processes."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = predict(one)
    done = subprocess.run(
        [sys.executable, __file__, str(two)],
        capture_output=True, text=True, check=False, timeout=250, cwd=Path.cwd(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    together = lines(two)
    close = {"log_prob", "log_probs"}
    for expected, row in zip(alone, together, strict=True):
        assert {k: v for k, v in expected.items() if k not in close} == {
            k: v for k, v in row.items() if k not in close
        }
        assert row["log_probs"] == pytest.approx(expected["log_probs"], abs=1e-4)


if __name__ == "__main__":
    predict(Path(sys.argv[1]), devices=2, strategy="ddp")
