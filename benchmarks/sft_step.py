"""What a step of fine-tuning costs: iw-SFT against SFT, and SFT against TRL's SFTTrainer.

    python benchmarks/sft_step.py [--rounds 5] [--steps 30] [--only tiny]

Same model (weights drawn alike), same batch, precision (float32) and optimizer (AdamW), one run,
interleaved: each round trains each of them for some steps in this process, and the median time
between the ends of two steps counts; everything between them is in it (loading, logging, hooks).
Ratios are of the fastest rounds, which other work on the machine disturbs least. TRL trains on
completions only, unpadded to the same lengths. Needs the extra `peers` and `trl`.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_DISABLED", "true")

import torch
from datasets import Dataset as HubTable
from lightning.pytorch import Callback, Trainer, seed_everything
from transformers import TrainerCallback

from callbacks import ReferenceLogProbs
from lit_adaptive.data import DemonstrationDataset, DemonstrationsDataModule
from lit_adaptive.modules import IWSFT, ConfiguredLM, Optimization
from lit_adaptive.rollout.models.pretrained import load_tokenizer

OUT = Path(__file__).parent / "results" / "sft_step.json"
BATCH = 8
MODELS: dict[str, dict[str, Any]] = {
    "tiny (V 100)": {"hidden_size": 128, "layers": 2},
    "small (V 49,152)": {"hidden_size": 192, "layers": 4, "options": {"vocab_size": 49152}},
}
LENGTHS = {"tiny (V 100)": (16, 16), "small (V 49,152)": (96, 96)}


def rows(prompt: int, completion: int) -> list[dict[str, str]]:
    """Random digits: prompts and completions of equal lengths."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(10, (64 * BATCH, prompt + completion), generator=generator).tolist()
    texts = ["".join(map(str, row)) for row in draw]
    return [{"prompt": text[:prompt], "completion": text[prompt:]} for text in texts]


class Clock:
    """The median time between two marks, without the first ones."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def mark(self) -> None:
        self.marks.append(time.perf_counter())

    @property
    def median(self) -> float:
        marks = self.marks[5:]
        return statistics.median(b - a for a, b in itertools.pairwise(marks))


class OurClock(Callback, Clock):
    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.mark()


class TheirClock(TrainerCallback, Clock):
    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.mark()


def recipe(name: str) -> ConfiguredLM:
    return ConfiguredLM("llama", heads=4, max_positions=512, seed=0, **MODELS[name])


def ours(name: str, objective: str, steps: int, folder: Path) -> float:
    seed_everything(0, verbose=False)
    data = folder / f"{name[:5]}.jsonl"
    if not data.exists():
        data.write_text("\n".join(json.dumps(row) for row in rows(*LENGTHS[name])))
    datamodule = DemonstrationsDataModule(DemonstrationDataset(str(data)), batch_size=BATCH)
    module = IWSFT(
        recipe(name),
        objective=objective,
        optimization=Optimization(learning_rate=1e-5, betas=(0.9, 0.95)),
        max_new_tokens=0,
    )
    clock = OurClock()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        callbacks=[clock, *([ReferenceLogProbs()] if objective == "iw" else [])],
    )
    trainer.fit(module, datamodule)
    return clock.median


def theirs(name: str, steps: int, folder: Path) -> float:
    from trl import SFTConfig, SFTTrainer

    tokenizer = load_tokenizer("characters")
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        max_grad_norm=1.0,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    clock = TheirClock()
    trainer = SFTTrainer(
        model=recipe(name).make(tokenizer),
        args=config,
        train_dataset=HubTable.from_list(rows(*LENGTHS[name])),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    return clock.median


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", default="", help="beginning of a model's name")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in (each for each in MODELS if each.startswith(args.only)):
            times: dict[str, list[float]] = {"sft": [], "iw_sft": [], "trl": []}
            for _ in range(args.rounds):
                times["trl"].append(theirs(name, args.steps, Path(folder)))
                times["sft"].append(ours(name, "nll", args.steps, Path(folder)))
                times["iw_sft"].append(ours(name, "iw", args.steps, Path(folder)))
            least = {key: min(values) for key, values in times.items()}
            found[name] = {
                "ms": {key: 1000 * value for key, value in least.items()},
                "iw_sft / sft": least["iw_sft"] / least["sft"],
                "sft / trl": least["sft"] / least["trl"],
            }
            print(name, json.dumps(found[name], indent=1))
    OUT.parent.mkdir(exist_ok=True)
    whole = json.loads(OUT.read_text()) if OUT.exists() else {}
    steps = dict.fromkeys(found, args.steps)
    whole = {
        "batch": BATCH,
        "steps": whole.get("steps", {}) | steps,
        "models": whole.get("models", {}) | found,
    }
    OUT.write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
