"""Causal language models: how one comes to be, and what training and decoding ask of it."""

import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_adaptive.core.logprobs import TokenLogProbs, token_log_probs
from lit_adaptive.rollout.pretrained import load_model

DTypeName = Literal["float32", "bfloat16", "float16"]


class LoRA:
    """Low-rank adapters (Hu et al., 2022, arXiv:2106.09685) in place of training all weights.

    Args:
        rank: above 0.
        alpha: the adapters' output is multiplied by alpha / rank.
        dropout: of the adapters' input, in [0, 1).
        targets: names of the modules that get an adapter; by default all linear ones but the head.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: list[str] | None = None,
    ) -> None:
        if rank <= 0:
            raise ValueError(f"rank is {rank}; it must be above 0")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets

    def applied(self, model: Any) -> Any:
        """``model`` with adapters, the only part that is trained.

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
            # peft still asks transformers by a name that will go
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            return peft.get_peft_model(model, config)


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

    def build(self, tokenizer: Any) -> "LanguageModel":
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
            model.gradient_checkpointing_enable({"use_reentrant": False})
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


class LanguageModel(nn.Module):
    """A transformers model asked for log-probabilities of given tokens, or for the next token.

    The logits of a whole batch are never held (``core.logprobs``); those of prompts are not even
    computed.

    Args:
        model: a causal language model of transformers, with or without peft's adapters.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = self._base.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        scale = getattr(config, "logit_scale", None)  # Cohere multiplies, Granite divides
        divisor = getattr(config, "logits_scaling", None)
        self._scale = float(scale if scale is not None else 1 / (divisor or 1.0))

    @property
    def _base(self) -> Any:
        """The transformers model itself, under the adapters."""
        return self.model.get_base_model() if self.adapted else self.model

    @property
    def adapted(self) -> bool:
        """Whether it has adapters, which can be switched off."""
        return hasattr(self.model, "disable_adapter")

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, in order."""
        modules = self._base.modules()
        lists = [list(each) for each in modules if isinstance(each, nn.ModuleList)]
        return max(lists, key=len, default=[])

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        position: Tensor,
        target: Tensor,
        *,
        entropy: bool = False,
        top_k: int = 0,
        smoothing: bool = False,
    ) -> tuple[TokenLogProbs, Tensor | None]:
        """Log-probabilities of the ``target`` tokens.

        Args:
            input_ids: ``[R, T]`` int64, right-padded.
            position_ids: ``[R, T]`` int64; where it does not go on by 1, another sequence begins.
            position: ``[K]`` int64, flat places in ``[R * T]`` whose hidden state predicts.
            target: ``[K]`` int64, what follows there.
            entropy: also the entropy ``[K]``.
            top_k: also so many of the likeliest tokens.
            smoothing: also the mean log-probability over the vocabulary ``[K]``, with gradient.
        """
        base = self._base
        body = getattr(base, base.base_model_prefix)
        hidden = body(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
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
                f"{type(self._base).__name__}): set label_smoothing to 0"
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

    @torch.no_grad()
    def check_head(self) -> None:
        """Four tokens' log-probabilities must be what the model's own logits say.

        Raises:
            ValueError: if they are not, as for an architecture that does more to its logits.
        """
        device = self._base.get_input_embeddings().weight.device
        if device.type == "meta":
            return
        training = self.training
        self.eval()
        ids = torch.arange(4, device=device).remainder(self._base.config.vocab_size)[None]
        places = torch.arange(3, device=device)
        ours, _ = self(ids, torch.arange(4, device=device)[None], places, ids[0, 1:])
        everything = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = self.model(**everything, use_cache=False).logits[0, :-1].float()
        theirs = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        self.train(training)
        if not torch.allclose(ours.log_prob, theirs, atol=0.1, rtol=0.02):
            raise ValueError(
                f"{type(self._base).__name__} makes its logits in a way that is not known here: "
                f"it gives {theirs.tolist()} where its head alone gives {ours.log_prob.tolist()}: "
                "choose another architecture, or report this one"
            )
