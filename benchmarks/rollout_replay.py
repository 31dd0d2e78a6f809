"""Rollout replay, and learning from right or wrong answers only, against plain GRPO.

    python benchmarks/rollout_replay.py [--seeds 5] [--jobs 2] [--steps 200] [--part replay|signs]

A tiny Llama (0.5 M parameters) answers 200 questions with one-digit numbers. For each seed it is
warmed up once (1,000 supervised steps on answers of which 35 % are right); every method continues
from there with 32 groups of 8 rollouts per step and the same order of prompts.

``replay``: GRPO without replay, and with half of the groups replayed: uniformly (clip around 1, and
around the ratio at the start of the step), by |A|, and by |A| with freshness (tau 8 steps; the buffer
of 256 groups is replaced in about 16). Methods with replay take twice the steps, about as many
generated tokens. ``signs``: GRPO, PSR, NSR and W-REINFORCE.

Measured every 50 steps: pass@1 and pass@64 (unbiased, 64 samples), entropy, generated tokens, and
wall-clock, which includes everything but these measurements and the warm-up. Methods are compared
with the first one, GRPO, at the steps, tokens and seconds that GRPO needs (interpolated between
measurements): mean over seeds, and the paired difference with its 95 % t-interval. Also measured: by
age, the fraction of answers with a mean ratio outside 1 ± 0.2.
"""

import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import numpy as np
import torch
from lightning.pytorch import Callback, seed_everything

from callbacks import RolloutReplay, SupervisedWarmup
from lit_adaptive.core.advantages import pass_at_k
from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization, PolicyObjective
from lit_adaptive.replay import RolloutBuffer
from lit_adaptive.rollout.generation import SamplingParams

QUESTIONS: dict[str, Any] = {"size": 200, "digits": 1, "operators": "+-*"}
DEMONSTRATIONS = {"correct": 0.35, "sloppy": 0.35, "wrong": 0.3, "demonstrations_per_prompt": 8}
MEASURE_EVERY, SAMPLES = 50, 64
AXES, MEASURES = ("step", "tokens", "seconds"), ("pass@1", "pass@64", "entropy")
PLAIN: dict[str, Any] = {"scale": "none"}
OLD: dict[str, Any] = {"scale": "none", "clip_center": "old"}
UNIFORM: dict[str, Any] = {"policy": "uniform"}
PARTS: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any] | None]]] = {
    "replay": {
        "GRPO": (PLAIN, None),
        "uniform": (PLAIN, UNIFORM),
        "uniform, clip around old": (OLD, UNIFORM),
        "prioritized": (PLAIN, {"policy": "prioritized"}),
        "fresh": (PLAIN, {"policy": "fresh", "tau": 8.0}),
    },
    "signs": {
        "GRPO": (PLAIN, None),
        "PSR": ({"advantage": "signs", "negative_weight": 0.0}, None),
        "NSR": ({"advantage": "signs", "positive_weight": 0.0}, None),
        "W-REINFORCE": ({"advantage": "signs", "positive_weight": 0.1}, None),
    },
}
"""Options of the objective and of the rollout buffer (None: no replay), by part and method."""


class Evaluation(Callback):
    """Evaluates the policy at intervals, and counts clipped answers by age.

    Attributes:
        curve: one measurement per evaluation.
        ages: number of answers outside the clip range and of all answers, by age in steps.
        seconds: training time without the evaluations.
    """

    def __init__(self) -> None:
        self.curve: list[dict[str, float]] = []
        self.ages: dict[int, list[float]] = {}
        self.seconds, self._start = 0.0, 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._evaluate(trainer, pl_module)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds += time.perf_counter() - self._start
        outside = (outputs["ratio"] - 1).abs() > 0.2
        for age in batch["age"].unique().tolist():
            of_age = outside[batch["age"] == age]
            counts = self.ages.setdefault(age, [0.0, 0.0])
            counts[0] += float(of_age.sum())
            counts[1] += len(of_age)
        if trainer.global_step % MEASURE_EVERY == 0:
            self._evaluate(trainer, pl_module)
        self._start = time.perf_counter()

    def _evaluate(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        prompts = data.dataset.tokens(torch.arange(len(data.dataset)))
        engine = data.engine
        rows = data.dataset.texts(torch.arange(len(prompts)))
        engine.attach(pl_module)
        completions = engine.generate(prompts, SAMPLES, SamplingParams(6), [*range(len(prompts))])
        texts = data.dataset.decode_completions(completions.tokens)
        right = torch.tensor(
            [text == rows[i // SAMPLES]["answer"] for i, text in enumerate(texts)]
        ).view(-1, SAMPLES)
        correct, total = right.sum(1), torch.full((len(prompts),), SAMPLES)
        entropy = torch.stack([-log_probs.sum() for log_probs in completions.log_probs]).mean()
        self.curve.append(
            {
                "step": float(trainer.global_step),
                "tokens": data.counters["generated_tokens"],
                "seconds": self.seconds,
                "pass@1": float(pass_at_k(correct, total, 1).mean()),
                "pass@64": float(pass_at_k(correct, total, 64).mean()),
                "entropy": float(entropy),  # of a whole answer, in nats
            }
        )


def train(
    seed: int,
    steps: int,
    objective: dict[str, Any],
    replay: dict[str, Any] | None,
    weights: str | None,
) -> tuple[GRPO, Evaluation]:
    """Train a policy from the checkpoint ``weights``, or warm one up if there is none."""
    seed_everything(seed, verbose=False)
    data = RolloutDataModule(
        PromptDataset(Arithmetic("train", **QUESTIONS), columns=["answer"]),
        batch_size=32,
        group_size=8,
        sampling=SamplingParams(6),
        steps_per_epoch=max(steps, 1),
        replay=None if replay is None else RolloutBuffer(256, **replay),
        replay_fraction=0.0 if replay is None else 0.5,
    )
    model = GRPO(
        ConfiguredLM(hidden_size=128, layers=2, heads=4, max_positions=64),
        objective=PolicyObjective(**objective),
        optimization=Optimization(learning_rate=2e-4 if weights else 1e-30),
        weights=weights,
    )
    demonstrations = Arithmetic("train", **QUESTIONS, **DEMONSTRATIONS)
    warmup = SupervisedWarmup(demonstrations, steps=1000, batch_size=64, learning_rate=2e-3)
    evaluation = Evaluation()
    trainer = common.quiet_trainer(
        max_steps=max(steps, 1),
        gradient_clip_val=1.0,
        callbacks=[
            *([] if weights else [warmup]),
            *([RolloutReplay()] if replay else []),
            evaluation,
        ],
    )
    trainer.fit(model, data)
    return model, evaluation


def run(seed: int, *, part: str, steps: int, folder: str) -> dict[str, Any]:
    """Curves of each method for one seed."""
    torch.set_num_threads(1)
    common.silence()
    start = f"{folder}/warm-{seed}.ckpt"
    model, _ = train(seed, 0, PLAIN, None, None)
    torch.save({"state_dict": model.state_dict()}, start)
    results: dict[str, Any] = {}
    for name, (objective, replay) in PARTS[part].items():
        _, evaluation = train(seed, steps * (2 if replay else 1), objective, replay, start)
        results[name] = {"curve": evaluation.curve, "ages": evaluation.ages}
        print(seed, name, {k: round(v, 3) for k, v in evaluation.curve[-1].items()}, flush=True)
    return results


def summarize(runs: list[dict[str, Any]], name: str, baseline: str) -> dict[str, Any]:
    """Each measure of a method, and its difference from ``baseline``, at equal steps, tokens, seconds."""
    row: dict[str, Any] = {}
    for axis in AXES:
        for measure in MEASURES:
            values, baseline_values = [], []
            for run in runs:
                curve, baseline_curve = run[name]["curve"], run[baseline]["curve"]
                reached = min(curve[-1][axis], baseline_curve[-1][axis])
                values.append(interpolate(curve, axis, reached, measure))
                baseline_values.append(interpolate(baseline_curve, axis, reached, measure))
            row[f"{measure} at {axis}"] = common.t_interval(values)
            row[f"difference of {measure} at {axis}"] = common.paired_t_interval(
                values, baseline_values
            )
    row["last"] = {
        axis: common.t_interval([run[name]["curve"][-1][axis] for run in runs]) for axis in AXES
    }
    counts: dict[int, list[float]] = {}
    for run in runs:
        for age, (outside, total) in run[name]["ages"].items():
            sums = counts.setdefault(int(age), [0.0, 0.0])
            sums[0] += outside
            sums[1] += total
    row["outside by age"] = {age: outside / n for age, (outside, n) in sorted(counts.items())}
    return row


def interpolate(curve: list[dict[str, float]], axis: str, position: float, measure: str) -> float:
    """A measure at a position on an axis, linear between the measurements around it."""
    positions = [measurement[axis] for measurement in curve]
    return float(np.interp(position, positions, [point[measure] for point in curve]))


def plot(results: dict[str, Any], part: str, file: Path) -> None:
    """pass@1 against tokens and against seconds; clipped answers by age, or entropy by step."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name, row in results["table"].items():
        curves = [run[name]["curve"] for run in results["runs"]]
        means = {
            key: [
                float(np.mean([curve[i][key] for curve in curves])) for i in range(len(curves[0]))
            ]
            for key in curves[0][0]
        }
        thousands = [tokens / 1000 for tokens in means["tokens"]]
        axes[0].plot(thousands, means["pass@1"], marker=".", label=name)
        axes[1].plot(means["seconds"], means["pass@1"], marker=".")
        if part == "signs":
            axes[2].plot(means["step"], means["entropy"], marker=".")
        elif len(row["outside by age"]) > 1:
            by_age = ((int(age), share) for age, share in row["outside by age"].items())
            points = sorted((age, share) for age, share in by_age if age <= 40)
            axes[2].plot(*zip(*points, strict=True), color=axes[0].lines[-1].get_color())
    axes[0].set(xlabel="thousand generated tokens", ylabel="pass@1")
    axes[1].set(xlabel="seconds", ylabel="pass@1")
    if part == "signs":
        axes[2].set(xlabel="step", ylabel="entropy of an answer")
    else:
        axes[2].set(xlabel="age of an answer", ylabel="fraction with mean ratio outside 1 ± 0.2")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of paired seeds")
    parser.add_argument("--jobs", type=int, default=2, help="seeds to run at the same time")
    parser.add_argument("--steps", type=int, default=200, help="steps of methods without replay")
    parser.add_argument("--part", choices=PARTS, default="replay", help="methods to compare")
    parser.add_argument("--plot", action="store_true", help="only plot the saved results")
    args = parser.parse_args()
    file = f"rollout_{args.part}.json"
    figure = args.out / f"rollout_{args.part}.png"
    if args.plot:
        plot(common.read_results(args.out, file), args.part, figure)
        return
    with tempfile.TemporaryDirectory() as folder:
        run_seed = partial(run, part=args.part, steps=args.steps, folder=folder)
        runs = common.run_seeds(run_seed, args.seeds, args.jobs)
    baseline, *_ = PARTS[args.part]
    table = {name: summarize(runs, name, baseline) for name in PARTS[args.part]}
    for name, row in table.items():
        for axis in AXES:
            cells = (f"{m} {row[f'{m} at {axis}'].mean:.3f}" for m in MEASURES)
            difference = row[f"difference of pass@1 at {axis}"]
            print(f"{name:26s} {axis:8s}", *cells, f"difference of pass@1 {difference:.3f}")
    results = {"seeds": args.seeds, "table": table, "runs": runs}
    common.write_results(args.out, file, results)
    plot(results, args.part, figure)


if __name__ == "__main__":
    main()
