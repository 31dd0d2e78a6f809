"""Classification with any network, and a loss for each sample, as a LightningModule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassRecall,
)

from lit_adaptive.core.hard_examples import focal_loss
from lit_adaptive.modules.base import AdaptiveModule

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class Classifier(AdaptiveModule):
    """Learns classes with a weighted cross-entropy; returns each sample's own.

    Logs ``train/loss`` (weighted) and ``train/accuracy``; on validation and test sets ``loss``,
    ``accuracy``, ``macro_f1``, ``ece`` (expected calibration error, 15 bins) and ``recall_C`` of
    each class C, over all ranks.

    Args:
        network: gives logits ``[B, num_classes]`` of a batch's ``input``; any module by its class
            path, such as ``lit_adaptive.modules.Dense`` or ``torchvision.models.resnet18``.
        num_classes: above 1.
        learning_rate: of AdamW, above 0.
        weight_decay: of AdamW, at least 0.
        label_smoothing: in [0, 1).
        focal_gamma: train on the focal loss with this exponent (Lin et al., 2017); the signal
            stays the cross-entropy.
        optimizer: builds another one; ``learning_rate`` and ``weight_decay`` are its own then.
        lr_scheduler: builds a scheduler, stepped after each epoch.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    needs = frozenset({"batch.input", "batch.target", "batch.weight"})
    provides = frozenset({"signal.losses", "model.per_sample_loss"})
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
        if num_classes < 2:
            raise ValueError(
                f"num_classes is {num_classes}; there must be at least 2 to tell apart"
            )
        if not learning_rate > 0:
            raise ValueError(f"learning_rate is {learning_rate}; it must be above 0")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay is {weight_decay}; it must not be negative")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")
        if focal_gamma is not None and not focal_gamma >= 0:
            raise ValueError(f"focal_gamma is {focal_gamma}; it must not be negative, or null")
        self.network = network
        self.num_classes = num_classes
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.metrics = nn.ModuleDict({stage: self._metrics() for stage in ("val", "test")})
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
        logits: Tensor = self(batch["input"])
        target: Tensor = batch["target"]
        if not self._checked:
            self._refuse(logits, target)
            self._checked = True
        return logits

    def _refuse(self, logits: Tensor, target: Tensor) -> None:
        if logits.shape != (len(target), self.num_classes):
            raise ValueError(
                f"the network gives {tuple(logits.shape)} for {len(target)} samples; it must give "
                f"[{len(target)}, {self.num_classes}], num_classes logits each"
            )
        least, greatest = (int(bound) for bound in target.aminmax())
        if least < 0 or greatest >= self.num_classes:
            raise ValueError(
                f"targets range from {least} to {greatest}; with num_classes {self.num_classes} "
                f"they lie in [0, {self.num_classes - 1}]"
            )

    def per_sample_loss(self, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy ``[B]`` of each sample, unweighted, with gradients if they are on."""
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
        loss = (batch["weight"] * trained).mean()
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            correct = (logits.detach().argmax(1) == target).float().mean()
            self.log_dict({"train/loss": loss.detach(), "train/accuracy": correct})
        return {"loss": loss, "losses": losses.detach()}

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        logits, counted = self._logits(batch), batch["counted"]
        losses = self._losses(logits, batch["target"])
        self.metrics[stage].update(logits[counted].float(), batch["target"][counted])  # type: ignore[operator]
        if bool(counted.any()):
            mean, size = losses[counted].mean(), int(counted.sum())
            self.log(f"{stage}/loss", mean, batch_size=size, on_epoch=True, sync_dist=True)

    def _report(self, stage: str) -> None:
        metrics: MetricCollection = self.metrics[stage]  # type: ignore[assignment]
        found = metrics.compute()
        metrics.reset()
        for name in ("accuracy", "macro_f1", "ece"):
            self.log(f"{stage}/{name}", found[name], prog_bar=name == "macro_f1")
        recall: Tensor = found["recall"]
        self.log_dict({f"{stage}/recall_{c}": recall[c] for c in range(self.num_classes)})

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add to the metrics what counts of this batch."""
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log them over all ranks."""
        self._report("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add to the metrics what counts of this batch."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log them over all ranks."""
        self._report("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Index, predicted class and its probability of each sample that counts."""
        probability, predicted = self(batch["input"]).float().softmax(1).max(1)
        counted = batch["counted"]
        found = {"index": batch["index"], "predicted": predicted, "probability": probability}
        return {name: value[counted].cpu() for name, value in found.items()}

    def configure_optimizers(self) -> Any:
        """AdamW, or what ``optimizer`` builds."""
        parameters = [each for each in self.network.parameters() if each.requires_grad]
        if self.optimizer is not None:
            built = self.optimizer(parameters)
        else:
            built = torch.optim.AdamW(
                parameters,
                lr=self.learning_rate,
                weight_decay=self.weight_decay,
                fused=self.device_mesh is None,
            )
        if self.lr_scheduler is None:
            return built
        return {"optimizer": built, "lr_scheduler": self.lr_scheduler(built)}
