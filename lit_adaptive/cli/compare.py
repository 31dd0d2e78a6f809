"""``lit-adaptive compare``: the runs of several configs with paired seeds, and what they show.

    lit-adaptive compare BASELINE.yaml OTHER.yaml ... [--seeds 5] [--jobs 1] [--metric NAME]
        [--out FOLDER] [-- OPTIONS OF FIT]

Each config is trained with each seed in a process of its own. The same command goes on with what an
interruption left, from the newest checkpoint of each run; more seeds can be added.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lit_adaptive.cli.checkpoints import newest_checkpoint
from lit_adaptive.cli.errors import ShortErrorParser
from lit_adaptive.report.comparison import (
    Mode,
    as_dict,
    compare_runs,
    curves_figure,
    markdown,
    read_curve,
)
from lit_adaptive.report.curves import read_series
from lit_adaptive.report.options import options_of, read_config

_LOG_LINES = 15  # of a failed run


class _Run(NamedTuple):
    """One config with one seed.

    Attributes:
        folder: has the run directories and the output of this run.
    """

    name: str
    config: Path
    seed: int
    folder: Path

    @property
    def done(self) -> Path:
        """File that says that the run is finished."""
        return self.folder / "finished"

    def newest(self) -> Path:
        """The newest run directory, by the time in its name; of one that is missing, its folder."""
        folder = self.folder / self.name
        return max(folder.glob(f"*-{self.seed}*"), default=folder)


def compare(args: list[str]) -> None:
    """Compare as ``args`` say; an error ends the process with a short message."""
    signal.signal(signal.SIGTERM, _end)
    parser = compare_parser()
    own, options = args, list[str]()
    if "--" in args:
        own, options = args[: args.index("--")], args[args.index("--") + 1 :]
    given = parser.parse_args(own)
    configs = [Path(path) for path in given.configs]
    out, jobs, seeds = Path(given.out), given.jobs, [*range(given.seeds)]
    try:
        trees = _read_configs(configs)
        if given.seeds < 1 or jobs < 1:
            name = "seeds" if given.seeds < 1 else "jobs"
            raise ValueError(f"{name} is {given[name]}; it must be at least 1")
        metric, mode = _metric(next(iter(trees.values())), given.metric, given.mode)
        _check_plan(out, configs, options)
        for line in _differences(trees):
            print(line)
        runs = [
            _Run(path.stem, path, seed, out / "runs" / f"{path.stem}-{seed}")
            for seed in seeds
            for path in configs
        ]
        _train([run for run in runs if not run.done.exists()], options, jobs, metric)
        curves = {
            path.stem: [
                read_curve(run.newest() / "metrics.csv", metric)
                for run in runs
                if run.config == path
            ]
            for path in configs
        }
    except ValueError as error:
        parser.error(str(error))
    comparison = compare_runs(curves, seeds, metric, mode, given.target)
    text = markdown(comparison)
    if jobs > 1:
        text += f"\nSeconds are those of {jobs} runs at the same time.\n"
    facts = {"command": ["lit-adaptive", "compare", *args], "jobs": jobs}
    (out / "comparison.md").write_text(text)
    (out / "comparison.json").write_text(json.dumps(facts | as_dict(comparison), indent=1) + "\n")
    curves_figure(comparison).savefig(out / "comparison.png", dpi=120)
    print(f"\n{text}\nwritten: {out}/comparison.md, .json and .png")


def _end(number: int, _: FrameType | None) -> None:
    """End as at Ctrl-C: the runs save their states."""
    sys.exit(128 + number)


def compare_parser() -> ShortErrorParser:
    """Parser of the command's arguments."""
    usage = "lit-adaptive compare BASELINE.yaml OTHER.yaml ... [options] [-- options of fit]"
    parser = ShortErrorParser(
        prog="lit-adaptive compare",
        usage=usage,
        description="Train configs with paired seeds, and compare a metric.",
    )
    parser.add_argument("configs", nargs="+", type=str, help="Config files, the baseline first.")
    parser.add_argument("--seeds", type=int, default=5, help="Number of seeds: 0, 1, 2 ...")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at the same time.")
    parser.add_argument(
        "--metric",
        type=str | None,
        default=None,
        help="Column of metrics.csv; by default the monitor of the baseline's ModelCheckpoint.",
    )
    parser.add_argument(
        "--mode",
        type=Mode | None,
        default=None,
        help="Whether more or less of it is better; by default the ModelCheckpoint's, or max.",
    )
    parser.add_argument(
        "--target",
        type=float | None,
        default=None,
        help="Value whose cost is compared; by default the final one of the baseline, per seed.",
    )
    parser.add_argument("--out", type=str, default="comparison", help="Folder for everything.")
    return parser


# Configs ------------------------------------------------------------------------------------------


def _read_configs(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Contents of the config files by their names."""
    trees: dict[str, dict[str, Any]] = {}
    for path in paths:
        if path.stem in trees:
            raise ValueError(
                f"two configs are named {path.stem}; each needs a name of its own: rename one"
            )
        trees[path.stem] = read_config(path)
    return trees


def _callbacks(tree: dict[str, Any]) -> list[dict[str, Any]]:
    found = (tree.get("trainer") or {}).get("callbacks") or []
    return [
        each for each in (found if isinstance(found, list) else [found]) if isinstance(each, dict)
    ]


def _metric(tree: dict[str, Any], metric: str | None, mode: Mode | None) -> tuple[str, Mode]:
    """Metric and mode that were asked for, or those of the first monitored checkpoint."""
    for callback in _callbacks(tree):
        options: dict[str, Any] = callback.get("init_args") or {}
        if options.get("monitor") and metric in (None, options["monitor"]):
            return options["monitor"], mode or options.get("mode", "min")
    if metric is None:
        raise ValueError(
            "the first config has no ModelCheckpoint with a monitor: say what to compare, such as "
            "--metric val/accuracy"
        )
    return metric, mode or "max"


def _check_plan(out: Path, configs: list[Path], options: list[str]) -> None:
    """Refuse a folder with the runs of other configs or options; else note these there."""
    file = out / "plan.json"
    plan: dict[str, Any] = {"configs": {}, "options": options}
    if file.exists():
        plan = json.loads(file.read_text())
        if plan["options"] != options:
            raise ValueError(
                f"out is {out}, whose runs had the options {plan['options']}, not {options}: "
                "choose another --out, or remove it"
            )
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"out is {out}, which has other files: choose another --out")
    for path in configs:
        text = path.read_text()
        if plan["configs"].setdefault(path.stem, text) != text:
            raise ValueError(
                f"{path} is not what it was when the runs in {out} were made: choose another "
                "--out, or remove it"
            )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plan, indent=1) + "\n")


def _idea(path: str) -> str:
    """What an option belongs to: parts that only work together are one idea."""
    if path.startswith(("trainer.callbacks", "data.sampler")):
        return "sampler and callbacks"
    if path.startswith(("data.replay", "data.steps_per_rollout")):
        return "replay"
    return "model.objective" if path.startswith("model.objective") else path


def _differences(trees: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Options in which each config differs from the first, and a warning if they are many ideas."""
    (baseline, first), *others = trees.items()
    before = dict(options_of(first))
    for name, tree in others:
        after = dict(options_of(tree))
        changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
        if not changed:
            yield f"{name} is the same config as {baseline}"
        for path in changed:
            old, new = (_word(leaves, path) for leaves in (before, after))
            yield f"{name}: {path}: {old} -> {new}"
        ideas = list(dict.fromkeys(map(_idea, changed)))
        if len(ideas) > 1:
            yield (
                f"warning: {name} differs from {baseline} in {len(ideas)} ideas "
                f"({', '.join(ideas)}): a difference of the results cannot be told to come from "
                "one of them"
            )


def _word(leaves: dict[str, Any], path: str) -> str:
    return repr(leaves[path]) if path in leaves else "(not set)"


# Runs ---------------------------------------------------------------------------------------------


def _train(runs: list[_Run], options: list[str], jobs: int, metric: str) -> None:
    """Train what is not finished, ``jobs`` at a time; the first failure ends all."""
    if not runs:
        return
    stop, processes = threading.Event(), dict[_Run, subprocess.Popen[bytes]]()
    columns = (
        *(TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TextColumn("{task.fields[now]}")),
    )
    with Progress(*columns) as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task("runs", total=len(runs), now="")

        def train(run: _Run) -> None:
            if stop.is_set():
                return
            try:
                _fit(run, options, jobs, processes)
            except ValueError:
                if not stop.is_set():  # else it was ended because of another one
                    raise
                return
            bar.console.print(f"{run.name}, seed {run.seed}: {_latest(run, metric)}")
            bar.advance(task)

        pending: set[Future[None]] = {pool.submit(train, run) for run in runs}
        try:
            while pending:
                done, pending = wait(pending, 1, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                now = [f"{run.name}-{run.seed} {_latest(run, metric)}" for run in [*processes]]
                bar.update(task, now="; ".join(now))
        finally:
            stop.set()
            for process in [*processes.values()]:
                process.terminate()  # it saves its state


def _fit(
    run: _Run, options: list[str], jobs: int, processes: dict[_Run, "subprocess.Popen[bytes]"]
) -> None:
    """Train a run, or continue it, and note its directory.

    Raises:
        ValueError: with the end of its output, if it fails.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    threads = max((os.cpu_count() or 1) // jobs, 1)
    command = [sys.executable, "-m", "lit_adaptive", "fit", "--config", str(run.config)]
    command += [f"--seed_everything={run.seed}", f"--runs={run.folder}"]
    command += ["--trainer.enable_progress_bar=false", *options]
    command += ["--trainer.callbacks+=callbacks.RunClock"]
    if checkpoint := newest_checkpoint(run.folder / run.name):
        command.append(f"--ckpt_path={checkpoint}")
    log = run.folder / "output.txt"
    with log.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches it as one SIGTERM from here
            env={"OMP_NUM_THREADS": str(threads)} | os.environ,
        )
        processes[run] = process
        status = process.wait()
        del processes[run]
    if status != 0:
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        raise ValueError(
            f"{run.name} with seed {run.seed} ended with status {status}; the end of {log}:\n  "
            + "\n  ".join(lines)
        )
    run.done.touch()


def _latest(run: _Run, metric: str) -> str:
    """Step and value of the newest measurement of a run."""
    file = run.newest() / "metrics.csv"
    if not file.exists():
        return "starts"
    steps, values = read_series(file, metric, "step")
    return f"{metric} {values[-1]:.4g} at step {steps[-1]:.0f}" if values else "no measurement yet"
