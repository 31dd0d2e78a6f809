"""The Blind Cliffwalk of Schaul et al. (2016), section 3.1 and appendix B.1.

    python benchmarks/cliffwalk.py

n states in a row; in each, one of two actions is right and the other ends the episode with nothing;
only n right actions in a row earn a reward of 1. The memory holds the transitions of all 2^n action
sequences, 2^(n+1) - 2 of them, one rewarding. Q-learning with step 1/4 and gamma = 1 - 1/n, from
values of N(0, 0.1), until the mean squared error to the true values is below 1e-3; medians of 10
runs. ``linear``: each action's values are linear in a one-hot state and a constant, and which action
is right alternates.

Where the paper leaves it open: ``N(0, 0.1)`` is read as a standard deviation of 0.1; every transition
starts at the priority of its TD error under the first values (``--initial max``: at 1, so that each
is replayed once first) and is shuffled in the memory; the oracle replays anything where no update
lowers the error; alpha is 0.7 (rank) and 0.6
(proportional) as in table 3, without importance weights; the error is over all 2n state-action pairs.

The loops are compiled. For memories of up to 510 transitions the same runs are made once more through
the public ``PrioritizedSampler`` and ``RankPrioritizedSampler``; both medians are printed.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from matplotlib.figure import Figure

from lit_adaptive.core.kernels.heap import put
from lit_adaptive.samplers import PrioritizedSampler, RankPrioritizedSampler

KINDS = ("uniform", "greedy", "rank", "proportional", "oracle")
UNIFORM, GREEDY, RANK, PROPORTIONAL, ORACLE = range(5)
ALPHA = {RANK: 0.7, PROPORTIONAL: 0.6}
STEP, TOLERANCE, EPSILON = 0.25, 1e-3, 1e-6


def memory(states: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """State and whether the action was right, of every transition of all 2^n sequences."""
    # 2^(n - i) sequences reach state i, and half of them go on.
    where = np.repeat(np.arange(states), [2 ** (states - i) for i in range(states)])
    right = np.concatenate([np.arange(2 ** (states - i)) % 2 == 0 for i in range(states)])
    return where, right


@numba.njit(cache=True)
def td_error(weight, states, gamma, linear, state, action, right):
    """The TD error of one transition."""
    value = weight[state, action] + (weight[states, action] if linear else 0.0)
    if not right:
        return -value
    if state == states - 1:
        return 1.0 - value
    best = -np.inf
    for other in range(2):
        rated = weight[state + 1, other] + (weight[states, other] if linear else 0.0)
        best = max(best, rated)
    return gamma * best - value


@numba.njit(cache=True)
def learn(weight, states, linear, state, action, error):
    """One step of Q-learning."""
    weight[state, action] += STEP * error
    if linear:
        weight[states, action] += STEP * error


@numba.njit(cache=True)
def squared_error(weight, states, gamma, linear):
    """Mean squared error to the true values, over all state-action pairs."""
    total = 0.0
    for state in range(states):
        good = state % 2 if linear else 0
        for action in range(2):
            true = gamma ** (states - 1 - state) if action == good else 0.0
            value = weight[state, action] + (weight[states, action] if linear else 0.0)
            total += (value - true) ** 2
    return total / (2 * states)


@numba.njit(cache=True)
def best_in_hindsight(weight, states, gamma, linear):
    """The (state, right) whose update leaves the smallest error; any, if none lowers it."""
    best = squared_error(weight, states, gamma, linear)
    chosen = (np.random.randint(states), np.random.random() < 0.5)
    for state in range(states):
        for right in (False, True):
            good = state % 2 if linear else 0
            action = good if right else 1 - good
            tried = weight.copy()
            error = td_error(weight, states, gamma, linear, state, action, right)
            learn(tried, states, linear, state, action, error)
            left = squared_error(tried, states, gamma, linear)
            if left < best:
                best, chosen = left, (state, right)
    return chosen


@numba.njit(cache=True)
def walk(kind, states, linear, where, right, weight, first_seen, alpha, limit, seed):
    """Updates until the values are right, or ``limit``."""
    np.random.seed(seed)
    gamma, size = 1.0 - 1.0 / states, len(where)
    leaves = 1
    while leaves < size:
        leaves *= 2
    tree = np.zeros(2 * leaves)
    tree[leaves : leaves + size] = first_seen**alpha
    for node in range(leaves - 1, 0, -1):
        tree[node] = tree[2 * node] + tree[2 * node + 1]
    heap, item, place = np.zeros(size), np.arange(size), np.full(size, -1)
    put(heap, item, place, 0, np.arange(size), first_seen)
    law = np.cumsum((1.0 + np.arange(size)) ** -alpha)
    one, value = np.zeros(1, np.int64), np.zeros(1)
    for update in range(1, limit + 1):
        if kind == ORACLE:
            state, good = best_in_hindsight(weight, states, gamma, linear)
        else:
            if kind == UNIFORM:
                chosen = np.random.randint(size)
            elif kind == GREEDY:
                chosen = item[0]
            elif kind == RANK:
                chosen = item[np.searchsorted(law, np.random.random() * law[-1], side="right")]
            else:
                target, node = np.random.random() * tree[1], 1
                while node < leaves:
                    node *= 2
                    if target >= tree[node] and tree[node + 1] > 0.0:
                        target -= tree[node]
                        node += 1
                chosen = node - leaves
            state, good = where[chosen], right[chosen]
        first = state % 2 if linear else 0
        action = first if good else 1 - first
        error = td_error(weight, states, gamma, linear, state, action, good)
        learn(weight, states, linear, state, action, error)
        if kind in (GREEDY, RANK):
            one[0], value[0] = chosen, abs(error) + EPSILON
            put(heap, item, place, size, one, value)
        elif kind == PROPORTIONAL:
            node = leaves + chosen
            tree[node] = (abs(error) + EPSILON) ** alpha
            while node > 1:
                node //= 2
                tree[node] = tree[2 * node] + tree[2 * node + 1]
        if squared_error(weight, states, gamma, linear) < TOLERANCE:
            return update
    return limit


def walk_with_product(
    kind: int, states: int, linear: bool, where, right, weight, first_seen, limit, seed
):
    """The same through the public samplers."""
    make = {PROPORTIONAL: PrioritizedSampler, RANK: RankPrioritizedSampler}[kind]
    sampler = make(len(where), alpha=ALPHA[kind], seed=seed)
    sampler.update(torch.arange(len(where)), torch.from_numpy(first_seen))
    gamma = 1.0 - 1.0 / states
    for update in range(1, limit + 1):
        index = sampler.draw(1).index
        state, good = int(where[index]), bool(right[index])
        first = state % 2 if linear else 0
        action = first if good else 1 - first
        error = td_error(weight, states, gamma, linear, state, action, good)
        learn(weight, states, linear, state, action, error)
        sampler.update(index, torch.tensor([abs(error) + EPSILON], dtype=torch.float64))
        if squared_error(weight, states, gamma, linear) < TOLERANCE:
            return update
    return limit


@numba.njit(cache=True)
def first_priorities(states, linear, where, right, weight):
    """|TD error| + epsilon of every transition under the first values."""
    found = np.empty(len(where))
    for k in range(len(where)):
        first = where[k] % 2 if linear else 0
        action = first if right[k] else 1 - first
        gamma = 1.0 - 1.0 / states
        error = td_error(weight, states, gamma, linear, where[k], action, right[k])
        found[k] = abs(error) + EPSILON
    return found


def median_updates(
    kind: int,
    states: int,
    linear: bool,
    runs: int,
    limit: int,
    *,
    initial: str,
    product: bool = False,
) -> float:
    """Median over seeded runs; ``limit`` stands for "not reached"."""
    found = []
    for seed in range(runs):
        dice = np.random.default_rng(seed)
        where, right = memory(states)
        order = dice.permutation(len(where))
        weight = dice.normal(0, 0.1, (states + 1, 2))
        given = (where[order], right[order], weight)
        seen = first_priorities(states, linear, *given) if initial == "td" else None
        given = (*given, np.ones(len(where)) if seen is None else seen)
        if product:
            found.append(walk_with_product(kind, states, linear, *given, limit, seed))
        else:
            alpha = ALPHA.get(kind, 1.0)
            found.append(walk(kind, states, linear, *given, alpha, limit, seed))
    return float(np.median(found))


def draw(table: dict[str, dict[str, dict[int, float]]], out: Path) -> None:
    """Updates against memory size, both axes logarithmic, a panel for each representation."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (form, rows) in zip(figure.subplots(1, 2, sharey=True), table.items(), strict=True):
        for kind in KINDS:
            sizes = [2 ** (int(n) + 1) - 2 for n in rows[kind]]
            axes.loglog(sizes, list(rows[kind].values()), marker="o", ms=3, label=kind)
        axes.set_title(form)
        axes.set_xlabel("transitions in memory")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes = figure.axes[0]
    axes.set_ylabel("median updates until solved")
    axes.legend(frameon=False)
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-n", type=int, default=16)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=20_000_000)
    parser.add_argument("--initial", choices=["td", "max"], default="td")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    start = time.perf_counter()
    table: dict[str, dict[str, dict[int, float]]] = {}
    checked: dict[str, float] = {}
    for form in ("tabular", "linear"):
        table[form] = {kind: {} for kind in KINDS}
        print(f"\n{form}\n{'n':>3} {'memory':>7}" + "".join(f"{kind:>13}" for kind in KINDS))
        for states in range(2, arguments.max_n + 1):
            for kind, name in enumerate(KINDS):
                table[form][name][states] = median_updates(
                    kind,
                    states,
                    form == "linear",
                    arguments.runs,
                    arguments.limit,
                    initial=arguments.initial,
                )
            row = "".join(f"{table[form][kind][states]:13.0f}" for kind in KINDS)
            print(f"{states:>3} {2 ** (states + 1) - 2:>7}{row}", flush=True)
        for kind in (RANK, PROPORTIONAL):
            states = min(8, arguments.max_n)
            ours = median_updates(
                kind,
                states,
                form == "linear",
                arguments.runs,
                10**6,
                initial=arguments.initial,
                product=True,
            )
            checked[f"{form} {KINDS[kind]} n={states}"] = ours
            loop = table[form][KINDS[kind]][states]
            print(
                f"    through the public sampler, n = {states}, {KINDS[kind]}: {ours:.0f} (loop {loop:.0f})"
            )
    arguments.out.mkdir(exist_ok=True)
    result = {"runs": arguments.runs, "limit": arguments.limit, "median": table, "public": checked}
    (arguments.out / "cliffwalk.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(table, arguments.out / "cliffwalk.png")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
