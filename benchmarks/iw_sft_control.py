"""iw-SFT on control: the paper's bandit with its exact fixed points, and offline CartPole.

    python benchmarks/iw_sft_control.py                # 10 seeds, about 3 minutes on one thread
    python benchmarks/iw_sft_control.py --seeds 2

Bandit (Qin & Springenberg, 2025, arXiv:2507.12856): two arms, the reference pulls each with chance
1/2, left succeeds with 1/2 and right always. So the successes are left with 1/3, right with 2/3.
Gradient steps of each objective on exactly these successes are compared to where they must end:
SFT at (1/3, 2/3), the paper's ratio at (0, 1) (but at (1/19, 18/19) where the authors' clamp [0.2,
1.8] of token weights holds it), the specification's at pi ~ (data * reference)^(1/2); that one takes
smaller steps, as its weights have no bound and throw it off at larger ones.
With the weights' policy q held still in rounds, the paper's ratio must go through 1 : 2^k.

Offline CartPole-v1: 400 trajectories of clumsy controllers of all kinds, each of which acts at
random with its own chance in [0.3, 1]; most are bad. A policy is first cloned from all of them (the reference), then each method
goes on from there for as many steps with as many trajectories. ``filtered`` is SFT on the best tenth
by return. Measured: return over 32 episodes, actions drawn from the policy and greedy, cut at 500;
seconds of the second stage with reference scores and draws; generated tokens: none. ``+-`` is the
half width of the 95 % t-interval of the paired difference to ``filtered`` over seeds, each of which
has data, initial network, draws and test episodes of its own. ``draws from`` is the effective
number of trajectories, 1 / sum P(i)^2: a sharper law is a stricter filter.
"""

import argparse
import copy
import json
import math
import platform
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from scipy.stats import t as student
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
RATE, CLONING_RATE, EMA = 3e-4, 1e-3, 0.9

# Bandit ------------------------------------------------------------------------------------------


def bandit_run(loss: ImportanceWeightedSFTLoss, steps: int, rate: float) -> list[float]:
    """Where gradient descent on the successes (left, right, right) ends, from 50/50."""
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
    """Chance of left after each round of the paper's ratio, q held still within a round."""
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
    make = ImportanceWeightedSFTLoss
    root = [1 / 3**0.5, (2 / 3) ** 0.5]
    settings: dict[str, tuple[ImportanceWeightedSFTLoss, int, float, list[float]]] = {
        "SFT": (make(objective="nll"), 200, 4.0, [1 / 3, 2 / 3]),
        "iw-SFT, paper, sequence": (
            make(ratio="policy_over_ref", level="sequence"), 3000, 4.0, [0.0, 1.0]),
        "iw-SFT, paper, token, clamp": (
            make(ratio="policy_over_ref", level="token"), 400, 4.0, [1 / 19, 18 / 19]),
        "iw-SFT, specification": (
            make(ratio="ref_over_policy"), 400, 0.5, [root[0] / sum(root), root[1] / sum(root)]),
        "DFT": (make(objective="dft"), 3000, 4.0, [0.0, 1.0]),
    }  # fmt: skip
    found: dict[str, Any] = {}
    print(f"{'bandit':28}{'end':>18}{'closed form':>20}")
    for name, (loss, steps, rate, closed) in settings.items():
        end = bandit_run(loss, steps, rate)
        found[name] = {"end": end, "closed_form": closed, "steps": steps, "rate": rate}
        print(f"{name:28}  ({end[0]:.4f}, {end[1]:.4f})    ({closed[0]:.4f}, {closed[1]:.4f})")
    left = bandit_rounds(6)
    closed = [1 / (1 + 2**k) for k in range(1, 7)]
    found["paper, q held in rounds"] = {"left": left, "closed_form": closed}
    off = max(abs(a - b) for a, b in zip(left, closed, strict=True))
    print(f"paper, q held in rounds: left is 1 / (1 + 2^k), at most {off:.1e} off")
    return found


# CartPole ----------------------------------------------------------------------------------------


class Trajectories(NamedTuple):
    """All steps, one trajectory after another.

    Attributes:
        observation: ``[K, 4]`` float32.
        action: ``[K]`` int64.
        start: ``[N + 1]`` int64: where each trajectory begins.
        value: ``[N]`` float64: its return.
    """

    observation: Tensor
    action: Tensor
    start: Tensor
    value: Tensor


def play(act: Any, number: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations ``[S, N, 4]``, actions ``[S, N]`` and lengths ``[N]`` of one episode each."""
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
    """Clumsy linear controllers, most of them bad."""
    dice = np.random.default_rng(seed)
    clumsy = dice.uniform(0.3, 1.0, TRAJECTORIES)
    gains = dice.normal([0.0, 0.0, 0.4, 0.3], [0.5, 0.7, 1.0, 1.0], (TRAJECTORIES, 4))

    def act(observation: np.ndarray) -> np.ndarray:
        meant = (observation * gains).sum(1) > 0
        return np.where(dice.random(TRAJECTORIES) < clumsy, dice.random(TRAJECTORIES) < 0.5, meant).astype(np.int64)  # fmt: skip

    observations, actions, length = play(act, TRAJECTORIES, seed)
    kept = (np.arange(len(actions))[:, None] < length).T
    start = np.concatenate([[0], length.cumsum()])
    return Trajectories(
        torch.from_numpy(observations.swapaxes(0, 1)[kept]).float(),
        torch.from_numpy(actions.T[kept]),
        torch.from_numpy(start),
        torch.from_numpy(length).double(),
    )


def steps_of(data: Trajectories, index: Tensor) -> tuple[Tensor, Tensor]:
    """Places ``[K]`` of all steps of the trajectories ``index`` ``[B]``, and whose they are."""
    length = data.start[index + 1] - data.start[index]
    sequence = torch.repeat_interleave(torch.arange(len(index)), length)
    before = length.cumsum(0) - length
    return torch.arange(len(sequence)) + (data.start[index] - before)[sequence], sequence


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
    )


def log_probs(policy: nn.Module, data: Trajectories, place: Tensor) -> Tensor:
    logits = policy(data.observation[place]).log_softmax(-1)
    return logits.gather(1, data.action[place][:, None])[:, 0]


@dataclass
class Method:
    """How trajectories are drawn, and what their losses are multiplied by."""

    sampler: Any
    weights: dict[str, Any] | None = None  # of iw-SFT; None: plain SFT
    dft: bool = False
    ema: bool = False
    normalize: bool = False
    seen: dict[str, list[float]] = field(default_factory=dict)


FILTERED = partial(RewardWeightedSampler, scheme="top", share=0.1)
NESTED = partial(RewardWeightedSampler, scheme="nested")
PAPER: dict[str, Any] = {"ratio": "policy_over_ref", "level": "sequence"}
CONTROL: dict[str, Any] = {**PAPER, "temperature": 0.1, "clamp": (0.0, 1000.0)}


def methods() -> dict[str, Method]:
    spec: dict[str, Any] = {"ratio": "ref_over_policy"}
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
        "iw specification, token": Method(FILTERED, {**spec, "level": "token"}),
        "iw specification, sequence": Method(FILTERED, {**spec, "level": "sequence"}),
        "DFT": Method(FILTERED, dft=True),
    }


def clone(data: Trajectories, seed: int) -> nn.Module:
    policy, sampler = network(seed), UniformSampler(TRAJECTORIES, seed=seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=CLONING_RATE)
    for _ in range(CLONING):
        place, _ = steps_of(data, sampler.draw(BATCH).index)
        optimizer.zero_grad()
        (-log_probs(policy, data, place)).mean().backward()
        optimizer.step()
    return policy


def tune(method: Method, start: nn.Module, data: Trajectories, seed: int) -> tuple[Any, float]:
    """The policy after the second stage, and the seconds it took."""
    began = time.perf_counter()
    policy, q = copy.deepcopy(start), copy.deepcopy(start)
    reference = torch.empty(0)
    if method.weights is not None:  # scored once; the reference is not needed again
        with torch.no_grad():
            reference = log_probs(start, data, torch.arange(len(data.action)))
    sampler = method.sampler(TRAJECTORIES, seed=seed)
    if sampler.learns:
        sampler.set_scores(data.value)
    optimizer = torch.optim.Adam(policy.parameters(), lr=RATE)
    mean_weight: list[float] = []
    for _ in range(STEPS):
        index = sampler.draw(BATCH).index
        place, sequence = steps_of(data, index)
        log_prob = log_probs(policy, data, place)
        losses = -log_prob
        if method.weights is not None:
            with torch.no_grad():
                judged = log_probs(q, data, place) if method.ema else log_prob
            weight, clamped = iw_sft_weights(
                judged, reference[place], sequence, BATCH, **method.weights
            )
            mean_weight.append(float(segment_mean(weight, sequence, BATCH).mean()))
            method.seen.setdefault("clamped", []).append(float(clamped.float().mean()))
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
        method.seen.setdefault("last_mean_weight", []).append(sum(mean_weight[-20:]) / 20)
    return policy, time.perf_counter() - began


def effective(method: Method, data: Trajectories) -> float:
    """How many trajectories a law draws from, as if alike."""
    sampler = method.sampler(TRAJECTORIES)
    if sampler.learns:
        sampler.set_scores(data.value)
    return float(1 / sampler.probabilities().square().sum())


def returns(policy: nn.Module, seed: int, *, greedy: bool) -> float:
    dice = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def act(observation: np.ndarray) -> np.ndarray:
        chance = policy(torch.from_numpy(observation).float()).softmax(-1)
        right = chance[:, 1]
        bar = torch.full_like(right, 0.5) if greedy else torch.rand(len(right), generator=dice)
        return (right > bar).long().numpy()

    return float(play(act, EPISODES, seed)[2].mean())


def cartpole(seeds: int) -> dict[str, Any]:
    chosen = methods()
    found: dict[str, Any] = {
        name: {"sampled": [], "greedy": [], "seconds": []} for name in ("reference", *chosen)
    }
    data_returns: dict[str, list[float]] = {"mean": [], "best_tenth": []}
    for seed in range(seeds):
        data = collect(1000 + seed)
        ranked = data.value.sort(descending=True).values
        data_returns["mean"].append(float(ranked.mean()))
        data_returns["best_tenth"].append(float(ranked[: TRAJECTORIES // 10].mean()))
        began = time.perf_counter()
        start = clone(data, seed)
        policies = {"reference": (start, time.perf_counter() - began)}
        policies |= {name: tune(one, start, data, seed) for name, one in chosen.items()}
        for name, one in chosen.items():
            found[name].setdefault("draws_from", []).append(effective(one, data))
        for name, (policy, seconds) in policies.items():
            found[name]["sampled"].append(returns(policy, 5000 + seed, greedy=False))
            found[name]["greedy"].append(returns(policy, 5000 + seed, greedy=True))
            found[name]["seconds"].append(seconds)
    for name, method in chosen.items():
        found[name] |= {key: sum(value) / len(value) for key, value in method.seen.items()}
    return {"data": data_returns, "methods": found}


def interval(differences: Tensor) -> tuple[float, float]:
    """Mean, and half the width of its 95 % t-interval."""
    n = len(differences)
    if n < 2:
        return float(differences.mean()), math.nan
    half = student.ppf(0.975, n - 1) * float(differences.std()) / math.sqrt(n)
    return float(differences.mean()), half


def show(found: dict[str, Any]) -> None:
    table, data = found["methods"], found["data"]
    clock = torch.tensor(table["filtered"]["seconds"]).median()
    mean, best = (sum(values) / len(values) for values in data.values())
    number = len(data["mean"])
    print(f"\nCartPole-v1: {number} paired seeds; data return {mean:.0f}, best tenth {best:.0f}")
    print(
        f"{'':28}{'sampled':>8}  {'to filtered':>16}{'greedy':>9}  {'to filtered':>16}   time  draws from"
    )
    for name, values in table.items():
        line = f"{name:28}"
        for kind in ("sampled", "greedy"):
            mine = torch.tensor(values[kind], dtype=torch.float64)
            base = torch.tensor(table["filtered"][kind], dtype=torch.float64)
            difference, half = interval(mine - base)
            values[f"{kind}_difference"], values[f"{kind}_half_width"] = difference, half
            mark = " " if not abs(difference) > half else ("+" if difference > 0 else "-")
            line += f"{float(mine.mean()):8.1f}  {difference:+7.1f} +- {half:5.1f}{mark}"
        values["time_ratio"] = float(torch.tensor(values["seconds"]).median() / clock)
        drawn = values.get("draws_from", [math.nan])
        print(f"{line}  {values['time_ratio']:5.2f}x  {sum(drawn) / len(drawn):10.0f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    results: dict[str, Any] = {
        "machine": platform.machine(), "torch": torch.__version__, "steps": STEPS, "batch": BATCH,
        "trajectories": TRAJECTORIES, "episodes": EPISODES, "rate": RATE, "bandit": bandit(),
    }  # fmt: skip
    found = cartpole(options.seeds)
    show(found)
    results["cartpole"] = found
    results["seconds"] = time.perf_counter() - began
    print(f"\n{results['seconds']:.0f} s in all")
    (options.out / "iw_sft_control.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
