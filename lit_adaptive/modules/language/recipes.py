"""Recipes of causal language models: pretrained or random weights, with or without LoRA.

A recipe is built when the strategy is ready for the model. Building probes the model (``probes``).
"""

import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.modules.language.network import LanguageModel
from lit_adaptive.modules.language.probes import (
    attention_cost_ratio,
    check_head,
    reads_packed_rows,
)
from lit_adaptive.rollout.models.pretrained import load_model, transformers_quiet

DTypeName = Literal["float32", "bfloat16", "float16"]


class LoRA:
    """Low-rank adapters (Hu et al., 2022, arXiv:2106.09685), trained instead of all weights.

    Args:
        rank: rank of the adapters, above 0.
        alpha: the adapters' output is multiplied by alpha / rank.
        dropout: dropout probability of the adapters' input, in [0, 1).
        targets: names of the modules that get an adapter; by default all linear ones except the
            output head, which cannot have one.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: list[str] | None = None,
    ) -> None:
        check_at_least(rank=(rank, 1))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets

    @property
    def facts(self) -> dict[str, Any]:
        """What the adapters' output depends on, beside their weights."""
        return {"rank": self.rank, "alpha": float(self.alpha), "targets": self.targets}

    def apply(self, model: Any) -> Any:
        """``model`` with adapters, which are its only trainable weights.

        Raises:
            ModuleNotFoundError: if peft is not installed.
        """
        try:
            import peft
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "LoRA needs the package `peft`: pip install 'lit-adaptive[lora]'"
            ) from error
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self.targets or "all-linear",
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            # peft uses a name that transformers deprecates
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            return peft.get_peft_model(model, config)


class CausalLM(ABC):
    """A recipe of a causal language model.

    A subclass keeps each constructor argument as an attribute of the same name: checkpoints hold
    them, to build the model again.

    Args:
        gradient_checkpointing: recompute each layer in the backward pass, to save memory.
        lora: adapters to train instead of all weights.
    """

    def __init__(self, *, gradient_checkpointing: bool = False, lora: LoRA | None = None) -> None:
        self.gradient_checkpointing = gradient_checkpointing
        self.lora = lora

    @abstractmethod
    def make(self, tokenizer: Any) -> Any:
        """The transformers model, with an embedding for each of the tokenizer's tokens."""

    def build(self, tokenizer: Any) -> LanguageModel:
        """The model with its adapters, checked against ``tokenizer``.

        Raises:
            ValueError: if the tokenizer has more tokens than the model embeds, the model computes
                its logits in an unsupported way, or its output head has an adapter.
        """
        model = self.make(tokenizer)
        embedded = model.get_input_embeddings().num_embeddings
        tokens = {*tokenizer.get_vocab().values()}
        if max(tokens) >= embedded:
            raise ValueError(
                f"the tokenizer has {max(tokens) + 1} tokens, the model embeds {embedded}: use the "
                "model's own tokenizer or, for tokens that were added to it, set the model's "
                "resize_embeddings to true"
            )
        if self.gradient_checkpointing:
            renamed = getattr(model, "activation_checkpointing_enable", None)  # since 5.2x
            (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})
        if self.lora is not None:
            model = self.lora.apply(model)
        language = LanguageModel(model, tokens)
        check_head(language)
        language.packs = reads_packed_rows(language)
        language.attention_cost_ratio = attention_cost_ratio(language)
        return language

    def facts(self, language: LanguageModel) -> dict[str, Any]:
        """What the output of ``language`` depends on, beside its weights: config and adapters."""
        adapters = {} if self.lora is None else self.lora.facts
        return {f"lora {name}": value for name, value in adapters.items()} | language.config_facts()


class PretrainedLM(CausalLM):
    """A pretrained model from a folder, a GGUF file, the hub, or a package (``smollm2``).

    Args:
        name: see ``lit_adaptive.rollout.models.pretrained``.
        dtype: data type of the weights.
        attention: transformers' name of an attention implementation.
        resize_embeddings: give the tokens of the tokenizer that the model does not embed rows of
            their own, about the mean of the others.
        gradient_checkpointing: see ``CausalLM``.
        lora: see ``CausalLM``.

    Raises:
        ValueError: if ``resize_embeddings`` is set and ``lora`` freezes the embeddings.
    """

    def __init__(
        self,
        name: str,
        *,
        dtype: DTypeName = "float32",
        attention: str = "sdpa",
        resize_embeddings: bool = False,
        gradient_checkpointing: bool = False,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(gradient_checkpointing=gradient_checkpointing, lora=lora)
        if resize_embeddings and lora is not None and lora.targets is None:
            raise ValueError(
                "resize_embeddings is true, but lora freezes the embeddings, so that new tokens "
                "would never be learned: set lora to null or, where input and output embeddings "
                "are not tied, name the input embedding in its targets"
            )
        self.name, self.attention, self.resize_embeddings = name, attention, resize_embeddings
        self.dtype: torch.dtype = getattr(torch, dtype)

    def make(self, tokenizer: Any) -> Any:
        """Load the model."""
        model = load_model(self.name, dtype=self.dtype, attention=self.attention)
        size = max(tokenizer.get_vocab().values()) + 1
        if self.resize_embeddings and size > model.get_input_embeddings().num_embeddings:
            # The same noise for the policy, its reference, and the model of a LoRA's checkpoint.
            with torch.random.fork_rng(devices=[]), transformers_quiet():
                torch.manual_seed(0)
                model.resize_token_embeddings(size)
        return model


class ConfiguredLM(CausalLM):
    """A model of any transformers architecture with random weights, to train from scratch.

    Args:
        architecture: transformers' ``model_type``, such as ``llama``, ``qwen2`` or ``gpt2``.
        hidden_size: width of the hidden states, above 0.
        layers: number of decoder layers, above 0.
        heads: number of attention heads, above 0 and a divisor of ``hidden_size``.
        max_positions: maximum length of a sequence in tokens, above 0.
        options: any other fields of the architecture's config.
        seed: seed of the weights; by default that of the run.
        gradient_checkpointing: see ``CausalLM``.
        lora: see ``CausalLM``.

    Raises:
        ValueError: if an argument is out of range.
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
        check_at_least(
            hidden_size=(hidden_size, 1), heads=(heads, 1), max_positions=(max_positions, 1)
        )
        check_at_least(10_000, layers=(layers, 1))
        check_at_least(seed=(seed, 0))
        if hidden_size % heads:
            raise ValueError(
                f"heads is {heads}; it must divide hidden_size, which is {hidden_size}"
            )
        self.architecture, self.hidden_size, self.layers = architecture, hidden_size, layers
        self.heads, self.max_positions = heads, max_positions
        self.options = options or {}
        self.seed = seed

    def _fields(self) -> dict[str, Any]:
        """Fields of the architecture's config, beside those of the tokenizer."""
        fields: dict[str, Any] = {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.max_positions,
        }
        if self.architecture != "gpt2":
            fields |= {
                "num_key_value_heads": self.heads,
                "intermediate_size": 4 * self.hidden_size,
                "tie_word_embeddings": True,
            }
        return fields | self.options

    def make(self, tokenizer: Any) -> Any:
        """Initialize the model at random."""
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.for_model(
                self.architecture,
                **{
                    "vocab_size": len(tokenizer),
                    "bos_token_id": tokenizer.bos_token_id,
                    "eos_token_id": tokenizer.eos_token_id,
                    "pad_token_id": tokenizer.pad_token_id,
                    **self._fields(),
                },
            )
        except ValueError as error:
            raise ValueError(
                f"architecture is {self.architecture!r}, which transformers does not know: give a "
                "model_type such as llama, qwen2 or gpt2"
            ) from error
        if self.seed is None:
            self.seed = torch.initial_seed()  # in the checkpoint, for the weights under a LoRA
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            from_config: Any = AutoModelForCausalLM.from_config
            model = from_config(config)
        return model.train()
