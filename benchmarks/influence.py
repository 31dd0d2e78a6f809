"""Projected gradients of prompts: one pass for many prompts against a backward pass for each.

    python benchmarks/influence.py

Prompts of the arithmetic task with 8 trajectories each, and the model of ``configs/grpo.yaml``. The
plain method runs a forward and a backward pass per prompt, with a row for each trajectory, and
projects the gradient of all parameters; ours takes 64 prompts at a time through
``lit_adaptive.modules.PromptGradients``, each prompt read once for its trajectories. Both give the
same projections, which is checked. One thread; the processor time of the process, which other
processes do not slow down as they do the wall-clock, is reported beside the wall-clock.
"""

import platform
import time
from collections.abc import Callable
from typing import Any

import common
import torch

from lit_adaptive.core import off_policy_coefficients
from lit_adaptive.data import Arithmetic, PromptDataset
from lit_adaptive.data.rollouts.minibatches import MicroBatch, MicroBatchBuilder
from lit_adaptive.modules import ConfiguredLM, LanguageModel, PromptGradients
from lit_adaptive.replay import RolloutGroups
from lit_adaptive.replay.rollouts.groups import ragged_positions

TRAJECTORIES, LONGEST = 8, 6


def make_groups(language: LanguageModel, dataset: PromptDataset) -> RolloutGroups:
    """Trajectories of random tokens, with log-probabilities of a policy near the model's."""
    generator = torch.Generator().manual_seed(0)
    prompts = dataset.tokens(torch.arange(len(dataset)))
    count = len(prompts) * TRAJECTORIES
    lengths = torch.randint(2, LONGEST + 1, (count,), generator=generator)
    total = int(lengths.sum())
    return RolloutGroups(
        prompt=torch.arange(len(prompts)),
        version=torch.zeros(len(prompts), dtype=torch.int64),
        probability=torch.ones(len(prompts), dtype=torch.float64),
        weight=torch.ones(len(prompts)),
        size=torch.full((len(prompts),), TRAJECTORIES),
        prompt_tokens=torch.cat(prompts).int(),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        tokens=torch.randint(4, 20, (total,), generator=generator).int(),
        log_probs=-4 + torch.rand(total, generator=generator),
        lengths=lengths,
        reward=torch.arange(count).remainder(3).eq(0).float(),
        stopped=torch.ones(count, dtype=torch.bool),
        demonstration=torch.zeros(count, dtype=torch.bool),
        advantage=torch.zeros(count),
    )


class Prompts:
    """Batches of some prompts' trajectories, and the coefficients of their gradients."""

    def __init__(self, groups: RolloutGroups, ratio: float | None) -> None:
        self.groups = groups
        trained = torch.ones(groups.rollouts, dtype=torch.bool)
        self.builder = MicroBatchBuilder(
            groups, trained, 0, pad=0, attention_cost_ratio=ratio, token_values={}
        )

    def batch(self, first: int, count: int) -> dict[str, Any]:
        rollouts = ragged_positions(self.groups.size, torch.arange(first, first + count))
        batch = self.builder.build(MicroBatch(rollouts, 1.0, 1.0))
        return batch | {"sample": batch["group"] - first}

    @staticmethod
    def coefficients(batch: dict[str, Any], count: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda log_prob: off_policy_coefficients(
            log_prob,
            batch["behavior_log_probs"],
            batch["sequence"],
            batch["reward"],
            batch["sample"],
            count,
        )


def one_pass(gradients: PromptGradients, groups: RolloutGroups, at_once: int) -> torch.Tensor:
    prompts = Prompts(groups, gradients.language.attention_cost_ratio)
    parts: list[torch.Tensor] = []
    for first in range(0, len(groups), at_once):
        count = min(at_once, len(groups) - first)
        batch = prompts.batch(first, count)
        function = prompts.coefficients(batch, count)
        parts.append(gradients(batch, function, batch["sample"], count))
    return torch.cat(parts)


def plain(gradients: PromptGradients, groups: RolloutGroups) -> torch.Tensor:
    language, prompts, rows = gradients.language, Prompts(groups, None), []
    named = dict(language.named_parameters())
    parameters = [named[name] for name in gradients.starts]
    for prompt in range(len(groups)):
        batch = prompts.batch(prompt, 1)
        scores, _ = language.score_targets(batch)
        factor = prompts.coefficients(batch, 1)(scores.log_prob.detach())
        values = torch.autograd.grad((scores.log_prob * factor).sum(), parameters)
        flat = torch.cat([value.flatten() for value in values])
        rows.append(gradients.projection.project(flat[None]))
    return torch.cat(rows)


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--at-once", type=int, default=64, help="prompts per pass")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dimensions", type=int, default=4096)
    parser.add_argument("--keep-ratio", type=float, default=0.15)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = PromptDataset(Arithmetic("train", size=args.prompts, digits=2, operators="+-*"))
    recipe = ConfiguredLM(hidden_size=args.hidden_size, layers=args.layers, heads=4, seed=0)
    language = recipe.build(dataset.tokenizer)
    groups = make_groups(language, dataset)
    gradients = PromptGradients(language, dimensions=args.dimensions, keep_ratio=args.keep_ratio)
    methods = {
        "one_pass": lambda: one_pass(gradients, groups, args.at_once),
        "plain": lambda: plain(gradients, groups),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    few = groups.select(torch.arange(min(args.at_once, len(groups))))
    one_pass(gradients, few, args.at_once)  # compiles the kernels
    results: dict[str, torch.Tensor] = {}
    for _ in range(args.rounds):
        for name, method in methods.items():
            start = time.perf_counter(), time.process_time()
            results[name] = method()
            wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
            times[name].append((wall, cpu))
    difference = (results["one_pass"] - results["plain"]).abs().max() / results["plain"].abs().max()
    wall, cpu = ({n: min(t[k] for t in values) for n, values in times.items()} for k in (0, 1))
    report = {
        "prompts": args.prompts,
        "trajectories": TRAJECTORIES,
        "parameters": gradients.projection.size,
        "dimensions": args.dimensions,
        "keep_ratio": args.keep_ratio,
        "prompts_per_pass": args.at_once,
        "seconds": wall,
        "processor_seconds": cpu,
        "speedup": wall["plain"] / wall["one_pass"],
        "processor_speedup": cpu["plain"] / cpu["one_pass"],
        "largest_relative_difference": float(difference),
        "machine": f"{platform.machine()}, torch {torch.__version__}, 1 thread",
    }
    for name, value in report.items():
        print(f"{name:<28} {value}")
    common.write_results(args.out, "influence.json", report)


if __name__ == "__main__":
    main()
