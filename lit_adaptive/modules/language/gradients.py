"""Projected gradients of many prompts in one forward and one backward pass.

The gradient of a weight is a sum over tokens of outer products, of the gradient of the layer's
output and its input. Hooks hand both to the projection (``core.projection``), which computes the
kept coordinates of each prompt's sum at once, as GraSS (arXiv:2505.18976) and LoGra
(arXiv:2405.13954) do. No gradient of a whole model exists, for no prompt and not for the batch: the
weights are frozen during the pass.

Layers with per-prompt gradients are linear ones (``nn.Linear`` and transformers' ``Conv1D``),
embeddings, normalizations, and the output head, also if it shares its weight with the embedding.
Inputs are saved through autograd, so gradient checkpointing recomputes them as any others.
"""

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lit_adaptive.core.projection import ProjectionKind, SparseProjection
from lit_adaptive.core.segments import segment_count
from lit_adaptive.modules.coordinates import numbered_parameters
from lit_adaptive.modules.language.network import LanguageModel


class PromptGradients:
    """Computes the projected gradient of each prompt of a batch.

    Coordinates are numbered in the order of ``language.named_parameters()``, over those that are
    trained and match ``parameters``.

    Args:
        language: the model; it stays as it is.
        dimensions: see ``SparseProjection``.
        keep_ratio: see ``SparseProjection``.
        kind: see ``SparseProjection``.
        seed: see ``SparseProjection``.
        parameters: regular expression that the names of parameters must contain, such as
            ``layers.[23].`` or ``mlp``; by default all trained ones, which are the adapters' with
            LoRA.

    Attributes:
        projection: the projection.
        starts: first coordinate of each parameter, by name.

    Raises:
        ValueError: if no parameter is left, one belongs to an unsupported layer (naming it), is
            sharded, or the projection rejects an argument.
    """

    def __init__(
        self,
        language: LanguageModel,
        *,
        dimensions: int = 32768,
        keep_ratio: float = 0.15,
        kind: ProjectionKind = "count_sketch",
        seed: int = 0,
        parameters: str | None = None,
    ) -> None:
        self.language = language
        trained, self.starts, size = numbered_parameters(language, parameters)
        starts = {id(parameter): self.starts[name] for name, parameter in trained.items()}
        head = language.base.get_output_embeddings()
        self._head = _own_starts(head, starts)
        self._layers = [
            _Layer(name, module, _own_starts(module, starts))
            for name, module in language.named_modules()
            if module is not head and _own_starts(module, starts) and _is_supported(module)
        ]
        covered = {*self._head.values()}.union(*(layer.starts.values() for layer in self._layers))
        missing = [name for name, start in self.starts.items() if start not in covered]
        if missing:
            raise ValueError(
                f"the parameters {missing[:5]} are not those of linear layers, embeddings or "
                "normalizations, for which alone gradients of prompts are available: choose others "
                "with `parameters`, or train LoRA adapters"
            )
        self.projection = SparseProjection(size, dimensions, keep_ratio, kind, seed)

    def __call__(
        self,
        batch: dict[str, Any],
        coefficients: Callable[[Tensor], Tensor],
        sample: Tensor,
        size: int,
        *,
        temperature: float = 1.0,
    ) -> Tensor:
        """Projected gradients of the sum over each prompt's tokens of c_t log pi(a_t).

        Rollouts of a prompt may be spread over several batches, whose results add up. Dropout is
        switched off.

        Args:
            batch: see ``LanguageModel.score_targets``; ``sequence`` ``[K]`` int64 is the sequence
                of each target, in [0, N). Rows may hold several sequences.
            coefficients: returns the factors c ``[K]`` from the log-probabilities ``[K]``, for
                instance by ``core.influence.off_policy_coefficients``.
            sample: ``[N]`` int64 in [0, size): the prompt of each sequence.
            size: number of prompts.
            temperature: divisor of the logits, above 0.

        Returns:
            ``[size, d]`` float32, on the model's device; 0 for a prompt without tokens.

        Raises:
            ValueError: if a row with a shared prompt has sequences of different prompts, or a layer
                mixes tokens (naming it).
        """
        owner = _token_samples(batch, sample)
        # Prompts of similar length side by side, see ``SparseProjection.add_outer_products``.
        order = segment_count(owner[owner >= 0], size).argsort(descending=True, stable=True)
        lane = order.argsort()
        lanes = torch.where(owner >= 0, lane[owner], -1)
        tokens = _Tokens(lanes, batch["input_ids"].shape)
        out = self.projection.zeros(size, device=owner.device)
        with self._hooks(tokens, out) as hidden, torch.enable_grad():
            scores, _ = self.language.score_targets(batch, temperature=temperature)
            log_prob = scores.log_prob.detach()
            factor = coefficients(log_prob).to(log_prob)
            if scores.log_prob.requires_grad:
                torch.autograd.backward(scores.log_prob, factor)
        if self._head:
            states = hidden[0].flatten(0, 1)[batch["position"]]
            target = lane[sample[batch["sequence"]]], batch["target"]
            self._add_head(out, states, log_prob, factor, *target, temperature)
        return out[:, lane].t().contiguous()

    @contextmanager
    def _hooks(self, tokens: "_Tokens", out: Tensor) -> Generator[list[Tensor]]:
        """Context with frozen weights, dropout off, and hooks on the layers.

        Yields:
            A list that the forward pass fills with the last hidden states ``[R, T, D]``.
        """
        hidden: list[Tensor] = []
        # The weights are frozen; through this tensor the outputs of the layers have gradients.
        anchor = torch.zeros((), requires_grad=True, device=out.device)
        base = self.language.base
        body = getattr(base, base.base_model_prefix)

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            hidden.append(output.last_hidden_state.detach())

        handles = [body.register_forward_hook(keep)]
        for layer in self._layers:
            hook = _LayerHook(layer, self.projection, tokens, out, anchor)
            handles.append(layer.module.register_forward_hook(hook))
        trained = [p for p in self.language.parameters() if p.requires_grad]
        modules = self.language.modules() if self.language.has_dropout else ()
        random = [module for module in modules if module.training]
        try:
            for parameter in trained:
                parameter.requires_grad = False
            for module in random:
                module.training = False
            yield hidden
        finally:
            for handle in handles:
                handle.remove()
            for parameter in trained:
                parameter.requires_grad = True
            for module in random:
                module.training = True

    def _add_head(
        self,
        out: Tensor,
        hidden: Tensor,
        log_prob: Tensor,
        factor: Tensor,
        lane: Tensor,
        target: Tensor,
        temperature: float,
    ) -> None:
        """Add the gradients of the output head, which ``score_targets`` reads without calling."""
        tiles = self.language.logit_gradients(hidden, target, log_prob, factor, temperature)
        for first, gradient in tiles:
            if "weight" in self._head:
                start = self._head["weight"] + first * hidden.shape[1]
                self.projection.add_outer_products(out, gradient, hidden, lane, start)
            if "bias" in self._head:
                values = _sum_lanes(gradient, lane, out.shape[1])
                self.projection.add_block(out, values, self._head["bias"] + first)


class _Tokens(NamedTuple):
    """The tokens of a batch.

    Attributes:
        lane: ``[R * T]`` int64, column of the projection of each token; -1 for none.
        shape: R, T.
    """

    lane: Tensor
    shape: torch.Size


class _Layer(NamedTuple):
    """A layer, its name, and the first coordinate of each of its parameters."""

    name: str
    module: nn.Module
    starts: dict[str, int]


def _own_starts(module: nn.Module, starts: dict[int, int]) -> dict[str, int]:
    """First coordinates of a module's own parameters, by name."""
    own = module.named_parameters(recurse=False, remove_duplicate=False)
    return {name: starts[id(value)] for name, value in own if id(value) in starts}


def _is_conv1d(module: nn.Module) -> bool:
    """Whether a layer is transformers' Conv1D, a linear layer with a transposed weight."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_norm(module: nn.Module) -> bool:
    """Whether a layer multiplies each normalized token by a vector, or adds one."""
    return "Norm" in type(module).__name__ and all(p.dim() == 1 for p in module.parameters())


def _is_supported(module: nn.Module) -> bool:
    forward = type(module).forward
    if isinstance(module, nn.Embedding):  # Gemma's multiplies the vectors
        return forward is nn.Embedding.forward or hasattr(module, "embed_scale")
    return forward is nn.Linear.forward or _is_conv1d(module) or _is_norm(module)


class _LayerHook:
    """A forward hook that adds the gradients of a layer's parameters to a projection.

    Args:
        layer: the layer.
        projection: maps the gradients.
        tokens: tokens of the batch.
        out: projections of the prompts ``[d, B]``.
        anchor: a scalar that requires a gradient.
    """

    def __init__(
        self,
        layer: _Layer,
        projection: SparseProjection,
        tokens: _Tokens,
        out: Tensor,
        anchor: Tensor,
    ) -> None:
        self.layer, self.projection, self.tokens = layer, projection, tokens
        self.out, self.anchor = out, anchor

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the output, with the layer's gradients among those of the backward pass."""
        del module
        capture: Any = _Capture
        result: Tensor = capture.apply(output, self.anchor, self, inputs[0])
        return result

    def add(self, value: Tensor, gradient: Tensor) -> None:
        """Add the gradients of the parameters, from the layer's input and its output's gradient."""
        module, gradient = self.layer.module, gradient.detach()
        if isinstance(module, nn.Embedding):
            self._add_embedding(value, gradient)
        elif isinstance(module, nn.Linear) or _is_conv1d(module):
            self._add_linear(value, gradient)
        else:
            self._add_norm(value, gradient)

    def _add_linear(self, value: Tensor, gradient: Tensor) -> None:
        left, right = self._flat(gradient), self._flat(value)
        if "bias" in self.layer.starts:
            self._add_vector("bias", left)
        if "weight" in self.layer.starts:
            if _is_conv1d(self.layer.module):
                left, right = right, left
            start, lane = self.layer.starts["weight"], self.tokens.lane
            self.projection.add_outer_products(self.out, left, right, lane, start)

    def _add_embedding(self, ids: Tensor, gradient: Tensor) -> None:
        row, start = self._flat(ids[..., None])[:, 0], self.layer.starts["weight"]
        padding: int | None = getattr(self.layer.module, "padding_idx", None)
        lane = self.tokens.lane
        if padding is not None:
            lane = lane.masked_fill(row == padding, -1)  # its row is not trained
        gradient = gradient * getattr(self.layer.module, "embed_scale", 1.0)
        self.projection.add_rows(self.out, self._flat(gradient), row, lane, start)

    def _add_norm(self, value: Tensor, gradient: Tensor) -> None:
        module, names = self.layer.module, [*self.layer.starts]
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            normalize: Any = (
                functional.layer_norm if isinstance(module, nn.LayerNorm) else functional.rms_norm
            )
            parts = {"bias": gradient}
            if "weight" in names:
                shape = [*module.normalized_shape]
                parts["weight"] = gradient * normalize(value, shape, eps=module.eps)
        else:
            # A copy of the layer with parameters of its own for each token.
            twin = copy.copy(module)
            twin.__dict__["_parameters"] = {}
            for name, parameter in module.named_parameters(recurse=False):
                own = twin.__dict__[name] = parameter.detach().expand(value.shape)
                own.requires_grad = name in names
            with torch.enable_grad():
                output = twin.forward(value.detach())
            inputs = [twin.__dict__[name] for name in names]
            parts = dict(zip(names, torch.autograd.grad(output, inputs, gradient), strict=True))
        for name in names:
            self._add_vector(name, self._flat(parts[name]))

    def _add_vector(self, name: str, values: Tensor) -> None:
        """Add a parameter ``[n]`` whose gradient is a sum over tokens of ``values`` ``[K, n]``."""
        total = _sum_lanes(values, self.tokens.lane, self.out.shape[1])
        self.projection.add_block(self.out, total, self.layer.starts[name])

    def _flat(self, values: Tensor) -> Tensor:
        """``[R, T, ..., n]`` or ``[R * T, n]`` as ``[R * T, n]``, summed over dimensions between.

        Raises:
            ValueError: if the values are not those of the batch's tokens.
        """
        count = self.tokens.shape.numel()
        if values.shape[:2] == self.tokens.shape and values.dim() >= 3:
            values = values.flatten(0, 1)
        if len(values) != count:
            raise ValueError(
                f"{self.layer.name} has an input or output of shape {list(values.shape)}, not one "
                f"row for each of the {count} tokens of the batch: leave its parameters out "
                "(`parameters`), or train LoRA adapters"
            )
        return values.flatten(1, -2).sum(1) if values.dim() > 2 else values


class _Capture(torch.autograd.Function):
    """Identity whose backward pass hands a layer's input and its output's gradient to a hook."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, anchor: Tensor, hook: _LayerHook, value: Tensor
    ) -> Tensor:
        del anchor
        ctx.hook = hook
        ctx.save_for_backward(value)
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.hook.add(*ctx.saved_tensors, gradient)
        return gradient, None, None, None


def _sum_lanes(values: Tensor, lane: Tensor, size: int) -> Tensor:
    """Sums ``[n, size]`` over the tokens of each lane of ``values`` ``[K, n]``; lane -1: none."""
    total = torch.zeros(size + 1, values.shape[1], device=values.device)
    total.index_add_(0, torch.where(lane >= 0, lane, size), values.float())
    return total[:-1].t().contiguous()


def _token_samples(batch: dict[str, Any], sample: Tensor) -> Tensor:
    """Prompt of each token that affects a target: ``[R * T]`` int64, -1 for the others."""
    ids, position = batch["position_ids"], batch["position"]
    fresh = torch.ones_like(ids, dtype=torch.bool)
    fresh[:, 1:] = ids[:, 1:] != ids[:, :-1] + 1
    if "segment" in batch:  # a row is one prompt, and positions go back with each answer
        fresh[:, 1:] = False
    part = fresh.flatten().cumsum(0) - 1
    of_target = sample[batch["sequence"]]
    owner = torch.full_like(part, -1).index_put_((part[position],), of_target)
    mixed = owner[part[position]] != of_target
    if bool(mixed.any()):
        raise ValueError(
            f"the prompts {torch.unique(of_target[mixed])[:8].tolist()} share a row with another "
            "prompt's tokens: give the rollouts of a row one prompt"
        )
    last = torch.full_like(part, -1).scatter_reduce_(0, part[position], position, "amax")
    flat = torch.arange(len(part), device=part.device)
    return torch.where(flat <= last[part], owner[part], -1)
