"""Which models read a prompt once for several answers."""

from typing import Any

import pytest
import torch
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

from lit_adaptive.modules.language_model import LanguageModel
from lit_adaptive.modules.model_builders import attention_cost_ratio

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
