"""Selection of prompts by difficulty: DOTS and its relatives against plain GRPO.

    python benchmarks/dots.py [--seeds 5] [--jobs 2] [--steps 150] [--methods "GRPO;DOTS online"]
                              [--policy large]

A tiny Llama (0.5 M parameters) carries out 52 commands on strings of digits (``DigitCommands``), a
pool of 20,000 prompts of which after the warm-up about 4 in 10 are never solved and 2 in 10 always.
For each seed it is warmed up once (1,500 supervised steps on 40,000 demonstrations that follow each
command with a probability of its own); every method continues from there with 32 groups of 8
rollouts per step. The large policy has 4.2 M parameters and 800 steps of warm-up, so that the predictor
takes a smaller part of a step.

    GRPO                  every prompt once, shuffled
    static curriculum     three stages by the probability that demonstrations follow the command
    dynamic sampling      DAPO: up to three more rounds of prompts replace groups without spread
    replaced groups       POPO: replayed groups replace groups without spread
    prompt statistics     in proportion to p (1 - p) of each prompt's own rewards
    Thompson              MoPPS
    Kalman                Thompson draws from normal beliefs about arcsin(sqrt(p))
    DPS                   hidden Markov forecasts
    DOTS offline          as the paper: predicted p nearest to 1/2 by a predictor that was trained before,
                          on pass rates of 2,000 prompts under six policies (two of other seeds, after
                          0, 50 and 100 steps of GRPO), and learns nothing in the run (not counted)
    DOTS online           predicted p nearest to 1/2; 32 references every second step, which are
                          trained on if informative
    DOTS, signal          the same, drawn by the expectation of p (1 - p) under the prediction's
                          uncertainty (softmax, tau 0.02)
    DOTS+RR               DOTS online, and half of the groups replayed uniformly
    DOTS+fresh RR         and half of the groups replayed by |A| with freshness
    DOTS, signal+RR       DOTS, signal, and half of the groups replayed uniformly
    oracle                pass rates of 2,048 prompts by brute force every ten steps (not counted)

Measured every 10 steps: mean pass rate of 512 fixed prompts of the pool (4 answers each), generated
tokens (references included) and seconds of CPU time of the process, which has one thread: selection
and everything else but these measurements and the warm-up is included. Reported: steps, tokens and
seconds until a method reaches the final accuracy of GRPO (mean of its last two measurements),
relative to GRPO's; final accuracy at GRPO's seconds; share of informative groups among the fresh
ones; share of generation in the time; Pearson of the predictor. Mean over paired seeds with the
95 % t-interval of the paired difference. A method that does not reach the accuracy counts with all
that it took.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import numpy as np
import torch
from lightning.pytorch import Callback, seed_everything

from callbacks import (
    CurriculumProgress,
    DifficultyRefresh,
    PromptStatistics,
    RolloutReplay,
    SupervisedWarmup,
)
from lit_adaptive.data import (
    DigitCommands,
    PassRateDataModule,
    PromptDataset,
    RolloutDataModule,
)
from lit_adaptive.modules import (
    GRPO,
    ConfiguredLM,
    Optimization,
    PassRateModule,
    PolicyObjective,
)
from lit_adaptive.modules.difficulty_predictor import embed_prompts
from lit_adaptive.replay import RolloutBuffer
from lit_adaptive.rollout.generation import SamplingParams
from lit_adaptive.samplers import (
    ArcsineKalman,
    BetaPosterior,
    CurriculumSampler,
    DifficultySampler,
    FixedDifficulty,
    MarkovForecast,
    PrioritizedSampler,
)

POOL, DEMONSTRATIONS = 20_000, 40_000
MEASURE_EVERY, PROMPTS, SAMPLES, CANDIDATES = 10, 512, 4, 2048
SAMPLING = SamplingParams(8)
POLICIES = {"small": (128, 2, 1500, 2e-3, 3e-4), "large": (256, 4, 800, 1e-3, 2e-4)}
"""Width, layers, steps and learning rate of the warm-up, and learning rate of GRPO."""


class Oracle(Callback):
    """Gives the sampler true pass rates of some prompts, at no cost.

    Attributes:
        seconds: time that it took.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.candidates = torch.randperm(POOL)[:CANDIDATES]

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % 10 == 0:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        start = time.process_time()
        sampler = trainer.datamodule.sampler
        difficulty = torch.full((sampler.size,), 1.0)
        difficulty[self.candidates] = 1 - pass_rates(trainer, pl_module, self.candidates, 8)
        sampler.set_difficulty(difficulty)
        sampler.end_window()
        self.seconds += time.process_time() - start


def pass_rates(trainer: Any, module: Any, index: torch.Tensor, samples: int) -> torch.Tensor:
    """Mean reward of answers to prompts, with random numbers of their own: ``[K]`` float32."""
    data = trainer.datamodule
    data.engine.attach(module)
    prompts, rows = data.dataset.tokens(index), data.dataset.texts(index)
    completions = data.engine.generate(prompts, samples, SAMPLING, [*range(len(prompts))])
    texts = data.dataset.decode_completions(completions.tokens)
    right = [text == rows[i // samples]["answer"] for i, text in enumerate(texts)]
    return torch.tensor(right).float().view(-1, samples).mean(1)


class Evaluation(Callback):
    """Evaluates the policy at intervals.

    Attributes:
        curve: one measurement per evaluation.
        seconds: CPU time of training, without the evaluations.
        wall: wall-clock of the steps.
        generation: seconds of it spent on generation.
    """

    def __init__(self, refresh: DifficultyRefresh | None, oracle: Oracle | None) -> None:
        self.curve: list[dict[str, float]] = []
        self.informative: list[float] = []
        self.pearson: list[float] = []
        self.generation, self._evaluating, self._start = 0.0, 0.0, 0.0
        self.wall, self._step_start = 0.0, 0.0  # of the steps
        self.refresh, self.oracle = refresh, oracle
        self.index = torch.randperm(POOL, generator=torch.Generator().manual_seed(0))

    @property
    def seconds(self) -> float:
        free = self._evaluating + (self.oracle.seconds if self.oracle else 0.0)
        return time.process_time() - self._start - free

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._start = time.process_time()
        self._evaluate(trainer, pl_module)
        self._step_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.wall += time.perf_counter() - self._step_start
        metrics = batch.get("metrics", {})
        self.generation += metrics.get("seconds/generation", 0.0)
        if "frac_reward_zero_std" in metrics:
            self.informative.append(1 - metrics["frac_reward_zero_std"])
        if self.refresh is not None and "train/difficulty/pearson" in trainer.callback_metrics:
            self.pearson.append(float(trainer.callback_metrics["train/difficulty/pearson"]))
        if trainer.global_step % MEASURE_EVERY == 0:
            self._evaluate(trainer, pl_module)
        self._step_start = time.perf_counter()

    def _evaluate(self, trainer: Any, pl_module: Any) -> None:
        begin, seconds = time.process_time(), self.seconds
        accuracy = pass_rates(trainer, pl_module, self.index[:PROMPTS], SAMPLES).mean()
        self.curve.append(
            {
                "step": float(trainer.global_step),
                "tokens": trainer.datamodule.counters["generated_tokens"],
                "seconds": seconds,
                "accuracy": float(accuracy),
            }
        )
        self._evaluating += time.process_time() - begin


class Table(Callback):
    """Measures pass rates of prompts as the policy learns.

    Attributes:
        rows: of a table for ``PassRateDataModule``.
    """

    def __init__(self, name: str, index: torch.Tensor) -> None:
        self.name, self.index = name, index
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % 50 == 0:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        rates = pass_rates(trainer, pl_module, self.index, SAMPLES).tolist()
        rows = trainer.datamodule.dataset.texts(self.index)
        policy = f"{self.name}, step {trainer.global_step}"
        self.rows += [
            {"policy": policy, "prompt_id": row["prompt"], "pass_rate": rate}
            for row, rate in zip(rows, rates, strict=True)
        ]


class Pretrained:
    """A predictor that is trained before the run, from other policies' pass rates.

    Args:
        seed: of the run; the other policies have seeds that no run has.
        model: the warmed-up policy, whose hidden states at the start are the embeddings.
        folder: for the table and the predictor's weights.
        policy: a key of ``POLICIES``.
    """

    def __init__(self, seed: int, model: GRPO, folder: str, policy: str) -> None:
        self.seed, self.model, self.folder, self.policy = seed, model, Path(folder), policy
        self.key = f"policy {seed}"
        self._vectors: dict[str, torch.Tensor] = {}

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Embeddings of prompts, standardized over the pool, as ``DifficultyRefresh``'s own."""
        if not self._vectors:
            pool = PromptDataset(DigitCommands(size=POOL), columns=["answer"])
            index = torch.arange(POOL)
            with torch.no_grad():
                vectors = embed_prompts(self.model.policy, pool.tokens(index))
            vectors = (vectors - vectors.mean(0)) / vectors.std(0).clamp(min=1e-6)
            names = [row["prompt"] for row in pool.texts(index)]
            self._vectors = dict(zip(names, vectors, strict=True))
        return torch.stack([self._vectors[text] for text in texts])

    def refresh(self) -> DifficultyRefresh:
        """DOTS with this predictor, which stays as it is."""
        index = torch.randperm(POOL, generator=torch.Generator().manual_seed(1))[:2000]
        rows: list[dict[str, Any]] = []
        for donor in (1000 + 2 * self.seed, 1001 + 2 * self.seed):
            start = self.folder / f"donor-{donor}.ckpt"
            model, _ = train(donor, 0, {}, [], None, self.policy)
            torch.save({"state_dict": model.state_dict()}, start)
            table = Table(f"seed {donor}", index)
            train(donor, 100, {}, [table], str(start), self.policy)
            rows += table.rows
        file = self.folder / f"pass-rates-{self.seed}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        prompts = PromptDataset(DigitCommands(size=POOL), columns=["answer"]).texts(index)
        source = self.folder / f"prompts-{self.seed}.jsonl"
        source.write_text(
            "\n".join(json.dumps({"id": row["prompt"], "prompt": row["prompt"]}) for row in prompts)
        )
        encoder: Any = self
        data = PassRateDataModule(
            PromptDataset(str(source), tokenizer="characters"), str(file), encoder=encoder
        )
        module = PassRateModule(2 * POLICIES[self.policy][0], hidden_size=32)
        trainer = common.quiet_trainer(max_epochs=20)
        trainer.fit(module, data)
        weights = self.folder / f"predictor-{self.seed}.ckpt"
        trainer.save_checkpoint(weights)
        return DifficultyRefresh(
            2, 32, hidden_size=32, updates=0, weights=str(weights), encoder=encoder, file=None
        )


def difficulty(**options: Any) -> Callable[[int], DifficultySampler]:
    """A factory of difficulty samplers."""
    return partial(DifficultySampler, **options)


def feedback() -> Callback:
    """Pass rates for the sampler."""
    return PromptStatistics(signal="pass_rate", file=None)


def refresh(references: int = 32) -> Callback:
    """DOTS' predictor, learning online."""
    return DifficultyRefresh(2, references, hidden_size=32, updates=20, file=None)


def uniform_replay() -> dict[str, Any]:
    """Half of the groups replayed, as in the paper with a buffer of two steps."""
    return {"replay": RolloutBuffer(64), "replay_fraction": 0.5}


DOTS = difficulty(window=2)
SIGNAL = difficulty(
    target="learnability",
    tau=0.02,
    window=2,
    estimator=BetaPosterior(prior_rollouts=8.0, decay=0.9),
)
FILTER = {"drop_uninformative": True}
METHODS: dict[str, Callable[["Pretrained"], tuple[dict[str, Any], list[Callback]]]] = {
    "GRPO": lambda _: ({}, []),
    "static curriculum": lambda _: (
        {
            "sampler": partial(CurriculumSampler, stages=[1 / 3, 2 / 3, 1.0], until=1.0),
            "difficulty": "difficulty",
        },
        [CurriculumProgress()],
    ),
    "dynamic sampling": lambda _: (FILTER | {"refill": 3}, []),
    "replaced groups": lambda _: (
        FILTER
        | {
            "replace_uninformative": True,
            "replay": RolloutBuffer(256, policy="prioritized", signal="learnability"),
        },
        [RolloutReplay()],
    ),
    "prompt statistics": lambda _: ({"sampler": PrioritizedSampler}, [PromptStatistics(file=None)]),
    "Thompson": lambda _: (
        {
            "sampler": difficulty(
                selection="top_k", thompson=True, estimator=BetaPosterior(forgetting=0.5)
            )
        },
        [feedback()],
    ),
    "Kalman": lambda _: (
        {"sampler": difficulty(selection="top_k", thompson=True, estimator=ArcsineKalman())},
        [feedback()],
    ),
    "DPS": lambda _: (
        {
            "sampler": difficulty(
                selection="top_k", target="informative", estimator=MarkovForecast()
            )
        },
        [feedback()],
    ),
    "DOTS offline": lambda pretrained: ({"sampler": DOTS}, [feedback(), pretrained.refresh()]),
    "DOTS online": lambda _: ({"sampler": DOTS}, [feedback(), refresh()]),
    "DOTS, signal": lambda _: ({"sampler": SIGNAL}, [feedback(), refresh()]),
    "DOTS+RR": lambda _: (
        {"sampler": DOTS} | uniform_replay(),
        [feedback(), refresh(), RolloutReplay()],
    ),
    "DOTS+fresh RR": lambda _: (
        {
            "sampler": DOTS,
            "replay": RolloutBuffer(128, policy="fresh", tau=4.0),
            "replay_fraction": 0.5,
        },
        [feedback(), refresh(), RolloutReplay()],
    ),
    "DOTS, signal+RR": lambda _: (
        {"sampler": SIGNAL} | uniform_replay(),
        [feedback(), refresh(), RolloutReplay()],
    ),
    "oracle": lambda _: (
        {"sampler": difficulty(estimator=FixedDifficulty()), "difficulty": "difficulty"},
        [Oracle()],
    ),
}
"""Options of the datamodule and callbacks, by method; new ones for each run."""


def train(
    seed: int,
    steps: int,
    data: dict[str, Any],
    callbacks: list[Callback],
    weights: str | None,
    policy: str = "small",
) -> tuple[GRPO, Evaluation]:
    """Train a policy from the checkpoint ``weights``, or warm one up if there is none."""
    hidden_size, layers, warmup_steps, warmup_rate, learning_rate = POLICIES[policy]
    seed_everything(seed, verbose=False)
    module = RolloutDataModule(
        PromptDataset(DigitCommands(size=POOL), columns=["answer"]),
        batch_size=32,
        group_size=8,
        sampling=SAMPLING,
        steps_per_epoch=max(steps, 1),
        **data,
    )
    model = GRPO(
        ConfiguredLM(hidden_size=hidden_size, layers=layers, heads=4, max_positions=64),
        objective=PolicyObjective(scale="none"),
        optimization=Optimization(learning_rate=learning_rate if weights else 1e-30),
        weights=weights,
    )
    warmup = SupervisedWarmup(
        DigitCommands(size=DEMONSTRATIONS, seed=1),
        steps=warmup_steps,
        batch_size=128,
        learning_rate=warmup_rate,
    )
    each: Any = {type(callback): callback for callback in callbacks}
    evaluation = Evaluation(each.get(DifficultyRefresh), each.get(Oracle))
    trainer = common.quiet_trainer(
        max_steps=max(steps, 1),
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        callbacks=[*([] if weights else [warmup]), *callbacks, evaluation],
    )
    trainer.fit(model, module)
    return model, evaluation


def run(seed: int, *, methods: list[str], steps: int, policy: str, folder: str) -> dict[str, Any]:
    """Curves of each method for one seed."""
    torch.set_num_threads(1)
    common.silence()
    start = f"{folder}/warm-{seed}.ckpt"
    model, _ = train(seed, 0, {}, [], None, policy)
    torch.save({"state_dict": model.state_dict()}, start)
    pretrained = Pretrained(seed, model, folder, policy)
    results: dict[str, Any] = {}
    for name in methods:
        _, evaluation = train(seed, steps, *METHODS[name](pretrained), start, policy)
        results[name] = {
            "curve": evaluation.curve,
            "informative": float(np.mean(evaluation.informative)),
            "generation": evaluation.generation / evaluation.wall,
            "pearson": float(np.mean(evaluation.pearson[len(evaluation.pearson) // 4 :]))
            if evaluation.pearson
            else None,
        }
        last = {key: round(value, 3) for key, value in evaluation.curve[-1].items()}
        shown = {k: v for k, v in results[name].items() if k != "curve"}
        print(seed, name, last, shown, flush=True)
    return results


def final(curve: list[dict[str, float]]) -> float:
    """Mean accuracy of the last two measurements."""
    return (curve[-1]["accuracy"] + curve[-2]["accuracy"]) / 2


def reached(curve: list[dict[str, float]], accuracy: float, axis: str) -> float:
    """Where a curve's running mean of two first reaches an accuracy, or its end if nowhere."""
    smooth = [curve[0]["accuracy"]]
    smooth += [(a["accuracy"] + b["accuracy"]) / 2 for a, b in pairwise(curve)]
    for place in range(1, len(curve)):
        if smooth[place] >= accuracy:
            below, above = smooth[place - 1], smooth[place]
            part = (accuracy - below) / (above - below) if above > below else 1.0
            return curve[place - 1][axis] + part * (curve[place][axis] - curve[place - 1][axis])
    return curve[-1][axis]


def summarize(runs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """What a method took for GRPO's final accuracy, relative to GRPO, and more."""
    row: dict[str, Any] = {}
    for axis in ("step", "tokens", "seconds"):
        values = []
        for run in runs:
            goal = final(run["GRPO"]["curve"])
            taken, base = (reached(run[key]["curve"], goal, axis) for key in (name, "GRPO"))
            values.append(taken / base - 1)
        row[f"{axis} to GRPO's accuracy"] = common.t_interval(values)
    equal, base = [], []
    for run in runs:
        curve, grpo = run[name]["curve"], run["GRPO"]["curve"]
        seconds = min(curve[-1]["seconds"], grpo[-1]["seconds"])
        for values, points in ((equal, curve), (base, grpo)):
            x = [point["seconds"] for point in points]
            values.append(float(np.interp(seconds, x, [point["accuracy"] for point in points])))
    row["accuracy at equal time"] = common.paired_t_interval(equal, base)
    finals = [[final(run[key]["curve"]) for run in runs] for key in (name, "GRPO")]
    row["final"] = common.t_interval(finals[0])
    row["final - GRPO's"] = common.paired_t_interval(*finals)
    for measure in ("informative", "generation", "pearson"):
        values = [run[name][measure] for run in runs]
        row[measure] = None if None in values else common.t_interval(values)
    goals = [final(run["GRPO"]["curve"]) for run in runs]
    row["reached"] = sum(
        any(point["accuracy"] >= goal for point in run[name]["curve"])
        for run, goal in zip(runs, goals, strict=True)
    )
    return row


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of paired seeds")
    parser.add_argument("--jobs", type=int, default=2, help="seeds to run at the same time")
    parser.add_argument("--steps", type=int, default=150, help="steps of each method")
    parser.add_argument("--policy", choices=[*POLICIES], default="small", help="its size")
    parser.add_argument(
        "--methods", default=";".join(METHODS), help="names, separated by semicolons"
    )
    args = parser.parse_args()
    methods = args.methods.split(";")
    if methods[0] != "GRPO" or {*methods} - {*METHODS}:
        parser.error(f"methods is {methods}: begin with GRPO, then any of {[*METHODS][1:]}")
    with tempfile.TemporaryDirectory() as folder:
        run_seed = partial(
            run, methods=methods, steps=args.steps, policy=args.policy, folder=folder
        )
        runs = common.run_seeds(run_seed, args.seeds, args.jobs)
    table = {name: summarize(runs, name) for name in methods}
    for name, row in table.items():
        cells = (f"{k} {v if isinstance(v, int) else f'{v:.3f}'}" for k, v in row.items() if v)
        print(f"{name:20s}", *cells, sep=" | ")
    results = {"seeds": args.seeds, "steps": args.steps, "table": table, "runs": runs}
    name = "dots" if args.policy == "small" else f"dots_{args.policy}"
    common.write_results(args.out, f"{name}.json", results)
    common.plot_curves(results, "mean pass rate of the pool", args.out / f"{name}.png")


if __name__ == "__main__":
    main()
