"""Write the tables of README.md and docs/results.md from the files in benchmarks/results.

    python benchmarks/tables.py

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; its entry in ``TABLES``
returns its rows.
"""

import json
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

Rows = list[list[str]]


def load(name: str) -> Any:
    """The results in a file of benchmarks/results."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def interval(pair: tuple[float, float], form: str = "+.3f", scale: float = 1) -> str:
    """A mean with the half width of its interval."""
    mean, half = pair
    return f"{scale * mean:{form}} ± {scale * half:{form.lstrip('+')}}"


def difference(row: Mapping[str, Any], prefix: str = "", form: str = "+.3f") -> str:
    """A difference from the baseline, of which two keys hold mean and half width."""
    return interval((row[f"{prefix}difference"], row[f"{prefix}half_width"]), form)


def markdown(rows: Rows) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [re.sub(r"(?<=\|)  (?=\|)", " ", f"| {' | '.join(row)} |") for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


# Tables of docs/results.md ------------------------------------------------------------------------


def sum_tree() -> Rows:
    batches = load("sum_tree")["batch"]
    parts = ("cpprb.sample", "cpprb.sample_gather", "cpprb.update")
    head = ["sample with weights", "sample and gather one column, as cpprb does", "update"]
    return [
        ["batch", *head],
        *(
            [size, *(f"{row['peer_over_ours'][part]:.2f}x" for part in parts)]
            for size, row in batches.items()
        ),
    ]


def dqn_throughput() -> Rows:
    speed = load("dqn_throughput")["median"]
    ours = speed["lit-adaptive dqn_per"]
    peers = {
        "stable-baselines3, 1 environment": "stable-baselines3, one environment (its default)",
        "stable-baselines3, 8 environments": "stable-baselines3, eight environments (as ours)",
        "the same calls, bare loop": "the same calls of ours in a bare loop",
    }
    return [
        ["compared with", "ours is"],
        *([label, f"{ours / speed[peer]:.2f}x"] for peer, label in peers.items()),
    ]


def cliffwalk() -> Rows:
    median = load("cliffwalk")["median"]
    rules = {
        "uniform": "uniform",
        "greedy": "greedy TD",
        "rank": "rank-based",
        "proportional": "proportional",
        "oracle": "oracle",
    }
    return [
        ["n", "transitions", *rules.values()],
        *(
            [f"{n}, {kind}", f"{2 ** (n + 1) - 2:,}"]
            + [f"{median[kind][rule][str(n)]:,.0f}" for rule in rules]
            for kind in ("tabular", "linear")
            for n in (8, max(map(int, median[kind]["uniform"])))
        ),
    ]


def adaptive_sampler() -> Rows:
    results = load("adaptive_sampler")
    torch, huge, digits = results["torch_samplers"], results["huge"], results["digits"]
    return [
        ["quantity", "measured", "goal"],
        [
            (
                "time per sample at N = 1e6, relative to `WeightedRandomSampler` drawing in bulk from "
                "fixed weights"
            ),
            f"{torch['times_weighted_random_sampler']:.2f}x",
            "5x",
        ],
        [
            "speed relative to `torch.multinomial` over N for each batch (which learns nothing)",
            f"{torch['faster_than_multinomial_per_batch']:.1f}x",
            "20x",
        ],
        ["time at N = 1e8 relative to N = 1e6", f"{huge['times']:.2f}x", "4x"],
        ["peak memory of the process at N = 1e8", f"{huge['large']['peak_gb']:.2f} GB", "3.5 GB"],
        [
            (
                "extra time of an epoch of `digits_adaptive` over `digits_uniform` "
                f"({digits['epochs_each']} epochs of each in alternation)"
            ),
            f"{100 * digits['overhead']:.1f} %",
            "5 %",
        ],
    ]


def imbalanced() -> Rows:
    tables = load("imbalanced")["tables"]

    def row(name: str) -> list[str]:
        cells = [name]
        for table in (tables["long_tail"], tables["noisy"]):
            if name in table:
                gap = "" if name == "uniform" else difference(table[name])
                cells += [f"{statistics.fmean(table[name]['macro_f1']):.3f}", gap]
            else:
                cells += ["", ""]
        return [*cells, f"{tables['noisy'][name]['time_ratio']:.2f}x"]

    return [["", "long tail", "", "wrong labels", "", "time"], *map(row, tables["noisy"])]


def iw_sft_control() -> Rows:
    methods = load("iw_sft_control")["cartpole"]["methods"]
    labels = {
        "reference": "the behaviour-cloned reference",
        "SFT(Q), proportional": "SFT(Q), in proportion to the return",
        "SFT(Q), nested": "SFT(Q), nested (the authors' code)",
        "RWR, tau 50": "reward-weighted, temperature 50",
        "iw paper, sequence": "iw-SFT, the paper's ratio, per sequence, T = 1",
        "iw paper, control code": "the same with the control code's settings",
        "iw paper, token": "the same, per token",
        "iw specification, token": "iw-SFT, the specification's ratio, per token",
        "DFT": "DFT",
    }
    return [
        ["", "sampled", "greedy"],
        *(
            [
                label,
                *(difference(methods[name], f"{kind}_", "+.1f") for kind in ("sampled", "greedy")),
            ]
            for name, label in labels.items()
        ),
    ]


def graded() -> Rows:
    table = load("graded")["table"]
    labels = {
        "all": "SFT on all",
        "filtered": "SFT on the right ones",
        "rwr": "reward-weighted, temperature 0.25",
        "sft(q)": "SFT(Q), in proportion to the reward",
        "all, iw paper": "all, iw-SFT, the paper's ratio",
        "all, dft": "all, DFT",
        "loose": "SFT on reward >= 0.5",
        "loose, iw paper": "the same, iw-SFT, the paper's ratio",
        "loose, iw paper, token": "the same, per token",
        "loose, iw specification": "the same, the specification's ratio",
        "loose, dft": "the same, DFT",
    }

    def cells(name: str, kind: str) -> list[str]:
        gap = "" if name == table[name]["against"] else interval(table[name][f"{kind}_difference"])
        return [f"{table[name][kind][0]:.3f}", gap]

    return [
        ["", "greedy", "", "sampled", ""],
        *(
            [label, *cells(name, "greedy"), *cells(name, "sampled")]
            for name, label in labels.items()
        ),
    ]


def rollout_replay() -> Rows:
    table, runs = load("rollout_replay")["table"], load("rollout_replay")["runs"]
    labels = {
        "GRPO": "all fresh (GRPO)",
        "uniform": "replayed uniformly",
        "uniform, clip around old": "the same, clip around old",
        "prioritized": "by \\|A\\| (prioritized)",
        "fresh": "by \\|A\\|, fresh (tau 8)",
    }
    rows = [
        [
            "half of the groups",
            "after 200 steps (generated tokens)",
            "after 127,000 tokens",
            "after equal seconds",
        ]
    ]
    for name, label in labels.items():
        row = table[name]
        tokens = statistics.fmean(
            next(point["tokens"] for point in run[name]["curve"] if point["step"] == 200)
            for run in runs
        )
        at = {axis: f"{row[f'pass@1 at {axis}'][0]:.3f}" for axis in ("step", "tokens")}
        gap = {
            axis: interval(row[f"difference of pass@1 at {axis}"])
            for axis in ("step", "tokens", "seconds")
        }
        if name == "GRPO":
            steps, same, seconds = at["step"], at["tokens"], f"{row['pass@1 at seconds'][0]:.3f}"
        else:
            steps, same = f"{at['step']}, {gap['step']}", f"{at['tokens']}, {gap['tokens']}"
            seconds = gap["seconds"]
        rows.append([label, f"{steps} ({tokens / 1000:.0f},000)", same, seconds])
    return rows


def rollout_signs() -> Rows:
    table = load("rollout_signs")["table"]
    labels = {
        "GRPO": "GRPO",
        "PSR": "PSR: right answers only",
        "NSR": "NSR: wrong answers only",
        "W-REINFORCE": "W-REINFORCE (0.1, 1)",
    }

    def row(name: str, label: str) -> list[str]:
        cells = [label]
        for measure in ("pass@1 at step", "pass@64 at step"):
            gap = "" if name == "GRPO" else interval(table[name][f"difference of {measure}"])
            cells += [f"{table[name][measure][0]:.3f}", gap]
        return [*cells, f"{table[name]['entropy at step'][0]:.2f}"]

    gap = "difference from GRPO"
    head = ["", "pass@1", gap, "pass@64", gap, "entropy of an answer"]
    return [head, *(row(name, label) for name, label in labels.items())]


DOTS = {
    "GRPO": "GRPO",
    "static curriculum": "static curriculum",
    "dynamic sampling": "dynamic sampling (DAPO)",
    "replaced groups": "replaced groups (POPO)",
    "prompt statistics": "prompt statistics",
    "Thompson": "Thompson (MoPPS)",
    "Kalman": "Kalman, Thompson draws",
    "DPS": "DPS",
    "DOTS online": "DOTS online",
    "DOTS offline": "DOTS offline (the paper's; see below)",
    "DOTS, signal": "DOTS by expected p (1 - p)",
    "DOTS+RR": "DOTS+RR",
    "DOTS+fresh RR": "DOTS+fresh RR",
    "DOTS, signal+RR": "DOTS by expected p (1 - p), +RR",
    "oracle": "oracle (its rollouts not counted)",
}


def dots(*files: str) -> Rows:
    """Table of benchmarks/dots.py; of a method in several files, the first file's row."""
    rows: dict[str, list[str]] = {}
    for results in map(load, files):
        for name, row in results["table"].items():
            last = [run[name]["curve"][-1] for run in results["runs"]]
            tokens, seconds = (
                statistics.fmean(p[key] for p in last) for key in ("tokens", "seconds")
            )
            costs = [
                interval(row[f"{axis} to GRPO's accuracy"], "+.0f", 100) + " %"
                for axis in ("step", "tokens", "seconds")
            ]
            gap = interval(row["final - GRPO's"])
            equal = interval(row["accuracy at equal time"])
            against = [gap, *(costs if row["reached"] else ["never"] * 3), equal]
            rows.setdefault(
                name,
                [
                    DOTS[name],
                    f"{row['final'][0]:.3f}",
                    *([""] * 5 if name == "GRPO" else against),
                    f"{100 * row['informative'][0]:.0f} %",
                    f"{tokens / 1000:.0f} k, {seconds:.0f} s",
                ],
            )
    head = ["method", "pass rate", "difference", "steps to GRPO's", "tokens to GRPO's"]
    head += ["time to GRPO's", "pass rate at equal time", "informative of the drawn groups"]
    return [[*head, "tokens, time"], *(rows[name] for name in DOTS if name in rows)]


def cropi(file: str) -> Rows:
    table, seeds = load(file)["table"], load(file)["seeds"]
    labels = {
        "GRPO": "GRPO",
        "random tenth": "a fixed random tenth",
        "p(1-p)": "p(1-p)",
        "CROPI, first rollouts": "CROPI, rollouts of the initial policy (the paper's)",
        "CROPI": "CROPI, the newest rollouts (default)",
        "CROPI, cosine 4p(1-p)": "the same, `metric: learnable_cosine` (LearnAlign's score)",
        "influence function": "the same, `metric: influence_function` (`grpo_influence`)",
        "one-shot influence": "the same, one selection at the start",
        "influence+DOTS+RR": "influence function with DOTS and Rollout Replay",
        "oracle": "oracle: the six commands only",
    }

    def row(name: str, label: str) -> list[str]:
        cells = table[name]
        times = [
            interval(cells[f"times fewer {axis}"], ".2f") for axis in ("step", "tokens", "seconds")
        ]
        if name == "GRPO":
            times = ["1"] * 3
        elif not cells["reached"]:
            times = ["never"] * 3
        reached = f"{cells['reached']} of {seeds}"
        accuracy = interval(cells["accuracy at a quarter"], ".2f")
        return [label, *times, reached, accuracy, f"{100 * cells['targeted'][0]:.0f} %"]

    head = ["method", *(f"times fewer {axis}" for axis in ("steps", "tokens", "seconds"))]
    head += ["reached by", "accuracy after 150 steps", "validated prompts among the drawn"]
    return [head, *(row(name, label) for name, label in labels.items() if name in table)]


def difficulty() -> Rows:
    table = load("difficulty")["quality"]["table"]
    labels = {
        "untrained": "untrained embeddings",
        "offline": "predictor trained before, on a mostly weaker policy (one example, a quarter of "
        "the questions)",
        "online": "predictor of `DifficultyRefresh` after ten refreshes",
        "ridge": "ridge regression on the same observations",
    }
    return [
        ["references K", *table],
        *(
            [label, *(interval(column[name]["pearson"], ".2f") for column in table.values())]
            for name, label in labels.items()
        ),
    ]


def difficulty_hidden() -> Rows:
    results = load("difficulty")
    table = {"": results["quality"]["table"]["128"], **results["hidden"]["table"]}
    labels = {
        "": "sentence encoder (above)",
        "mean, last layer": "mean over the prompt's tokens, last layer",
        "last token, last layer": "last token, last layer",
        "last token, 2/3 of the depth": "last token, two thirds of the depth",
        "last token, 2/3 of the depth, standardized": "the same, each coordinate standardized over "
        "the questions",
        "mean and last token, 2/3 of the depth, standardized": "mean over the tokens and last token, "
        "two thirds of the depth, standardized (`DifficultyRefresh` without an encoder)",
    }
    cells = (("online", "pearson"), ("ridge", "pearson"), ("online", "within"))
    head = ["predictor of `DifficultyRefresh`", "ridge regression", "predictor, within tasks"]
    return [
        ["embedding", *head],
        *(
            [label, *(interval(table[name][method][kind], ".2f") for method, kind in cells)]
            for name, label in labels.items()
        ),
    ]


# The table of README.md ---------------------------------------------------------------------------


def summary() -> Rows:
    tree, speed = load("sum_tree")["batch"], load("dqn_throughput")["median"]
    tail, noisy = (load("imbalanced")["tables"][name] for name in ("long_tail", "noisy"))
    rho, cross = "RHO, 150 more images", "RHO, cross-fitted"
    grade, replay = load("graded")["table"], load("rollout_replay")["table"]
    signs, influence = (load(name)["table"] for name in ("rollout_signs", "cropi"))
    small, large = (load(name)["table"] for name in ("dots", "dots_large"))
    step, sft = load("grpo_step"), load("sft_step")["models"]

    def per_second(environments: str) -> str:
        return f"{speed['lit-adaptive dqn_per'] / speed[f'stable-baselines3, {environments}']:.2f}x"

    def percent(method: str, axis: str, table: Any = large) -> str:
        return interval(table[method][f"{axis} to GRPO's accuracy"], "+.0f", 100) + " %"

    def fewer(method: str, axis: str) -> str:
        return interval(influence[method][f"times fewer {axis}"], ".2f")

    return [
        ["area", "best", "worst", "command"],
        [
            "sum tree, against cpprb",
            f"{tree['4096']['peer_over_ours']['cpprb.sample']:.2f}x faster draws (B = 4096)",
            f"{tree['32']['peer_over_ours']['cpprb.update']:.2f}x: slower updates (B = 32)",
            "`python benchmarks/sum_tree.py`",
        ],
        [
            "DQN steps per second, against stable-baselines3",
            f"{per_second('1 environment')} (its one environment)",
            f"{per_second('8 environments')}: slower (eight environments)",
            "`python benchmarks/dqn_throughput.py`",
        ],
        [
            "long-tailed digits, macro-F1 against uniform",
            f"{difference(tail[rho])} (RHO-LOSS, holdout set)",
            f"{difference(tail[cross])} (RHO-LOSS, cross-fitted)",
            "`python benchmarks/imbalanced.py`",
        ],
        [
            "wrong labels, macro-F1 against uniform",
            f"{difference(noisy[rho])} (RHO-LOSS, holdout set)",
            f"{difference(noisy[cross])} (RHO-LOSS, cross-fitted)",
            "same",
        ],
        [
            "graded demonstrations, greedy against SFT",
            f"{interval(grade['filtered']['greedy_difference'])} (correct answers only)",
            f"{interval(grade['loose, iw paper, token']['greedy_difference'])} (iw-SFT per token)",
            "`python benchmarks/graded.py`",
        ],
        [
            "rollout replay, pass@1 for equal tokens",
            f"{interval(replay['uniform']['difference of pass@1 at tokens'])} (uniform)",
            interval(replay["uniform, clip around old"]["difference of pass@1 at seconds"])
            + " for equal seconds",
            "`python benchmarks/rollout_replay.py`",
        ],
        [
            "PSR and NSR, pass@1 against GRPO",
            f"{interval(signs['PSR']['difference of pass@1 at step'])} (PSR)",
            f"{interval(signs['NSR']['difference of pass@1 at step'])} (NSR)",
            "`python benchmarks/rollout_replay.py --part signs`",
        ],
        [
            "prompts by influence, times fewer than GRPO",
            (
                f"{fewer('influence function', 'step')} steps, "
                f"{fewer('influence function', 'seconds')} seconds (influence function)"
            ),
            f"{fewer('influence+DOTS+RR', 'seconds')} seconds (with DOTS and replay)",
            "`python benchmarks/cropi.py`",
        ],
        [
            "prompts by difficulty, time to GRPO's pass rate",
            (
                f"{percent('replaced groups', 'seconds')} (replaced groups), "
                f"{percent('DOTS+RR', 'seconds')} (DOTS+RR), both with 4.2 M parameters"
            ),
            f"{percent('DOTS online', 'seconds', small)} (DOTS online); never (static curriculum)",
            "`python benchmarks/dots.py`",
        ],
        [
            "GRPO step, against TRL",
            f"{step['smollm2']['ratios']['time: ours / trl']:.2f}x the time (SmolLM2-135M)",
            f"{step['tiny']['ratios']['time: ours / trl']:.2f}x the time (tiny Llama)",
            "`python benchmarks/grpo_step.py`",
        ],
        [
            "SFT step, against TRL",
            f"{sft['small (V 49,152)']['sft / trl']:.2f}x the time (V = 49,152)",
            f"{sft['tiny (V 100)']['sft / trl']:.2f}x the time (tiny model)",
            "`python benchmarks/sft_step.py`",
        ],
    ]


TABLES: dict[str, Callable[[], Rows]] = {
    "summary": summary,
    "sum_tree": sum_tree,
    "dqn_throughput": dqn_throughput,
    "cliffwalk": cliffwalk,
    "adaptive_sampler": adaptive_sampler,
    "imbalanced": imbalanced,
    "iw_sft_control": iw_sft_control,
    "graded": graded,
    "rollout_replay": rollout_replay,
    "rollout_signs": rollout_signs,
    "dots": lambda: dots("dots", "dots_offline"),
    "dots_large": lambda: dots("dots_large"),
    "cropi": lambda: cropi("cropi"),
    "cropi_no_distractors": lambda: cropi("cropi_no_distractors"),
    "difficulty": difficulty,
    "difficulty_hidden": difficulty_hidden,
}


def rewritten(text: str) -> str:
    """``text`` with its tables written anew."""
    return _TABLE.sub(lambda match: match[1] + markdown(TABLES[match[2]]()) + match[3], text)


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        new = rewritten(text)
        page.write_text(new)
        print(f"{page.name}: {'changed' if new != text else 'as it was'}")


if __name__ == "__main__":
    main()
