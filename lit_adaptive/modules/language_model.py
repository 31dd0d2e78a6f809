"""A causal language model, as training and decoding ask it."""

from typing import Any

import torch
from torch import Tensor, nn

from lit_adaptive.core.log_probs import TokenLogProbs, token_log_probs


class LanguageModel(nn.Module):
    """A transformers model asked for log-probabilities of given tokens, or for the next token.

    The logits of a whole batch are never held (``core.logprobs``); those of prompts are not even
    computed.

    Args:
        model: a causal language model of transformers, with or without peft's adapters.

    Attributes:
        pair_cost: see ``modules.shared_reading``; None: it does not read shared prompts.
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
        """The transformers model itself, under the adapters."""
        return self.model.get_base_model() if self.adapted else self.model

    @property
    def adapted(self) -> bool:
        """Whether it has adapters, which can be switched off."""
        return hasattr(self.model, "disable_adapter")

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, in order."""
        modules = self.base.modules()
        lists = [list(each) for each in modules if isinstance(each, nn.ModuleList)]
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
            position_ids: ``[R, T]`` int64; where it does not go on by 1, another sequence begins.
            position: ``[K]`` int64, flat places in ``[R * T]`` whose hidden state predicts.
            target: ``[K]`` int64, what follows there.
            segment: ``[R, T]`` int64 of rows with shared prompts (``data.shared_prompts``).
            entropy: also the entropy ``[K]``.
            top_k: also so many of the likeliest tokens.
            smoothing: also the mean log-probability over the vocabulary ``[K]``, with gradient.
            temperature: logits are divided by it, above 0; not those of ``smoothing``.
        """
        base = self.base
        body = getattr(base, base.base_model_prefix)
        hidden = body(
            input_ids=input_ids,
            attention_mask=None if segment is None else _seen(segment),
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        chosen = hidden.flatten(0, 1)[position]
        head = base.get_output_embeddings()
        found = token_log_probs(
            chosen,
            head.weight,
            target,
            bias=getattr(head, "bias", None),
            softcap=self._softcap,
            scale=self._scale,
            temperature=temperature,
            entropy=entropy,
            top_k=top_k,
        )
        return found, self._mean_log_prob(chosen, head, target, found) if smoothing else None

    def _mean_log_prob(
        self, hidden: Tensor, head: Any, target: Tensor, found: TokenLogProbs
    ) -> Tensor:
        """Mean over the vocabulary: linear in the logits, so no logits are needed."""
        if self._softcap is not None:
            raise ValueError(
                "label smoothing is not possible with capped logits (final_logit_softcapping of "
                f"{type(self.base).__name__}): set label_smoothing to 0"
            )
        difference = head.weight.mean(0) - head.weight[target]
        mean: Tensor = found.log_prob + self._scale * (hidden * difference).sum(-1).float()
        if getattr(head, "bias", None) is not None:
            mean = mean + self._scale * (head.bias.mean() - head.bias[target])
        return mean

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any
    ) -> Tensor:
        """Logits ``[B, V]`` of what follows ``input_ids`` ``[B, T]``; ``cache`` is written."""
        found: Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return found

    def shard(self, mesh: Any) -> None:
        """Shard each layer and the rest over ``mesh`` (FSDP2)."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for layer in self.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self, mesh=mesh)
        register_fsdp_forward_method(self, "decode")


def read(
    language: LanguageModel, batch: dict[str, Any], **more: Any
) -> tuple[TokenLogProbs, Tensor | None]:
    """What a model says of a batch's targets; ``more`` as ``LanguageModel.forward`` has it."""
    found: tuple[TokenLogProbs, Tensor | None] = language(
        *(batch[name] for name in ("input_ids", "position_ids", "position", "target")),
        segment=batch.get("segment"),
        **more,
    )
    return found


def _seen(segment: Tensor) -> Tensor:
    """What each token attends to, ``[R, 1, T, T]`` bool: its prompt, its answer so far, itself."""
    width = segment.shape[1]
    before = torch.ones(width, width, dtype=torch.bool, device=segment.device).tril()
    key = segment[:, None, :]
    return (before & ((key == 0) | (key == segment[:, :, None])))[:, None]
