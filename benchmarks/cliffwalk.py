"""The Blind Cliffwalk of Schaul et al. (2016), section 3.1 and appendix B.1.

    python benchmarks/cliffwalk.py

n states in a row. In each, one of two actions is right and the other ends the episode with reward 0;
only n right actions in a row earn a reward of 1. The memory holds the transitions of all 2^n action
sequences, 2^(n+1) - 2 of them, of which one has a reward. Q-learning with step size 1/4 and
gamma = 1 - 1/n starts from values of N(0, 0.1) and ends when the mean squared error to the true
values is below 1e-3. Compared are uniform, greedy, rank-based and proportional replay and an oracle,
by the median number of updates over 10 seeded runs (no interval, no wall-clock). ``linear``: the
values of each action are linear in a one-hot state and a constant, and the right action alternates.

Choices that the paper leaves open: ``N(0, 0.1)`` has standard deviation 0.1. Every transition starts
with the priority of its TD error under the initial values (``--initial max``: with priority 1, so
that each is replayed once first), and the memory is shuffled. The oracle replays a random transition
where no update lowers the error. alpha is 0.7 (rank-based) and 0.6 (proportional) as in table 3,
without importance-sampling weights. The error is over all 2n state-action pairs.

The loops are compiled. For n of up to 8 the same runs are repeated through the public
``PrioritizedSampler`` and ``RankPrioritizedSampler``, and both medians are printed.
"""

import time
from pathlib import Path
from typing import Any

import common
import numba
import numpy as np
import torch
from matplotlib.figure import Figure

from lit_adaptive.core.kernels.heap import put
from lit_adaptive.samplers import PrioritizedSampler, RankPrioritizedSampler

STRATEGIES = ("uniform", "greedy", "rank", "proportional", "oracle")
UNIFORM, GREEDY, RANK, PROPORTIONAL, ORACLE = range(5)
ALPHA = {RANK: 0.7, PROPORTIONAL: 0.6}
STEP_SIZE, TOLERANCE, EPSILON = 0.25, 1e-3, 1e-6


def memory(states: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """State, and whether the action was right, of every transition of all 2^n action sequences."""
    # 2^(n - i) sequences reach state i, and half of them go on.
    state = np.repeat(np.arange(states), [2 ** (states - i) for i in range(states)])
    right = np.concatenate([np.arange(2 ** (states - i)) % 2 == 0 for i in range(states)])
    return state, right


@numba.njit(cache=True)
def right_action(state, linear):
    return state % 2 if linear else 0


@numba.njit(cache=True)
def action_of(state, right, linear):
    """The action that was taken in ``state``, which was the right one or not."""
    return right_action(state, linear) if right else 1 - right_action(state, linear)


@numba.njit(cache=True)
def td_error(weight, states, gamma, linear, state, action, right):
    """The TD error of one transition."""
    value = weight[state, action] + (weight[states, action] if linear else 0.0)
    if not right:
        return -value
    if state == states - 1:
        return 1.0 - value
    next_value = -np.inf
    for next_action in range(2):
        bias = weight[states, next_action] if linear else 0.0
        next_value = max(next_value, weight[state + 1, next_action] + bias)
    return gamma * next_value - value


@numba.njit(cache=True)
def learn(weight, states, linear, state, action, error):
    """One step of Q-learning."""
    weight[state, action] += STEP_SIZE * error
    if linear:
        weight[states, action] += STEP_SIZE * error


@numba.njit(cache=True)
def squared_error(weight, states, gamma, linear):
    """Mean squared error to the true values, over all state-action pairs."""
    total = 0.0
    for state in range(states):
        for action in range(2):
            right = action == right_action(state, linear)
            true = gamma ** (states - 1 - state) if right else 0.0
            value = weight[state, action] + (weight[states, action] if linear else 0.0)
            total += (value - true) ** 2
    return total / (2 * states)


@numba.njit(cache=True)
def oracle_choice(weight, states, gamma, linear):
    """The (state, right) whose update leaves the smallest error; a random one if none lowers it."""
    smallest = squared_error(weight, states, gamma, linear)
    choice = (np.random.randint(states), np.random.random() < 0.5)
    for state in range(states):
        for right in (False, True):
            action = action_of(state, right, linear)
            updated = weight.copy()
            error = td_error(weight, states, gamma, linear, state, action, right)
            learn(updated, states, linear, state, action, error)
            error_after = squared_error(updated, states, gamma, linear)
            if error_after < smallest:
                smallest, choice = error_after, (state, right)
    return choice


@numba.njit(cache=True)
def count_updates(
    strategy, states, linear, state_of, is_right, weight, initial_priority, alpha, limit, seed
):
    """Number of updates until the values are right, at most ``limit``."""
    np.random.seed(seed)
    gamma, size = 1.0 - 1.0 / states, len(state_of)
    leaves = 1
    while leaves < size:
        leaves *= 2
    tree = np.zeros(2 * leaves)
    tree[leaves : leaves + size] = initial_priority**alpha
    for node in range(leaves - 1, 0, -1):
        tree[node] = tree[2 * node] + tree[2 * node + 1]
    heap, item, place = np.zeros(size), np.arange(size), np.full(size, -1)
    put(heap, item, place, 0, np.arange(size), initial_priority)
    rank_mass = np.cumsum((1.0 + np.arange(size)) ** -alpha)
    changed_index, changed_priority = np.zeros(1, np.int64), np.zeros(1)
    for update in range(1, limit + 1):
        if strategy == ORACLE:
            state, right = oracle_choice(weight, states, gamma, linear)
        else:
            if strategy == UNIFORM:
                index = np.random.randint(size)
            elif strategy == GREEDY:
                index = item[0]
            elif strategy == RANK:
                target = np.random.random() * rank_mass[-1]
                index = item[np.searchsorted(rank_mass, target, side="right")]
            else:
                target, node = np.random.random() * tree[1], 1
                while node < leaves:
                    node *= 2
                    if target >= tree[node] and tree[node + 1] > 0.0:
                        target -= tree[node]
                        node += 1
                index = node - leaves
            state, right = state_of[index], is_right[index]
        action = action_of(state, right, linear)
        error = td_error(weight, states, gamma, linear, state, action, right)
        learn(weight, states, linear, state, action, error)
        if strategy in (GREEDY, RANK):
            changed_index[0], changed_priority[0] = index, abs(error) + EPSILON
            put(heap, item, place, size, changed_index, changed_priority)
        elif strategy == PROPORTIONAL:
            node = leaves + index
            tree[node] = (abs(error) + EPSILON) ** alpha
            while node > 1:
                node //= 2
                tree[node] = tree[2 * node] + tree[2 * node + 1]
        if squared_error(weight, states, gamma, linear) < TOLERANCE:
            return update
    return limit


def count_updates_of_sampler(
    strategy: int,
    states: int,
    linear: bool,
    state_of,
    is_right,
    weight,
    initial_priority,
    limit,
    seed,
):
    """``count_updates`` through the public samplers."""
    sampler_class = {PROPORTIONAL: PrioritizedSampler, RANK: RankPrioritizedSampler}[strategy]
    sampler = sampler_class(len(state_of), alpha=ALPHA[strategy], seed=seed)
    sampler.update(torch.arange(len(state_of)), torch.from_numpy(initial_priority))
    gamma = 1.0 - 1.0 / states
    for update in range(1, limit + 1):
        index = sampler.draw(1).index
        state, right = int(state_of[index]), bool(is_right[index])
        action = action_of(state, right, linear)
        error = td_error(weight, states, gamma, linear, state, action, right)
        learn(weight, states, linear, state, action, error)
        sampler.update(index, torch.tensor([abs(error) + EPSILON], dtype=torch.float64))
        if squared_error(weight, states, gamma, linear) < TOLERANCE:
            return update
    return limit


@numba.njit(cache=True)
def td_error_priorities(states, linear, state_of, is_right, weight):
    """|TD error| + epsilon of every transition."""
    priority = np.empty(len(state_of))
    gamma = 1.0 - 1.0 / states
    for k in range(len(state_of)):
        action = action_of(state_of[k], is_right[k], linear)
        error = td_error(weight, states, gamma, linear, state_of[k], action, is_right[k])
        priority[k] = abs(error) + EPSILON
    return priority


def median_updates(
    strategy: int,
    states: int,
    *,
    linear: bool,
    runs: int,
    limit: int,
    initial: str,
    public_sampler: bool = False,
) -> float:
    """Median over seeded runs; ``limit`` counts for a run that is not solved."""
    updates = []
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        state_of, is_right = memory(states)
        order = generator.permutation(len(state_of))
        weight = generator.normal(0, 0.1, (states + 1, 2))
        problem = (states, linear, state_of[order], is_right[order], weight)
        priority = td_error_priorities(*problem) if initial == "td" else np.ones(len(state_of))
        if public_sampler:
            updates.append(count_updates_of_sampler(strategy, *problem, priority, limit, seed))
        else:
            alpha = ALPHA.get(strategy, 1.0)
            updates.append(count_updates(strategy, *problem, priority, alpha, limit, seed))
    return float(np.median(updates))


def plot(table: dict[str, dict[str, dict[int, float]]], file: Path) -> None:
    """Updates against memory size, both axes logarithmic, one panel per representation."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = zip(figure.subplots(1, 2, sharey=True), table.items(), strict=True)
    for axes, (representation, rows) in panels:
        for strategy in STRATEGIES:
            sizes = [2 ** (int(n) + 1) - 2 for n in rows[strategy]]
            axes.loglog(sizes, list(rows[strategy].values()), marker="o", ms=3, label=strategy)
        axes.set_title(representation)
        axes.set_xlabel("transitions in memory")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes = figure.axes[0]
    axes.set_ylabel("median updates until solved")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--max-n", type=int, default=16, help="largest number of states")
    parser.add_argument("--runs", type=int, default=10, help="seeded runs per median")
    parser.add_argument("--limit", type=int, default=20_000_000, help="updates before giving up")
    parser.add_argument(
        "--initial", choices=["td", "max"], default="td", help="initial priorities: |TD error| or 1"
    )
    args = parser.parse_args()
    start = time.perf_counter()
    table: dict[str, dict[str, dict[int, float]]] = {}
    public: dict[str, float] = {}
    for representation in ("tabular", "linear"):
        settings: dict[str, Any] = {
            "linear": representation == "linear",
            "runs": args.runs,
            "initial": args.initial,
        }
        rows = table[representation] = {name: {} for name in STRATEGIES}
        heads = "".join(f"{name:>13}" for name in STRATEGIES)
        print(f"\n{representation}\n{'n':>3} {'memory':>7}{heads}")
        for states in range(2, args.max_n + 1):
            for strategy, name in enumerate(STRATEGIES):
                rows[name][states] = median_updates(strategy, states, limit=args.limit, **settings)
            row = "".join(f"{rows[name][states]:13.0f}" for name in STRATEGIES)
            print(f"{states:>3} {2 ** (states + 1) - 2:>7}{row}", flush=True)
        states = min(8, args.max_n)
        for strategy in (RANK, PROPORTIONAL):
            name = STRATEGIES[strategy]
            updates = median_updates(strategy, states, limit=10**6, public_sampler=True, **settings)
            public[f"{representation} {name} n={states}"] = updates
            print(
                f"    public sampler, n = {states}, {name}: {updates:.0f} "
                f"(compiled loop {rows[name][states]:.0f})"
            )
    results = {"runs": args.runs, "limit": args.limit, "median": table, "public": public}
    common.write_results(args.out, "cliffwalk.json", results)
    plot(table, args.out / "cliffwalk.png")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
