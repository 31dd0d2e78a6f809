"""How a causal language model comes to be: loaded or drawn at random, with or without adapters."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch

from lit_adaptive.modules.adapters import LoRA
from lit_adaptive.modules.language_model import LanguageModel
from lit_adaptive.rollout.pretrained import load_model

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
        language.check_head()
        return language


class PretrainedLM(CausalLM):
    """Weights from a folder, a GGUF file, a hub, or a package (``smollm2``).

    Args:
        name: see ``lit_adaptive.rollout.pretrained``.
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


class ConfiguredLM(CausalLM):
    """A model of any transformers architecture with random weights, to be trained from scratch.

    Args:
        architecture: transformers' ``model_type``, such as ``llama``, ``qwen2`` or ``gpt2``.
        hidden_size: above 0.
        layers: above 0.
        heads: above 0, a divisor of ``hidden_size``.
        max_positions: longest sequence, above 0.
        options: any other fields of the architecture's config.
        seed: of the weights; by default that of the run.
        gradient_checkpointing: see ``CausalLM``.
        lora: see ``CausalLM``.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(
        self,
        architecture: str = "llama",
        *,
        hidden_size: int = 128,
        layers: int = 2,
        heads: int = 4,
        max_positions: int = 256,
        options: dict[str, Any] | None = None,
        seed: int | None = None,
        gradient_checkpointing: bool = False,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(gradient_checkpointing=gradient_checkpointing, lora=lora)
        for name, value in (
            ("hidden_size", hidden_size),
            ("layers", layers),
            ("heads", heads),
            ("max_positions", max_positions),
        ):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if hidden_size % heads:
            raise ValueError(
                f"heads is {heads}; it must divide hidden_size, which is {hidden_size}"
            )
        self.architecture = architecture
        self.seed = seed
        self.options = {
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": max_positions,
            **(
                {
                    "num_key_value_heads": heads,
                    "intermediate_size": 4 * hidden_size,
                    "tie_word_embeddings": True,
                }
                if architecture != "gpt2"
                else {}
            ),
            **(options or {}),
        }

    def make(self, tokenizer: Any) -> Any:
        """Draw its weights."""
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.for_model(
                self.architecture,
                **{
                    "vocab_size": len(tokenizer),
                    "bos_token_id": tokenizer.bos_token_id,
                    "eos_token_id": tokenizer.eos_token_id,
                    "pad_token_id": tokenizer.pad_token_id,
                    **self.options,
                },
            )
        except ValueError as error:
            raise ValueError(
                f"architecture is {self.architecture!r}, which transformers does not know: give a "
                "model_type such as llama, qwen2 or gpt2"
            ) from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed() if self.seed is None else self.seed)
            make: Any = AutoModelForCausalLM.from_config
            model = make(config)
        return model.train()
