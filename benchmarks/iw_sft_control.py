"""iw-SFT on control: the paper's bandit with its exact fixed points, and offline CartPole.

    python benchmarks/iw_sft_control.py                # 10 seeds, about 3 minutes on one thread
    python benchmarks/iw_sft_control.py --seeds 2

Bandit (Qin & Springenberg, 2025, arXiv:2507.12856): two arms. The reference pulls each with
probability 1/2; left succeeds with probability 1/2 and right always, so that 1/3 of the successes are
left and 2/3 right. Each objective is trained on exactly these successes, and its end is compared with
the closed form: SFT (1/3, 2/3); the paper's ratio (0, 1), or (1/19, 18/19) under the authors' clamp
[0.2, 1.8] of token weights; the specification's ratio pi ~ (data * reference)^(1/2), which needs
smaller steps because its weights are unbounded. When the policy q of the weights is updated only once
per round, the paper's ratio must pass through 1 : 2^k.

Offline CartPole-v1: 400 trajectories of random linear controllers, each of which acts at random with
a probability of its own in [0.3, 1]; most are bad. A policy is first cloned from all of them (the
reference); each method continues from there for 200 steps of 8 trajectories. The peer of every method
is ``filtered``, SFT on the best tenth by return. Measured: return over 32 episodes of at most 500
steps, with sampled and with greedy actions, and seconds of the second stage with reference scores and
draws included and evaluation left out. ``±`` is the half width of the 95 % t-interval of the paired
difference from ``filtered`` over seeds, each of which has its own data, initial network, draws and
test episodes. ``effective`` is the effective number of trajectories, 1 / sum P(i)^2: a sharper
distribution is a stricter filter.
"""

import copy
import math
import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import common
import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from lit_adaptive.core.iw_sft import (
    ImportanceWeightedSFTLoss,
    dft_weights,
    iw_sft_weights,
    self_normalize,
)
from lit_adaptive.core.segments import reduce_segments, segment_mean
from lit_adaptive.samplers import RewardWeightedSampler, UniformSampler

TRAJECTORIES, EPISODES, HORIZON = 400, 32, 500
BATCH, CLONING, STEPS = 8, 400, 200
LEARNING_RATE, CLONING_RATE, EMA = 3e-4, 1e-3, 0.9

# Bandit ------------------------------------------------------------------------------------------


def bandit_run(loss: ImportanceWeightedSFTLoss, steps: int, rate: float) -> list[float]:
    """Action probabilities after gradient descent on the successes (left, right, right), from 1/2."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0], [1], [1]])
    reference = torch.full((3, 1), math.log(0.5))
    optimizer = torch.optim.SGD([logits], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(logits.expand(3, 1, 2), labels, reference).backward()
        optimizer.step()
    return logits.detach().softmax(0).tolist()


def bandit_rounds(rounds: int, steps: int = 200) -> list[float]:
    """Probability of left after each round of the paper's ratio; q is fixed within a round."""
    loss = ImportanceWeightedSFTLoss(ratio="policy_over_ref", level="sequence")
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0], [1], [1]])
    reference = torch.full((3, 1), math.log(0.5))
    optimizer = torch.optim.SGD([logits], lr=4.0)
    left = []
    for _ in range(rounds):
        q = logits.detach().log_softmax(0)[labels]
        for _ in range(steps):
            optimizer.zero_grad()
            loss(logits.expand(3, 1, 2), labels, reference, q).backward()
            optimizer.step()
        left.append(float(logits.detach().softmax(0)[0]))
    return left


def bandit() -> dict[str, Any]:
    """Train each objective on the bandit; the ends and their closed forms."""
    make_loss = ImportanceWeightedSFTLoss
    left, right = (1 / 3) ** 0.5, (2 / 3) ** 0.5
    settings: dict[str, tuple[ImportanceWeightedSFTLoss, int, float, list[float]]] = {
        "SFT": (make_loss(objective="nll"), 200, 4.0, [1 / 3, 2 / 3]),
        "iw-SFT, paper, sequence": (
            make_loss(ratio="policy_over_ref", level="sequence"), 3000, 4.0, [0.0, 1.0]),
        "iw-SFT, paper, token, clamp": (
            make_loss(ratio="policy_over_ref", level="token"), 400, 4.0, [1 / 19, 18 / 19]),
        "iw-SFT, specification": (
            make_loss(ratio="ref_over_policy"), 400, 0.5, [left / (left + right), right / (left + right)]),
        "DFT": (make_loss(objective="dft"), 3000, 4.0, [0.0, 1.0]),
    }  # fmt: skip
    results: dict[str, Any] = {}
    print(f"{'bandit':28}{'end':>18}{'closed form':>20}")
    for name, (loss, steps, rate, closed) in settings.items():
        end = bandit_run(loss, steps, rate)
        results[name] = {"end": end, "closed_form": closed, "steps": steps, "rate": rate}
        print(f"{name:28}  ({end[0]:.4f}, {end[1]:.4f})    ({closed[0]:.4f}, {closed[1]:.4f})")
    rounds = bandit_rounds(6)
    closed = [1 / (1 + 2**k) for k in range(1, 7)]
    results["paper, q held in rounds"] = {"left": rounds, "closed_form": closed}
    error = max(abs(a - b) for a, b in zip(rounds, closed, strict=True))
    print(
        f"paper, q fixed within rounds: left is 1 / (1 + 2^k) with an error of at most {error:.1e}"
    )
    return results


# CartPole ----------------------------------------------------------------------------------------


class Trajectories(NamedTuple):
    """The steps of N trajectories, concatenated.

    Attributes:
        observation: ``[K, 4]`` float32.
        action: ``[K]`` int64.
        start: ``[N + 1]`` int64, the first step of each trajectory, and the number of steps.
        returns: ``[N]`` float64, the return of each trajectory.
    """

    observation: Tensor
    action: Tensor
    start: Tensor
    returns: Tensor


def play(act: Any, number: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One episode of each of N environments: observations ``[S, N, 4]``, actions ``[S, N]``, lengths ``[N]``."""
    environments: Any = gymnasium.make_vec(
        "CartPole-v1", num_envs=number, vectorization_mode="vector_entry_point"
    )
    observation, _ = environments.reset(seed=seed)
    alive, length = np.ones(number, dtype=bool), np.zeros(number, dtype=np.int64)
    observations, actions = [], []
    for _ in range(HORIZON):
        action = act(observation)
        observations.append(observation.copy())
        actions.append(action)
        observation, _, terminated, truncated, _ = environments.step(action)
        length += alive
        alive &= ~(terminated | truncated)
        if not alive.any():
            break
    environments.close()
    return np.stack(observations), np.stack(actions), length


def collect(seed: int) -> Trajectories:
    """Trajectories of random linear controllers that act at random part of the time."""
    generator = np.random.default_rng(seed)
    epsilon = generator.uniform(0.3, 1.0, TRAJECTORIES)
    gains = generator.normal([0.0, 0.0, 0.4, 0.3], [0.5, 0.7, 1.0, 1.0], (TRAJECTORIES, 4))

    def act(observation: np.ndarray) -> np.ndarray:
        controlled = (observation * gains).sum(1) > 0
        explores = generator.random(TRAJECTORIES) < epsilon
        random_action = generator.random(TRAJECTORIES) < 0.5
        return np.where(explores, random_action, controlled).astype(np.int64)

    observations, actions, length = play(act, TRAJECTORIES, seed)
    played = (np.arange(len(actions))[:, None] < length).T
    start = np.concatenate([[0], length.cumsum()])
    return Trajectories(
        torch.from_numpy(observations.swapaxes(0, 1)[played]).float(),
        torch.from_numpy(actions.T[played]),
        torch.from_numpy(start),
        torch.from_numpy(length).double(),
    )


def step_indices(data: Trajectories, index: Tensor) -> tuple[Tensor, Tensor]:
    """All steps of the trajectories ``index`` ``[B]``: their places in ``data`` and in ``index``."""
    length = data.start[index + 1] - data.start[index]
    sequence = torch.repeat_interleave(torch.arange(len(index)), length)
    offset = data.start[index] - (length.cumsum(0) - length)
    return torch.arange(len(sequence)) + offset[sequence], sequence


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
    )


def log_probs(policy: nn.Module, data: Trajectories, step: Tensor) -> Tensor:
    logits = policy(data.observation[step]).log_softmax(-1)
    return logits.gather(1, data.action[step][:, None])[:, 0]


@dataclass
class Method:
    """A distribution of trajectories, and the weights of their losses.

    Attributes:
        sampler: constructor of the sampler.
        weights: options of ``iw_sft_weights``, or None for no such weights.
        dft: weight each step by its probability.
        ema: compute the weights with a moving average of the policy.
        normalize: divide the weights by their mean.
        metrics: clamped fraction and mean weight, one value per step and per run.
    """

    sampler: Any
    weights: dict[str, Any] | None = None
    dft: bool = False
    ema: bool = False
    normalize: bool = False
    metrics: dict[str, list[float]] = field(default_factory=dict)


FILTERED = partial(RewardWeightedSampler, scheme="top", share=0.1)
NESTED = partial(RewardWeightedSampler, scheme="nested")
PAPER: dict[str, Any] = {"ratio": "policy_over_ref", "level": "sequence"}
CONTROL: dict[str, Any] = {**PAPER, "temperature": 0.1, "clamp": (0.0, 1000.0)}


def methods() -> dict[str, Method]:
    specification: dict[str, Any] = {"ratio": "ref_over_policy"}
    return {
        "filtered": Method(FILTERED),
        "all": Method(UniformSampler),
        "SFT(Q), proportional": Method(partial(RewardWeightedSampler, scheme="proportional")),
        "SFT(Q), nested": Method(NESTED),
        "RWR, tau 50": Method(partial(RewardWeightedSampler, temperature=50.0)),
        "iw paper, sequence": Method(FILTERED, PAPER),
        "iw paper, token": Method(FILTERED, {**PAPER, "level": "token"}),
        "iw paper, control code": Method(FILTERED, CONTROL, ema=True, normalize=True),
        "iw(Q) paper, control code": Method(NESTED, CONTROL, ema=True, normalize=True),
        "iw specification, token": Method(FILTERED, {**specification, "level": "token"}),
        "iw specification, sequence": Method(FILTERED, {**specification, "level": "sequence"}),
        "DFT": Method(FILTERED, dft=True),
    }


def clone(data: Trajectories, seed: int) -> nn.Module:
    """The reference: a policy trained on steps of trajectories drawn uniformly."""
    policy, sampler = network(seed), UniformSampler(TRAJECTORIES, seed=seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=CLONING_RATE)
    for _ in range(CLONING):
        step, _ = step_indices(data, sampler.draw(BATCH).index)
        optimizer.zero_grad()
        (-log_probs(policy, data, step)).mean().backward()
        optimizer.step()
    return policy


def tune(method: Method, start: nn.Module, data: Trajectories, seed: int) -> tuple[Any, float]:
    """The policy after the second stage, and the seconds of that stage."""
    start_time = time.perf_counter()
    policy, q = copy.deepcopy(start), copy.deepcopy(start)
    reference = torch.empty(0)
    if method.weights is not None:
        with torch.no_grad():
            reference = log_probs(start, data, torch.arange(len(data.action)))
    sampler = method.sampler(TRAJECTORIES, seed=seed)
    if sampler.learns:
        sampler.set_scores(data.returns)
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    mean_weight: list[float] = []
    for _ in range(STEPS):
        index = sampler.draw(BATCH).index
        step, sequence = step_indices(data, index)
        log_prob = log_probs(policy, data, step)
        losses = -log_prob
        if method.weights is not None:
            with torch.no_grad():
                weight_log_prob = log_probs(q, data, step) if method.ema else log_prob
            weight, clamped = iw_sft_weights(
                weight_log_prob, reference[step], sequence, BATCH, **method.weights
            )
            mean_weight.append(float(segment_mean(weight, sequence, BATCH).mean()))
            method.metrics.setdefault("clamped", []).append(float(clamped.float().mean()))
            losses = losses * (self_normalize(weight) if method.normalize else weight)
        elif method.dft:
            losses = losses * dft_weights(log_prob).weight
        optimizer.zero_grad()
        reduce_segments(losses, sequence, BATCH).backward()
        optimizer.step()
        if method.ema:
            with torch.no_grad():
                for old, new in zip(q.parameters(), policy.parameters(), strict=True):
                    old.lerp_(new, 1 - EMA)
    if mean_weight:
        method.metrics.setdefault("last_mean_weight", []).append(sum(mean_weight[-20:]) / 20)
    return policy, time.perf_counter() - start_time


def effective_number(method: Method, data: Trajectories) -> float:
    """Effective number of trajectories of a sampler's distribution, 1 / sum P(i)^2."""
    sampler = method.sampler(TRAJECTORIES)
    if sampler.learns:
        sampler.set_scores(data.returns)
    return float(1 / sampler.probabilities().square().sum())


def mean_return(policy: nn.Module, seed: int, *, greedy: bool) -> float:
    generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def act(observation: np.ndarray) -> np.ndarray:
        right = policy(torch.from_numpy(observation).float()).softmax(-1)[:, 1]
        uniform = torch.rand(len(right), generator=generator) if not greedy else 0.5
        return (right > uniform).long().numpy()

    return float(play(act, EPISODES, seed)[2].mean())


def cartpole(seeds: int) -> dict[str, Any]:
    """Returns and seconds of each method, for every seed."""
    chosen = methods()
    table: dict[str, Any] = {
        name: {"sampled": [], "greedy": [], "seconds": []} for name in ("reference", *chosen)
    }
    data_returns: dict[str, list[float]] = {"mean": [], "best_tenth": []}
    for seed in range(seeds):
        data = collect(1000 + seed)
        ranked = data.returns.sort(descending=True).values
        data_returns["mean"].append(float(ranked.mean()))
        data_returns["best_tenth"].append(float(ranked[: TRAJECTORIES // 10].mean()))
        start = time.perf_counter()
        reference = clone(data, seed)
        policies = {"reference": (reference, time.perf_counter() - start)}
        for name, method in chosen.items():
            policies[name] = tune(method, reference, data, seed)
            table[name].setdefault("draws_from", []).append(effective_number(method, data))
        for name, (policy, seconds) in policies.items():
            table[name]["sampled"].append(mean_return(policy, 5000 + seed, greedy=False))
            table[name]["greedy"].append(mean_return(policy, 5000 + seed, greedy=True))
            table[name]["seconds"].append(seconds)
    for name, method in chosen.items():
        table[name] |= {key: statistics.mean(values) for key, values in method.metrics.items()}
    return {"data": data_returns, "methods": table}


def summarize(results: dict[str, Any]) -> None:
    """Print the table of CartPole, and add differences and time ratios to its rows."""
    table, data = results["methods"], results["data"]
    filtered = table["filtered"]
    print(
        f"\nCartPole-v1: {len(data['mean'])} paired seeds; return of the data "
        f"{statistics.mean(data['mean']):.0f}, of its best tenth "
        f"{statistics.mean(data['best_tenth']):.0f}; differences from filtered\n"
        f"{'':28}{'sampled':>8}  {'difference':>16}{'greedy':>9}  {'difference':>16}   time   effective"
    )
    for name, row in table.items():
        line = f"{name:28}"
        for actions in ("sampled", "greedy"):
            difference = common.paired_t_interval(row[actions], filtered[actions])
            row[f"{actions}_difference"] = difference.mean
            row[f"{actions}_half_width"] = difference.half_width
            sign = ("+" if difference.mean > 0 else "-") if difference.excludes_zero else " "
            line += f"{statistics.mean(row[actions]):8.1f}  {difference:6.1f}{sign}"
        row["time_ratio"] = statistics.median(row["seconds"]) / statistics.median(
            filtered["seconds"]
        )
        effective = statistics.mean(row.get("draws_from", [math.nan]))
        print(f"{line}  {row['time_ratio']:5.2f}x  {effective:10.0f}")


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="number of paired seeds of CartPole")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    results: dict[str, Any] = {
        **common.versions(),
        "steps": STEPS,
        "batch": BATCH,
        "trajectories": TRAJECTORIES,
        "episodes": EPISODES,
        "rate": LEARNING_RATE,
        "bandit": bandit(),
        "cartpole": cartpole(args.seeds),
    }
    summarize(results["cartpole"])
    results["seconds"] = time.perf_counter() - start
    print(f"\n{results['seconds']:.0f} s")
    common.write_results(args.out, "iw_sft_control.json", results)


if __name__ == "__main__":
    main()
