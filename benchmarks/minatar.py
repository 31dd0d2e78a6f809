"""MinAtar: uniform against prioritized replay at equal frames, paired seeds, with an interval.

    python benchmarks/minatar.py --frames 200000 --seeds 1 2 3

Runs the two configs as a user would (``configs/dqn_minatar_*.yaml``), one after the other with the
same seed, and compares the mean greedy return of each run's last three validations. The interval is
Student's over the paired differences, 95 %. Wall-clock includes collecting, sampling, and priorities.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import scipy.stats

ROOT = Path(__file__).parent.parent


def run(kind: str, game: str, frames: int, seed: int, runs: Path) -> dict[str, Any]:
    """One training run from the command line; its validations and its time."""
    updates = frames // 4
    command = [
        *(sys.executable, "-m", "lit_adaptive", "fit"),
        *("--config", str(ROOT / "configs" / f"dqn_minatar_{kind}.yaml")),
        *("--runs", str(runs), "--seed_everything", str(seed)),
        *("--data.environment", game, "--trainer.max_steps", str(updates)),
        *("--data.batches_per_epoch", str(max(1, updates // 10))),
        *("--trainer.enable_progress_bar", "false"),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    newest = max((runs / f"dqn_minatar_{kind}").iterdir(), key=lambda path: path.stat().st_mtime)
    with (newest / "metrics.csv").open() as file:
        returns = [
            float(row["val/return"]) for row in csv.DictReader(file) if row.get("val/return")
        ]
    return {"kind": kind, "seed": seed, "seconds": seconds, "returns": returns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--game", default="MinAtar/Breakout-v1")
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmark")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for kind in ("uniform", "per"):
            found.append(run(kind, arguments.game, arguments.frames, seed, arguments.runs))
            last = found[-1]
            print(
                f"seed {seed} {kind:8} last three {statistics.mean(last['returns'][-3:]):6.2f} "
                f"best {max(last['returns']):6.2f} in {last['seconds']:.0f} s",
                flush=True,
            )
    final = {
        kind: [statistics.mean(one["returns"][-3:]) for one in found if one["kind"] == kind]
        for kind in ("uniform", "per")
    }
    difference = [b - a for a, b in zip(final["uniform"], final["per"], strict=True)]
    mean, sem = statistics.mean(difference), scipy.stats.sem(difference)
    low, high = scipy.stats.t.interval(0.95, len(difference) - 1, loc=mean, scale=sem)
    seconds = {
        kind: statistics.mean(one["seconds"] for one in found if one["kind"] == kind)
        for kind in final
    }
    print(
        f"{arguments.game}, {arguments.frames} frames, {len(difference)} paired seeds: "
        f"uniform {statistics.mean(final['uniform']):.2f}, per {statistics.mean(final['per']):.2f}, "
        f"difference {mean:+.2f} [{low:+.2f}, {high:+.2f}] (95 %); "
        f"seconds {seconds['uniform']:.0f} and {seconds['per']:.0f}"
    )
    summary = {"difference": mean, "interval": [low, high], "final": final, "seconds": seconds}
    result = {"game": arguments.game, "frames": arguments.frames, **summary, "runs": found}
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "minatar.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
