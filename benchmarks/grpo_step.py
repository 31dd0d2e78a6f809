"""What a step of GRPO costs: ours against TRL's GRPOTrainer, and what replay saves.

    python benchmarks/grpo_step.py [--model tiny|smollm2] [--rounds 3] [--steps 12]

Same model (a tiny Llama of 0.86 M parameters, weights drawn alike, or SmolLM2-135M), prompts, group size, length limit, loss
(GRPO, advantage over its group's deviation, no KL), precision (float32) and optimizer, one reward
(exact match), in one run, interleaved; each in a process of its own, so that peak memory is its own.
A step is 32 prompts with 8 answers of at most 12 tokens, or 2 prompts of reasoning-gym with 8 answers
of at most 64, and one update. Memory is what a process holds at most beyond the model. Time is the median between the
ends of two steps, everything between them in it; ratios are of the fastest rounds. Nothing is learnt
in so few steps, so both write equally long answers: mean lengths are printed. ``replay`` is ours with
half of the groups replayed, after the first steps have filled the replay. Needs the extra ``peers``.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("WANDB_DISABLED", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

OUT = Path(__file__).parent / "results" / "grpo_step.json"
GROUP = 8


class Setting(NamedTuple):
    """What is trained on what."""

    tokenizer: str
    prompts: int
    tokens: int
    skip: int  # steps until all is warm
    chat: bool

    def questions(self) -> Any:
        from lit_adaptive.data import Arithmetic, ReasoningTask

        if not self.chat:
            return Arithmetic("train", size=2000, digits=3, operators="+")
        sums = {"min_terms": 2, "max_terms": 2, "max_digits": 2}
        return ReasoningTask("chain_sum", size=200, config=sums)

    def recipe(self) -> Any:
        from lit_adaptive.modules import ConfiguredLM, PretrainedLM

        if self.chat:
            return PretrainedLM("smollm2")
        sizes = {"hidden_size": 128, "layers": 3, "heads": 4, "max_positions": 64, "seed": 0}
        return ConfiguredLM("llama", **sizes)  # type: ignore[arg-type]


SETTINGS = {
    "tiny": Setting("characters", prompts=32, tokens=12, skip=3, chat=False),
    "smollm2": Setting("smollm2", prompts=2, tokens=64, skip=1, chat=True),
}


def _told(
    marks: list[float], length: float, before: float, generation: float, skip: int
) -> dict[str, float]:
    kept = marks[skip:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": statistics.median(b - a for a, b in itertools.pairwise(kept)),
        "tokens": length,
        "memory_mb": peak - before,
        "generation": generation,
    }


def ours(setting: Setting, steps: int, fraction: float) -> dict[str, float]:
    from lightning.pytorch import Callback, Trainer, seed_everything

    from callbacks import RolloutReplay
    from lit_adaptive.data import PromptDataset, RolloutDataModule
    from lit_adaptive.modules import GRPO, Optimization
    from lit_adaptive.replay import RolloutBuffer
    from lit_adaptive.rollout.generation import SamplingParams
    from lit_adaptive.rollout.rewards.base import Reward
    from lit_adaptive.rollout.rewards.scorer import Scorer

    class Even(Reward):
        def __call__(self, prompts: Any, completions: list[str], **_: Any) -> list[float | None]:
            return [float(len(text) % 2 == 0) for text in completions]

    class Clock(Callback):
        def __init__(self) -> None:
            self.marks: list[float] = []
            self.lengths: list[float] = []
            self.generation: list[float] = []

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.marks.append(time.perf_counter())
            metrics = trainer.datamodule.step.metrics
            self.lengths.append(metrics["completions/mean_length"])
            self.generation.append(metrics["seconds/generation"])

    warnings.filterwarnings("ignore")
    seed_everything(0, verbose=False)
    data = RolloutDataModule(
        PromptDataset(
            setting.questions(), setting.tokenizer, chat=setting.chat, columns=["answer"]
        ),
        batch_size=setting.prompts,
        group_size=GROUP,
        sampling=SamplingParams(setting.tokens),
        steps_per_epoch=steps,
        rewards=Scorer([Even()], workers=0),
        replay=RolloutBuffer(512) if fraction else None,
        replay_fraction=fraction,
    )
    model = GRPO(setting.recipe(), optimization=Optimization(learning_rate=1e-9))
    clock = Clock()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        callbacks=[*([RolloutReplay()] if fraction else []), clock],
    )
    setting.recipe().make(data.tokenizer)  # TRL's model too is built before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    trainer.fit(model, data)
    lengths = statistics.mean(clock.lengths)
    generation = statistics.median(clock.generation[setting.skip :])
    return _told(clock.marks, lengths, before, generation, setting.skip)


def theirs(setting: Setting, steps: int, _: float) -> dict[str, float]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lit_adaptive.rollout.models.pretrained import load_tokenizer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.marks.append(time.perf_counter())

    lengths: list[float] = []

    def even(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.append(statistics.mean(len(ids) for ids in completion_ids))
        texts = [each[0]["content"] if setting.chat else each for each in completions]
        return [float(len(text) % 2 == 0) for text in texts]

    warnings.filterwarnings("ignore")
    tokenizer = load_tokenizer(setting.tokenizer)
    questions = setting.questions()
    asked = [questions[i]["prompt"] for i in range(len(questions))]
    rows = [
        {"prompt": [{"role": "user", "content": each}] if setting.chat else each} for each in asked
    ]
    config = GRPOConfig(
        output_dir="/tmp/trl_grpo",
        max_steps=steps,
        per_device_train_batch_size=setting.prompts * GROUP,
        num_generations=GROUP,
        max_completion_length=setting.tokens,
        learning_rate=1e-9,
        beta=0.0,
        loss_type="grpo",
        temperature=1.0,
        top_k=0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    clock = Clock()
    trainer = GRPOTrainer(
        model=setting.recipe().make(tokenizer),
        reward_funcs=even,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    trainer.train()
    return _told(clock.marks, statistics.mean(lengths), before, float("nan"), setting.skip)


RUNS: dict[str, tuple[Any, float]] = {
    "trl": (theirs, 0.0), "ours": (ours, 0.0), "replay": (ours, 0.5)
}  # fmt: skip


def _run(name: str, model: str, steps: int) -> dict[str, float]:
    torch.set_num_threads(1)
    function, fraction = RUNS[name]
    found: dict[str, float] = function(SETTINGS[model], steps, fraction)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=[*SETTINGS], default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    every: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    for _ in range(args.rounds):
        for name, runs in every.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                runs.append(alone.submit(_run, name, args.model, args.steps).result())
                print(name, {k: round(v, 4) for k, v in runs[-1].items()}, flush=True)
    best = {name: min(runs, key=lambda run: run["seconds"]) for name, runs in every.items()}
    memory = {name: statistics.median(r["memory_mb"] for r in runs) for name, runs in every.items()}
    saved = best["ours"]["seconds"] - best["replay"]["seconds"]
    found = {
        "time: ours / trl": best["ours"]["seconds"] / best["trl"]["seconds"],
        "time: replay / trl": best["replay"]["seconds"] / best["trl"]["seconds"],
        "memory: ours / trl": memory["ours"] / memory["trl"],
        "generation's share of our step": best["ours"]["generation"] / best["ours"]["seconds"],
        "saved by replay / half of generation": saved / (best["ours"]["generation"] / 2),
    }
    print(json.dumps(found, indent=1))
    OUT.parent.mkdir(exist_ok=True)
    whole = json.loads(OUT.read_text()) if OUT.exists() else {}
    whole[args.model] = {"ratios": found, "fastest": best, "runs": every}
    OUT.write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
