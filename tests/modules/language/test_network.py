"""Language models: log-probabilities, adapters, checkpointing, and the check of the head."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_adaptive.modules import ConfiguredLM, LanguageModel, LoRA, PretrainedLM
from lit_adaptive.modules.language.probes import check_head
from lit_adaptive.rollout.models.pretrained import load_tokenizer


def test_a_saved_model_is_loaded_exactly(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("characters")
    saved = ConfiguredLM(hidden_size=32, layers=1, heads=2, seed=3).build(tokenizer)
    saved.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = PretrainedLM(str(tmp_path)).build(load_tokenizer(str(tmp_path)))
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert loaded.training


def forward(language: LanguageModel, **options: Any) -> torch.Tensor:
    ids = torch.arange(4, 20).view(2, 8)
    output, _ = language(
        ids,
        torch.arange(8).expand(2, 8),
        torch.tensor([0, 3, 9]),
        torch.tensor([5, 6, 7]),
        **options,
    )
    return output.log_prob


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma2", "cohere", "olmo2"])
def test_log_probabilities_are_those_of_the_models_logits(architecture: str) -> None:
    # Gemma caps its logits, Cohere scales them; GPT-2 has learned positions.
    tokenizer = load_tokenizer("characters")
    builder = ConfiguredLM(architecture, hidden_size=32, layers=2, heads=2, seed=0)
    language = builder.build(tokenizer).eval()
    ids = torch.arange(4, 20).view(2, 8)
    logits = language.model(ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)
    expected = logits.flatten(0, 1)[[0, 3, 9], [5, 6, 7]]
    torch.testing.assert_close(forward(language), expected, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    tokenizer = load_tokenizer("characters")
    gradients = []
    for checkpointing in (False, True):
        language = ConfiguredLM(
            hidden_size=32, layers=2, heads=2, seed=0, gradient_checkpointing=checkpointing
        ).build(tokenizer)
        layers = [getattr(layer, "gradient_checkpointing", False) for layer in language.layers]
        assert layers == [checkpointing] * 2
        forward(language).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in language.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_only_adapters_are_trained_and_disabled_they_change_nothing() -> None:
    tokenizer = load_tokenizer("characters")
    plain = ConfiguredLM(hidden_size=32, layers=1, heads=2, seed=0).build(tokenizer).eval()
    builder = ConfiguredLM(hidden_size=32, layers=1, heads=2, seed=0, lora=LoRA(4))
    adapted = builder.build(tokenizer).eval()
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    assert not torch.allclose(forward(adapted), forward(plain), atol=1e-3)
    with adapted.model.disable_adapter():
        torch.testing.assert_close(forward(adapted), forward(plain))


def test_an_unknown_scale_of_the_logits_is_rejected() -> None:
    tokenizer = load_tokenizer("characters")
    language = ConfiguredLM(hidden_size=32, layers=1, heads=2, seed=0).build(tokenizer)
    language._scale = 3.0  # as if the architecture scaled its logits
    with torch.no_grad():
        language.model.get_output_embeddings().weight.mul_(30)
    with pytest.raises(ValueError, match="computes its logits in an unsupported way"):
        check_head(language)


def test_label_smoothing_with_capped_logits_is_rejected() -> None:
    tokenizer = load_tokenizer("characters")
    language = ConfiguredLM("gemma2", hidden_size=32, layers=1, heads=2).build(tokenizer)
    with pytest.raises(ValueError, match="label smoothing is not possible with capped logits"):
        forward(language, smoothing=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConfiguredLM(layers=0), "layers is 0"),
        (lambda: ConfiguredLM(hidden_size=30, heads=4), "heads is 4; it must divide"),
        (lambda: LoRA(0), "rank is 0"),
        (lambda: LoRA(dropout=1.0), "dropout is 1.0"),
        (
            lambda: ConfiguredLM("no_such_thing").build(load_tokenizer("characters")),
            "architecture is 'no_such_thing'",
        ),
    ],
)
def test_an_invalid_option_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_gaps_between_ids_have_probability_0_and_top_tokens_keep_their_ids() -> None:
    model = (
        ConfiguredLM("gemma2", hidden_size=32, layers=1, heads=2, seed=0)
        .make(load_tokenizer("characters"))
        .eval()
    )
    size = len(load_tokenizer("characters"))
    tokens = [i for i in range(size - 3) if i % 7]
    language = LanguageModel(model, tokens)
    ids = torch.tensor(tokens[:8])[None]
    with torch.no_grad():
        scores, _ = language(ids, torch.arange(8)[None], torch.arange(7), ids[0, 1:], top_k=3)
        logits = model(ids).logits[0, :-1]
    absent = [i for i in range(size) if i not in tokens]
    logits[:, absent] = -torch.inf  # softcapped logits, so a bias before the cap would not do
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(
        scores.log_prob, expected.gather(-1, ids[0, 1:, None])[:, 0], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(scores.top_token, expected.topk(3).indices)
    assert language.suppressed_tokens() == absent
