"""Selection of the prompts whose policy gradients serve validation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks._influence import STREAM, Fusion, InfluenceSelection, Rows
from callbacks._run_files import run_directory
from callbacks._training_length import is_due
from lit_adaptive.core.bounds import check_at_least, check_choices
from lit_adaptive.core.difficulty import adaptive_difficulty
from lit_adaptive.core.influence import (
    InfluenceMetric,
    InfluenceRatio,
    influence_scores,
    off_policy_coefficients,
    selection_overlap,
)
from lit_adaptive.core.projection import ProjectionKind
from lit_adaptive.core.shares import share_count
from lit_adaptive.core.systematic import uniform_sample
from lit_adaptive.data import PromptDataset
from lit_adaptive.data.rollouts.minibatches import MicroBatch, MicroBatchBuilder
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.modules.language.gradients import PromptGradients
from lit_adaptive.progress import count_down
from lit_adaptive.replay.rollouts.groups import RolloutGroups, ragged_positions
from lit_adaptive.replay.trajectories import TrajectoryBuffer, TrajectoryStore

_TOP = 0.1  # share of the probes whose agreement is logged


class InfluenceRefresh(InfluenceSelection):
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
    gradient) and ``seconds``. With ``probes``, also what the age of the rollouts costs:
    ``agreement`` (mean cosine of the gradients of the probes from stored and from new rollouts),
    ``top_overlap`` (share of the tenth of the probes with the best scores by stored rollouts that
    is also in the best tenth by new ones) and ``split_half_overlap`` (the same for two halves of
    the new rollouts: what the noise of so few rollouts leaves).

    Needs: ``data.trajectories`` and ``data.roll_out`` (``RolloutDataModule``),
        ``data.finished_step`` and ``data.sampler``.
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
        probes: prompts that are rolled out anew after each selection, to compare the gradients of
            the stored rollouts with present ones; their tokens are counted and they are not trained
            on. At least 0.
        metric: see ``core.influence.influence_scores``; ``influence_function``, which holds the
            gradients of all prompts, finds more of the right ones than the paper's ``cosine``.
        ratio: see ``core.influence.off_policy_coefficients``.
        fusion: of several validation sets, ``reciprocal_rank`` or ``max``.
        constant: of ``reciprocal_rank_fusion``; 0 in the paper's code.
        fuse_with: other ranks that ``reciprocal_rank`` fuses with those of the influence:
            ``difficulty``, by the probability with which a ``DifficultySampler`` would draw each
            prompt of the whole pool; ``replay``, by the probability with which the replay would
            draw the prompt's likeliest group, prompts without a group being last.
        dimensions: of the projected gradients, above 0; 32,768 in the paper.
        keep_ratio: share of the coordinates that are projected, in (0, 1].
        projection: see ``core.projection.SparseProjection``.
        parameters: regular expression of the names of the parameters whose gradients count; by
            default all that are trained.
        samples_at_once: prompts of a pass through the model, above 0.
        folder: where trajectories are kept, in ``train`` and ``validation-NAME``, which
            ``lit-adaptive collect`` may have written before; by default in the run's directory.
        families: column of the dataset whose shares in each phase the picture shows.

    Raises:
        ValueError: naming the argument that is out of its range; before training, if ``fraction``
            selects fewer prompts than a step draws, the dataset has no column ``families`` or
            ``fuse_with`` names what there is not; in training, if no prompt has a
            gradient.
    """

    needs = frozenset({"data.trajectories", "data.roll_out", "data.finished_step", "data.sampler"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "data.trajectories": "use lit_adaptive.data.RolloutDataModule",
        "data.roll_out": "use lit_adaptive.data.RolloutDataModule",
    }

    _whole_phases = 0

    def __init__(
        self,
        validation: dict[str, PromptDataset] | None = None,
        every_n_steps: int = 50,
        *,
        fraction: float = 0.1,
        validation_samples: int = 32,
        retried: float = 0.1,
        probes: int = 0,
        metric: InfluenceMetric = "cosine",
        ratio: InfluenceRatio = "token",
        fusion: Fusion = "reciprocal_rank",
        constant: float = 0.0,
        fuse_with: list[Literal["difficulty", "replay"]] | None = None,
        dimensions: int = 32768,
        keep_ratio: float = 0.15,
        projection: ProjectionKind = "count_sketch",
        parameters: str | None = None,
        samples_at_once: int = 64,
        folder: str | None = None,
        families: str | None = None,
    ) -> None:
        super().__init__(
            validation,
            every_n_steps,
            fraction=fraction,
            metric=metric,
            fusion=fusion,
            constant=constant,
            dimensions=dimensions,
            keep_ratio=keep_ratio,
            projection=projection,
            parameters=parameters,
            samples_at_once=samples_at_once,
            families=families,
        )
        check_at_least(validation_samples=(validation_samples, 2), probes=(probes, 0))
        check_choices(ratio=(ratio, get_args(InfluenceRatio)))
        if not 0 <= retried < 1:
            raise ValueError(f"retried is {retried}; it must lie in [0, 1)")
        self.validation_samples, self.retried = validation_samples, retried
        self.fuse_with, self.probes = fuse_with or [], probes
        for name in self.fuse_with:
            check_choices(fuse_with=(name, ("difficulty", "replay")))
        if self.fuse_with and fusion != "reciprocal_rank":
            raise ValueError(
                f"fuse_with is {self.fuse_with}, but fusion is {fusion!r}, which compares scores "
                "of one kind: set fusion to reciprocal_rank"
            )
        self.ratio: InfluenceRatio = ratio
        self.folder = folder
        self.buffer = TrajectoryBuffer()
        self._targets: dict[str, RolloutGroups] = {}  # rollouts of each validation set
        self._root: Path | None = None  # folder of the rollouts of the start

    # Hooks ---------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the module, the columns and the fraction; name prompts of both sets."""
        super().on_fit_start(trainer, pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if "replay" in self.fuse_with and data.replay is None:
            raise ValueError(
                "fuse_with names replay, but there is none: set data.replay to "
                "lit_adaptive.replay.RolloutBuffer"
            )
        if "difficulty" in self.fuse_with and not hasattr(data.sampler, "set_prediction"):
            kind = type(data.sampler).__name__
            raise ValueError(
                f"fuse_with names difficulty, of which {kind} has no estimate: set data."
                "sampler to lit_adaptive.samplers.DifficultySampler"
            )
        overlap = {*data.dataset.ids} & {
            one for dataset in self.validation.values() for one in dataset.ids
        }
        if overlap:
            rank_zero_info(
                f"{len(overlap)} validation prompts are also trained on, by their ids: "
                f"{sorted(map(str, overlap))[:5]}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Select at once in a resumed run whose prompts changed."""
        rows: Tensor | None = trainer.datamodule.checkpoint_rows  # type: ignore[attr-defined]
        if rows is None or not self._targets:
            return
        self.buffer.renumber(rows)
        self._phases = [
            (torch.isin(rows, phase) & (rows >= 0)).nonzero().flatten() for phase in self._phases
        ]
        self._select(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Roll out all prompts and make the first selection, after all warm-ups."""
        if self._targets:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        root = Path(self.folder) if self.folder else run_directory(trainer) / "trajectories"
        self._collect(data, root / "train", None, data.group_size)
        for name, dataset in self.validation.items():
            self._collect(data, root / f"validation-{name}", dataset, self.validation_samples)
        self._read(root)
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
        self._log(pl_module)

    # Trajectories --------------------------------------------------------------------------------

    def _collect(
        self, data: Any, folder: Path, dataset: PromptDataset | None, samples: int
    ) -> None:
        """Roll out the prompts of a dataset that the folder lacks."""
        remaining = data.collect_trajectories(str(folder), dataset=dataset, samples=samples)
        count_down(remaining, f"{samples} rollouts of each prompt")
        rank_zero_info(f"trajectories, {samples} of each prompt: {folder}")

    def _read(self, root: Path) -> None:
        """Read the rollouts of the start."""
        self._root = root.absolute()
        self.buffer.update(TrajectoryStore(root / "train", {}).read(), stored=True)
        for name in self.validation:
            self._targets[name] = TrajectoryStore(root / f"validation-{name}", {}).read()

    # Selection -----------------------------------------------------------------------------------

    def _target_gradients(
        self, gradients: PromptGradients, trainer: Trainer, module: Any
    ) -> Iterator[Tensor]:
        for groups in self._targets.values():
            parts = self._group_gradients(gradients, groups, trainer, module)
            yield torch.cat([rows for _, rows in parts])

    def _pool_gradients(self, gradients: PromptGradients, trainer: Trainer, module: Any) -> Rows:
        known = self.buffer.select(self.buffer.informative)
        for places, rows in self._group_gradients(gradients, known, trainer, module):
            yield known.prompt[places], rows

    def _pass_rates(self, index: Tensor) -> Tensor | None:
        """Mean rewards of the newest rollouts of prompts."""
        if self.metric != "learnable_cosine":
            return None
        groups = self.buffer.select(index)
        return 1 - adaptive_difficulty(groups.reward, groups.group, len(groups))

    def _other_scores(self, data: Any) -> Tensor:
        """Probabilities of the whole pool under the sampler and the replay, as ``fuse_with``."""
        everything = torch.arange(len(data.dataset))
        rows: list[Tensor] = []
        if "difficulty" in self.fuse_with:
            data.sampler.insert(everything)
            rows.append(data.sampler.probabilities())
        if "replay" in self.fuse_with:
            groups, (_, probability) = data.replay.groups(), data.replay.probabilities()
            row = torch.zeros(len(everything), dtype=torch.float64)
            rows.append(row.scatter_reduce_(0, groups.prompt, probability, "amax"))
        return torch.stack(rows) if rows else super()._other_scores(data)

    def _complete(self, best: Tensor, scores: Tensor, data: Any) -> Tensor:
        """Replace some of the ``best`` by random prompts without gradient."""
        size = scores.shape[1]
        if not len(best):
            raise ValueError(
                f"none of the {size} prompts has a gradient, because the rewards of each are all "
                "equal: warm the policy up (callbacks.SupervisedWarmup), or raise data.group_size"
            )
        count = share_count(self.fraction, size)
        unknown = scores.isnan().all(0).nonzero().flatten()
        # Fewer than `count` have a gradient: the others of the selection are drawn at random too.
        retried = max(share_count(self.retried, count, rounding=round), count - len(best))
        retried = min(retried, len(unknown))
        seed = derive_seed(data.seed, STREAM, data.next_version)
        chosen = uniform_sample(len(unknown), retried, torch.Generator().manual_seed(seed))
        return torch.cat([best[: count - retried], unknown[chosen]])

    def _diagnose(
        self, gradients: PromptGradients, targets: list[Tensor], trainer: Trainer, module: Any
    ) -> dict[str, float]:
        """Compare the gradients of some prompts with those of new rollouts."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        known = self.buffer.informative
        seed = derive_seed(data.seed, STREAM, data.next_version, 1)
        count = min(self.probes, len(known))
        if not count:
            return {}
        index = known[uniform_sample(len(known), count, torch.Generator().manual_seed(seed))]
        groups, _ = data.roll_out(index, train=False)
        rank = torch.arange(groups.rollouts) - (groups.size.cumsum(0) - groups.size)[groups.group]

        def rows(of: RolloutGroups, kept: Tensor | None = None) -> Tensor:
            parts = self._group_gradients(gradients, of, trainer, module, kept)
            return torch.cat([part for _, part in parts])

        stored, present = rows(self.buffer.select(index)), rows(groups)
        halves = [rows(groups, rank % 2 == half) for half in (0, 1)]
        alike = torch.nn.functional.cosine_similarity(stored, present)

        def overlap(first: Tensor, second: Tensor) -> float:
            overlaps = [
                selection_overlap(influence_scores(first, to), influence_scores(second, to), _TOP)
                for to in targets
            ]
            return sum(overlaps) / len(overlaps)

        return {
            "train/influence/agreement": float(alike[present.ne(0).any(1)].mean()),
            "train/influence/top_overlap": overlap(stored, present),
            "train/influence/split_half_overlap": overlap(*halves),
        }

    def _group_gradients(
        self,
        gradients: PromptGradients,
        groups: RolloutGroups,
        trainer: Trainer,
        module: Any,
        kept: Tensor | None = None,
    ) -> Rows:
        """Places of groups ``[p]`` and their projected gradients ``[p, d]``, part by part.

        ``kept`` ``[N]`` bool: the rollouts that count; by default all.
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

        def own_rows(own: Tensor) -> Tensor:
            rollouts = ragged_positions(groups.size, own)
            rollouts = rollouts if kept is None else rollouts[kept[rollouts]]
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
                    len(own),
                    ratio=self.ratio,
                )

            temperature = data.sampling.temperature
            return gradients(batch, coefficients, sample, len(own), temperature=temperature)

        return self._gradients(len(groups), own_rows, trainer, module)

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The phases, the run's own rollouts, and where those of the start are."""
        return super().state_dict() | {
            "buffer": self.buffer.state_dict(),
            "root": None if self._root is None else str(self._root),
            "validation": [*self.validation],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume; the rollouts of the start are read from the run's folder, or from ``folder``.

        Raises:
            ValueError: if the checkpoint has other validation sets, or the folder is gone.
        """
        if state_dict["root"] is None:
            return
        if {*state_dict["validation"]} != {*self.validation}:
            raise ValueError(
                f"validation is {[*self.validation]}, but the checkpoint's sets are "
                f"{state_dict['validation']}: resume with the sets that were saved"
            )
        roots = [Path(root) for root in (state_dict["root"], self.folder) if root is not None]
        found = [root for root in roots if (root / "train").is_dir()]
        if not found:
            raise ValueError(
                f"the rollouts of the run's start were in {roots[0]}, which is not there: put them "
                "back, or set folder to where they are"
            )
        super().load_state_dict(state_dict)
        self._read(found[0])
        self.buffer.load_state_dict(state_dict["buffer"])
