"""Recipes of causal language models: pretrained or random weights, with or without LoRA.

A recipe is built when the strategy is ready for the model. Building checks that the model computes
its logits as ``LanguageModel`` assumes, and whether it can read rows with shared prompts.
"""

import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.modules.language_model import LanguageModel
from lit_adaptive.rollout.models.pretrained import load_model

DTypeName = Literal["float32", "bfloat16", "float16"]

# Cost of one attention pair in tokens of a decoder layer, times the hidden size. Measured on CPU as
# 1/4 to 1/6: a mask discards half of the products, and attention kernels are less efficient than a
# layer's other products.
_TOKENS_PER_PAIR = 0.25


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
        if rank <= 0:
            raise ValueError(f"rank is {rank}; it must be above 0")
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

    Args:
        gradient_checkpointing: recompute each layer in the backward pass, to save memory.
        lora: adapters to train instead of all weights.
    """

    def __init__(self, *, gradient_checkpointing: bool = False, lora: LoRA | None = None) -> None:
        self.gradient_checkpointing = gradient_checkpointing
        self.lora = lora

    @abstractmethod
    def make(self, tokenizer: Any) -> Any:
        """The transformers model."""

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
                "model's own tokenizer"
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


class PretrainedLM(CausalLM):
    """A pretrained model from a folder, a GGUF file, the hub, or a package (``smollm2``).

    Args:
        name: see ``lit_adaptive.rollout.models.pretrained``.
        dtype: data type of the weights.
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
        """Load the model."""
        return load_model(self.name, dtype=self.dtype, attention=self.attention)


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
        self.options: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": max_positions,
        }
        if architecture != "gpt2":
            self.options |= {
                "num_key_value_heads": heads,
                "intermediate_size": 4 * hidden_size,
                "tie_word_embeddings": True,
            }
        self.options |= options or {}

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
            from_config: Any = AutoModelForCausalLM.from_config
            model = from_config(config)
        return model.train()


def check_head(language: LanguageModel) -> None:
    """Check on eight tokens that ``language`` and the model's own logits agree.

    Raises:
        ValueError: if they do not, as for an architecture that transforms its logits further, or
            if the output head is not a plain linear layer, as with an adapter.
    """
    base = language.base
    head = base.get_output_embeddings()
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    if type(head) is not nn.Linear or any(getattr(head, name) for name in hooks):
        raise ValueError(
            f"the output head of {type(base).__name__} is {type(head).__module__}."
            f"{type(head).__qualname__}, or has hooks; log-probabilities are computed from its "
            "weight and bias alone, so an adapter on it would not be trained: leave the head out "
            "of the LoRA's targets"
        )
    device = head.weight.device
    if device.type == "meta":
        return
    ids = probe_tokens(language, 8)[None]
    position = torch.arange(7, device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with evaluation_mode(language):
        scores, _ = language(ids, torch.arange(8, device=device)[None], position, ids[0, 1:])
        logits = language.model(**inputs, use_cache=False).logits[0, :-1].float()
    logits = language.mask_logits(logits)
    finite = logits[logits.isfinite()]
    tolerance = 16 * torch.finfo(base.dtype).eps * finite.abs().max() + 0.02 * finite.std()
    expected = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    if bool(((scores.log_prob - expected).abs() > tolerance + 1e-5).any()):
        raise ValueError(
            f"{type(base).__name__} computes its logits in an unsupported way: its log-"
            f"probabilities are {expected.tolist()}, its head alone gives "
            f"{scores.log_prob.tolist()}: choose another architecture, or report this one"
        )


def probe_tokens(language: LanguageModel, count: int) -> Tensor:
    """``count`` different tokens, if there are so many, on the model's device."""
    device = language.base.get_output_embeddings().weight.device
    ids = language.existing_tokens()
    return ids[torch.arange(count).remainder(len(ids))].to(device)


def reads_packed_rows(language: LanguageModel) -> bool:
    """Whether samples in one row have the log-probabilities that they have in rows of their own.

    Two samples of six tokens are scored in one row; changing the first must not affect the second.
    Layers that carry a state from token to token (recurrent ones, convolutions), and attention that
    does not read the position ids, let it.
    """
    device = language.base.get_output_embeddings().weight.device
    if device.type == "meta":
        return True
    ids, size = probe_tokens(language, 18), 6
    first, second, other = ids.view(3, size)
    positions = torch.arange(size, device=device)
    places = torch.arange(size - 1, device=device)
    with evaluation_mode(language):
        try:
            packed, changed = (
                language(
                    torch.cat([neighbour, second])[None],
                    positions.repeat(2)[None],
                    places + size,
                    second[1:],
                )[0].log_prob
                for neighbour in (first, other)
            )
        except (TypeError, ValueError, RuntimeError, IndexError):  # does not accept such rows
            return False
        alone = language(second[None], positions[None], places, second[1:])[0].log_prob
    return torch.allclose(packed, changed, atol=1e-6, rtol=1e-6) and _close(language, packed, alone)


def _close(language: LanguageModel, left: Tensor, right: Tensor) -> bool:
    """Whether log-probabilities from tensors of different shapes agree up to rounding."""
    tolerance = 1e-5 if language.base.dtype == torch.float32 else 0.05
    return torch.allclose(left, right, atol=tolerance, rtol=tolerance)


def attention_cost_ratio(language: LanguageModel) -> float | None:
    """Cost of one attention pair of tokens, in tokens of a decoder layer.

    Returns:
        None if the model does not read rows of several completions behind one prompt as it reads
        one row per completion: models with sliding windows or recurrent layers, and attention
        implementations without a mask.
    """
    config = language.base.config.get_text_config()
    if language.base.config._attn_implementation != "sdpa":
        return None
    if getattr(config, "alibi", False):  # counts positions along the row
        return None
    layers = getattr(config, "layer_types", None)
    if layers is not None and set(layers) != {"full_attention"}:
        return None
    if layers is None and getattr(config, "sliding_window", None) is not None:
        return None
    return _TOKENS_PER_PAIR / config.hidden_size if _reads_shared_prompts(language) else None


def _reads_shared_prompts(language: LanguageModel) -> bool:
    """Whether two completions behind one prompt are scored as in two rows, and independently."""
    device = language.base.get_output_embeddings().weight.device
    if device.type == "meta":
        return True
    ids = probe_tokens(language, 9)
    positions, segment = (
        torch.tensor([row], device=device) for row in ([0, 1, 2, 3, 4, 3, 4], [0, 0, 0, 1, 1, 2, 2])
    )
    target, position = ids[:4], torch.tensor([3, 4, 5, 6], device=device)
    changed_ids = torch.cat([ids[:3], ids[7:], ids[5:7]])[None]
    two_rows = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 5, 6]], device=device)
    position_ids = torch.arange(5, device=device).expand(2, -1)
    with evaluation_mode(language):
        try:
            shared, changed = (
                language(row, positions, position, target, segment=segment)[0].log_prob
                for row in (ids[None, :7], changed_ids)
            )
        except (TypeError, ValueError, RuntimeError, IndexError):  # does not accept such a mask
            return False
        position = torch.tensor([3, 4, 8, 9], device=device)
        separate, _ = language(ids[two_rows], position_ids, position, target)
    independent = torch.allclose(shared[2:], changed[2:], atol=1e-6, rtol=1e-6)
    return independent and _close(language, shared, separate.log_prob)
