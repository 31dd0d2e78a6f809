"""Selection of the samples whose gradients serve the validation set of a classifier."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._influence import InfluenceSelection, Rows
from callbacks._ranks import gather_over_ranks
from lit_adaptive.core.influence import InfluenceMetric
from lit_adaptive.core.projection import ProjectionKind
from lit_adaptive.modules import Classifier, SampleGradients
from lit_adaptive.progress import progress_bar


class ClassifierInfluence(InfluenceSelection):
    """Trains a classifier on the samples whose gradients point where validation needs them.

    As ``DemonstrationInfluence`` (LESS, Xia et al., 2024, arXiv:2402.04333), for any network and
    the datamodule's own validation set: after a first phase of ``every_n_steps`` steps on the whole
    pool, the gradient of every sample's cross-entropy is compared with the mean gradient of each
    class's validation samples, its largest score counts, and only the best ``fraction`` of the pool
    is drawn until the next phase. Samples with a wrong label point away from all classes. As the
    validation set has a part in training, only the test set measures the result.

    Where this departs from the paper: as ``DemonstrationInfluence``, and a class is a subtask.

    Logs ``train/influence/*`` after each selection, as ``InfluenceRefresh``.

    Needs: ``data.scoring_dataloader`` (``AdaptiveDataModule``), ``data.sampler`` and
        ``model.per_sample_loss``.
    Changes: which samples the sampler can draw. Writes ``influence.png`` at the end if the dataset
        has ``targets``: the classes of each phase.

    Args:
        every_n_steps: steps of a phase, above 0.
        fraction: share of the pool that a phase trains on, in (0, 1].
        metric: ``cosine``, ``inner_product`` or ``influence_function``; see
            ``core.influence.influence_scores``.
        dimensions: of the projected gradients, above 0 and at most the number of parameters that
            are projected.
        keep_ratio: share of the coordinates that are projected, in (0, 1].
        projection: see ``core.projection.SparseProjection``.
        parameters: regular expression of the names of the network's parameters whose gradients
            count; by default all that are trained.
        samples_at_once: samples whose gradients are held in full, above 0.

    Raises:
        ValueError: naming the argument that is out of its range; before training, if ``fraction``
            selects fewer samples than a step draws, there is no validation set, or the module is
            not a ``Classifier``.
    """

    needs = frozenset({"data.scoring_dataloader", "data.sampler", "model.per_sample_loss"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "data.scoring_dataloader": "use lit_adaptive.data.AdaptiveDataModule",
        "model.per_sample_loss": "train a lit_adaptive.modules.Classifier",
    }

    def __init__(
        self,
        every_n_steps: int = 100,
        *,
        fraction: float = 0.5,
        metric: InfluenceMetric = "cosine",
        dimensions: int = 2048,
        keep_ratio: float = 1.0,
        projection: ProjectionKind = "count_sketch",
        parameters: str | None = None,
        samples_at_once: int = 64,
    ) -> None:
        super().__init__(
            None,
            every_n_steps,
            fraction=fraction,
            metric=metric,
            fusion="max",
            constant=0.0,
            dimensions=dimensions,
            keep_ratio=keep_ratio,
            projection=projection,
            parameters=parameters,
            samples_at_once=samples_at_once,
            families=None,
        )
        if metric == "learnable_cosine":
            raise ValueError(
                "metric is 'learnable_cosine', but samples have no pass rate: choose cosine, "
                "inner_product or influence_function"
            )

    def _check(self, data: Any, module: LightningModule) -> None:
        if not isinstance(module, Classifier):
            raise ValueError(
                f"{type(module).__name__} has no gradients of samples: train a "
                "lit_adaptive.modules.Classifier"
            )
        if data.val_dataset is None:
            raise ValueError("there is no val_dataset whose gradients could choose: set one")
        self.families = "class" if hasattr(data.dataset, "targets") else None

    def _make_gradients(self, module: Any, seed: int) -> SampleGradients:
        options = self._projection_options(seed)
        return SampleGradients(module, samples_at_once=self.samples_at_once, **options)

    def _target_gradients(
        self, gradients: SampleGradients, trainer: Trainer, module: Any
    ) -> Iterator[Tensor]:
        """Gradients ``[M, d]`` of the validation samples of each class that there is."""
        loader: Any = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        parts = [*self._batch_gradients(loader, gradients, trainer, module)]
        rows, targets = (torch.cat([part[name] for part in parts]) for name in ("rows", "target"))
        for target in torch.unique(targets):
            yield rows[targets == target]

    def _pool_gradients(self, gradients: SampleGradients, trainer: Trainer, module: Any) -> Rows:
        loader: Any = trainer.datamodule.scoring_dataloader()  # type: ignore[attr-defined]
        for part in self._batch_gradients(loader, gradients, trainer, module):
            yield part["index"], part["rows"]

    def _batch_gradients(
        self, loader: Any, gradients: SampleGradients, trainer: Trainer, module: Any
    ) -> Iterator[dict[str, Tensor]]:
        """``index`` ``[p]``, ``target`` ``[p]`` and gradients ``rows`` ``[p, d]``, part by part."""
        with progress_bar("gradients", len(loader)) as advance:
            for cpu_batch in loader:
                batch: dict[str, Any] = trainer.strategy.batch_to_device(cpu_batch)
                with trainer.precision_plugin.forward_context():
                    rows = gradients(batch)
                own = {name: batch[name] for name in ("index", "target", "counted")}
                every = gather_over_ranks(own | {"rows": rows}, trainer, module)
                counted = every.pop("counted").bool()
                yield {name: values[counted].cpu() for name, values in every.items()}
                advance(1)

    def _families(self, index: Tensor, dataset: Any) -> list[str]:
        names = getattr(dataset, "classes", None)
        targets = torch.as_tensor(dataset.targets)[index].tolist()
        return [str(target) if names is None else str(names[target]) for target in targets]
