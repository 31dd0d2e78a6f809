"""Projected gradients of a classifier's loss, one for each sample of a batch."""

from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.utils import _pytree as pytree

from lit_adaptive.core.projection import ProjectionKind, SparseProjection
from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.modules.classifier import Classifier
from lit_adaptive.modules.coordinates import numbered_parameters


class SampleGradients:
    """Computes the projected gradient of the cross-entropy of each sample.

    Any network that ``torch.func.vmap`` can run, without dropout and with the running statistics of
    normalizations. The gradients of ``samples_at_once`` samples are held at once, in full.

    Args:
        classifier: the module; it stays as it is.
        dimensions: see ``SparseProjection``.
        keep_ratio: see ``SparseProjection``.
        kind: see ``SparseProjection``.
        seed: see ``SparseProjection``.
        parameters: regular expression that the names of the network's parameters must contain; by
            default all trained ones.
        samples_at_once: above 0.

    Raises:
        ValueError: if no parameter is left, one is sharded, or the projection rejects an argument.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        dimensions: int,
        keep_ratio: float = 1.0,
        kind: ProjectionKind = "count_sketch",
        seed: int = 0,
        parameters: str | None = None,
        samples_at_once: int = 64,
    ) -> None:
        self.classifier, self.samples_at_once = classifier, samples_at_once
        chosen, self.starts, size = numbered_parameters(classifier.network, parameters)
        self._values = {name: parameter.detach() for name, parameter in chosen.items()}
        self.projection = SparseProjection(size, dimensions, keep_ratio, kind, seed)

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        """Projected gradients ``[B, d]`` float32 of a batch with ``input`` and ``target``."""
        network = self.classifier.network

        def loss(values: dict[str, Tensor], inputs: Any, target: Tensor) -> Tensor:
            one = pytree.tree_map(_batch_of_one, inputs)
            logits = functional_call(network, values, (one,))
            smoothing = self.classifier.label_smoothing
            return cross_entropy(logits.float(), target[None], label_smoothing=smoothing)

        of_each, parts = vmap(grad(loss), in_dims=(None, 0, 0)), []
        for first in range(0, len(batch["target"]), self.samples_at_once):
            part = slice(first, first + self.samples_at_once)
            inputs = pytree.tree_map(itemgetter(part), batch["input"])
            target = batch["target"][part]
            with evaluation_mode(self.classifier), torch.enable_grad():
                gradients = of_each(self._values, inputs, target)
            out = self.projection.zeros(len(target), device=target.device)
            for name, gradient in gradients.items():
                columns = gradient.float().flatten(1).t().contiguous()
                self.projection.add_block(out, columns, self.starts[name])
            parts.append(out.t())
        return torch.cat(parts)


def _batch_of_one(value: Tensor) -> Tensor:
    return value[None]
