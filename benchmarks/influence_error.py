"""What projections and old rollouts do to the scores by influence.

    python benchmarks/influence_error.py [--seeds 5] [--jobs 2]

Policies are those of ``cropi.py`` after the warm-up: 0.5 million parameters, one per seed.

Projection: gradients of 400 demonstrations of 52 commands and the mean gradient of 60 of six of
them, in full and projected. Reported: root mean square and largest error of the 400 cosines, by d and
keep ratio, beside the bound of Johnson and Lindenstrauss (Dasgupta & Gupta, 2003: the distortion for
which a map exists that keeps all 401 vectors); and, at d = 1024, which share of the best tenth stays
the best tenth, by keep ratio. There it is shown beside the same with positions that wrap around as in the
projector that CROPI's code calls (32 bits, scaled to where its batches of 16 wrap), and beside CROPI's
figure 6.

Policy: GRPO for 120 steps on a pool of 1,040 prompts, with the rollouts of its start kept. Every 20
steps 256 prompts are rolled out anew. Reported: mean cosine of a prompt's gradient from the old and the
new rollouts, and which share of the best tenth by old rollouts is in the best tenth by new ones, for
each importance ratio, beside the share that two halves of the new rollouts agree on.
"""

import math
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import cropi
import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor

from callbacks import InfluenceRefresh
from lit_adaptive.core import SparseProjection
from lit_adaptive.core.influence import (
    InfluenceRatio,
    influence_scores,
    mean_validation_gradient,
    selection_overlap,
)
from lit_adaptive.core.projection import ProjectionKind
from lit_adaptive.data import DemonstrationDataset, DigitCommands, PromptDataset
from lit_adaptive.modules import GRPO, LanguageModel

DEMONSTRATIONS, VALIDATED, BEST = 400, 60, 0.1
DIMENSIONS, KEEP = [64, 256, 1024, 4096, 16384], [0.05, 0.15, 0.2, 0.3, 0.5, 1.0]
FIXED, WRAPS = 1024, 0.186
"""d of the second figure; keep ratio from which CROPI's positions wrap around (1.5B, batches of 16)."""
PAPER = {1.0: 0.13, 0.5: 0.22, 0.3: 0.40, 0.2: 0.68, 0.15: 0.77}
STEPS, EVERY, PROBES = 120, 20, 256


def full_gradients(language: LanguageModel, source: DigitCommands) -> Tensor:
    """Gradient of each demonstration's mean log-likelihood, all parameters: ``[N, D]``."""
    dataset = DemonstrationDataset(source, completion="answer")
    parameters = [*language.parameters()]
    rows = []
    for place in range(len(dataset)):
        scores, _ = language.score_targets(dataset.gather(torch.tensor([place])))
        gradient = torch.autograd.grad(scores.log_prob.mean(), parameters)
        rows.append(torch.cat([part.flatten() for part in gradient]))
    return torch.stack(rows)


def wrapped(rows: Tensor, projection: SparseProjection) -> Tensor:
    """Projections of the kept coordinates, read as if positions in a batch of 16 wrapped around."""
    size = rows.shape[1]
    kept = projection.coordinates(0, size)
    batch, limit = 16, int(WRAPS * 16 * size)
    dense = SparseProjection(len(kept), projection.dimensions, 1.0, "rademacher", projection.seed)
    parts = []
    for part in rows.split(batch):
        flat = torch.zeros(batch, len(kept))
        flat[: len(part)] = part[:, kept]
        position = torch.arange(flat.numel()).view_as(flat) % limit
        parts.append(dense.project(flat.flatten()[position])[: len(part)])
    return torch.cat(parts)


def measure_projection(model: GRPO, seed: int) -> dict[str, Any]:
    """Errors of cosines, and shares of the best tenth that stay."""
    rows = full_gradients(model.policy, DigitCommands(size=DEMONSTRATIONS, seed=seed))
    source = DigitCommands("validation", size=VALIDATED, commands=cropi.TARGETS)
    target = mean_validation_gradient(full_gradients(model.policy, source))
    true = influence_scores(rows, target)
    everything = torch.cat([rows, target[None]])
    error: dict[str, Any] = {}
    for kind in get_args(ProjectionKind):
        for keep in (0.15, 1.0):
            for d in DIMENSIONS if kind == "count_sketch" else DIMENSIONS[:3]:
                projected = SparseProjection(rows.shape[1], d, keep, kind, seed).project(everything)
                gap = influence_scores(projected[:-1], projected[-1]) - true
                cell = float(gap.square().mean().sqrt()), float(gap.abs().max())
                error[f"{kind} {keep} {d}"] = cell
    stays: dict[str, Any] = {}
    for keep in KEEP:
        projection = SparseProjection(rows.shape[1], FIXED, keep, "rademacher", seed)
        for name, project in (
            ("exact", projection.project),
            ("wrapped", partial(wrapped, projection=projection)),
        ):
            projected = project(everything)
            score = influence_scores(projected[:-1], projected[-1])
            stays[f"{name} {keep}"] = selection_overlap(true, score, BEST)
    return {"parameters": rows.shape[1], "error": error, "stays": stays}


class Compared(InfluenceRefresh):
    """Compares the rollouts of the start with new ones, for every importance ratio."""

    def __init__(self, folder: Path) -> None:
        validation = PromptDataset(
            DigitCommands("test", size=100, commands=cropi.TARGETS), columns=["answer"]
        )
        super().__init__(
            {"all": validation},
            EVERY,
            fraction=1.0,
            probes=PROBES,
            dimensions=4096,
            validation_samples=8,
            folder=str(folder),
        )
        self.buffer = cropi.FirstRollouts()
        self.rows: list[dict[str, Any]] = []

    def _diagnose(
        self, gradients: Any, targets: Any, trainer: Any, module: Any
    ) -> dict[str, float]:
        for ratio in get_args(InfluenceRatio):
            self.ratio = ratio
            metrics = super()._diagnose(gradients, targets, trainer, module)
            named = {name.rpartition("/")[2]: value for name, value in metrics.items()}
            self.rows.append({"step": trainer.global_step, "ratio": ratio} | named)
        self.ratio = "token"
        return {}


def run(seed: int, *, folder: str) -> dict[str, Any]:
    """Both measurements for one seed."""
    torch.set_num_threads(1)
    common.silence()
    commands = cropi.TARGETS + cropi.DISTRACTORS
    start = f"{folder}/warm-{seed}.ckpt"
    model = cropi.train(seed, 0, commands, ({}, []), None, None)
    torch.save({"state_dict": model.state_dict()}, start)
    projection = measure_projection(model, seed)
    compared = Compared(Path(folder) / str(seed))
    callbacks: list[Callback] = [compared]
    # One step more: nothing is selected after the last.
    evaluation = cropi.Evaluation(Path(folder) / str(seed), None)
    cropi.train(seed, STEPS + 1, commands, ({}, callbacks), evaluation, start)
    print(seed, projection["stays"], compared.rows[-1], flush=True)
    return {"projection": projection, "policy": compared.rows}


def bound(dimensions: int, vectors: int) -> float:
    """Distortion e of Johnson and Lindenstrauss: d = 4 ln n / (e^2 / 2 - e^3 / 3)."""
    e = np.linspace(1e-4, 1, 100_000)
    needed = 4 * math.log(vectors) / (e**2 / 2 - e**3 / 3)
    return float(e[np.argmax(needed <= dimensions)]) if (needed <= dimensions).any() else math.nan


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with intervals."""
    parts = [run["projection"] for run in runs]
    return {
        "error": {
            name: [common.t_interval([part["error"][name][k] for part in parts]) for k in (0, 1)]
            for name in parts[0]["error"]
        },
        "bound": {d: bound(d, DEMONSTRATIONS + 1) for d in DIMENSIONS},
        "stays": {
            name: common.t_interval([part["stays"][name] for part in parts])
            for name in parts[0]["stays"]
        },
        "policy": [
            {"step": row["step"], "ratio": row["ratio"]}
            | {
                name: common.t_interval([run["policy"][place][name] for run in runs])
                for name in ("agreement", "top_overlap", "split_half_overlap")
            }
            for place, row in enumerate(runs[0]["policy"])
        ],
    }


def draw(table: dict[str, Any], file: Path) -> None:
    """Error by d, what stays by keep ratio, and agreement by step."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for number, kind in enumerate(("count_sketch", "rademacher")):
        for keep, style in ((0.15, "-"), (1.0, "--")):
            cells = {d: table["error"].get(f"{kind} {keep} {d}") for d in DIMENSIONS}
            known = {d: cell for d, cell in cells.items() if cell}
            for place, (marker, name) in enumerate((("o", "rms"), ("^", "largest"))):
                values = [cell[place].mean for cell in known.values()]
                axes[0].plot(
                    [*known],
                    values,
                    style,
                    marker=marker,
                    ms=4,
                    color=f"C{number}",
                    label=f"{kind}, keep {keep:g}, {name}",
                )
    limits = {d: value for d, value in table["bound"].items() if not math.isnan(value)}
    axes[0].plot([*limits], [*limits.values()], "k:", label="Johnson-Lindenstrauss bound")
    axes[0].set(xscale="log", yscale="log", xlabel="d", ylabel="error of the cosine")
    for name, style in (("exact", "o-"), ("wrapped", "s--")):
        cells = [table["stays"][f"{name} {keep}"] for keep in KEEP]
        errors = [cell.half_width for cell in cells]
        axes[1].errorbar(
            KEEP, [cell.mean for cell in cells], errors, fmt=style, capsize=3, label=name
        )
    axes[1].plot([*PAPER], [*PAPER.values()], "kx:", label="CROPI, figure 6")
    axes[1].set(xlabel="keep ratio", ylabel="share of the best tenth that stays", ylim=(0, 1))
    for number, ratio in enumerate(get_args(InfluenceRatio)):
        rows = [row for row in table["policy"] if row["ratio"] == ratio]
        steps = [row["step"] for row in rows]
        for key, style in (("agreement", "-"), ("top_overlap", "--")):
            values = [row[key].mean for row in rows]
            axes[2].plot(steps, values, style, color=f"C{number}", label=f"{ratio}: {key}")
    halves = [row["split_half_overlap"].mean for row in rows]
    axes[2].plot(steps, halves, "k:", label="two halves of new rollouts")
    axes[2].set(
        xlabel="steps since the rollouts", ylabel="agreement with new rollouts", ylim=(0, 1)
    )
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of policies")
    parser.add_argument("--jobs", type=int, default=2, help="seeds to run at the same time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = common.run_seeds(partial(run, folder=folder), args.seeds, args.jobs)
    table = summarize(runs)
    for key, cells in table["error"].items():
        print("error of the cosine", key, *(f"{cell:.4f}" for cell in cells))
    for key, cell in table["stays"].items():
        print("share of the best tenth", key, f"{cell:.3f}")
    for row in table["policy"]:
        print(
            *(
                f"{k} {v:.3f}" if isinstance(v, common.Interval) else f"{k} {v}"
                for k, v in row.items()
            )
        )
    results = {**common.versions(), "seeds": args.seeds, "table": table, "runs": runs}
    common.write_results(args.out, "influence_error.json", results)
    draw(table, args.out / "influence_error.png")


if __name__ == "__main__":
    main()
