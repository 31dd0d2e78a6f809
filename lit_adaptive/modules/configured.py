"""A causal language model with random weights, of any architecture of transformers."""

from typing import Any

import torch

from lit_adaptive.modules.adapters import LoRA
from lit_adaptive.modules.model_builders import CausalLM


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
