"""Selection of the demonstrations whose gradients serve validation."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from callbacks._influence import Fusion, InfluenceSelection, Rows
from lit_adaptive.core.influence import InfluenceMetric
from lit_adaptive.core.projection import ProjectionKind
from lit_adaptive.core.segments import segment_count
from lit_adaptive.data import DemonstrationDataset
from lit_adaptive.modules.language.gradients import PromptGradients


class DemonstrationInfluence(InfluenceSelection):
    """Trains on the demonstrations whose gradients point where validation needs them.

    LESS (Xia et al., 2024, arXiv:2402.04333). The first phase of ``every_n_steps`` steps trains on
    the whole pool. At the start of each later one, the gradient of every sample's mean
    log-likelihood at the present weights is compared with the mean gradient of each validation set;
    the scores of the sets are fused, and only the best ``fraction`` of the pool is drawn until the
    next phase, by whatever sampler the run has.

    Where this departs from the paper:
      1. Scores are computed again at each phase, at the weights of that moment. LESS selects once,
         by a sum over checkpoints of a warm-up.
      2. The gradient of a training sample is that of its loss; LESS takes Adam's update for it.
      3. Coordinates are subsampled and sketched (``core.projection``).

    Logs ``train/influence/*`` after each selection, as ``InfluenceRefresh``.

    Needs: ``data.set_reference`` (``DemonstrationsDataModule``) and ``data.sampler``.
    Changes: which samples the sampler can draw. Writes ``influence.png`` at the end if ``families``
        is given.

    Args:
        validation: validation sets by name, at least one.
        every_n_steps: steps of a phase, above 0.
        fraction: share of the pool that a phase trains on, in (0, 1]; 0.05 in the paper.
        metric: ``cosine`` or ``inner_product``; see ``core.influence.influence_scores``.
        fusion: of several validation sets, ``reciprocal_rank`` or ``max`` (the paper's).
        constant: of ``reciprocal_rank_fusion``.
        dimensions: of the projected gradients, above 0; 8,192 in the paper.
        keep_ratio: share of the coordinates that are projected, in (0, 1].
        projection: see ``core.projection.SparseProjection``.
        parameters: regular expression of the names of the parameters whose gradients count; by
            default all that are trained.
        samples_at_once: samples of a pass through the model, above 0.
        families: column of the source whose shares in each phase the picture shows.

    Raises:
        ValueError: naming the argument that is out of its range; before training, if ``fraction``
            selects fewer samples than a step draws, or the dataset has no column ``families``.
    """

    needs = frozenset({"data.set_reference", "data.sampler"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "data.set_reference": "use lit_adaptive.data.DemonstrationsDataModule",
    }

    def __init__(
        self,
        validation: dict[str, DemonstrationDataset] | None = None,
        every_n_steps: int = 50,
        *,
        fraction: float = 0.05,
        metric: InfluenceMetric = "cosine",
        fusion: Fusion = "max",
        constant: float = 0.0,
        dimensions: int = 8192,
        keep_ratio: float = 0.15,
        projection: ProjectionKind = "count_sketch",
        parameters: str | None = None,
        samples_at_once: int = 256,
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
        if metric == "learnable_cosine":
            raise ValueError(
                "metric is 'learnable_cosine', but demonstrations have no pass rate: choose cosine "
                "or inner_product"
            )

    def _target_gradients(
        self, gradients: PromptGradients, trainer: Trainer, module: Any
    ) -> Iterator[Tensor]:
        for dataset in self.validation.values():
            parts = self._sample_gradients(gradients, dataset, trainer, module)
            yield torch.cat([rows for _, rows in parts])

    def _pool_gradients(self, gradients: PromptGradients, trainer: Trainer, module: Any) -> Rows:
        dataset: Any = trainer.datamodule.dataset  # type: ignore[attr-defined]
        return self._sample_gradients(gradients, dataset, trainer, module)

    def _sample_gradients(
        self, gradients: PromptGradients, dataset: Any, trainer: Trainer, module: Any
    ) -> Rows:
        """Places of samples ``[p]`` and their projected gradients ``[p, d]``, part by part."""

        def own_rows(own: Tensor) -> Tensor:
            batch: dict[str, Any] = trainer.strategy.batch_to_device(dataset.gather(own))
            sequence = batch["sequence"]
            weight = 1 / segment_count(sequence, len(own)).float()
            sample = torch.arange(len(own), device=sequence.device)
            return gradients(batch, lambda _: weight[sequence], sample, len(own))

        return self._gradients(len(dataset), own_rows, trainer, module)
