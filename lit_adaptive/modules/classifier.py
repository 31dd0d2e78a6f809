"""Classification with any network, as a LightningModule that returns a loss per sample."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassRecall,
)

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.hard_examples import focal_loss
from lit_adaptive.modules.base import EvaluatedModule
from lit_adaptive.modules.optimization import OptimizerFactory, SchedulerFactory, scheduled


class Classifier(EvaluatedModule):
    """Minimizes a weighted cross-entropy; the signal is each sample's cross-entropy.

    Logs ``train/loss`` (weighted) and ``train/accuracy``; on validation and test sets ``loss``,
    ``accuracy``, ``macro_f1``, ``ece`` (expected calibration error, 15 bins) and ``recall_C`` of
    each class C, over all ranks; C is the class's name if the dataset has ``classes``.

    The dataset's items are pairs of input and target, or dictionaries with these two keys; a target
    is the number of a class. For several labels per sample, or real targets, write a module
    (docs/extending.md).

    Args:
        network: module that maps a batch's ``input`` to logits ``[B, num_classes]``, such as
            ``lit_adaptive.modules.Dense`` or ``torchvision.models.resnet18``.
        num_classes: number of classes, above 1.
        learning_rate: learning rate of AdamW, above 0.
        weight_decay: decoupled weight decay of AdamW, at least 0.
        label_smoothing: weight of the uniform distribution in the targets, in [0, 1).
        focal_gamma: exponent of the focal loss to train on (Lin et al., 2017), at least 0; the
            signal stays the cross-entropy. By default the cross-entropy is trained on.
        optimizer: optimizer to use instead of AdamW; ``learning_rate`` and ``weight_decay`` are
            then ignored.
        lr_scheduler: scheduler, stepped after each epoch, such as
            ``lightning.pytorch.cli.ReduceLROnPlateau`` with ``monitor: val/loss``.

    Raises:
        ValueError: if an argument is out of range.
    """

    needs = frozenset({"batch.input", "batch.target", "batch.weight"})
    provides = frozenset({"signal.losses", "model.per_sample_loss", "model.num_classes"})
    remedies = {  # noqa: RUF012
        "batch.target": "let the dataset's items be (input, target) pairs, or dictionaries with "
        "'input' and 'target'",
    }

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
        focal_gamma: float | None = None,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__()
        check_at_least(num_classes=(num_classes, 2))
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate is {learning_rate}; it must be above 0 and finite")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0 and finite")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")
        if focal_gamma is not None and not 0 <= focal_gamma < math.inf:
            raise ValueError(
                f"focal_gamma is {focal_gamma}; it must be at least 0 and finite, or null"
            )
        self.network = network
        self.num_classes = num_classes
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.metrics = nn.ModuleDict({stage: self._metrics() for stage in ("val", "test")})
        self.mean_loss = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})
        self._checked = False
        self._sharded = False

    def _metrics(self) -> MetricCollection:
        c = self.num_classes
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(c, average="micro"),
                "macro_f1": MulticlassF1Score(c, average="macro"),
                "recall": MulticlassRecall(c, average="none"),
                "ece": MulticlassCalibrationError(c, n_bins=15),
            }
        )

    def _class_names(self) -> list[str]:
        """Names of the classes: those of the training set if it has them, else their numbers."""
        data: Any = getattr(self.trainer, "datamodule", None)
        names = getattr(getattr(data, "dataset", None), "classes", None)
        if names is None or len(names) != self.num_classes:
            return [str(c) for c in range(self.num_classes)]
        return [str(name) for name in names]

    def configure_model(self) -> None:
        """Shard the network where the strategy has a mesh."""
        if self.device_mesh is not None and not self._sharded:
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])
            self._sharded = True

    def forward(self, inputs: Any) -> Tensor:
        """Logits ``[B, num_classes]``."""
        logits: Tensor = self.network(inputs)
        return logits

    def _logits(self, batch: dict[str, Any]) -> Tensor:
        if self._checked:
            logits: Tensor = self(batch["input"])
            return logits
        target = self._check_targets(batch["target"])
        try:
            logits = self(batch["input"])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            given: Any = batch["input"]
            shape = f" {list(given.shape)}" if isinstance(given, Tensor) else ""
            raise ValueError(
                f"the network cannot be applied to the dataset's input{shape} ({error}): set the "
                "network's size (such as in_features) to that of the input"
            ) from error
        self._check_shapes(logits, target)
        self._checked = True
        return logits

    @staticmethod
    def _check_targets(target: Any) -> Tensor:
        dtype, shape = getattr(target, "dtype", type(target).__name__), getattr(target, "shape", ())
        if dtype not in (torch.int64, torch.uint8) or len(shape) != 1:
            raise ValueError(
                f"the targets of a batch are {dtype} {list(shape)}; they must be class numbers, "
                "int64 [B]: convert them in the dataset, or, for several labels per sample or "
                "real targets, write a module with its own loss (docs/extending.md)"
            )
        checked: Tensor = target
        return checked

    def _check_shapes(self, logits: Tensor, target: Tensor) -> None:
        if logits.shape != (len(target), self.num_classes):
            raise ValueError(
                f"the network returns {tuple(logits.shape)} for {len(target)} samples; it must "
                f"return [{len(target)}, {self.num_classes}]: set its outputs to num_classes"
            )
        least, greatest = (int(bound) for bound in target.aminmax())
        if least < 0 or greatest >= self.num_classes:
            raise ValueError(
                f"targets range from {least} to {greatest}; with num_classes {self.num_classes} "
                f"they must lie in [0, {self.num_classes - 1}]"
            )

    def per_sample_loss(self, batch: dict[str, Any]) -> Tensor:
        """Unweighted cross-entropy ``[B]`` of each sample."""
        return self._losses(self._logits(batch), batch["target"])

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            logits.float(), target, reduction="none", label_smoothing=self.label_smoothing
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The weighted mean loss, and each sample's cross-entropy."""
        logits, target = self._logits(batch), batch["target"]
        losses = self._losses(logits, target)
        trained = losses
        if self.focal_gamma is not None:
            trained = focal_loss(logits.float(), target, gamma=self.focal_gamma)
        total = (batch["weight"] * trained).sum()
        loss = total / self._update_divisor(float(self._mean_over_ranks(len(target))[0]))
        if self._logs_now():
            self.statistics.add_mean("train/loss", total.detach(), len(target))
            self.statistics.add_values("train/accuracy", logits.detach().argmax(1) == target)
        return {"loss": loss, "losses": losses.detach()}

    def _evaluate(self, batch: dict[str, Any], stage: str) -> dict[str, Tensor]:
        logits, counted = self._logits(batch), batch["counted"]
        losses = self._losses(logits, batch["target"])
        logits, target = logits[counted].float(), batch["target"][counted]
        if len(target):  # a rank's last batch may be padding
            self.metrics[stage].update(logits, target)  # type: ignore[operator]
            self.mean_loss[stage].update(losses[counted])  # type: ignore[operator]
        return {"predicted": logits.argmax(1), "target": target}

    def _report(self, stage: str) -> None:
        metrics: MetricCollection = self.metrics[stage]  # type: ignore[assignment]
        values = metrics.compute()
        metrics.reset()
        mean_loss: Any = self.mean_loss[stage]
        self.log(f"{stage}/loss", mean_loss.compute())
        mean_loss.reset()
        for name in ("accuracy", "macro_f1", "ece"):
            self.log(f"{stage}/{name}", values[name], prog_bar=name == "macro_f1")
        recall: Tensor = values["recall"]
        self.log_dict(
            {f"{stage}/recall_{name}": recall[c] for c, name in enumerate(self._class_names())}
        )

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Index, predicted class and its probability of each sample that is not padding."""
        probability, predicted = self(batch["input"]).float().softmax(1).max(1)
        counted = batch["counted"]
        rows = {"index": batch["index"], "predicted": predicted, "probability": probability}
        return {name: value[counted].cpu() for name, value in rows.items()}

    def configure_optimizers(self) -> Any:
        """AdamW, or what ``optimizer`` builds."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        if self.optimizer is not None:
            optimizer = self.optimizer(parameters)
        else:
            optimizer = torch.optim.AdamW(
                parameters,
                lr=self.learning_rate,
                weight_decay=self.weight_decay,
                fused=self._may_fuse,
            )
        if self.lr_scheduler is None:
            return optimizer
        return scheduled(optimizer, self.lr_scheduler(optimizer), "epoch")
