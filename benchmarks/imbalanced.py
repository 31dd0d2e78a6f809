"""Which methods learn rare classes better than uniform sampling.

    python benchmarks/imbalanced.py            # all three tables, some minutes
    python benchmarks/imbalanced.py --seeds 3 --tables long_tail

Tables: ``long_tail`` (digits, imbalance 100:1), ``noisy`` (the same with 20 % of the labels wrong)
and ``per_supervised``, the test of Schaul et al. (2016), section 6, on digits instead of MNIST:
digits 0 to 4 reduced to 1 %. The peer of every method is uniform sampling. All take 800 optimizer
steps with batches of 32 (methods that select draw more and keep about 32) from the same initial
network on the same images. Measured at the end of training, without early stopping: macro-F1 on 450
balanced test images, and wall-clock of the training with scoring passes and holdout models included
and evaluation left out. ``±`` is the half width of the 95 % t-interval of the paired difference from
uniform over seeds (10 by default), each of which has its own data, network and draws. One thread.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import common
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import WeightedRandomSampler
from torchmetrics.functional.classification import multiclass_f1_score

from lit_adaptive.core.corrections import inverse_probability_weights
from lit_adaptive.core.hard_examples import (
    focal_loss,
    hardest_indices,
    reducible_loss,
    selective_backprop_probabilities,
)
from lit_adaptive.core.influence import (
    influence_scores,
    max_fusion,
    mean_validation_gradient,
    select_top,
)
from lit_adaptive.data import LongTailedDigits
from lit_adaptive.modules import Classifier, SampleGradients
from lit_adaptive.samplers import (
    AdaptiveBatchSampler,
    AdaptiveDataWeighter,
    CurriculumSampler,
    Draw,
    IndexSampler,
    InfoBatchSampler,
    MixtureSampler,
    PrioritizedSampler,
    ShuffledSampler,
    UniformSampler,
)

BATCH, STEPS, LEARNING_RATE = 32, 800, 3e-3
TABLES = ["long_tail", "noisy", "per_supervised"]
PER_SHARES = [0.01] * 5 + [1.0] * 5


class FixedWeightsSampler(IndexSampler):
    """torch's own ``WeightedRandomSampler``, with the interface that the training loop uses."""

    def __init__(self, weights: Tensor, seed: int) -> None:
        super().__init__(len(weights), seed=seed)
        self.weights = weights
        self.stream: Any = iter(())

    def draw(self, batch_size: int) -> Draw:
        indices: list[int] = []
        while len(indices) < batch_size:
            try:
                indices.append(next(self.stream))
            except StopIteration:
                sampler = WeightedRandomSampler(
                    self.weights.tolist(), 10 * self.size, generator=self.generator
                )
                self.stream = iter(sampler)
        index = torch.tensor(indices)
        return Draw(index, self.weights[index] / self.weights.sum())

    state_dict = load_state_dict = None


class Method:
    """A sampler, and a selection from each batch; uniform training unless overridden.

    Attributes:
        drawn: samples per draw; more than ``BATCH`` for methods that select.
        beta: exponent of the importance-sampling weights.
        gamma: exponent of the focal loss, or None for cross-entropy.
    """

    drawn, beta, gamma = BATCH, 0.0, None

    def __init__(self, data: LongTailedDigits, seed: int) -> None:
        self.data, self.seed = data, seed
        self.sampler = self.make_sampler(len(data))
        self.sampler.reseed(seed)

    def make_sampler(self, size: int) -> Any:
        return ShuffledSampler(size)

    def before_step(self, model: nn.Module, step: int) -> None:
        """What precedes a draw."""

    def select(self, index: Tensor, losses: Tensor) -> Tensor:
        """Positions in the batch of the samples to train on."""
        raise NotImplementedError


def method_of(make_sampler: Callable[[int], Any], beta: float = 0.0) -> type[Method]:
    """A method that consists of a sampler only."""
    attributes = {"make_sampler": lambda self, size: make_sampler(size), "beta": beta}
    return type("SamplerMethod", (Method,), attributes)


class ClassBalanced(Method):
    def make_sampler(self, size: int) -> Any:
        weights = 1 / torch.bincount(self.data.targets)[self.data.targets].double()
        return FixedWeightsSampler(weights, self.seed)


class InformedReweighting(Method):
    """Draws images of the reduced classes 100 times as often, knowing which these are."""

    def make_sampler(self, size: int) -> Any:
        weights = torch.where(self.data.true_targets < 5, 100.0, 1.0).double()
        return FixedWeightsSampler(weights, self.seed)


class Focal(Method):
    gamma = 2.0


class OHEM(Method):
    drawn = 2 * BATCH

    def select(self, index: Tensor, losses: Tensor) -> Tensor:
        return hardest_indices(losses, keep=0.5)


class SelectiveBackprop(Method):
    drawn = 2 * BATCH

    def __init__(self, data: LongTailedDigits, seed: int) -> None:
        super().__init__(data, seed)
        self.recent_losses = torch.empty(0)
        self.generator = torch.Generator().manual_seed(seed)

    def select(self, index: Tensor, losses: Tensor) -> Tensor:
        self.recent_losses = torch.cat([self.recent_losses, losses])[-1024:]
        probability = selective_backprop_probabilities(losses, self.recent_losses, beta=1.0)
        uniform = torch.rand(len(probability), generator=self.generator, dtype=torch.float64)
        selected = uniform < probability
        return (selected if bool(selected.any()) else losses == losses.max()).nonzero().flatten()


class RHOLoss(Method):
    """RHO-LOSS with holdout losses by cross-fitting: a model of each half scores the other."""

    drawn = 10 * BATCH

    def __init__(self, data: LongTailedDigits, seed: int) -> None:
        super().__init__(data, seed)
        generator = torch.Generator().manual_seed(seed)
        half = torch.rand(len(data), generator=generator) < 0.5
        self.irreducible = torch.empty(len(data))
        for part in (half, ~half):
            model = fit_uniformly(data.inputs[~part], data.targets[~part], seed)
            self.irreducible[part] = losses_of(model, data.inputs[part], data.targets[part])

    def select(self, index: Tensor, losses: Tensor) -> Tensor:
        return hardest_indices(reducible_loss(losses, self.irreducible[index]), keep=BATCH)


class RHOLossHoldout(RHOLoss):
    """RHO-LOSS as in the paper, with a holdout model of 150 balanced images that no other method has."""

    def __init__(self, data: LongTailedDigits, seed: int) -> None:
        Method.__init__(self, data, seed)
        holdout = LongTailedDigits("validation")
        model = fit_uniformly(holdout.inputs, holdout.targets, seed)
        self.irreducible = losses_of(model, data.inputs, data.targets)


class Influence(Method):
    """LESS: each 40 steps train on the half that serves a class of the 150 more images most."""

    def before_step(self, model: nn.Module, step: int) -> None:
        if step == 0 or step % 40:
            return
        gradients = SampleGradients(Classifier(model, 10), dimensions=2048)
        pool, validation = (
            gradients({"input": each.inputs, "target": each.targets})
            for each in (self.data, LongTailedDigits("validation"))
        )
        classes = LongTailedDigits("validation").targets
        goals = [mean_validation_gradient(validation[classes == c]) for c in range(10)]
        score = max_fusion(torch.stack([influence_scores(pool, goal) for goal in goals]))
        best = torch.zeros(len(score), dtype=torch.bool)
        best[select_top(score, 0.5)] = True
        self.sampler.insert(best.nonzero().flatten())
        self.sampler.remove((~best).nonzero().flatten())


class Curriculum(Method):
    def make_sampler(self, size: int) -> Any:
        sampler = CurriculumSampler(size, ShuffledSampler, start=0.3, until=0.5)
        sampler.set_difficulty(self.data.column("difficulty"))
        return sampler


class Hybrid(Method):
    """A curriculum over the adaptive sampler, mixed with a tenth of uniform draws."""

    def make_sampler(self, size: int) -> Any:
        sampler = MixtureSampler(
            size,
            [
                lambda n: CurriculumSampler(n, AdaptiveBatchSampler, start=0.3, until=0.5),
                UniformSampler,
            ],
            [0.9, 0.1],
        )
        sampler.set_difficulty(self.data.column("difficulty"))
        return sampler


class ForgettingSampler(AdaptiveBatchSampler):
    """Forgets half of its weights after each pass over the data."""

    drawn = 0

    def draw(self, batch_size: int) -> Draw:
        self.drawn += batch_size
        if self.drawn >= self.size:
            self.drawn = 0
            self.forget(0.5)
        return super().draw(batch_size)


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)


def fit_uniformly(inputs: Tensor, targets: Tensor, seed: int) -> nn.Module:
    """A holdout model, trained for a quarter of the steps."""
    model, generator = network(seed), torch.Generator().manual_seed(seed)
    optimizer = adamw(model)
    for _ in range(STEPS // 4):
        index = torch.randint(len(inputs), (BATCH,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(inputs[index]), targets[index]).backward()
        optimizer.step()
    return model


@torch.no_grad()
def losses_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(model(inputs), targets, reduction="none")


def train(method_class: type[Method], data: LongTailedDigits, seed: int) -> tuple[nn.Module, float]:
    """The trained network, and the seconds of training with all costs of the method."""
    start = time.perf_counter()
    method = method_class(data, seed)
    sampler = method.sampler
    model = network(seed)
    optimizer = adamw(model)
    for step in range(STEPS):
        if sampler.follows_progress and step % 20 == 0:
            sampler.advance(step / STEPS)
        method.before_step(model, step)
        drawable = sampler.count
        index, probability = sampler.draw(method.drawn)
        weight = sampler.loss_weights(index)
        if weight is None:
            weight = inverse_probability_weights(probability, size=drawable, beta=method.beta)
        scored_index, scored_losses = index, None
        if method.drawn > BATCH:
            scored_losses = losses_of(model, data.inputs[index], data.targets[index])
            selected = method.select(index, scored_losses)
            index, weight = index[selected], weight[selected]
        target = data.targets[index]
        logits = model(data.inputs[index])
        losses = cross_entropy(logits, target, reduction="none")
        if scored_losses is None:
            scored_losses = losses.detach()
        if method.gamma is not None:
            losses = focal_loss(logits, target, gamma=method.gamma)
        optimizer.zero_grad()
        (weight.float() * losses).mean().backward()
        optimizer.step()
        if sampler.learns:
            sampler.update(scored_index, scored_losses)
    return model, time.perf_counter() - start


def methods() -> dict[str, type[Method]]:
    return {
        "uniform": Method,
        "class-balanced (torch)": ClassBalanced,
        "focal": Focal,
        "OHEM": OHEM,
        "selective backprop": SelectiveBackprop,
        "InfoBatch": method_of(InfoBatchSampler, beta=1.0),
        "RHO, cross-fitted": RHOLoss,
        "RHO, 150 more images": RHOLossHoldout,
        "influence, 150 more images": Influence,
        "PER by last loss": method_of(lambda n: PrioritizedSampler(n, alpha=1.0)),
        "adaptive": method_of(AdaptiveBatchSampler),
        "adaptive, beta 1": method_of(AdaptiveBatchSampler, beta=1.0),
        "adaptive, eta 0.5": method_of(lambda n: AdaptiveBatchSampler(n, 0.5)),
        "adaptive, forget 0.5": method_of(ForgettingSampler),
        "data weighter": method_of(AdaptiveDataWeighter),
        "curriculum": Curriculum,
        "hybrid": Hybrid,
    }


NOISE_SETTINGS = {
    "beta 0.5": method_of(AdaptiveBatchSampler, beta=0.5),
    "floor 0.5, ceiling 2": method_of(lambda n: AdaptiveBatchSampler(n, floor=0.5, ceiling=2.0)),
    "ceiling 2": method_of(lambda n: AdaptiveBatchSampler(n, ceiling=2.0)),
    "momentum 0.9": method_of(lambda n: AdaptiveBatchSampler(n, momentum=0.9)),
    "decay 0.2": method_of(lambda n: AdaptiveBatchSampler(n, decay=0.2)),
}


def macro_f1(model: nn.Module, test: LongTailedDigits) -> float:
    with torch.no_grad():
        predicted = model(test.inputs).argmax(1)
    return float(multiclass_f1_score(predicted, test.targets, num_classes=10, average="macro"))


def measure(table: str, seeds: int) -> dict[str, Any]:
    """Macro-F1 and seconds of each method of a table, for every seed."""
    chosen = methods()
    options: dict[str, Any] = {}
    if table == "noisy":
        chosen |= NOISE_SETTINGS
        options = {"label_noise": 0.2}
    if table == "per_supervised":
        names = ("uniform", "PER by last loss", "adaptive", "adaptive, eta 0.5", "data weighter")
        chosen = {name: chosen[name] for name in names} | {"informed x100": InformedReweighting}
        options = {"shares": PER_SHARES}
    rows: dict[str, Any] = {name: {"macro_f1": [], "seconds": []} for name in chosen}
    test = LongTailedDigits("test")
    for seed in range(seeds):
        data = LongTailedDigits(seed=seed, **options)
        for name, method in chosen.items():
            model, seconds = train(method, data, seed)
            rows[name]["macro_f1"].append(macro_f1(model, test))
            rows[name]["seconds"].append(seconds)
    return rows


def summarize(table: str, rows: dict[str, Any]) -> None:
    """Print a table, and add differences and time ratios to its rows."""
    uniform = rows["uniform"]
    uniform_seconds = statistics.median(uniform["seconds"])
    print(f"\n{table}: {len(uniform['seconds'])} paired seeds")
    print(f"{'':24}macro-F1   difference (95 %)      time")
    for name, row in rows.items():
        difference = common.paired_t_interval(row["macro_f1"], uniform["macro_f1"])
        ratio = statistics.median(row["seconds"]) / uniform_seconds
        row |= {
            "difference": difference.mean,
            "half_width": difference.half_width,
            "time_ratio": ratio,
        }
        verdict = ("better" if difference.mean > 0 else "worse") if difference.excludes_zero else ""
        mean = statistics.mean(row["macro_f1"])
        print(f"{name:24}{mean:.3f}     {difference:.3f}  {ratio:8.2f}x  {verdict}")


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="number of paired seeds")
    parser.add_argument("--tables", nargs="*", choices=TABLES, default=TABLES, help="tables to run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tables: dict[str, Any] = {}
    for table in args.tables:
        tables[table] = measure(table, args.seeds)
        summarize(table, tables[table])
    results = {**common.versions(), "steps": STEPS, "batch": BATCH, "tables": tables}
    common.write_results(args.out, "imbalanced.json", results)


if __name__ == "__main__":
    main()
