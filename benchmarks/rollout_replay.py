"""Rollout replay: what it saves, which groups to replay, and what is to be learnt from.

    python benchmarks/rollout_replay.py [--seeds 5] [--jobs 2] [--steps 200] [--part replay|signs]

A tiny Llama (0.5 M parameters) answers 200 questions of one digit. For each seed it is warmed up once
(1,000 steps on answers of which 35 % are right); from there every method goes on, 32 groups of 8 a
step, with the same order of prompts. ``replay``: no replay; half of the groups replayed, uniformly
(clip around 1, and around the ratio at the start of the step), by |A|, and by |A| with freshness
(tau 8 steps: the buffer of 256 groups turns over in about 16), with twice the steps, which is about as
many tokens. ``signs``: GRPO, PSR, NSR and W-REINFORCE. Measured every 50 steps: pass@1 and pass@64
(unbiased, of 64 samples), entropy, generated tokens, wall-clock with everything in it but the
measuring. Told after as many steps as the first method took and, on the line between two measurements,
after as many tokens and after as many seconds: mean over seeds, and the paired difference to the first
method with its 95 % t-interval; and of the answers of each age, how many have a mean
ratio outside 1 ± 0.2.
"""

import argparse
import json
import logging
import math
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from scipy import stats

from callbacks import RolloutReplay, SupervisedWarmup
from lit_adaptive.core.advantages import pass_at_k
from lit_adaptive.data import Arithmetic, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization, PolicyObjective
from lit_adaptive.replay import RolloutBuffer
from lit_adaptive.rollout.generation import SamplingParams

RESULTS = Path(__file__).parent / "results"
QUESTIONS: dict[str, Any] = {"size": 200, "digits": 1, "operators": "+-*"}
GRADED = {"correct": 0.35, "sloppy": 0.35, "wrong": 0.3, "demonstrations_per_prompt": 8}
EVERY, SAMPLES = 50, 64
AXES, MEASURES = ("step", "tokens", "seconds"), ("pass@1", "pass@64", "entropy")
PLAIN: dict[str, Any] = {"scale": "none"}
OLD: dict[str, Any] = {"scale": "none", "clip_center": "old"}
UNIFORM: dict[str, Any] = {"policy": "uniform"}
# name: objective, replay or None
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


class Watch(Callback):
    """Measures now and then, outside the clock; counts answers outside the clip by age."""

    def __init__(self) -> None:
        self.curve: list[dict[str, float]] = []
        self.ages: dict[int, list[float]] = {}
        self.seconds, self._begun = 0.0, 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._measure(trainer, pl_module)
        self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds += time.perf_counter() - self._begun
        outside = (outputs["ratio"] - 1).abs() > 0.2
        for age in batch["age"].unique().tolist():
            own = outside[batch["age"] == age].float()
            total = self.ages.setdefault(age, [0.0, 0.0])
            total[0] += float(own.sum())
            total[1] += len(own)
        if trainer.global_step % EVERY == 0:
            self._measure(trainer, pl_module)
        self._begun = time.perf_counter()

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        prompts = data.dataset.tokens(torch.arange(len(data.dataset)))
        engine, answers = data.engine, data.dataset.texts(torch.arange(len(prompts)))
        engine.attach(pl_module)
        found = engine.generate(prompts, SAMPLES, SamplingParams(6), [*range(len(prompts))])
        texts = data.dataset.decode_completions(found.tokens)
        right = torch.tensor(
            [t == answers[i // SAMPLES]["answer"] for i, t in enumerate(texts)]
        ).view(-1, SAMPLES)
        correct, total = right.sum(1), torch.full((len(prompts),), SAMPLES)
        surprise = torch.stack([-each.sum() for each in found.log_probs]).mean()
        self.curve.append(
            {
                "step": float(trainer.global_step),
                "tokens": data.counters["generated_tokens"],
                "seconds": self.seconds,
                "pass@1": float(pass_at_k(correct, total, 1).mean()),
                "pass@64": float(pass_at_k(correct, total, 64).mean()),
                "entropy": float(surprise),  # of a whole answer, in nats
            }
        )


def trained(
    seed: int,
    steps: int,
    objective: dict[str, Any],
    replay: dict[str, Any] | None,
    start: str | None,
) -> tuple[GRPO, Watch]:
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
        optimization=Optimization(learning_rate=2e-4 if start else 1e-30),
        weights=start,
    )
    shown = Arithmetic("train", **QUESTIONS, **GRADED)
    warm = SupervisedWarmup(shown, steps=1000, batch_size=64, learning_rate=2e-3)
    watch = Watch()
    trainer = Trainer(
        max_steps=max(steps, 1),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        callbacks=[*([] if start else [warm]), *([RolloutReplay()] if replay else []), watch],
    )
    trainer.fit(model, data)
    return model, watch


def run(seed: int, *, part: str, steps: int, folder: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    start = f"{folder}/start-{seed}.ckpt"
    model, _ = trained(seed, 0, PLAIN, None, None)
    torch.save({"state_dict": model.state_dict()}, start)
    found: dict[str, Any] = {}
    for name, (objective, replay) in PARTS[part].items():
        _, watch = trained(seed, steps * (2 if replay else 1), objective, replay, start)
        found[name] = {"curve": watch.curve, "ages": watch.ages}
        print(seed, name, {k: round(v, 3) for k, v in watch.curve[-1].items()}, flush=True)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * spread


def told(runs: list[dict[str, Any]], name: str, part: str) -> dict[str, Any]:
    """Each measure of a method after as many steps, tokens and seconds as the first method took."""
    row: dict[str, Any] = {}
    for axis in AXES:
        for measure in MEASURES:
            found, differences = [], []
            for each in runs:
                base = each[next(iter(PARTS[part]))]["curve"]
                curve = each[name]["curve"]
                reached = min(base[-1][axis], curve[-1][axis])
                value, other = at(curve, axis, reached, measure), at(base, axis, reached, measure)
                found.append(value)
                differences.append(value - other)
            row[f"{measure} at {axis}"] = interval(found)
            row[f"difference of {measure} at {axis}"] = interval(differences)
    row["last"] = {key: interval([r[name]["curve"][-1][key] for r in runs]) for key in AXES}
    ages: dict[int, list[float]] = {}
    for each in runs:
        for age, (clipped, total) in each[name]["ages"].items():
            sums = ages.setdefault(int(age), [0.0, 0.0])
            sums[0] += clipped
            sums[1] += total
    row["outside by age"] = {age: c / t for age, (c, t) in sorted(ages.items())}
    return row


def at(curve: list[dict[str, float]], axis: str, place: float, measure: str) -> float:
    """A measure where ``axis`` is ``place``, on the line between the measurements around it."""
    return float(np.interp(place, [c[axis] for c in curve], [c[measure] for c in curve]))


def picture(found: dict[str, Any], part: str) -> None:
    """Accuracy against tokens and against seconds; the clipped share, or the entropy."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name in found["table"]:
        curves = [run[name]["curve"] for run in found["runs"]]
        means = {
            key: [float(np.mean([c[i][key] for c in curves])) for i in range(len(curves[0]))]
            for key in curves[0][0]
        }
        tokens = [each / 1000 for each in means["tokens"]]
        axes[0].plot(tokens, means["pass@1"], marker=".", label=name)
        axes[1].plot(means["seconds"], means["pass@1"], marker=".")
        if part == "signs":
            axes[2].plot(means["step"], means["entropy"], marker=".")
        elif len(ages := found["table"][name]["outside by age"]) > 1:
            points = sorted((int(age), share) for age, share in ages.items() if int(age) <= 40)
            axes[2].plot(*zip(*points, strict=True), color=axes[0].lines[-1].get_color())
    last = (
        ("step", "entropy of an answer")
        if part == "signs"
        else ("age of an answer", "share with mean ratio outside 1 ± 0.2")
    )
    labels = ("thousand generated tokens", "pass@1"), ("seconds", "pass@1"), last
    for axis, (x, y) in zip(axes, labels, strict=True):
        axis.set(xlabel=x, ylabel=y)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(RESULTS / f"rollout_{part}.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--part", choices=[*PARTS], default="replay")
    parser.add_argument("--plot", action="store_true", help="only draw what was measured")
    args = parser.parse_args()
    out = RESULTS / f"rollout_{args.part}.json"
    if args.plot:
        picture(json.loads(out.read_text()), args.part)
        return
    with tempfile.TemporaryDirectory() as folder:
        pool = ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"))
        one = partial(run, part=args.part, steps=args.steps, folder=folder)
        runs = list(pool.map(one, range(args.seeds)))
    table = {name: told(runs, name, args.part) for name in PARTS[args.part]}
    for name, row in table.items():
        for axis in AXES:
            cells = (f"{m} {row[f'{m} at {axis}'][0]:.3f}" for m in MEASURES)
            pairs = row[f"difference of pass@1 at {axis}"]
            print(f"{name:26s} {axis:8s}", *cells, f"pass@1 {pairs[0]:+.3f} ± {pairs[1]:.3f}")
    RESULTS.mkdir(exist_ok=True)
    found = {"seeds": args.seeds, "table": table, "runs": runs}
    out.write_text(json.dumps(found, indent=1))
    picture(found, args.part)


if __name__ == "__main__":
    main()
