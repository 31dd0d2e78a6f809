"""MinAtar: prioritized against uniform replay at equal frames, over paired seeds.

    python benchmarks/minatar.py --frames 200000 --seeds 1 2 3

Trains ``configs/dqn_minatar_uniform.yaml`` and ``dqn_minatar_per.yaml`` from the command line, in
turn with the same seed, and compares the mean greedy return of the last three validations of each
run: 95 % t-interval of the paired difference. Wall-clock is that of the whole command: start-up,
collecting, sampling, priorities, training and validation.
"""

import csv
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common

ROOT = Path(__file__).parent.parent


def train(config: str, game: str, frames: int, seed: int, runs: Path) -> dict[str, Any]:
    """Seconds and validation returns of one training run."""
    updates = frames // 4
    command = [
        *(sys.executable, "-m", "lit_adaptive", "fit"),
        *("--config", str(ROOT / "configs" / f"dqn_minatar_{config}.yaml")),
        *("--runs", str(runs), "--seed_everything", str(seed)),
        *("--data.environment", game, "--trainer.max_steps", str(updates)),
        *("--data.batches_per_epoch", str(max(1, updates // 10))),
        *("--trainer.enable_progress_bar", "false"),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    folders = (runs / f"dqn_minatar_{config}").iterdir()
    newest = max(folders, key=lambda path: path.stat().st_mtime)
    with (newest / "metrics.csv").open() as file:
        returns = [
            float(row["val/return"]) for row in csv.DictReader(file) if row.get("val/return")
        ]
    return {"kind": config, "seed": seed, "seconds": seconds, "returns": returns}


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--game", default="MinAtar/Breakout-v1", help="Gymnasium name of the game")
    parser.add_argument("--frames", type=int, default=200_000, help="frames per training run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="paired seeds")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "benchmark", help="folder for training runs"
    )
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {"uniform": [], "per": []}
    for seed in args.seeds:
        for config in runs:
            run = train(config, args.game, args.frames, seed, args.runs)
            runs[config].append(run)
            print(
                f"seed {seed} {config:8} last three {statistics.mean(run['returns'][-3:]):6.2f} "
                f"best {max(run['returns']):6.2f} in {run['seconds']:.0f} s",
                flush=True,
            )
    final = {
        config: [statistics.mean(run["returns"][-3:]) for run in runs[config]] for config in runs
    }
    seconds = {config: statistics.mean(run["seconds"] for run in runs[config]) for config in runs}
    difference = common.paired_t_interval(final["per"], final["uniform"])
    print(
        f"{args.game}, {args.frames} frames, {len(args.seeds)} paired seeds: "
        f"uniform {statistics.mean(final['uniform']):.2f}, "
        f"prioritized {statistics.mean(final['per']):.2f}, difference {difference:.2f}; "
        f"{seconds['uniform']:.0f} and {seconds['per']:.0f} s"
    )
    results = {
        "game": args.game,
        "frames": args.frames,
        "difference": difference.mean,
        "interval": [
            difference.mean - difference.half_width,
            difference.mean + difference.half_width,
        ],
        "final": final,
        "seconds": seconds,
        "runs": runs["uniform"] + runs["per"],
    }
    common.write_results(args.out, "minatar.json", results)


if __name__ == "__main__":
    main()
