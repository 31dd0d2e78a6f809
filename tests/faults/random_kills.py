"""Kill runs of shipped configs at random points, resume them, and compare them with whole runs.

    python tests/faults/random_kills.py --points 100 --folder /tmp/kills [CONFIG ...]

A point is a share of the processor time of the uninterrupted run, drawn from ``--seed``: in the
warm-up, a step, a validation, or a save. The run gets SIGKILL there, goes on with ``--ckpt_path
last`` (or anew if it had no checkpoint yet), and is killed once more. Its batches, losses, metrics,
and everything in its last checkpoint must equal those of the uninterrupted run, to the bit. Each
run is ``lit_adaptive.cli.main.main`` in a process of its own, forked from one that has imported it.
"""

import argparse
import csv
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

HELPERS = Path(__file__).parents[1] / "helpers"
CONFIGS = Path(__file__).parents[2] / "configs"
LEFT_OUT = ("smollm2", "images", "dqn_atari", "deepscaler", "gsm8k", "reasoning")
"""Configs that load a pretrained model or need a download."""
sys.path.insert(0, str(HELPERS))


def fit(arguments: list[str], log: str, cpu_seconds: str) -> None:
    """Run ``lit-adaptive fit`` in this process, which saves after every step."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import callbacks.newest_checkpoint
    from lit_adaptive.cli.main import main

    torch.set_num_threads(1)
    callbacks.newest_checkpoint._LEAST_RATIO = 0
    main(arguments)
    Path(cpu_seconds).write_text(str(time.process_time()))


class Runs:
    """The runs of one config in ``folder``: uninterrupted, or killed and resumed."""

    def __init__(self, config: Path, folder: Path) -> None:
        self.folder = folder
        self.digests = folder / "batches.jsonl"
        self.log = folder / "log.txt"
        self.cpu_seconds = folder / "cpu_seconds.txt"
        folder.mkdir(parents=True)
        self.config = folder / config.name
        self._write_config(config)

    def _write_config(self, source: Path) -> None:
        from small_configs import shrunk

        tree = shrunk(yaml.safe_load(source.read_text()), self.folder.parent, epochs=2, steps=6)
        newest = {"class_path": "callbacks.NewestCheckpoint", "init_args": {"interval": 0.0}}
        digest = {
            "class_path": "batch_digest.BatchDigest",
            "init_args": {"file": str(self.digests)},
        }
        for callback in tree["trainer"]["callbacks"]:
            if callback.get("init_args", {}).get("dirpath"):
                callback["init_args"]["dirpath"] = str(self.folder / "best")
        tree["trainer"]["callbacks"] += [digest, newest]
        self.config.write_text(yaml.safe_dump(tree))

    def start(self) -> multiprocessing.Process:
        arguments = ["fit", f"--config={self.config}", f"--runs={self.folder / 'runs'}"]
        if any(self.folder.glob("runs/*/*/checkpoints/last.ckpt")):
            arguments.append("--ckpt_path=last")
        process = _CONTEXT.Process(
            target=fit, args=(arguments, str(self.log), str(self.cpu_seconds))
        )
        process.start()
        return process

    def finish(self) -> float:
        """Run to the end; its processor time in seconds."""
        process = self.start()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"exit status {process.exitcode}, see {self.log}")
        return float(self.cpu_seconds.read_text())

    def kill(self, cpu_seconds: float) -> str:
        """Run, kill after so much processor time; what it was: ``killed`` or ``ended``."""
        process = self.start()
        watched = psutil.Process(process.pid)
        while process.is_alive():
            try:
                times = watched.cpu_times()
            except psutil.Error:
                break
            if times.user + times.system >= cpu_seconds:
                process.kill()
            time.sleep(0.002)
        process.join()
        if process.exitcode not in (0, -9):
            raise RuntimeError(f"exit status {process.exitcode}, see {self.log}")
        return "ended" if process.exitcode == 0 else "killed"

    def result(self) -> dict[str, Any]:
        """Everything that is compared."""
        last = max(
            self.folder.glob("runs/*/*/checkpoints/last.ckpt"),
            key=lambda path: path.stat().st_mtime_ns,
        )
        with (last.parent.parent / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        # Lightning repeats the last value of an epoch in each row: only new values are compared.
        metrics: dict[str, list[tuple[str, str]]] = {"rows": [(row["step"], "") for row in rows]}
        for row in rows:
            for name, value in row.items():
                values = metrics.setdefault(name, [])
                if value and "seconds" not in name and value not in (v for _, v in values[-1:]):
                    values.append((row["step"], value))
        batches: dict[int, set[tuple[str, str]]] = {}
        for line in self.digests.read_text().splitlines():
            step = json.loads(line)
            batches.setdefault(step["batch"], set()).add((step["digest"], step["loss"]))
        state = torch.load(last, map_location="cpu", weights_only=True)
        state = without_seconds_and_paths(state)
        state["callbacks"] = {
            name: value
            for name, value in state["callbacks"].items()
            if not name.startswith("ModelCheckpoint")  # paths; the best is in the log
        }
        lines = [line.partition(" in ")[0] for line in self.log.read_text().splitlines()]
        best = [line for line in lines if line.startswith("best ")][-1:]
        return {"batches": batches, "metrics": metrics, "state": state, "best": best}


def without_seconds_and_paths(tree: Any) -> Any:
    """``tree`` without the entries that differ between any two runs."""
    if not isinstance(tree, dict):
        return tree
    return {
        name: without_seconds_and_paths(value)
        for name, value in tree.items()
        if name != "path" and "seconds" not in str(name)
    }


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Paths at which two trees of tensors and primitives differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        if same and one.is_floating_point():
            same = torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
        return [] if same and (one.is_floating_point() or torch.equal(one, other)) else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted(one.keys() | other.keys(), key=str)
        missing = [
            f"{path}.{name} (in one only)" for name in names if (name in one) != (name in other)
        ]
        both = [name for name in names if name in one and name in other]
        return missing + [d for n in both for d in differences(one[n], other[n], f"{path}.{n}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{path} ({len(one)} and {len(other)} entries)"]
        pairs = zip(one, other, strict=True)
        return [d for i, pair in enumerate(pairs) for d in differences(*pair, f"{path}[{i}]")]
    if (
        isinstance(one, float)
        and isinstance(other, float)
        and math.isnan(one)
        and math.isnan(other)
    ):
        return []
    return [] if type(one) is type(other) and one == other else [f"{path}: {one!r} and {other!r}"]


def kill_and_compare(
    config: Path, folder: Path, dice: random.Random, points: int
) -> tuple[int, list[str]]:
    """Kill a run of ``config`` at up to ``points`` points; how many it was, and differences."""
    shutil.rmtree(folder, ignore_errors=True)
    if config.stem == "digits_rho_loss":  # scores samples by another run's model
        other = Runs(CONFIGS / "digits_uniform.yaml", folder / "other")
        other.finish()
        shutil.copy(
            next(other.folder.glob("runs/*/*/checkpoints/last.ckpt")), folder / "holdout.ckpt"
        )
    whole = Runs(config, folder / "whole")
    seconds = whole.finish()
    broken = Runs(config, folder / "broken")
    killed = 0
    for _ in range(points):
        killed += broken.kill(dice.uniform(0.0, seconds)) == "killed"
    broken.finish()
    return killed, differences(whole.result(), broken.result())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "configs", nargs="*", help="names; by default all that train on embedded data"
    )
    parser.add_argument("--points", type=int, default=100, help="kills in all")
    parser.add_argument("--per-run", type=int, default=2, help="kills of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, required=True, help="of the runs; kept if they differ"
    )
    options = parser.parse_args()
    names = options.configs or [
        path.stem for path in sorted(CONFIGS.glob("*.yaml")) if not path.stem.startswith(LEFT_OUT)
    ]
    dice = random.Random(options.seed)
    points, divergences, round_number = 0, 0, 0
    while points < options.points:
        before = points
        for name in names:
            if points >= options.points:
                break
            folder = options.folder / f"{name}-{round_number}"
            try:
                killed, different = kill_and_compare(
                    CONFIGS / f"{name}.yaml", folder, dice, options.per_run
                )
            except RuntimeError as error:
                killed, different = 0, [str(error)]
            points += killed
            divergences += bool(different)
            line = {
                "config": name,
                "killed": killed,
                "points": points,
                "differences": different[:9],
            }
            print(json.dumps(line), flush=True)
            if not different:
                shutil.rmtree(folder)
        if points == before:
            break
        round_number += 1
    print(json.dumps({"points": points, "divergences": divergences}), flush=True)
    sys.exit(min(divergences, 1))


if __name__ == "__main__":
    _CONTEXT = multiprocessing.get_context("forkserver")
    _CONTEXT.set_forkserver_preload(
        [
            "lit_adaptive.cli.main",
            "transformers.models.llama",
            "matplotlib.pyplot",
            "sklearn.datasets",
        ]
    )
    main()
