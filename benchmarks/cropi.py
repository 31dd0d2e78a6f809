"""Prompts by influence: CROPI and its relatives against GRPO on a pool of which little matters.

    python benchmarks/cropi.py [--seeds 5] [--jobs 2] [--steps 600] [--distractors 46]

The task of ``configs/cropi.yaml``: a tiny Llama (0.5 M parameters) carries out commands on strings
of digits (``DigitCommands``). Two validation sets of 50 prompts ask six commands, solved in 1 of 4
answers after the warm-up; the pool has 20 prompts of each of these and of ``--distractors`` other
commands, which mean the same four operations but have letters of their own. For each seed the policy
is warmed up once (1,500 supervised steps on all commands); every method continues from there with 8
groups of 8 rollouts per step. With ``--distractors 0`` all of a pool of the same size asks the six commands.

    GRPO                  the pool, shuffled
    random tenth          a tenth of the pool, drawn at random once
    p(1-p)                in proportion to p (1 - p) of each prompt's own rewards
    one-shot influence    the tenth that the first selection takes, by the influence function
    CROPI, first rollouts a selection every 60 steps, by the rollouts of the initial policy alone
                          (the paper's method)
    CROPI                 the same, by the newest rollouts of each prompt
    CROPI, cosine 4p(1-p) the same, scored by cosine times 4 p (1 - p), as LearnAlign
    influence function    the same, scored by the influence function
    influence+DOTS+RR     the influence function selects, DOTS draws inside, half of the groups are
                          replayed
    oracle                the prompts of the six commands, shuffled

The pool is small because the rollouts of all prompts at the start must not dominate: 1,040 prompts
of 8 rollouts are what GRPO generates in 130 steps. Measured every 20 steps: mean pass rate of 240
other prompts of the six commands (4 answers each), generated tokens and CPU seconds of the process,
which has one thread: the rollouts at the start, all selections and references are included, the
measurements and the warm-up are not. Reported: steps, tokens and seconds until a method reaches
GRPO's final accuracy (mean of its last two measurements), as GRPO's divided by its own; accuracy
after a quarter of the steps; share of the six commands among the fresh prompts. Mean over paired seeds
with the 95 % t-interval. A method is stopped once it has reached the accuracy and done a quarter of
the steps; one that never reaches it counts with all that it took.
"""

import os
import string
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
from dots import SAMPLING, feedback, final, reached, refresh
from lightning.pytorch import Callback, seed_everything

from callbacks import InfluenceRefresh, PromptStatistics, RolloutReplay, SupervisedWarmup
from lit_adaptive.data import DigitCommands, PromptDataset, RolloutDataModule
from lit_adaptive.modules import GRPO, ConfiguredLM, Optimization, PolicyObjective
from lit_adaptive.replay import RolloutBuffer, RolloutGroups, TrajectoryBuffer, TrajectoryStore
from lit_adaptive.samplers import DifficultySampler, PrioritizedSampler

FIRST, SECOND = "qcK", "jxL"
TARGETS = FIRST + SECOND
DISTRACTORS = "".join(one for one in string.ascii_letters if one not in TARGETS)
POOL, FRACTION, PHASE = 1040, 0.1, 60
MEASURE_EVERY, PROMPTS, SAMPLES = 20, 240, 4
INFLUENCE = "influence_function"


class Subset(Callback):
    """Restricts the sampler to some prompts from the start.

    Args:
        choose: returns their places, given the datamodule.
    """

    def __init__(self, choose: Callable[[Any], torch.Tensor]) -> None:
        self.choose = choose

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        others = torch.ones(len(data.dataset), dtype=torch.bool)
        others[self.choose(data)] = False
        data.sampler.remove(others.nonzero().flatten())


def random_tenth(data: Any) -> torch.Tensor:
    size = len(data.dataset)
    return torch.randperm(size)[: round(FRACTION * size)]


def validated(data: Any) -> torch.Tensor:
    """Places of the prompts of the six commands."""
    rows = data.dataset.texts(torch.arange(len(data.dataset)))
    return torch.tensor([place for place, row in enumerate(rows) if row["command"] in TARGETS])


class FirstRollouts(TrajectoryBuffer):
    """Keeps the rollouts of the initial policy, as in the paper."""

    def update(self, groups: RolloutGroups, *, stored: bool = False) -> None:
        if stored:
            super().update(groups, stored=True)


class Evaluation(Callback):
    """Evaluates the policy at intervals, on other prompts of the six commands.

    Args:
        folder: of the trajectories, whose tokens count.
        goal: stop when the running mean of two measurements is as high, and a quarter of the steps
            are done; None: never.

    Attributes:
        curve: one measurement per evaluation.
        targeted: share of the six commands among the fresh prompts of each step.
    """

    def __init__(self, folder: Path, goal: float | None) -> None:
        self.folder, self.goal = folder, goal
        self.curve: list[dict[str, float]] = []
        self.targeted: list[float] = []
        self._evaluating, self._start, self._collected = 0.0, 0.0, 0.0
        self.dataset = PromptDataset(
            DigitCommands("validation", size=PROMPTS, commands=TARGETS), columns=["answer"]
        )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._targets = torch.zeros(POOL, dtype=torch.bool)
        self._targets[validated(trainer.datamodule)] = True
        self._start = time.process_time()
        self._evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.datamodule.finished_step
        self.targeted.append(float(self._targets[step.fresh.prompt].double().mean()))
        if trainer.global_step % MEASURE_EVERY:
            return
        self._evaluate(trainer, pl_module)
        quarter = trainer.global_step >= trainer.max_steps / 4
        if self.goal is not None and quarter and any_reached(self.curve, self.goal):
            trainer.should_stop = True

    def _evaluate(self, trainer: Any, pl_module: Any) -> None:
        begin = time.process_time()
        data = trainer.datamodule
        data.engine.attach(pl_module)
        prompts, rows = (
            f(torch.arange(PROMPTS)) for f in (self.dataset.tokens, self.dataset.texts)
        )
        completions = data.engine.generate(prompts, SAMPLES, SAMPLING, [*range(PROMPTS)])
        texts = self.dataset.decode_completions(completions.tokens)
        right = [text == rows[i // SAMPLES]["answer"] for i, text in enumerate(texts)]
        if trainer.global_step and not self._collected:
            folders = self.folder.glob("*")
            stored = (TrajectoryStore(folder, {}).read() for folder in folders)
            self._collected = float(sum(len(groups.tokens) for groups in stored))
        self.curve.append(
            {
                "step": float(trainer.global_step),
                "tokens": data.counters["generated_tokens"] + self._collected,
                "seconds": begin - self._start - self._evaluating,
                "accuracy": float(np.mean(right)),
            }
        )
        self._evaluating += time.process_time() - begin


def any_reached(curve: list[dict[str, float]], goal: float) -> bool:
    """Whether a running mean of two measurements is at least ``goal``."""
    accuracy = [point["accuracy"] for point in curve]
    return any((a + b) / 2 >= goal for a, b in pairwise(accuracy))


def influence(folder: Path, **options: Any) -> InfluenceRefresh:
    """CROPI with the options of ``configs/cropi.yaml``, and fewer validation rollouts."""
    validation = {
        name: PromptDataset(DigitCommands("test", size=50, commands=commands), columns=["answer"])
        for name, commands in (("first", FIRST), ("second", SECOND))
    }
    defaults: dict[str, Any] = {
        "every_n_steps": PHASE,
        "fraction": FRACTION,
        "dimensions": 4096,
        "validation_samples": 8,
    }
    return InfluenceRefresh(validation, folder=str(folder), **(defaults | options))


def first_rollouts(folder: Path) -> InfluenceRefresh:
    callback = influence(folder, retried=0.0)
    callback.buffer = FirstRollouts()
    return callback


Parts = tuple[dict[str, Any], list[Callback]]
METHODS: dict[str, Callable[[Path], Parts]] = {
    "GRPO": lambda _: ({}, []),
    "random tenth": lambda _: ({}, [Subset(random_tenth)]),
    "p(1-p)": lambda _: ({"sampler": PrioritizedSampler}, [PromptStatistics(file=None)]),
    "one-shot influence": lambda folder: (
        {},
        [influence(folder, metric=INFLUENCE, every_n_steps=10**6)],
    ),
    "CROPI, first rollouts": lambda folder: ({}, [first_rollouts(folder)]),
    "CROPI": lambda folder: ({}, [influence(folder)]),
    "CROPI, cosine 4p(1-p)": lambda folder: ({}, [influence(folder, metric="learnable_cosine")]),
    "influence function": lambda folder: ({}, [influence(folder, metric=INFLUENCE)]),
    "influence+DOTS+RR": lambda folder: (
        {
            "sampler": partial(DifficultySampler, window=2),
            "replay": RolloutBuffer(16),
            "replay_fraction": 0.5,
        },
        [influence(folder, metric=INFLUENCE), feedback(), refresh(8), RolloutReplay()],
    ),
    "oracle": lambda _: ({}, [Subset(validated)]),
}
"""Options of the datamodule and callbacks, by method; new ones for each run."""


def train(
    seed: int,
    steps: int,
    commands: str,
    parts: Parts,
    evaluation: Evaluation | None,
    weights: str | None,
) -> GRPO:
    """Train a policy from the checkpoint ``weights``, or warm one up if there is none."""
    seed_everything(seed, verbose=False)
    options, callbacks = parts
    module = RolloutDataModule(
        PromptDataset(
            DigitCommands(size=POOL, commands=commands, seed=seed), columns=["answer", "command"]
        ),
        batch_size=8,
        group_size=8,
        sampling=SAMPLING,
        steps_per_epoch=max(steps, 1),
        seed=seed,
        **options,
    )
    model = GRPO(
        ConfiguredLM(hidden_size=128, layers=2, heads=4, max_positions=64),
        objective=PolicyObjective(scale="none"),
        optimization=Optimization(learning_rate=3e-4 if weights else 1e-30),
        weights=weights,
    )
    warmup = SupervisedWarmup(
        DigitCommands(size=40_000, seed=1), steps=1500, batch_size=128, learning_rate=2e-3
    )
    trainer = common.quiet_trainer(
        max_steps=max(steps, 1),
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        callbacks=[*callbacks, evaluation] if evaluation else [warmup],
    )
    trainer.fit(model, module)
    return model


def run(seed: int, *, methods: list[str], steps: int, commands: str, folder: str) -> dict[str, Any]:
    """Curves of each method for one seed."""
    torch.set_num_threads(1)
    common.silence()
    start = f"{folder}/warm-{seed}.ckpt"
    model = train(seed, 0, commands, ({}, []), None, None)
    torch.save({"state_dict": model.state_dict()}, start)
    results: dict[str, Any] = {}
    for name in methods:
        goal = final(results["GRPO"]["curve"]) if results else None
        place = Path(folder) / f"{seed}-{methods.index(name)}"
        evaluation = Evaluation(place, goal)
        train(seed, steps, commands, METHODS[name](place), evaluation, start)
        results[name] = {
            "curve": evaluation.curve,
            "targeted": float(np.mean(evaluation.targeted)),
        }
        last = {key: round(value, 3) for key, value in evaluation.curve[-1].items()}
        print(seed, name, last, round(results[name]["targeted"], 3), flush=True)
    return results


def summarize(runs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """How many times less than GRPO a method took for GRPO's final accuracy, and more."""
    goals = [final(run["GRPO"]["curve"]) for run in runs]
    curves = [run[name]["curve"] for run in runs]
    row: dict[str, Any] = {}
    for axis in ("step", "tokens", "seconds"):
        values = []
        for run, curve, goal in zip(runs, curves, goals, strict=True):
            base = reached(run["GRPO"]["curve"], goal, axis)
            values.append(base / reached(curve, goal, axis))
        row[f"times fewer {axis}"] = common.t_interval(values)
    quarter = len(runs[0]["GRPO"]["curve"]) // 4
    accuracy = [curve[quarter]["accuracy"] for curve in curves]
    row["accuracy at a quarter"] = common.t_interval(accuracy)
    row["targeted"] = common.t_interval([run[name]["targeted"] for run in runs])
    pairs = zip(curves, goals, strict=True)
    row["reached"] = sum(any_reached(curve, goal) for curve, goal in pairs)
    return row


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of paired seeds")
    parser.add_argument("--jobs", type=int, default=2, help="seeds to run at the same time")
    parser.add_argument("--steps", type=int, default=600, help="steps of GRPO")
    parser.add_argument(
        "--distractors", type=int, default=len(DISTRACTORS), help="number of other commands"
    )
    parser.add_argument(
        "--methods", default=";".join(METHODS), help="names, separated by semicolons"
    )
    args = parser.parse_args()
    methods = args.methods.split(";")
    if methods[0] != "GRPO" or {*methods} - {*METHODS}:
        parser.error(f"methods is {methods}: begin with GRPO, then any of {[*METHODS][1:]}")
    commands = TARGETS + DISTRACTORS[: args.distractors]
    with tempfile.TemporaryDirectory() as folder:
        run_seed = partial(run, methods=methods, steps=args.steps, commands=commands, folder=folder)
        runs = common.run_seeds(run_seed, args.seeds, args.jobs)
    table = {name: summarize(runs, name) for name in methods}
    for name, row in table.items():
        cells = (f"{k} {v if isinstance(v, int) else f'{v:.3f}'}" for k, v in row.items())
        print(f"{name:22s}", *cells, sep=" | ")
    options = {"seeds": args.seeds, "steps": args.steps, "distractors": args.distractors}
    results = options | {"table": table, "runs": runs}
    name = "cropi" if args.distractors else "cropi_no_distractors"
    common.write_results(args.out, f"{name}.json", results)
    common.plot_curves(
        results, "mean pass rate of the validated commands", args.out / f"{name}.png"
    )


if __name__ == "__main__":
    main()
