"""Networks of ``Classifier``: from a batch's ``input`` to logits ``[B, C]``."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.rollout.models.hub import hub_access
from lit_adaptive.rollout.models.pretrained import transformers_quiet


class Dense(nn.Sequential):
    """Fully connected layers with ReLU over the flattened input.

    Args:
        in_features: numbers in one flattened input, above 0.
        num_classes: number of classes, above 0.
        hidden: widths of the hidden layers; empty for a linear classifier.
        dropout: dropout probability of the hidden layers, in [0, 1).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden: Sequence[int] = (128,),
        dropout: float = 0.0,
    ) -> None:
        sizes = {"in_features": in_features, "num_classes": num_classes}
        sizes |= {f"hidden[{i}]": size for i, size in enumerate(hidden)}
        check_at_least(**{name: (size, 1) for name, size in sizes.items()})
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
        widths = [in_features, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(widths[-1], num_classes))


class TransformersClassifier(nn.Module):
    """A transformers model with a classification head, from a folder or the hub.

    The batch's ``input`` is a mapping of the model's arguments (``input_ids``, ``attention_mask``,
    ``pixel_values``), or the tensor that is its first argument.

    Args:
        path: folder or hub name of the pretrained model.
        num_classes: number of classes, above 1.
        task: ``text`` or ``image``.
        frozen_backbone: whether to train only the head.
    """

    def __init__(
        self, path: str, num_classes: int, *, task: str = "text", frozen_backbone: bool = False
    ) -> None:
        super().__init__()
        from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

        families: dict[str, Any] = {
            "text": AutoModelForSequenceClassification,
            "image": AutoModelForImageClassification,
        }
        if task not in families:
            raise ValueError(f"task is {task!r}; it must be one of {[*families]}")
        try:
            with transformers_quiet(), hub_access(path):
                self.model: Any = families[task].from_pretrained(path, num_labels=num_classes)
        except OSError as error:
            raise ValueError(f"the model {path!r} cannot be loaded. {error}") from error
        if frozen_backbone:
            self.model.base_model.requires_grad_(requires_grad=False)

    def forward(self, inputs: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Logits ``[B, C]``."""
        output = self.model(inputs) if isinstance(inputs, Tensor) else self.model(**inputs)
        logits: Tensor = output.logits
        return logits
