"""A causal language model that scores given tokens and decodes the next one."""

from typing import Any

import torch
from torch import Tensor, nn

from lit_adaptive.core.log_probs import TokenLogProbs, token_log_probs


class LanguageModel(nn.Module):
    """A transformers model that returns log-probabilities of given tokens, or next-token logits.

    The logits of a whole batch are never held in memory (``core.log_probs``), and those of prompts
    are not computed.

    Args:
        model: a causal language model of transformers, with or without peft's adapters.

    Attributes:
        attention_cost_ratio: see ``model_builders.attention_cost_ratio``; None if the model cannot
            read rows with shared prompts.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
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
            temperature: divisor of the logits, above 0; not applied to ``smoothing``.
        """
        base = self.base
        body = getattr(base, base.base_model_prefix)
        hidden = body(
            input_ids=input_ids,
            attention_mask=None if segment is None else _attention_mask(segment),
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        hidden = hidden.flatten(0, 1)[position]
        head = base.get_output_embeddings()
        scores = token_log_probs(
            hidden,
            head.weight,
            target,
            bias=getattr(head, "bias", None),
            softcap=self._softcap,
            scale=self._scale,
            temperature=temperature,
            entropy=entropy,
            top_k=top_k,
        )
        mean = self._mean_log_prob(hidden, head, target, scores.log_prob) if smoothing else None
        return scores, mean

    def _mean_log_prob(self, hidden: Tensor, head: Any, target: Tensor, log_prob: Tensor) -> Tensor:
        """Mean log-probability over the vocabulary; linear in the logits, so it needs none."""
        if self._softcap is not None:
            raise ValueError(
                "label smoothing is not possible with capped logits (final_logit_softcapping of "
                f"{type(self.base).__name__}): set label_smoothing to 0"
            )
        difference = head.weight.mean(0) - head.weight[target]
        mean: Tensor = log_prob + self._scale * (hidden * difference).sum(-1).float()
        if getattr(head, "bias", None) is not None:
            mean = mean + self._scale * (head.bias.mean() - head.bias[target])
        return mean

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any
    ) -> Tensor:
        """Logits ``[B, V]`` of the token after ``input_ids`` ``[B, T]``; updates ``cache``."""
        logits: Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits

    def shard(self, mesh: Any) -> None:
        """Shard each layer and the rest over ``mesh`` (FSDP2)."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for layer in self.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self, mesh=mesh)
        register_fsdp_forward_method(self, "decode")


def score_targets(
    language: LanguageModel, batch: dict[str, Any], **options: Any
) -> tuple[TokenLogProbs, Tensor | None]:
    """Log-probabilities of a batch's targets; options as ``LanguageModel.forward`` has them."""
    scores: tuple[TokenLogProbs, Tensor | None] = language(
        *(batch[name] for name in ("input_ids", "position_ids", "position", "target")),
        segment=batch.get("segment"),
        **options,
    )
    return scores


def _attention_mask(segment: Tensor) -> Tensor:
    """``[R, 1, T, T]`` bool: each token attends to its prompt and its completion so far."""
    width = segment.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=segment.device).tril()
    key = segment[:, None, :]
    return (causal & ((key == 0) | (key == segment[:, :, None])))[:, None]
