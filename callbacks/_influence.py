"""Parts of the selections by influence: scores, fusion, the set of a sampler, and the picture."""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._ranks import equal_share, interleave_ranks
from callbacks._run_files import local_run_directory
from callbacks._training_length import is_due
from lit_adaptive.core.bounds import check_at_least, check_choices
from lit_adaptive.core.influence import (
    InfluenceMetric,
    influence_scores,
    max_fusion,
    mean_validation_gradient,
    reciprocal_rank_fusion,
    select_top,
)
from lit_adaptive.core.projection import ProjectionKind
from lit_adaptive.core.shares import share_count
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.data.sources.columns import check_columns
from lit_adaptive.modules import PolicyModule
from lit_adaptive.modules.language.gradients import PromptGradients
from lit_adaptive.progress import progress_bar
from lit_adaptive.report.influence import draw_families

STREAM = 0x1F1  # of the datamodule's seed

Fusion = Literal["reciprocal_rank", "max"]
Rows = Iterator[tuple[Tensor, Tensor]]


class InfluenceSelection(Callback):
    """Base class: lets the sampler draw the samples whose gradients serve validation.

    Args:
        validation: validation sets by name, at least one.
        every_n_steps: steps of a phase, above 0.
        fraction: share of the pool that a phase trains on, in (0, 1].
        metric: see ``core.influence.influence_scores``.
        fusion: of several validation sets, ``reciprocal_rank`` or ``max``.
        constant: of ``reciprocal_rank_fusion``; 0 in CROPI's code.
        dimensions: of the projected gradients, above 0; 32,768 in CROPI's code.
        keep_ratio: share of the coordinates that are projected, in (0, 1].
        projection: see ``core.projection.SparseProjection``.
        parameters: regular expression of the names of the parameters whose gradients count; by
            default all that are trained.
        samples_at_once: samples of a pass through the model, above 0.
        families: column of the dataset whose shares in each phase the picture shows.
    """

    _whole_phases = 1  # phases before the first selection

    def __init__(
        self,
        validation: dict[str, Any] | None,
        every_n_steps: int,
        *,
        fraction: float,
        metric: InfluenceMetric,
        fusion: Fusion,
        constant: float,
        dimensions: int,
        keep_ratio: float,
        projection: ProjectionKind,
        parameters: str | None,
        samples_at_once: int,
        families: str | None,
    ) -> None:
        check_at_least(
            every_n_steps=(every_n_steps, 1),
            dimensions=(dimensions, 1),
            samples_at_once=(samples_at_once, 1),
        )
        for name, share in (("fraction", fraction), ("keep_ratio", keep_ratio)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} is {share}; it must lie in (0, 1]")
        check_choices(
            metric=(metric, get_args(InfluenceMetric)),
            fusion=(fusion, get_args(Fusion)),
            projection=(projection, get_args(ProjectionKind)),
        )
        if not 0 <= constant < math.inf:
            raise ValueError(f"constant is {constant}; it must be at least 0 and finite")
        self.validation: dict[str, Any] = validation or {}
        self.every_n_steps, self.fraction = every_n_steps, fraction
        self.metric: InfluenceMetric = metric
        self.projection: ProjectionKind = projection
        self.fusion, self.constant = fusion, constant
        self.dimensions, self.keep_ratio = dimensions, keep_ratio
        self.parameters, self.samples_at_once = parameters, samples_at_once
        self.families = families
        self._phases: list[Tensor] = []  # samples of each phase
        self._metrics: dict[str, float] = {}  # to be logged

    # To implement --------------------------------------------------------------------------------

    @abstractmethod
    def _target_gradients(self, gradients: Any, trainer: Trainer, module: Any) -> Iterator[Tensor]:
        """Gradients ``[M, d]`` of each validation set, in order."""

    @abstractmethod
    def _pool_gradients(self, gradients: Any, trainer: Trainer, module: Any) -> Rows:
        """Places ``[p]`` of samples and their gradients ``[p, d]``, part by part; not all."""

    def _pass_rates(self, index: Tensor) -> Tensor | None:
        """Pass rates ``[p]`` in [0, 1] of samples, if the metric needs them."""
        del index
        return None

    def _other_scores(self, data: Any) -> Tensor:
        """Scores ``[E, N]`` of other kinds whose ranks are fused with those of the influence."""
        return torch.empty(0, len(data.dataset))

    def _diagnose(
        self, gradients: Any, targets: list[Tensor], trainer: Trainer, module: Any
    ) -> dict[str, float]:
        """Metrics of the estimates, after a selection by ``targets``, each ``[d]``."""
        del gradients, targets, trainer, module
        return {}

    def _complete(self, best: Tensor, scores: Tensor, data: Any) -> Tensor:
        """The selection, given the ``best`` ``[k]`` and the scores ``[S, N]``."""
        del scores, data
        return best

    def _check(self, data: Any, module: LightningModule) -> None:
        """Raise ValueError where the module, the validation or the families cannot be used."""
        if not isinstance(module, PolicyModule):
            raise ValueError(
                f"{type(module).__name__} has no gradients of prompts: train a policy, such as "
                "lit_adaptive.modules.GRPO"
            )
        if not self.validation:
            raise ValueError("validation is empty; give at least one set, by its name")
        if self.families is not None:
            (row,) = data.dataset.texts(torch.tensor([0]))
            check_columns([*row], [self.families], data.dataset.source)

    def _make_gradients(self, module: Any, seed: int) -> Any:
        """What computes projected gradients at the present weights."""
        return PromptGradients(module.policy, **self._projection_options(seed))

    def _projection_options(self, seed: int) -> dict[str, Any]:
        return {
            "dimensions": self.dimensions,
            "keep_ratio": self.keep_ratio,
            "kind": self.projection,
            "seed": derive_seed(seed, STREAM),
            "parameters": self.parameters,
        }

    def _families(self, index: Tensor, dataset: Any) -> list[str]:
        """Family of each sample ``[k]``."""
        return [str(row[self.families]) for row in dataset.texts(index)]

    # Selection -----------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the module, the columns, the projection, and that a selection fills a step."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._check(data, pl_module)
        size = len(data.dataset)
        selected, drawn = share_count(self.fraction, size), data.batch_size * trainer.world_size
        if selected < drawn:
            raise ValueError(
                f"fraction is {self.fraction}, which is {selected} of {size} samples, but a step "
                f"draws {drawn}: raise fraction or lower data.batch_size"
            )
        self._make_gradients(pl_module, data.seed)  # raises what would else end the run later

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Begin a phase when it is time, after the first on the whole pool, and log it."""
        step = trainer.global_step
        phase = len(self._phases) + 1  # a step may have several batches
        if is_due(trainer, step, self.every_n_steps) and step >= phase * self.every_n_steps:
            self._select(trainer, pl_module)
        self._log(pl_module)

    def _select(self, trainer: Trainer, module: Any) -> None:
        """Score all samples at the present weights, and let the sampler draw the best alone."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        start = time.perf_counter()
        gradients = self._make_gradients(module, data.seed)
        targets = [
            mean_validation_gradient(rows)
            for rows in self._target_gradients(gradients, trainer, module)
        ]
        everything = torch.arange(len(data.dataset))
        scores = torch.full((len(targets), len(everything)), math.nan)
        parts = self._pool_gradients(gradients, trainer, module)
        if self.metric == "influence_function":  # needs the whole pool
            whole = [torch.cat(columns) for columns in zip(*parts, strict=True)]
            parts = iter([(whole[0], whole[1])] if whole else [])
        for index, rows in parts:
            rate = self._pass_rates(index)
            for row, target in zip(scores, targets, strict=True):
                row[index] = influence_scores(rows, target, metric=self.metric, pass_rate=rate)
        selected = self._best(scores, data)
        data.sampler.insert(selected)
        data.sampler.remove(everything[~torch.isin(everything, selected)])
        self._metrics = {
            "train/influence/score": float(scores[:, selected].nanmean()),
            "train/influence/zero_gradient": float(scores.isnan().all(0).double().mean()),
            "train/influence/seconds": time.perf_counter() - start,
        }
        if self._phases:
            overlap = torch.isin(selected, self._phases[-1]).double().mean()
            self._metrics["train/influence/overlap"] = float(overlap)
        self._phases.append(selected)
        self._metrics |= self._diagnose(gradients, targets, trainer, module)

    def _best(self, scores: Tensor, data: Any) -> Tensor:
        """The selected samples ``[k]``, ascending, from the scores ``[S, N]``."""
        if self.fusion == "max":
            fused = max_fusion(scores).double()
        else:
            ranked = torch.cat([scores, self._other_scores(data).to(scores)])
            fused = reciprocal_rank_fusion(ranked, constant=self.constant)
            fused = fused.masked_fill(scores.isnan().all(0), math.nan)
        return self._complete(select_top(fused, self.fraction), scores, data).sort().values

    def _gradients(
        self, count: int, own_rows: Callable[[Tensor], Tensor], trainer: Trainer, module: Any
    ) -> Rows:
        """Places ``[p]`` below ``count`` and the gradients ``[p, d]`` there, part by part.

        Each rank computes its share of every part by ``own_rows`` of ascending places, and has all
        of it afterwards.
        """
        step = self.samples_at_once * trainer.world_size
        with progress_bar("gradients", count) as advance:
            for first in range(0, count, step):
                places = torch.arange(first, min(first + step, count))
                own = places[equal_share(len(places), trainer).clamp(max=len(places) - 1)]
                with trainer.precision_plugin.forward_context():
                    rows = own_rows(own)
                yield places, interleave_ranks(rows, len(places), trainer, module).cpu()
                advance(len(places))

    def _log(self, pl_module: LightningModule) -> None:
        """Log the metrics of the last selection once."""
        if self._metrics:
            pl_module.log_dict(self._metrics)
            self._metrics = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the families of each phase."""
        if self.families is None or not trainer.is_global_zero or not self._phases:
            return
        dataset: Any = trainer.datamodule.dataset  # type: ignore[attr-defined]
        names = [self._families(phase, dataset) for phase in self._phases]
        path = local_run_directory(trainer) / "influence.png"
        every = self.every_n_steps
        draw_families(names, every, path, self._whole_phases * every)

    def state_dict(self) -> dict[str, Any]:
        """The phases so far."""
        return {"phases": list(self._phases), "metrics": dict(self._metrics)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume."""
        self._phases, self._metrics = list(state_dict["phases"]), dict(state_dict["metrics"])
