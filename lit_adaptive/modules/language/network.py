"""A causal language model that scores given tokens and decodes the next one."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lit_adaptive.core.log_probs import (
    Distributions,
    TokenLogProbs,
    kl_divergence,
    logit_gradients,
    token_log_probs,
)

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# Fields of a config that do not change what a model computes.
_NO_EFFECT = {
    *("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("initializer_range", "max_position_embeddings", "return_dict", "output_attentions"),
    *("output_hidden_states", "bos_token_id", "eos_token_id", "pad_token_id"),
}


class LanguageModel(nn.Module):
    """A transformers model that returns log-probabilities of given tokens, or next-token logits.

    The logits of a whole batch are never held in memory (``core.log_probs``), and those of prompts
    are not computed.

    Args:
        model: a causal language model of transformers, with or without peft's adapters.
        tokens: ids of the tokens that exist; other ids, such as those of a padded vocabulary, have
            probability 0. By default all ids that the model has.

    Attributes:
        packs: whether samples packed into a row do not affect each other; see
            ``probes.reads_packed_rows``.
        attention_cost_ratio: see ``probes.attention_cost_ratio``; None if the model cannot
            read rows with shared prompts.
    """

    _ids: Tensor | None

    def __init__(self, model: Any, tokens: Iterable[int] | None = None) -> None:
        super().__init__()
        self.model = model
        self.packs = True
        size = len(self.base.get_output_embeddings().weight)
        ids = sorted({*range(size)} if tokens is None else {*tokens})
        self._size = ids[-1] + 1  # ids from here on do not exist
        existing = torch.tensor(ids) if len(ids) < self._size else None
        self.register_buffer("_ids", existing, persistent=False)  # None: all below _size
        self.attention_cost_ratio: float | None = None
        config = self.base.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        scale = getattr(config, "logit_scale", None)  # Cohere multiplies, Granite divides
        divisor = getattr(config, "logits_scaling", None)
        self._scale = float(scale if scale is not None else 1 / (divisor or 1.0))

    @property
    def base(self) -> Any:
        """The transformers model under the adapters."""
        return self.model.get_base_model() if self.adapted else self.model

    @property
    def adapted(self) -> bool:
        """Whether the model has adapters, which can be switched off."""
        return hasattr(self.model, "disable_adapter")

    @property
    def trains_embeddings(self) -> bool:
        """Whether the input embeddings, or an adapter of them, are trained."""
        return any(p.requires_grad for p in self.base.get_input_embeddings().parameters())

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, in order."""
        lists = [list(m) for m in self.base.modules() if isinstance(m, nn.ModuleList)]
        return max(lists, key=len, default=[])

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        position: Tensor,
        target: Tensor,
        *,
        segment: Tensor | None = None,
        entropy: bool = False,
        top_k: int = 0,
        smoothing: bool = False,
        temperature: float = 1.0,
        reference: Distributions | None = None,
    ) -> tuple[TokenLogProbs, Tensor | None]:
        """Log-probabilities of the ``target`` tokens.

        Args:
            input_ids: ``[R, T]`` int64, right-padded.
            position_ids: ``[R, T]`` int64; a new sequence starts wherever it does not increase
                by 1.
            position: ``[K]`` int64, flat indices in ``[R * T]`` of the hidden states that predict.
            target: ``[K]`` int64, the token after each position.
            segment: ``[R, T]`` int64, for rows with shared prompts (``data.text.shared_prompts``).
            entropy: whether to return the entropy ``[K]``.
            top_k: number of most likely tokens to return.
            smoothing: whether to return the mean log-probability over the vocabulary ``[K]``, with
                gradient.
            temperature: divisor of the logits, above 0; not applied to ``smoothing`` and
                ``reference``.
            reference: distributions at the positions; the KL divergence to them is returned.
        """
        policy = self._distributions(input_ids, position_ids, position, segment)
        hidden, weight, bias = policy[:3]
        if self._ids is not None:
            target = torch.searchsorted(self._ids, target)
        scores = token_log_probs(
            hidden,
            weight,
            target,
            bias=bias,
            softcap=self._softcap,
            scale=self._scale,
            temperature=temperature,
            entropy=entropy,
            top_k=top_k,
        )
        mean = None
        if smoothing:
            mean = self._mean_log_prob(hidden, weight, bias, target, scores.log_prob)
        if self._ids is not None and scores.top_token is not None:
            scores = scores._replace(top_token=self._ids[scores.top_token])
        if reference is not None:
            scores = scores._replace(divergence=kl_divergence(policy, reference))
        return scores, mean

    def distributions(self, batch: dict[str, Any]) -> Distributions:
        """Distributions over the existing tokens at a batch's positions; see ``score_targets``."""
        tokens, positions = batch["input_ids"], batch["position_ids"]
        return self._distributions(tokens, positions, batch["position"], batch.get("segment"))

    def _distributions(
        self, input_ids: Tensor, position_ids: Tensor, position: Tensor, segment: Tensor | None
    ) -> Distributions:
        base = self.base
        body = getattr(base, base.base_model_prefix)
        hidden = body(
            input_ids=input_ids,
            attention_mask=None if segment is None else _attention_mask(segment),
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        hidden = hidden.flatten(0, 1)[position]
        return Distributions(hidden, *self._head(), self._softcap, self._scale)

    def score_targets(
        self, batch: dict[str, Any], **options: Any
    ) -> tuple[TokenLogProbs, Tensor | None]:
        """Log-probabilities of a batch's targets; options as ``forward`` has them."""
        scores: tuple[TokenLogProbs, Tensor | None] = self(
            *(batch[name] for name in ("input_ids", "position_ids", "position", "target")),
            segment=batch.get("segment"),
            **options,
        )
        return scores

    def _head(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the output head, of the tokens that exist."""
        head = self.base.get_output_embeddings()
        bias: Tensor | None = getattr(head, "bias", None)
        kept = slice(self._size) if self._ids is None else self._ids
        return head.weight[kept], None if bias is None else bias[kept]

    def logit_gradients(
        self,
        hidden: Tensor,
        target: Tensor,
        log_prob: Tensor,
        log_prob_grad: Tensor,
        temperature: float,
    ) -> Iterator[tuple[int, Tensor]]:
        """Gradients of the head's outputs, some rows of its weight at a time.

        Args:
            hidden: ``[K, D]``, the hidden states that predict the targets.
            target: ``[K]`` int64.
            log_prob: ``[K]``, log-probabilities of the targets.
            log_prob_grad: ``[K]``, gradient of a loss with respect to them.
            temperature: divisor of the logits, above 0.

        Yields:
            The first of consecutive rows of the head's weight, and the gradient of the products of
            each token and these rows, ``[K, E]``.
        """
        weight, bias = self._head()
        if self._ids is not None:
            target = torch.searchsorted(self._ids, target)
        tiles = logit_gradients(
            hidden,
            weight,
            target,
            log_prob,
            log_prob_grad,
            bias=bias,
            softcap=self._softcap,
            scale=self._scale,
            temperature=temperature,
        )
        for columns, gradient in tiles:
            if self._ids is None:
                yield columns.start, gradient
                continue
            ids = self._ids[columns]
            first, last = int(ids[0]), int(ids[-1]) + 1
            spread = gradient.new_zeros(len(gradient), last - first)
            yield first, spread.index_copy_(1, ids - first, gradient)

    def mask_logits(self, logits: Tensor) -> Tensor:
        """``logits`` ``[..., V]`` of the ids up to the last that exists; minus infinity in gaps."""
        logits = logits[..., : self._size]
        if self._ids is None:
            return logits
        masked = torch.full_like(logits, -torch.inf)
        masked[..., self._ids] = logits[..., self._ids]
        return masked

    @property
    def max_positions(self) -> int | None:
        """Greatest number of tokens of a sequence that the config allows; None if it has none."""
        config = self.base.config.get_text_config()
        names = ("max_position_embeddings", "max_seq_len")  # the second is MPT's
        limit: int | None = next((getattr(config, n) for n in names if hasattr(config, n)), None)
        rope: Any = getattr(config, "rope_parameters", None) or {}
        if limit is not None and isinstance(rope, dict) and "factor" in rope:
            original = rope.get("original_max_position_embeddings") or limit
            limit = max(limit, int(original * rope["factor"]))
        return limit

    def config_facts(self) -> dict[str, Any]:
        """The fields of the config that may change what the model computes, by name."""
        fields: dict[str, Any] = json.loads(self.base.config.to_json_string(use_diff=False))
        return {
            name: value
            for name, value in sorted(fields.items())
            if name not in _NO_EFFECT and not name.startswith("_") and "drop" not in name
        }

    def existing_tokens(self) -> Tensor:
        """Ids of the tokens that exist, ascending, ``[n]`` int64."""
        return torch.arange(self._size) if self._ids is None else self._ids

    def suppressed_tokens(self) -> list[int]:
        """Ids of the model that no token has."""
        size = len(self.base.get_output_embeddings().weight)
        existing = {*self.existing_tokens().tolist()}
        return [token for token in range(size) if token not in existing]

    @property
    def has_dropout(self) -> bool:
        """Whether a forward pass in training mode is random."""
        return any(
            value > 0
            for module in self.modules()
            for name, value in vars(module).items()
            if isinstance(value, float)
            and ("drop" in name or (name == "p" and isinstance(module, _DROPOUTS)))
        )

    def _mean_log_prob(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, log_prob: Tensor
    ) -> Tensor:
        """Mean log-probability over the vocabulary; linear in the logits, so it needs none."""
        if self._softcap is not None:
            raise ValueError(
                "label smoothing is not possible with capped logits (final_logit_softcapping of "
                f"{type(self.base).__name__}): set label_smoothing to 0"
            )
        difference = weight.mean(0) - weight[target]
        mean: Tensor = log_prob + self._scale * (hidden * difference).sum(-1).float()
        if bias is not None:
            mean = mean + self._scale * (bias.mean() - bias[target])
        return mean

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any
    ) -> Tensor:
        """Logits of the token after ``input_ids`` ``[B, T]``; updates ``cache``.

        Returns:
            ``[B, V]``, where V - 1 is the greatest id of a token.
        """
        logits: Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return self.mask_logits(logits)

    def shard(self, mesh: Any) -> None:
        """Shard each layer and the rest over ``mesh`` (FSDP2)."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for layer in self.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self, mesh=mesh)
        for method in ("decode", "distributions"):
            register_fsdp_forward_method(self, method)


def _attention_mask(segment: Tensor) -> Tensor:
    """``[R, 1, T, T]`` bool: each token attends to its prompt and its completion so far."""
    width = segment.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=segment.device).tril()
    key = segment[:, None, :]
    return (causal & ((key == 0) | (key == segment[:, :, None])))[:, None]
