"""Selection of the prompts whose gradients serve validation."""

import math
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks._ranks import equal_share, interleave_ranks
from callbacks._run_files import local_run_directory, run_directory
from callbacks._training_length import is_due
from lit_adaptive.core.bounds import check_at_least, check_choices
from lit_adaptive.core.difficulty import adaptive_difficulty
from lit_adaptive.core.influence import (
    InfluenceMetric,
    InfluenceRatio,
    influence_scores,
    max_fusion,
    mean_validation_gradient,
    off_policy_coefficients,
    reciprocal_rank_fusion,
    select_top,
)
from lit_adaptive.core.projection import ProjectionKind
from lit_adaptive.core.shares import share_count
from lit_adaptive.core.systematic import uniform_sample
from lit_adaptive.data import PromptDataset
from lit_adaptive.data.rollouts.minibatches import MicroBatch, MicroBatchBuilder
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.data.sources.columns import check_columns
from lit_adaptive.modules import PolicyModule
from lit_adaptive.modules.language.gradients import PromptGradients
from lit_adaptive.replay.rollouts.groups import RolloutGroups, ragged_positions
from lit_adaptive.replay.trajectories import TrajectoryBuffer, TrajectoryStore
from lit_adaptive.report.influence import draw_families

_STREAM = 0x1F1  # of the datamodule's seed

Fusion = Literal["reciprocal_rank", "max"]


class InfluenceRefresh(Callback):
    """Trains on the prompts whose policy gradients point where validation needs them.

    CROPI (arXiv:2510.26491). When training starts, all prompts and those of each validation set are
    rolled out once. At the start of each phase of ``every_n_steps`` steps their gradients at the
    present weights are estimated from these rollouts; prompts are scored by the cosine with the
    mean gradient of each validation set, the scores of the sets are fused, and only the best
    ``fraction`` of the pool is drawn until the next phase, by whatever sampler the run has. The
    optimizer goes on through the phases.

    Where this departs from the paper:
      1. The run's own rollouts replace those of the start (``TrajectoryBuffer``), so that the
         behavior policy is not far from the present one, and prompts whose first rewards were all
         equal, which have no gradient, come back once they differ; ``retried`` draws such prompts.

    Logs ``train/influence/*`` after each selection: ``score`` (mean of the selected), ``overlap``
    (share of them that the phase before had), ``zero_gradient`` (share of the pool without
    gradient) and ``seconds``.

    Needs: ``data.trajectories`` (``RolloutDataModule``), ``data.finished_step`` and
        ``data.sampler``.
    Changes: which prompts the sampler can draw. Writes the trajectories, and ``influence.png`` at
        the end if ``families`` is given.

    Args:
        validation: validation sets by name, at least one; each with the columns of the datamodule's
            dataset.
        every_n_steps: steps of a phase, above 0.
        fraction: share of the pool that a phase trains on, in (0, 1]; 0.1 in the paper.
        validation_samples: rollouts of each validation prompt, at least 2; 32 in the paper.
        retried: share of the selection that is drawn at random from the prompts without gradient,
            in [0, 1).
        metric: see ``core.influence.influence_scores``.
        ratio: see ``core.influence.off_policy_coefficients``.
        fusion: of several validation sets, ``reciprocal_rank`` or ``max``.
        constant: of ``reciprocal_rank_fusion``; 0 in the paper's code.
        dimensions: of the projected gradients, above 0; 32,768 in the paper.
        keep_ratio: share of the coordinates that are projected, in (0, 1].
        projection: see ``core.projection.SparseProjection``.
        parameters: regular expression of the names of the parameters whose gradients count; by
            default all that are trained.
        prompts_at_once: prompts of a pass through the model, above 0.
        folder: where trajectories are kept, in ``train`` and ``validation-NAME``, which
            ``lit-adaptive collect`` may have written before; by default in the run's directory.
        families: column of the dataset whose shares in each phase the picture shows.

    Raises:
        ValueError: naming the argument that is out of its range; before training, if ``fraction``
            selects fewer prompts than a step draws, or the dataset has no column ``families``; in
            training, if no prompt has a gradient.
    """

    needs = frozenset({"data.trajectories", "data.finished_step", "data.sampler"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "data.trajectories": "use lit_adaptive.data.RolloutDataModule",
    }

    def __init__(
        self,
        validation: dict[str, PromptDataset] | None = None,
        every_n_steps: int = 50,
        *,
        fraction: float = 0.1,
        validation_samples: int = 32,
        retried: float = 0.1,
        metric: InfluenceMetric = "cosine",
        ratio: InfluenceRatio = "token",
        fusion: Fusion = "reciprocal_rank",
        constant: float = 0.0,
        dimensions: int = 32768,
        keep_ratio: float = 0.15,
        projection: ProjectionKind = "count_sketch",
        parameters: str | None = None,
        prompts_at_once: int = 64,
        folder: str | None = None,
        families: str | None = None,
    ) -> None:
        check_at_least(
            every_n_steps=(every_n_steps, 1),
            validation_samples=(validation_samples, 2),
            dimensions=(dimensions, 1),
            prompts_at_once=(prompts_at_once, 1),
        )
        for name, share in (("fraction", fraction), ("keep_ratio", keep_ratio)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} is {share}; it must lie in (0, 1]")
        if not 0 <= retried < 1:
            raise ValueError(f"retried is {retried}; it must lie in [0, 1)")
        check_choices(
            metric=(metric, get_args(InfluenceMetric)),
            ratio=(ratio, get_args(InfluenceRatio)),
            fusion=(fusion, get_args(Fusion)),
            projection=(projection, get_args(ProjectionKind)),
        )
        if not 0 <= constant < math.inf:
            raise ValueError(f"constant is {constant}; it must be at least 0 and finite")
        self.validation = validation or {}
        self.every_n_steps, self.fraction = every_n_steps, fraction
        self.validation_samples, self.retried = validation_samples, retried
        self.metric: InfluenceMetric = metric
        self.ratio: InfluenceRatio = ratio
        self.projection: ProjectionKind = projection
        self.fusion, self.constant = fusion, constant
        self.dimensions, self.keep_ratio = dimensions, keep_ratio
        self.parameters, self.prompts_at_once = parameters, prompts_at_once
        self.folder, self.families = folder, families
        self.buffer = TrajectoryBuffer()
        self._targets: dict[str, RolloutGroups] = {}  # rollouts of each validation set
        self._phases: list[Tensor] = []  # prompts of each phase
        self._metrics: dict[str, float] = {}  # to be logged

    # Hooks ---------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the module and the columns, and that a selection is enough for a step."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, PolicyModule):
            raise ValueError(
                f"{type(pl_module).__name__} has no gradients of prompts: train a policy, such as "
                "lit_adaptive.modules.GRPO"
            )
        if not self.validation:
            raise ValueError("validation is empty; give at least one set of prompts, by its name")
        if self.families is not None:
            (row,) = data.dataset.texts(torch.tensor([0]))
            check_columns([*row], [self.families], data.dataset.source)
        size = len(data.dataset)
        selected, drawn = share_count(self.fraction, size), data.batch_size * trainer.world_size
        if selected < drawn:
            raise ValueError(
                f"fraction is {self.fraction}, which is {selected} of {size} prompts, but a step "
                f"draws {drawn}: raise fraction or lower data.batch_size"
            )
        overlap = {*data.dataset.ids} & {
            one for dataset in self.validation.values() for one in dataset.ids
        }
        if overlap:
            rank_zero_info(
                f"{len(overlap)} validation prompts are also trained on, by their ids: "
                f"{sorted(map(str, overlap))[:5]}"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Roll out all prompts and make the first selection, after all warm-ups."""
        if self._targets:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        root = Path(self.folder) if self.folder else run_directory(trainer) / "trajectories"
        self.buffer.update(self._collected(data, root / "train", None, data.group_size))
        for name, dataset in self.validation.items():
            self._targets[name] = self._collected(
                data, root / f"validation-{name}", dataset, self.validation_samples
            )
        self._select(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Take the rollouts of a finished step, and begin a phase when it is time."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        step = data.finished_step
        if step is None:
            return
        self.buffer.update(step.fresh)
        if is_due(trainer, data.next_version, self.every_n_steps):
            self._select(trainer, pl_module)
        if self._metrics:
            pl_module.log_dict(self._metrics)
            self._metrics = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the families of each phase."""
        if self.families is None or not trainer.is_global_zero or not self._phases:
            return
        dataset: Any = trainer.datamodule.dataset  # type: ignore[attr-defined]
        names = [
            [str(row[self.families]) for row in dataset.texts(phase)] for phase in self._phases
        ]
        draw_families(names, self.every_n_steps, local_run_directory(trainer) / "influence.png")

    # Selection -----------------------------------------------------------------------------------

    def _collected(
        self, data: Any, folder: Path, dataset: PromptDataset | None, samples: int
    ) -> RolloutGroups:
        """Rollouts of all prompts of a dataset, of which those in the folder are not made again."""
        remaining = data.collect_trajectories(str(folder), dataset=dataset, samples=samples)
        total = next(remaining)
        rank_zero_info(f"{total} prompts are rolled out {samples} times each, to {folder}")
        deque(remaining, maxlen=0)
        return TrajectoryStore(folder, {}).read()

    def _select(self, trainer: Trainer, module: Any) -> None:
        """Score all prompts at the present weights, and let the sampler draw the best alone."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        start = time.perf_counter()
        gradients = PromptGradients(
            module.policy,
            dimensions=self.dimensions,
            keep_ratio=self.keep_ratio,
            kind=self.projection,
            seed=derive_seed(data.seed, _STREAM),
            parameters=self.parameters,
        )
        targets = torch.stack(
            [
                mean_validation_gradient(
                    torch.cat(
                        [rows for _, rows in self._gradients(gradients, groups, trainer, module)]
                    )
                )
                for groups in self._targets.values()
            ]
        )
        everything = torch.arange(len(data.dataset))
        scores = torch.full((len(targets), len(everything)), math.nan)
        known = self.buffer.select(self.buffer.informative)
        rate = self._pass_rates(known)
        for index, rows in self._gradients(gradients, known, trainer, module):
            for row, target in zip(scores, targets, strict=True):
                row[known.prompt[index]] = influence_scores(
                    rows,
                    target,
                    metric=self.metric,
                    pass_rate=None if rate is None else rate[index],
                )
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

    def _pass_rates(self, groups: RolloutGroups) -> Tensor | None:
        """Mean reward of each group ``[P]``, if the metric needs it."""
        if self.metric != "learnable_cosine":
            return None
        return 1 - adaptive_difficulty(groups.reward, groups.group, len(groups))

    def _best(self, scores: Tensor, data: Any) -> Tensor:
        """The selected prompts ``[k]``, from the scores ``[S, N]`` by validation set."""
        size = scores.shape[1]
        count = share_count(self.fraction, size)
        if self.fusion == "max":
            fused = max_fusion(scores).double()
        else:
            fused = reciprocal_rank_fusion(scores, constant=self.constant)
        best = select_top(fused, self.fraction)
        if not len(best):
            raise ValueError(
                f"none of the {size} prompts has a gradient, because the rewards of each are all "
                "equal: warm the policy up (callbacks.SupervisedWarmup), or raise data.group_size"
            )
        unknown = fused.isnan().nonzero().flatten()
        # Fewer than `count` have a gradient: the others of the selection are drawn at random too.
        retried = max(share_count(self.retried, count, rounding=round), count - len(best))
        retried = min(retried, len(unknown))
        generator = torch.Generator().manual_seed(
            derive_seed(data.seed, _STREAM, data.next_version)
        )
        chosen = unknown[uniform_sample(len(unknown), retried, generator)] if retried else unknown
        chosen = chosen[:retried]
        return torch.cat([best[: count - retried], chosen]).sort().values

    def _gradients(
        self, gradients: PromptGradients, groups: RolloutGroups, trainer: Trainer, module: Any
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Places of groups ``[p]`` and their projected gradients ``[p, d]``, part by part.

        Each rank computes its share of every part, and has all of it afterwards.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        builder = MicroBatchBuilder(
            groups,
            torch.ones(groups.rollouts, dtype=torch.bool),
            data.next_version,
            pad=data.tokenizer.pad_token_id,
            attention_cost_ratio=gradients.language.attention_cost_ratio,
            token_values={},
        )
        for places in torch.split(
            torch.arange(len(groups)), self.prompts_at_once * trainer.world_size
        ):
            own = places[equal_share(len(places), trainer).clamp(max=len(places) - 1)]
            rows = self._own_gradients(gradients, builder, own, trainer)
            yield places, interleave_ranks(rows, len(places), trainer, module).cpu()

    def _own_gradients(
        self, gradients: PromptGradients, builder: MicroBatchBuilder, own: Tensor, trainer: Trainer
    ) -> Tensor:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        count = len(own)
        rollouts = ragged_positions(builder.groups.size, own)
        cpu_batch = builder.build(MicroBatch(rollouts, 1.0, 1.0))
        batch: dict[str, Any] = trainer.strategy.batch_to_device(cpu_batch)
        sample = torch.searchsorted(own.to(batch["group"].device), batch["group"])

        def coefficients(log_prob: Tensor) -> Tensor:
            return off_policy_coefficients(
                log_prob,
                batch["behavior_log_probs"],
                batch["sequence"],
                batch["reward"],
                sample,
                count,
                ratio=self.ratio,
            )

        with trainer.precision_plugin.forward_context():
            return gradients(
                batch, coefficients, sample, count, temperature=data.sampling.temperature
            )

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Rollouts of the prompts and validation sets, and the phases so far."""
        return {
            "buffer": self.buffer.state_dict(),
            "targets": {name: groups.state_dict() for name, groups in self._targets.items()},
            "phases": list(self._phases),
            "metrics": dict(self._metrics),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume.

        Raises:
            ValueError: if the checkpoint has other validation sets.
        """
        saved = state_dict["targets"]
        if saved and {*saved} != {*self.validation}:
            raise ValueError(
                f"validation is {[*self.validation]}, but the checkpoint's sets are {[*saved]}: "
                "resume with the sets that were saved"
            )
        self.buffer.load_state_dict(state_dict["buffer"])
        self._targets = {name: RolloutGroups.from_state_dict(part) for name, part in saved.items()}
        self._phases, self._metrics = list(state_dict["phases"]), dict(state_dict["metrics"])
