"""What a step of GRPO costs: ours against TRL's GRPOTrainer, and what replay saves.

    python benchmarks/grpo_step.py [--rounds 3] [--steps 12]

Same tiny Llama (0.86 M parameters, weights drawn alike), prompts, group size, length limit, loss
(GRPO, advantage over its group's deviation, no KL), precision (float32) and optimizer, one reward
(exact match), in one run, interleaved; each in a process of its own, so that peak memory is its own.
A step is 32 prompts with 8 answers of at most 12 tokens, one update. Time is the median between the
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
from typing import Any

os.environ.setdefault("WANDB_DISABLED", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

OUT = Path(__file__).parent / "results" / "grpo_step.json"
PROMPTS, GROUP, TOKENS, SKIP = 32, 8, 12, 3
MODEL: dict[str, Any] = {
    "hidden_size": 128,
    "layers": 3,
    "heads": 4,
    "max_positions": 64,
    "seed": 0,
}


def _questions() -> Any:
    from lit_adaptive.data import Arithmetic

    return Arithmetic("train", size=2000, digits=3, operators="+")


def _told(marks: list[float], length: float, before: float, generation: float) -> dict[str, float]:
    kept = marks[SKIP:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": statistics.median(b - a for a, b in itertools.pairwise(kept)),
        "tokens": length,
        "memory_mb": peak - before,
        "generation": generation,
    }


def ours(steps: int, fraction: float) -> dict[str, float]:
    from lightning.pytorch import Callback, Trainer, seed_everything

    from callbacks import RolloutReplay
    from lit_adaptive.data import RolloutDataModule
    from lit_adaptive.modules import GRPO, ConfiguredLM
    from lit_adaptive.replay import RolloutBuffer
    from lit_adaptive.rollout.generation import Sampling
    from lit_adaptive.rollout.rewards import Reward
    from lit_adaptive.rollout.scoring import Scorer

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
        _questions(),
        columns=["answer"],
        batch_size=PROMPTS,
        group_size=GROUP,
        sampling=Sampling(TOKENS),
        steps_per_epoch=steps,
        rewards=Scorer([Even()], workers=0),
        replay=RolloutBuffer(512) if fraction else None,
        replay_fraction=fraction,
    )
    model = GRPO(ConfiguredLM("llama", **MODEL), learning_rate=1e-9)
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
    ConfiguredLM("llama", **MODEL).make(data.tokenizer)  # TRL's model too is built before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    trainer.fit(model, data)
    lengths = statistics.mean(clock.lengths)
    return _told(clock.marks, lengths, before, statistics.median(clock.generation[SKIP:]))


def theirs(steps: int, _: float) -> dict[str, float]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lit_adaptive.modules import ConfiguredLM
    from lit_adaptive.rollout.pretrained import load_tokenizer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.marks.append(time.perf_counter())

    lengths: list[float] = []

    def even(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.append(statistics.mean(len(ids) for ids in completion_ids))
        return [float(len(text) % 2 == 0) for text in completions]

    warnings.filterwarnings("ignore")
    tokenizer = load_tokenizer("characters")
    questions = _questions()
    rows = [{"prompt": questions[i]["prompt"]} for i in range(len(questions))]
    config = GRPOConfig(
        output_dir="/tmp/trl_grpo",
        max_steps=steps,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=TOKENS,
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
        model=ConfiguredLM("llama", **MODEL).make(tokenizer),
        reward_funcs=even,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    trainer.train()
    return _told(clock.marks, statistics.mean(lengths), before, float("nan"))


RUNS: dict[str, tuple[Any, float]] = {
    "trl": (theirs, 0.0), "ours": (ours, 0.0), "replay": (ours, 0.5)
}  # fmt: skip


def _run(name: str, steps: int) -> dict[str, float]:
    torch.set_num_threads(1)
    function, fraction = RUNS[name]
    found: dict[str, float] = function(steps, fraction)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    every: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    for _ in range(args.rounds):
        for name, runs in every.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                runs.append(alone.submit(_run, name, args.steps).result())
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
    OUT.write_text(json.dumps({"ratios": found, "fastest": best, "runs": every}, indent=1))


if __name__ == "__main__":
    main()
