"""Who learns the rare classes: every method here against uniform sampling, paired seeds.

    python benchmarks/imbalanced.py            # all three tables and their JSON, some minutes
    python benchmarks/imbalanced.py --seeds 3 --tables long_tail

Tables: ``long_tail`` (digits, 100:1), ``noisy`` (the same with 20 % of the labels wrong) and
``per_supervised``, the test of Schaul et al. (2016), section 6, on digits instead of MNIST: digits
0 to 4 reduced to 1 %. All methods take the same number of optimizer steps with batches of 32 (those
that select, draw more and keep about 32), from the same initial network, on the same images.
Measured at the end of training, without early stopping: macro-F1 on 450 balanced test images, and
wall-clock with everything a method costs. ``+-`` is the half width of the 95 % t-interval of the
paired difference to uniform; generated tokens: none, these are images.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
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
from lit_adaptive.data import LongTailedDigits
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

BATCH, STEPS, RATE = 32, 800, 3e-3
PER_SHARES = [0.01] * 5 + [1.0] * 5


class Fixed(IndexSampler):
    """torch's own ``WeightedRandomSampler``, behind the calls that the loop makes."""

    def __init__(self, weights: Tensor, seed: int) -> None:
        super().__init__(len(weights), seed=seed)
        self.weights = weights
        self.stream: Any = iter(())

    def draw(self, batch_size: int) -> Draw:
        picked: list[int] = []
        while len(picked) < batch_size:
            try:
                picked.append(next(self.stream))
            except StopIteration:
                again = WeightedRandomSampler(
                    self.weights.tolist(), 10 * self.size, generator=self.generator
                )
                self.stream = iter(again)
        index = torch.tensor(picked)
        return Draw(index, self.weights[index] / self.weights.sum())

    state_dict = load_state_dict = None  # type: ignore[assignment]


class Method:
    """A sampler, and what happens to a batch; plain uniform training unless overridden."""

    drawn, beta, corrected, gamma = BATCH, 0.0, False, None

    def __init__(self, data: LongTailedDigits, seed: int) -> None:
        self.data, self.seed = data, seed
        self.sampler = self.make(len(data))
        self.sampler.reseed(seed)

    def make(self, size: int) -> Any:
        return ShuffledSampler(size)

    def choose(self, index: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Places of what is kept, and weights for it; None keeps all without a scoring pass."""
        return None


def sampled(make: Callable[[int], Any], beta: float = 0.0) -> type[Method]:
    """A method that is a sampler."""
    return type("Sampled", (Method,), {"make": lambda self, size: make(size), "beta": beta})


class ClassBalanced(Method):
    def make(self, size: int) -> Any:
        return Fixed(1 / torch.bincount(self.data.targets)[self.data.targets].double(), self.seed)


class Informed(Method):
    """The images of the reduced classes a hundred times as often: who knows the answer."""

    def make(self, size: int) -> Any:
        return Fixed(torch.where(self.data.true_targets < 5, 100.0, 1.0).double(), self.seed)


class Focal(Method):
    gamma = 2.0


class OHEM(Method):
    drawn = 2 * BATCH

    def choose(self, index: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        return hardest_indices(losses, keep=0.5), None


class Selective(Method):
    drawn = 2 * BATCH

    def __init__(self, data: LongTailedDigits, seed: int) -> None:
        super().__init__(data, seed)
        self.recent = torch.empty(0)
        self.dice = torch.Generator().manual_seed(seed)

    def choose(self, index: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        self.recent = torch.cat([self.recent, losses])[-1024:]
        chance = selective_backprop_probabilities(losses, self.recent, beta=1.0)
        kept = torch.rand(len(chance), generator=self.dice, dtype=torch.float64) < chance
        return (kept if bool(kept.any()) else losses == losses.max()).nonzero().flatten(), None


class RHO(Method):
    """The holdout losses by cross-fitting: each half is scored by a model of the other half."""

    drawn = 10 * BATCH

    def __init__(self, data: LongTailedDigits, seed: int) -> None:
        super().__init__(data, seed)
        dice = torch.Generator().manual_seed(seed)
        half = torch.rand(len(data), generator=dice) < 0.5
        self.irreducible = torch.empty(len(data))
        for part in (half, ~half):
            rest = ~part
            model = fit(self.data.inputs[rest], self.data.targets[rest], seed)
            with torch.no_grad():
                logits = model(self.data.inputs[part])
            self.irreducible[part] = cross_entropy(
                logits, self.data.targets[part], reduction="none"
            )

    def choose(self, index: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        return hardest_indices(reducible_loss(losses, self.irreducible[index]), keep=BATCH), None


class RHOHeldOut(RHO):
    """As in the paper, a holdout model of other data: 150 balanced images that no other method has."""

    def __init__(self, data: LongTailedDigits, seed: int) -> None:
        Method.__init__(self, data, seed)
        other = LongTailedDigits("validation")
        model = fit(other.inputs, other.targets, seed)
        with torch.no_grad():
            logits = model(data.inputs)
        self.irreducible = cross_entropy(logits, data.targets, reduction="none")


class Curriculum(Method):
    inner: Callable[[int], Any] = ShuffledSampler

    def make(self, size: int) -> Any:
        sampler = CurriculumSampler(size, type(self).inner, start=0.3, until=0.5)
        sampler.set_difficulty(self.data.column("difficulty"))
        return sampler


class Hybrid(Curriculum):
    """Macro and micro: a curriculum over the adaptive sampler, a tenth of the draws uniform."""

    def make(self, size: int) -> Any:
        sampler = MixtureSampler(
            size,
            [lambda n: CurriculumSampler(n, AdaptiveBatchSampler, start=0.3, until=0.5),
             UniformSampler],
            [0.9, 0.1],
        )  # fmt: skip
        sampler.set_difficulty(self.data.column("difficulty"))
        return sampler


class Forgetting(Method):
    """Half of what was learnt is forgotten after each pass."""

    def make(self, size: int) -> Any:
        class Sampler(AdaptiveBatchSampler):
            drawn = 0

            def draw(self, batch_size: int) -> Draw:
                self.drawn += batch_size
                if self.drawn >= self.size:
                    self.drawn = 0
                    self.forget(0.5)
                return super().draw(batch_size)

        return Sampler(size)


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def fit(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """A model trained uniformly for a quarter of the steps."""
    model, dice = network(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    for _ in range(STEPS // 4):
        index = torch.randint(len(x), (BATCH,), generator=dice)
        optimizer.zero_grad()
        cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
    return model


def train(method_class: type[Method], data: LongTailedDigits, seed: int) -> tuple[nn.Module, float]:
    """The trained network, and the seconds it took with all that the method needs."""
    began = time.perf_counter()
    method = method_class(data, seed)
    sampler = method.sampler
    model = network(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    for step in range(STEPS):
        if sampler.follows_progress and step % 20 == 0:
            sampler.advance(step / STEPS)
        drawable = sampler.count
        index, probability = sampler.draw(method.drawn)
        weight = sampler.loss_weights(index)
        if weight is None:
            weight = inverse_probability_weights(probability, size=drawable, beta=method.beta)
        scored = None
        if method.drawn > BATCH:
            with torch.no_grad():
                losses = cross_entropy(
                    model(data.inputs[index]), data.targets[index], reduction="none"
                )
            scored = (index, losses)
            chosen = method.choose(index, losses)
            assert chosen is not None
            index, weight = index[chosen[0]], weight[chosen[0]]
        target = data.targets[index]
        logits = model(data.inputs[index])
        losses = cross_entropy(logits, target, reduction="none")
        trained = losses if method.gamma is None else focal_loss(logits, target, gamma=method.gamma)
        optimizer.zero_grad()
        (weight.float() * trained).mean().backward()
        optimizer.step()
        if sampler.learns:
            sampler.update(*(scored or (index, losses.detach())))
    return model, time.perf_counter() - began


def methods() -> dict[str, type[Method]]:
    return {
        "uniform": Method,
        "class-balanced (torch)": ClassBalanced,
        "focal": Focal,
        "OHEM": OHEM,
        "selective backprop": Selective,
        "InfoBatch": sampled(InfoBatchSampler, beta=1.0),
        "RHO, cross-fitted": RHO,
        "RHO, 150 more images": RHOHeldOut,
        "PER by last loss": sampled(lambda n: PrioritizedSampler(n, alpha=1.0)),
        "adaptive": sampled(AdaptiveBatchSampler),
        "adaptive, beta 1": sampled(AdaptiveBatchSampler, beta=1.0),
        "adaptive, eta 0.5": sampled(lambda n: AdaptiveBatchSampler(n, 0.5)),
        "adaptive, forget 0.5": Forgetting,
        "data weighter": sampled(AdaptiveDataWeighter),
        "curriculum": Curriculum,
        "hybrid": Hybrid,
    }


GUARDED = {
    "beta 0.5": sampled(AdaptiveBatchSampler, beta=0.5),
    "floor 0.5, ceiling 2": sampled(lambda n: AdaptiveBatchSampler(n, floor=0.5, ceiling=2.0)),
    "ceiling 2": sampled(lambda n: AdaptiveBatchSampler(n, ceiling=2.0)),
    "momentum 0.9": sampled(lambda n: AdaptiveBatchSampler(n, momentum=0.9)),
    "decay 0.2": sampled(lambda n: AdaptiveBatchSampler(n, decay=0.2)),
}


def score(model: nn.Module, test: LongTailedDigits) -> float:
    with torch.no_grad():
        predicted = model(test.inputs).argmax(1)
    return float(multiclass_f1_score(predicted, test.targets, num_classes=10, average="macro"))


def table(name: str, seeds: int) -> dict[str, Any]:
    """Each method's macro-F1 on every seed."""
    chosen = methods()
    if name == "noisy":
        chosen |= GUARDED
    options: dict[str, Any] = {"label_noise": 0.2} if name == "noisy" else {}
    if name == "per_supervised":
        options = {"shares": PER_SHARES}
        wanted = ("uniform", "PER by last loss", "adaptive", "adaptive, eta 0.5", "data weighter")
        chosen = {key: chosen[key] for key in wanted} | {"informed x100": Informed}
    found: dict[str, Any] = {key: {"macro_f1": [], "seconds": []} for key in chosen}
    test = LongTailedDigits("test")
    for seed in range(seeds):
        data = LongTailedDigits(seed=seed, **options)
        for key, method in chosen.items():
            model, seconds = train(method, data, seed)
            found[key]["macro_f1"].append(score(model, test))
            found[key]["seconds"].append(seconds)
    return found


def interval(differences: Tensor) -> tuple[float, float]:
    """Mean, and half the width of its 95 % t-interval."""
    n = len(differences)
    half = (
        student.ppf(0.975, n - 1) * float(differences.std()) / math.sqrt(n) if n > 1 else math.nan
    )
    return float(differences.mean()), half


def show(name: str, found: dict[str, Any]) -> None:
    base = torch.tensor(found["uniform"]["macro_f1"], dtype=torch.float64)
    clock = torch.tensor(found["uniform"]["seconds"]).median()
    print(f"\n{name}: {len(base)} paired seeds\n{'':24}macro-F1   to uniform (95 %)      time")
    for key, values in found.items():
        f1 = torch.tensor(values["macro_f1"], dtype=torch.float64)
        mean, half = interval(f1 - base)
        ratio = float(torch.tensor(values["seconds"]).median() / clock)
        values |= {"difference": mean, "half_width": half, "time_ratio": ratio}
        verdict = "" if abs(mean) <= half else ("better" if mean > 0 else "worse")
        print(f"{key:24}{f1.mean():.3f}     {mean:+.3f} +- {half:.3f}  {ratio:8.2f}x  {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tables", nargs="*", default=["long_tail", "noisy", "per_supervised"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {"machine": platform.machine(), "torch": torch.__version__, "steps": STEPS,
               "batch": BATCH, "tables": {}}  # fmt: skip
    for name in options.tables:
        found = table(name, options.seeds)
        show(name, found)
        results["tables"][name] = found
    (options.out / "imbalanced.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
