"""What models can do: plain heads, rows of several samples, prompts shared by several answers."""

import warnings
from typing import Any

import pytest
import torch
from tiny_language import TINY, demonstrations, fit
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lit_adaptive.modules import IWSFT, ConfiguredLM, LoRA
from lit_adaptive.modules.language.network import LanguageModel
from lit_adaptive.modules.language.probes import attention_cost_ratio
from lit_adaptive.rollout.models.pretrained import load_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GATED: dict[str, Any] = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    "model",
    [
        LlamaForCausalLM(LlamaConfig(**GATED)),
        GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4)),
        Qwen2ForCausalLM(Qwen2Config(**GATED)),
        MistralForCausalLM(MistralConfig(**GATED, sliding_window=None)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_models_with_plain_attention_share_prompts(model: Any) -> None:
    model.train()
    assert attention_cost_ratio(LanguageModel(model)) == pytest.approx(1 / (4 * 32))
    assert model.training


@pytest.mark.parametrize(
    "model",
    [
        MistralForCausalLM(MistralConfig(**GATED, sliding_window=64)),
        Qwen2ForCausalLM(
            Qwen2Config(**GATED, use_sliding_window=True, sliding_window=64, max_window_layers=1)
        ),
        LlamaForCausalLM._from_config(LlamaConfig(**GATED), attn_implementation="eager"),
        MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2)),
        FalconForCausalLM(FalconConfig(**SIZES, alibi=True)),
    ],
    ids=["mistral", "qwen2", "eager", "mamba", "alibi"],
)
def test_windows_recurrence_and_positions_by_order_rule_out_shared_prompts(model: Any) -> None:
    assert attention_cost_ratio(LanguageModel(model)) is None


def test_a_model_that_ignores_the_mask_does_not_share_prompts() -> None:
    torch.manual_seed(0)
    language = LanguageModel(LlamaForCausalLM(LlamaConfig(**GATED, initializer_range=0.1)))
    body = language.base.model
    plain = body.forward
    body.forward = lambda attention_mask=None, **more: plain(**more)
    assert attention_cost_ratio(language) is None


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_the_head_is_rejected(targets: list[str], tied: bool) -> None:
    model = ConfiguredLM(
        **TINY, lora=LoRA(4, targets=targets), options={"tie_word_embeddings": tied}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of tied weights
        with pytest.raises(ValueError, match="leave the head out of the LoRA's targets"):
            model.build(load_tokenizer("characters"))


def test_a_hook_on_the_head_is_rejected() -> None:
    class Hooked(ConfiguredLM):
        def make(self, tokenizer: Any) -> Any:
            model = super().make(tokenizer)
            model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)
            return model

    with pytest.raises(ValueError, match="or has hooks"):
        Hooked(**TINY).build(load_tokenizer("characters"))


def test_a_small_factor_of_the_logits_is_noticed() -> None:
    # Logits of a model with random weights are small: an absolute tolerance hid the factor.
    class Scaled(ConfiguredLM):
        def make(self, tokenizer: Any) -> Any:
            model = super().make(tokenizer)
            plain = model.forward

            def forward(*arguments: Any, **options: Any) -> Any:
                output = plain(*arguments, **options)
                output.logits = output.logits * 1.5
                return output

            model.forward = forward
            return model

    with pytest.raises(ValueError, match="computes its logits in an unsupported way"):
        Scaled(**TINY).build(load_tokenizer("characters"))


LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
        ("bloom", {"n_layer": 2, "n_head": 2}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("qwen3_5_text", LINEAR | {"num_hidden_layers": 2}),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16}),
    ],
)
@pytest.mark.filterwarnings("ignore")  # transformers', of missing kernels
def test_an_architecture_that_lets_packed_samples_mix_is_rejected(
    architecture: str, options: dict[str, Any]
) -> None:
    size = {"layers": 2 if "layer_types" in options else 1}
    model = ConfiguredLM(architecture, **(TINY | size), options=options)
    assert not model.build(load_tokenizer("characters")).packs
    module = IWSFT(model, objective="nll", max_new_tokens=0)
    with pytest.raises(ValueError, match=r"packing is true for dataset, .* set packing to false"):
        fit(module, demonstrations(packing=True, max_length=16, pack_length=48))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("mistral", {"sliding_window": 4}),
        ("gemma2", {"sliding_window": 4, "head_dim": 16}),
        ("phi", {}),
    ],
)
def test_an_architecture_that_separates_packed_samples_is_accepted(
    architecture: str, options: dict[str, Any]
) -> None:
    model = ConfiguredLM(architecture, **TINY, options=options)
    assert model.build(load_tokenizer("characters")).packs
