"""How a causal language model comes to be: loaded or drawn at random, with or without adapters."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch

from lit_adaptive.modules.adapters import LoRA
from lit_adaptive.modules.head_check import check_head
from lit_adaptive.modules.language_model import LanguageModel
from lit_adaptive.modules.shared_reading import attention_cost_ratio
from lit_adaptive.rollout.models.pretrained import load_model

DTypeName = Literal["float32", "bfloat16", "float16"]


class CausalLM(ABC):
    """A recipe for a causal language model; built when the strategy is ready for it.

    Args:
        gradient_checkpointing: recompute each layer in the backward pass, to save memory.
        lora: train adapters only.
    """

    def __init__(self, *, gradient_checkpointing: bool = False, lora: LoRA | None = None) -> None:
        self.gradient_checkpointing = gradient_checkpointing
        self.lora = lora

    @abstractmethod
    def make(self, tokenizer: Any) -> Any:
        """The transformers model."""

    def build(self, tokenizer: Any) -> LanguageModel:
        """The model, with adapters if asked for, fit for ``tokenizer``.

        Raises:
            ValueError: if the tokenizer has tokens that the model does not know, or the model makes
                its logits in a way that is not known here.
        """
        model = self.make(tokenizer)
        known = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > known:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the model embeds {known}: take the "
                "tokenizer that belongs to the model"
            )
        if self.gradient_checkpointing:
            newer = getattr(model, "activation_checkpointing_enable", None)  # named so since 5.2x
            (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
        if self.lora is not None:
            model = self.lora.applied(model)
        language = LanguageModel(model)
        check_head(language)
        language.attention_cost_ratio = attention_cost_ratio(language)
        return language


class PretrainedLM(CausalLM):
    """Weights from a folder, a GGUF file, a hub, or a package (``smollm2``).

    Args:
        name: see ``lit_adaptive.rollout.models.pretrained``.
        dtype: of the weights.
        attention: transformers' name of an attention implementation.
        gradient_checkpointing: see ``CausalLM``.
        lora: see ``CausalLM``.
    """

    def __init__(
        self,
        name: str,
        *,
        dtype: DTypeName = "float32",
        attention: str = "sdpa",
        gradient_checkpointing: bool = False,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(gradient_checkpointing=gradient_checkpointing, lora=lora)
        self.name, self.attention = name, attention
        self.dtype: torch.dtype = getattr(torch, dtype)

    def make(self, tokenizer: Any) -> Any:
        """Load it."""
        return load_model(self.name, dtype=self.dtype, attention=self.attention)
