"""Time and memory of a GRPO step, against TRL's GRPOTrainer, and what replay saves.

    python benchmarks/grpo_step.py [--only tiny smollm2] [--rounds 3] [--steps 12]

Both sides have the same model (a Llama of 0.86 M parameters with equal initial weights, or
SmolLM2-135M), prompts, group size, length limit, loss (GRPO, advantages divided by their group's
deviation, no KL penalty), precision (float32), optimizer and reward (1 for completions of even
length). A step is one update on 32 prompts with 8 answers of at most 12 tokens, or on 2 prompts of
reasoning-gym with 8 answers of at most 64. ``replay`` is ours with half of the groups replayed.

Runs alternate, each in a process of its own, one thread, seed 0. Time is the median between the ends
of two steps (generation, reward, update and all hooks), after the first steps; ratios are of the
fastest rounds, without an interval. Memory is the peak of the process minus its memory before
training, with the model loaded. Learning is negligible in so few steps, so both sides write equally
long answers; mean lengths are printed. Needs the extra ``peers``.
"""

import json
import os
import statistics
from typing import Any, NamedTuple

os.environ.setdefault("WANDB_DISABLED", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import torch

GROUP = 8


class Setting(NamedTuple):
    """Model, prompts and sizes of a step; ``skip`` steps of warm-up are not timed."""

    tokenizer: str
    prompts: int
    tokens: int
    skip: int
    chat: bool

    def questions(self) -> Any:
        from lit_adaptive.data import Arithmetic, ReasoningTask

        if not self.chat:
            return Arithmetic("train", size=2000, digits=3, operators="+")
        sums = {"min_terms": 2, "max_terms": 2, "max_digits": 2}
        return ReasoningTask("chain_sum", size=200, config=sums)

    def model_source(self) -> Any:
        from lit_adaptive.modules import ConfiguredLM, PretrainedLM

        if self.chat:
            return PretrainedLM("smollm2")
        sizes = {"hidden_size": 128, "layers": 3, "heads": 4, "max_positions": 64, "seed": 0}
        return ConfiguredLM("llama", **sizes)


SETTINGS = {
    "tiny": Setting("characters", prompts=32, tokens=12, skip=3, chat=False),
    "smollm2": Setting("smollm2", prompts=2, tokens=64, skip=1, chat=True),
}


def measurements(
    clock: common.StepClock,
    skip: int,
    *,
    tokens: float,
    bytes_before: int,
    generation: float,
    device: str,
) -> dict[str, float]:
    """Seconds per step and of its generation, mean tokens per answer, and memory of this process."""
    return {
        "seconds": clock.median_seconds(skip),
        "tokens": tokens,
        "memory_mb": (common.peak_bytes(device) - bytes_before) / 2**20,
        "generation": generation,
    }


def ours(setting: Setting, steps: int, fraction: float, device: str) -> dict[str, float]:
    from lightning.pytorch import Callback, seed_everything

    from callbacks import RolloutReplay
    from lit_adaptive.data import PromptDataset, RolloutDataModule
    from lit_adaptive.modules import GRPO, Optimization
    from lit_adaptive.replay import RolloutBuffer
    from lit_adaptive.rollout.generation import SamplingParams
    from lit_adaptive.rollout.rewards.base import Reward
    from lit_adaptive.rollout.rewards.scorer import Scorer

    class EvenLength(Reward):
        def __call__(self, prompts: Any, completions: list[str], **_: Any) -> list[float | None]:
            return [float(len(text) % 2 == 0) for text in completions]

    class MetricsRecorder(Callback):
        def __init__(self) -> None:
            self.lengths: list[float] = []
            self.generation: list[float] = []

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            metrics = trainer.datamodule.step.metrics
            self.lengths.append(metrics["completions/mean_length"])
            self.generation.append(metrics["seconds/generation"])

    common.silence()
    seed_everything(0, verbose=False)
    data = RolloutDataModule(
        PromptDataset(
            setting.questions(), setting.tokenizer, chat=setting.chat, columns=["answer"]
        ),
        batch_size=setting.prompts,
        group_size=GROUP,
        sampling=SamplingParams(setting.tokens),
        steps_per_epoch=steps,
        rewards=Scorer([EvenLength()], workers=0),
        replay=RolloutBuffer(512) if fraction else None,
        replay_fraction=fraction,
    )
    model = GRPO(setting.model_source(), optimization=Optimization(learning_rate=1e-9))
    clock, recorder = common.StepClock(), MetricsRecorder()
    trainer = common.quiet_trainer(
        device,
        max_epochs=1,
        gradient_clip_val=1.0,
        callbacks=[*([RolloutReplay()] if fraction else []), recorder, clock.lightning_callback()],
    )
    setting.model_source().make(
        data.tokenizer
    )  # loads the model once, as TRL's is loaded before training
    bytes_before = common.peak_bytes(device)
    trainer.fit(model, data)
    return measurements(
        clock,
        setting.skip,
        tokens=statistics.mean(recorder.lengths),
        bytes_before=bytes_before,
        device=device,
        generation=statistics.median(recorder.generation[setting.skip :]),
    )


def trl(setting: Setting, steps: int, _: float, device: str) -> dict[str, float]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from lit_adaptive.rollout.models.pretrained import load_tokenizer

    lengths: list[float] = []

    def even_length(
        completions: list[Any], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        lengths.append(statistics.mean(len(ids) for ids in completion_ids))
        texts = [item[0]["content"] if setting.chat else item for item in completions]
        return [float(len(text) % 2 == 0) for text in texts]

    common.silence()
    tokenizer = load_tokenizer(setting.tokenizer)
    questions = setting.questions()
    prompts = [questions[i]["prompt"] for i in range(len(questions))]
    rows = [
        {"prompt": [{"role": "user", "content": prompt}] if setting.chat else prompt}
        for prompt in prompts
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
        use_cpu=device == "cpu",
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    clock = common.StepClock()
    trainer = GRPOTrainer(
        model=setting.model_source().make(tokenizer),
        reward_funcs=even_length,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock.transformers_callback()],
    )
    bytes_before = common.peak_bytes(device)
    trainer.train()
    return measurements(
        clock,
        setting.skip,
        tokens=statistics.mean(lengths),
        bytes_before=bytes_before,
        device=device,
        generation=float("nan"),
    )


RUNS = {"trl": (trl, 0.0), "ours": (ours, 0.0), "replay": (ours, 0.5)}
"""Function and replayed fraction, by name."""


def run(name: str, model: str, steps: int, device: str) -> dict[str, float]:
    torch.set_num_threads(1)
    function, fraction = RUNS[name]
    return function(SETTINGS[model], steps, fraction, device)


def compare(model: str, rounds: int, steps: int, device: str) -> dict[str, Any]:
    """Ratios of time and memory, and the measurements of all rounds."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    for _ in range(rounds):
        for name, measured in runs.items():
            measured.append(common.run_in_process(run, name, model, steps, device))
            print(model, name, {k: round(v, 4) for k, v in measured[-1].items()}, flush=True)
    fastest = {name: min(rows, key=lambda row: row["seconds"]) for name, rows in runs.items()}
    seconds = {name: row["seconds"] for name, row in fastest.items()}
    memory = {name: statistics.median(r["memory_mb"] for r in rows) for name, rows in runs.items()}
    generation = fastest["ours"]["generation"]
    ratios = {
        "time: ours / trl": seconds["ours"] / seconds["trl"],
        "time: replay / trl": seconds["replay"] / seconds["trl"],
        "memory: ours / trl": memory["ours"] / memory["trl"],
        "generation's share of our step": generation / seconds["ours"],
        "saved by replay / half of generation": (seconds["ours"] - seconds["replay"])
        / (generation / 2),
    }
    print(json.dumps(ratios, indent=1))
    return {"ratios": ratios, "fastest": fastest, "runs": runs}


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=SETTINGS, default=[*SETTINGS], help="models to run"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, default=12, help="training steps per run")
    common.add_device(parser)
    args = parser.parse_args()
    for model in args.only:
        result = compare(model, args.rounds, args.steps, args.device)
        results = common.read_results(args.out, "grpo_step.json") | {model: result}
        common.write_results(args.out, "grpo_step.json", results)


if __name__ == "__main__":
    main()
