"""Time of a fine-tuning step: iw-SFT against SFT, and SFT against TRL's SFTTrainer.

    python benchmarks/sft_step.py [--rounds 5] [--steps 30] [--only tiny small]

Same model with equal initial weights, batch of 8, sequence lengths, precision (float32) and optimizer
(AdamW). All sides alternate in one process, seed 0; each round trains each of them for some steps.
Time is the median between the ends of two steps (loading, logging and hooks included) without the
first five; ratios are of the fastest rounds, which other load on the machine disturbs least, without
an interval. TRL trains on completions only. iw-SFT reads cached reference log-probabilities. Needs
the extra ``peers``.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_DISABLED", "true")

import common
import torch
from datasets import Dataset as HubTable
from lightning.pytorch import seed_everything

from callbacks import ReferenceLogProbs
from lit_adaptive.data import DemonstrationDataset, DemonstrationsDataModule
from lit_adaptive.modules import IWSFT, ConfiguredLM, Optimization
from lit_adaptive.rollout.models.pretrained import load_tokenizer

BATCH, SKIPPED_STEPS = 8, 5
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


def model_source(name: str) -> ConfiguredLM:
    return ConfiguredLM("llama", heads=4, max_positions=512, seed=0, **MODELS[name])


def ours(name: str, objective: str, steps: int, folder: Path, device: str) -> float:
    seed_everything(0, verbose=False)
    data = folder / f"{name[:5]}.jsonl"
    if not data.exists():
        data.write_text("\n".join(json.dumps(row) for row in rows(*LENGTHS[name])))
    datamodule = DemonstrationsDataModule(DemonstrationDataset(str(data)), batch_size=BATCH)
    module = IWSFT(
        model_source(name),
        objective=objective,
        optimization=Optimization(learning_rate=1e-5, betas=(0.9, 0.95)),
        max_new_tokens=0,
    )
    clock = common.StepClock()
    trainer = common.quiet_trainer(
        device,
        max_steps=steps,
        gradient_clip_val=1.0,
        callbacks=[
            clock.lightning_callback(),
            *([ReferenceLogProbs()] if objective == "iw" else []),
        ],
    )
    trainer.fit(module, datamodule)
    return clock.median_seconds(SKIPPED_STEPS)


def trl(name: str, steps: int, folder: Path, device: str) -> float:
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
        use_cpu=device == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    clock = common.StepClock()
    trainer = SFTTrainer(
        model=model_source(name).make(tokenizer),
        args=config,
        train_dataset=HubTable.from_list(rows(*LENGTHS[name])),
        processing_class=tokenizer,
        callbacks=[clock.transformers_callback()],
    )
    trainer.train()
    return clock.median_seconds(SKIPPED_STEPS)


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side")
    parser.add_argument("--steps", type=int, default=30, help="training steps per run")
    common.add_device(parser)
    names = {name.split()[0]: name for name in MODELS}
    parser.add_argument("--only", nargs="+", choices=names, default=[*names], help="models to run")
    args = parser.parse_args()
    common.silence()
    for name in (names[model] for model in args.only):
        times: dict[str, list[float]] = {"sft": [], "iw_sft": [], "trl": []}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(args.rounds):
                times["trl"].append(trl(name, args.steps, Path(folder), args.device))
                times["sft"].append(ours(name, "nll", args.steps, Path(folder), args.device))
                times["iw_sft"].append(ours(name, "iw", args.steps, Path(folder), args.device))
        fastest = {side: min(seconds) for side, seconds in times.items()}
        result = {
            "ms": {side: 1000 * seconds for side, seconds in fastest.items()},
            "iw_sft / sft": fastest["iw_sft"] / fastest["sft"],
            "sft / trl": fastest["sft"] / fastest["trl"],
        }
        print(name, json.dumps(result, indent=1))
        saved = common.read_results(args.out, "sft_step.json")
        results = {
            "batch": BATCH,
            "device": args.device,
            "steps": saved.get("steps", {}) | {name: args.steps},
            "models": saved.get("models", {}) | {name: result},
        }
        common.write_results(args.out, "sft_step.json", results)


if __name__ == "__main__":
    main()
